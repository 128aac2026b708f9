"""The pair on which keys travel to the data plane: requests out, reports in, and the timer of the sessions.

It transports the messages of ``sessions`` without interpreting them. A closed pair is not a failure: the supervisor
sends another one with the next data plane, and the sessions are compared then.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from qre.dataplane.protocol import DataplaneReport, Refusal, Stray, refused
from qre.errors import MachineError, UntrustedInputError
from qre.ipc.channel import Channel, ChannelClosedError, MessageTooLargeError
from qre.workers.handshake.sessions.live_sessions import Sessions

_BATCH: Final = 64
_RETRY: Final = 0.02


class DataplaneLink:
    """``changed`` is called whenever ``sessions`` has events; ``broken`` when the data plane violates the
    protocol; ``strayed`` with every packet that came to a session and is somebody else's."""

    def __init__(
        self,
        sessions: Sessions,
        changed: Callable[[], None],
        broken: Callable[[str], None],
        strayed: Callable[[Stray], None] | None = None,
    ) -> None:
        self._sessions = sessions
        self._changed = changed
        self._broken = broken
        self._strayed = strayed
        self._channel: Channel[DataplaneReport] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._pumping = False
        #: The client's underlay sockets by number; the code that adds them owns them.
        self.sockets: dict[int, int] = {}

    def use(self, fd: int) -> None:
        """Use a new pair; takes ownership of ``fd``."""
        self._drop()
        self._channel = Channel(socket.socket(fileno=fd), DataplaneReport)
        asyncio.get_running_loop().add_reader(fd, self._readable)
        self._sessions.connected(time.monotonic())
        self.pump()

    def close(self) -> None:
        """Close the pair and the timer; reports that have not been read are lost."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pump(self) -> None:
        """Send the sessions' requests, report their events, set the timer. Call it after every change."""
        if self._pumping:
            return
        self._pumping = True
        try:
            self._flush()
            while self._sessions.events:
                self._changed()
                self._flush()
        finally:
            self._pumping = False
        self._arm()

    def _drop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._sessions.disconnected()

    def _flush(self) -> None:
        outbox = self._sessions.outbox
        while outbox and self._retry is None:
            if self._channel is None:
                return
            outgoing = outbox[0]
            fds = []
            if outgoing.socket_number:
                fd = self.sockets.get(outgoing.socket_number)
                if fd is None:
                    outbox.popleft()
                    answer = refused(outgoing.request.id, Refusal.OTHER, "the session's socket is gone")
                    self._sessions.received(answer, time.monotonic())
                    continue
                fds = [fd]
            try:
                self._channel.send(outgoing.request, fds)
            except ChannelClosedError:
                self._drop()
                return
            except MessageTooLargeError as error:
                outbox.popleft()
                self._broken(str(error))
                return
            except MachineError:
                self._retry = asyncio.get_running_loop().call_later(_RETRY, self._try_again)
                return
            outbox.popleft()

    def _try_again(self) -> None:
        self._retry = None
        self.pump()

    def _readable(self) -> None:
        if self._channel is not None:
            self._channel.drain(self._take, closed=self._drop, malformed=self._malformed)
        self.pump()

    def _take(self, report: DataplaneReport, fds: list[int]) -> None:
        del fds  # it has none to give
        if isinstance(report, Stray):
            if self._strayed is not None:
                self._strayed(report)
            return
        self._sessions.received(report, time.monotonic())

    def _malformed(self, error: UntrustedInputError) -> None:
        self._broken(f"the data plane sent a malformed report: {error}")

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._sessions.timer()
        if at is not None:
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._sessions.handle_timer(time.monotonic())
        self.pump()
