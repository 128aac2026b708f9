"""The data plane worker: descriptors and requests in, events out. The packets are in ``device.py``.

It holds the TUN device, the number marks, the server's kernel-slot socket, and the pair with the handshake worker
(``keys``); no capability, no files. Keys come over that pair alone and leave the process nowhere.
"""

from __future__ import annotations

import os

from qre.dataplane.protocol import DataplaneReport, DataplaneRequest
from qre.dataplane.status import bounded
from qre.ends import Role
from qre.errors import QreError
from qre.ipc.keys_pair import KeysPair
from qre.ipc.messages import DataplaneStatus, DestProfileReport, Done, Party
from qre.ipc.worker import WorkerContext
from qre.structs import Message
from qre.workers.dataplane.device import Device
from qre.workers.dataplane.session.marks import NumberMarks


class DataplaneWorker:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self) -> None:
        self._context: WorkerContext | None = None
        self._marks: NumberMarks | None = None
        self._device: Device | None = None
        self._keys: KeysPair | None = None

    @property
    def _ready(self) -> tuple[WorkerContext, Device]:
        if self._context is None or self._device is None:
            raise QreError("data plane", "not started")
        return self._context, self._device

    async def start(self, context: WorkerContext) -> None:
        """Take over the TUN descriptor, the marks and the sockets. Raises MachineError when one is missing."""
        self._context = context
        server = context.config.role is Role.SERVER
        marks = context.descriptors.pop("number_marks")
        try:
            self._marks = NumberMarks(marks)
        finally:
            os.close(marks)
        self._keys = KeysPair(self._handle, context.fail)
        dest = context.config.dest_profile
        self._device = Device(
            context.descriptors.pop("tun"),
            self._marks,
            self._report,
            server_socket=context.descriptors.pop("udp_kernel_slot") if server else None,
            ecn=dest.ecn if server and dest is not None else 0,
            say=context.limited,
        )
        self._keys.use(context.descriptors.pop("keys"))

    async def reload(self) -> None:
        """Nothing to do: no setting of this worker can change in a reload."""

    async def handle(self, source: Party, message: Message) -> Message:
        """The profile of Dest, whose mark new sessions have. Raises QreError for anything else: requests come over
        the pair with the handshake worker."""
        if isinstance(message, DestProfileReport) and source is Party.SUPERVISOR and self._device is not None:
            self._device.registry.ecn = message.profile.ecn
            return Done()
        raise QreError("data plane", f"{type(message).__name__} from {source} is not for it")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """A new ``keys`` pair comes whenever the handshake worker was restarted."""
        if name == "keys" and self._device is not None and self._keys is not None:
            self._keys.use(fd)
        else:
            os.close(fd)

    async def status(self) -> Message:
        """Counters of the device and of each session."""
        _, device = self._ready
        return DataplaneStatus(counters=device.counters(), sessions=bounded(device.registry.status(device.now())))

    async def stop(self) -> None:
        """Close the device, the pair and the marks, in that order; can be called twice."""
        if self._device is not None:
            self._device.close()  # its last reports still go to the handshake worker
            self._device = None
        if self._keys is not None:
            self._keys.close()
        if self._marks is not None:
            self._marks.close()
            self._marks = None

    def _handle(self, request: DataplaneRequest, fds: list[int]) -> None:
        _, device = self._ready
        self._report(device.handle(request, fds))

    def _report(self, report: DataplaneReport) -> None:
        if self._keys is not None:
            self._keys.report(report)


def create() -> DataplaneWorker:
    """The worker, before its sandbox: everything it will ever import is imported."""
    return DataplaneWorker()
