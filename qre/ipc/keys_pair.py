"""The data plane's end of the pair on which keys travel: requests in, reports out, each in order.

The other end is the handshake worker's; a new pair comes whenever one of the two was started. Reports wait while
no handshake worker reads them, and the oldest are dropped when there are too many. It must never log what it carries.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from qre.dataplane.protocol import Answer, DataplaneReport, DataplaneRequest
from qre.errors import MachineError, UntrustedInputError
from qre.ipc.channel import Channel, ChannelClosedError, MessageTooLargeError

#: Reports that wait for a handshake worker that does not read or is being restarted; the oldest are dropped first.
_MAX_WAITING: Final = 1024
_RETRY: Final = 0.05


class KeysPair:
    """``handle`` takes each request with its descriptors, closes them, and gives exactly one answer (``report``).
    ``fail`` is called with the reason when this process cannot continue."""

    def __init__(self, handle: Callable[[DataplaneRequest, list[int]], None], fail: Callable[[str], None]) -> None:
        self._handle = handle
        self._fail = fail
        self._channel: Channel[DataplaneRequest] | None = None
        self._waiting: deque[DataplaneReport] = deque(maxlen=_MAX_WAITING)
        self._retry: asyncio.TimerHandle | None = None

    def use(self, fd: int) -> None:
        """A new pair; ``fd`` is ours from here on."""
        self.close()
        # Answers belong to the handshake worker that asked; the next one counts its requests from the beginning.
        kept = [report for report in self._waiting if not isinstance(report, Answer)]
        self._waiting = deque(kept, maxlen=_MAX_WAITING)
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
        """Queue ``report`` and send it as soon as the socket has room, in order."""
        self._waiting.append(report)
        if self._retry is None:
            self._flush()

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
        while self._waiting and self._channel is not None:
            try:
                self._channel.send(self._waiting[0])
            except ChannelClosedError:
                self.close()
                return
            except MessageTooLargeError as error:
                self._waiting.popleft()
                self._fail(str(error))
                return
            except MachineError:
                self._retry = asyncio.get_running_loop().call_later(_RETRY, self._flush)
                return
            self._waiting.popleft()
