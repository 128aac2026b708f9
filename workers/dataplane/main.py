"""The data plane worker: descriptors and requests in, events out. The packets are in ``device.py``.

It holds the TUN device, the number marks, the server's kernel-slot socket, and the pair on which the handshake worker
speaks (``keys``); no capability, no files. Keys come over that pair alone and go nowhere.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque

from qre.errors import MachineError, QreError, UntrustedInputError
from qre.ipc.channel import Channel, ChannelClosedError
from qre.ipc.messages import DataplaneStatus, Party
from qre.ipc.worker import WorkerContext
from qre.session import Answer, DataplaneReport, DataplaneRequest, Message, Role
from qre.workers.dataplane.device import Device, Request
from qre.workers.dataplane.marks import NumberMarks

#: Reports that wait for a handshake worker that does not read, or is being restarted; the oldest go first.
_MAX_WAITING = 1024
_RETRY = 0.05
_BATCH = 64


class DataplaneWorker:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self) -> None:
        self._context: WorkerContext | None = None
        self._marks: NumberMarks | None = None
        self._device: Device | None = None
        self._keys: Channel[Request] | None = None
        self._waiting: deque[DataplaneReport] = deque(maxlen=_MAX_WAITING)
        self._retry: asyncio.TimerHandle | None = None

    @property
    def _ready(self) -> tuple[WorkerContext, Device]:
        if self._context is None or self._device is None:
            raise QreError("data plane", "not started")
        return self._context, self._device

    async def start(self, context: WorkerContext) -> None:
        self._context = context
        wanted = {"tun", "number_marks", "keys"}
        server = context.config.role is Role.SERVER
        if server:
            wanted.add("udp_kernel_slot")
        missing = wanted - context.descriptors.keys()
        if missing:
            raise MachineError("data plane", f"descriptors are missing: {', '.join(sorted(missing))}")
        marks = context.descriptors.pop("number_marks")
        try:
            self._marks = NumberMarks(marks)
        finally:
            os.close(marks)
        dest = context.config.dest_profile
        self._device = Device(
            context.descriptors.pop("tun"),
            self._marks,
            self._report,
            server_socket=context.descriptors.pop("udp_kernel_slot") if server else None,
            ecn=dest.ecn if server and dest is not None else 0,
        )
        self._use_keys(context.descriptors.pop("keys"))

    async def reload(self) -> None:
        """Nothing of what a reload may change is ours."""

    async def handle(self, source: Party, message: Message) -> Message:
        raise QreError("data plane", f"{type(message).__name__} from {source} is not for it")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """A new ``keys`` pair comes whenever the handshake worker was restarted."""
        if name == "keys" and self._device is not None:
            self._use_keys(fd)
        else:
            os.close(fd)

    async def status(self) -> Message:
        _, device = self._ready
        return DataplaneStatus(counters=device.counters(), sessions=device.registry.status(device.now()))

    async def stop(self) -> None:
        if self._device is not None:
            self._device.close()  # its last reports still go to the handshake worker
            self._device = None
        self._close_keys()
        if self._marks is not None:
            self._marks.close()
            self._marks = None

    # --- the handshake worker ---

    def _use_keys(self, fd: int) -> None:
        self._close_keys()
        # Answers belong to the handshake worker that asked; the next one counts its requests from the beginning.
        kept = [report for report in self._waiting if not isinstance(report, Answer)]
        self._waiting = deque(kept, maxlen=_MAX_WAITING)
        self._keys = Channel(socket.socket(fileno=fd), DataplaneRequest)
        asyncio.get_running_loop().add_reader(fd, self._keys_readable)
        self._flush()

    def _close_keys(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._keys is not None:
            asyncio.get_running_loop().remove_reader(self._keys.fileno())
            self._keys.close()
            self._keys = None

    def _keys_readable(self) -> None:
        context, device = self._ready
        for _ in range(_BATCH):
            channel = self._keys
            if channel is None:
                return
            try:
                received = channel.receive()
            except ChannelClosedError:
                self._close_keys()  # the supervisor sends another pair with the next handshake worker
                return
            except UntrustedInputError as error:
                context.fail(f"the handshake worker sent what is no request: {error}")
                return
            if received is None:
                return
            request, fds = received
            self._report(device.handle(request, fds))

    def _report(self, report: DataplaneReport) -> None:
        self._waiting.append(report)
        if self._retry is None:
            self._flush()

    def _flush(self) -> None:
        """Send what waits; again in a moment when the handshake worker does not read."""
        self._retry = None
        while self._waiting and self._keys is not None:
            try:
                self._keys.send(self._waiting[0])
            except ChannelClosedError:
                self._close_keys()
                return
            except MachineError:
                self._retry = asyncio.get_running_loop().call_later(_RETRY, self._flush)
                return
            self._waiting.popleft()


def create() -> DataplaneWorker:
    """The worker, before its sandbox: everything it will ever import is imported."""
    return DataplaneWorker()
