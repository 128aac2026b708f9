"""The worker `netlink`: the only process of a daemon that keeps CAP_NET_ADMIN while it runs.

It brings the daemon's own device in line with the configuration when the supervisor says so, and reports when
somebody removed it. Requests are a closed set (``handle``), and whatever names another device than the daemon's own
is refused. It reads no packet and holds no key. Generic netlink (qre.ko) is spoken over the same ``NetlinkSocket``:
its family stands beside ``Rtnl``, opened and closed where that is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os

from qre.errors import InternalError, MachineError, UserError
from qre.ipc.messages import Done, LinkGone, NetlinkStatus, Party, SyncDevice
from qre.ipc.worker import Worker, WorkerContext
from qre.session import Message
from qre.workers.netlink.device import DeviceSpec, sync_device
from qre.workers.netlink.monitor import LinkMonitor
from qre.workers.netlink.rtnl import Link, Rtnl
from qre.workers.netlink.tun import is_ours


def create() -> Worker:
    """The worker; opens nothing yet."""
    return NetlinkWorker()


class _Running:
    """What the worker has between ``start`` and ``stop``."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.rtnl = Rtnl()
        self.gone = asyncio.Event()
        self.present = self.link() is not None
        try:
            self.monitor = LinkMonitor(self.look, context.fail)
        except MachineError:
            self.rtnl.close()
            raise
        self.reporter = asyncio.create_task(self.report())

    def link(self) -> Link | None:
        """The daemon's device; None when it is gone, or somebody else's now."""
        config = self.context.config
        link = self.rtnl.link(config.device)
        return link if link is not None and is_ours(link, config.profile) else None

    def look(self) -> None:
        """Compare what is there with what was there."""
        try:
            present = self.link() is not None
        except MachineError as error:
            self.context.fail(str(error))
            return
        if self.present and not present:
            self.gone.set()
        self.present = present

    async def report(self) -> None:
        """Tell the supervisor each time that the device went away."""
        while True:
            await self.gone.wait()
            self.gone.clear()
            await self.context.send(Party.SUPERVISOR, LinkGone(device=self.context.config.device))

    def sync(self, request: SyncDevice) -> None:
        if request.device != self.context.config.device:
            raise UserError(f"device {request.device}", "it is not this daemon's")
        if self.link() is None:
            raise MachineError(f"device {request.device}", "it is gone, or not ours any more", "restart the daemon")
        spec = DeviceSpec(
            device=request.device,
            addresses=tuple(ipaddress.ip_interface(text) for text in request.address),
            mtu=request.mtu,
            allowed_ips=tuple(ipaddress.ip_network(text) for text in request.allowed_ips),
            fwmark=request.fwmark,
        )
        sync_device(self.rtnl, spec)

    async def close(self) -> None:
        self.reporter.cancel()
        await asyncio.gather(self.reporter, return_exceptions=True)
        self.monitor.close()
        self.rtnl.close()


class NetlinkWorker:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self) -> None:
        self._running: _Running | None = None

    async def start(self, context: WorkerContext) -> None:
        self._running = _Running(context)
        if not self._running.present:
            await self.stop()
            raise MachineError(f"device {context.config.device}", "it is not there", "restart the daemon")

    async def reload(self) -> None:
        """Nothing of its own: what changes comes as SyncDevice."""

    async def handle(self, source: Party, message: Message) -> Message:
        match message:
            case SyncDevice() if source is Party.SUPERVISOR:
                try:
                    self._started.sync(message)
                except ValueError as error:  # an address that does not parse
                    raise UserError(f"device {message.device}", str(error)) from error
                return Done()
            case _:
                raise InternalError("netlink worker", f"{type(message).__name__} from {source} is not for it")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        os.close(fd)
        raise InternalError("netlink worker", f"it takes no descriptor, and got {name}")

    async def status(self) -> Message:
        link = self._started.link()
        return NetlinkStatus(device_present=link is not None, link_up=link is not None and link.up)

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.close()
            self._running = None

    @property
    def _started(self) -> _Running:
        if self._running is None:
            raise InternalError("netlink worker", "it was not started")
        return self._running
