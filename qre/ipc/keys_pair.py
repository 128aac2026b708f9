"""The data plane's end of the pair on which keys travel: requests in, reports out, each in order.

The other end is the handshake worker's; a new pair comes whenever one of the two was started. Reports wait while
no handshake worker reads them. What outsiders and clients can make many of is dropped beyond a bound of its own, and
never pushes out anything else: strays, of which the oldest go, and frames, of which each session has so many. It must
never log what it carries.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Final

from qre.dataplane.protocol import (
    Answer,
    DataplaneReport,
    DataplaneRequest,
    FrameReceived,
    PeerMoved,
    SessionSilent,
    Stray,
)
from qre.ends import MAX_CLIENTS
from qre.errors import MachineError, UntrustedInputError
from qre.ipc.channel import Channel, ChannelClosedError, MessageTooLargeError

#: What waits for a handshake worker that does not read or is being restarted: strays; frames of one session; all but
#: strays, of which that many never wait for one that works.
_MAX_STRAYS: Final = 64
_MAX_FRAMES: Final = 16
_MAX_WAITING: Final = 8 * MAX_CLIENTS
#: Of one session, the latest alone counts.
_LATEST: Final = (PeerMoved, SessionSilent)
_RETRY: Final = 0.05


class KeysPair:
    """``handle`` takes each request with its descriptors, closes them, and gives exactly one answer (``report``).
    ``fail`` is called with the reason when this process cannot continue."""

    def __init__(self, handle: Callable[[DataplaneRequest, list[int]], None], fail: Callable[[str], None]) -> None:
        self._handle = handle
        self._fail = fail
        self._channel: Channel[DataplaneRequest] | None = None
        self._waiting: OrderedDict[object, DataplaneReport] = OrderedDict()
        self._frames: Counter[bytes] = Counter()  # of those, by session
        self._strays: deque[Stray] = deque(maxlen=_MAX_STRAYS)
        self._next_key = 0
        self._retry: asyncio.TimerHandle | None = None

    def use(self, fd: int) -> None:
        """A new pair; ``fd`` is ours from here on."""
        self.close()
        # Answers belong to the handshake worker that asked; the next one counts its requests from the beginning.
        for key in [key for key, report in self._waiting.items() if isinstance(report, Answer)]:
            del self._waiting[key]
        self._channel = Channel(socket.socket(fileno=fd), DataplaneRequest)
        asyncio.get_running_loop().add_reader(fd, self._readable)
        self._flush()

    def close(self) -> None:
        """Close the pair; reports that are still waiting to be sent are lost."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def report(self, report: DataplaneReport) -> None:
        """Queue ``report`` and send it as soon as the socket has room, in order; strays after everything else."""
        if isinstance(report, Stray):
            self._strays.append(report)
        elif not self._has_room(report):
            return
        elif isinstance(report, _LATEST):
            self._waiting[type(report), report.session_id] = report
        else:
            self._next_key += 1
            self._waiting[self._next_key] = report
        if self._retry is None:
            self._flush()

    def _has_room(self, report: DataplaneReport) -> bool:
        """Count it."""
        if isinstance(report, FrameReceived):
            if self._frames[report.session_id] >= _MAX_FRAMES:
                return False
            self._frames[report.session_id] += 1
        elif len(self._waiting) >= _MAX_WAITING:
            self._fail("the handshake worker does not read its reports")
            return False
        return True

    def _readable(self) -> None:
        if self._channel is not None:
            # Once it is closed, the supervisor sends another pair with the next handshake worker.
            self._channel.drain(self._take, closed=self.close, malformed=self._malformed)

    def _take(self, request: DataplaneRequest, fds: list[int]) -> None:
        handed = fds.copy()
        fds.clear()
        self._handle(request, handed)

    def _malformed(self, error: UntrustedInputError) -> None:
        self._fail(f"the handshake worker sent a malformed request: {error}")

    def _flush(self) -> None:
        """Send the waiting reports; retry in a moment when the handshake worker does not read."""
        self._retry = None
        while (self._waiting or self._strays) and self._channel is not None:
            try:
                self._channel.send(next(iter(self._waiting.values())) if self._waiting else self._strays[0])
            except ChannelClosedError:
                self.close()
                return
            except MessageTooLargeError as error:
                self._sent()
                self._fail(str(error))
                return
            except MachineError:
                self._retry = asyncio.get_running_loop().call_later(_RETRY, self._flush)
                return
            self._sent()

    def _sent(self) -> None:
        """The first one does not wait any more."""
        if not self._waiting:
            self._strays.popleft()
            return
        _, report = self._waiting.popitem(last=False)
        if isinstance(report, FrameReceived):
            self._frames[report.session_id] -= 1
            if not self._frames[report.session_id]:
                del self._frames[report.session_id]
