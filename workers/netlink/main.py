"""The worker `netlink`: the only process of a daemon that keeps CAP_NET_ADMIN while it runs.

It applies the configuration to the daemon's own device when the supervisor asks, keeps it that way, reports when the
device was removed, and wakes a client that waits when the network has changed. Requests are a closed set
(``handle``), and a request that names another device is refused. It reads no packet. On the kernel's data plane it
also takes the handshake worker's sessions (``kernel_dataplane``): keys pass through it to qre.ko, and it keeps none.
A server's keeps the nftables tables (``server_rules``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Final

import msgspec

from qre.addresses import host_port
from qre.dataplane.protocol import DataplaneReport
from qre.ends import Role
from qre.errors import InternalError, MachineError, UserError
from qre.ipc.keys_pair import KeysPair
from qre.ipc.messages import (
    DestAddressReport,
    DestProfileReport,
    DeviceTampered,
    Done,
    LinkGone,
    NetlinkStatus,
    NetworkChanged,
    Party,
    SyncDevice,
    UseLoader,
    WorkerConfig,
)
from qre.ipc.tasks import Tasks
from qre.ipc.worker import Worker, WorkerContext
from qre.kernel.netfilter.firewall import preload
from qre.kernel.qre_family import DeviceSettings
from qre.kernel.rtnl import Link, Rtnl
from qre.kernel.tun import is_ours
from qre.kernel.tunnel import DeviceSpec, Part, sync_device
from qre.structs import Message
from qre.workers.netlink.device_guard import DeviceGuard
from qre.workers.netlink.kernel_dataplane import KernelDataplane
from qre.workers.netlink.monitor import NetworkMonitor
from qre.workers.netlink.server_rules import ServerRules

#: The shortest time between two messages to a client's handshake worker that the network has changed (seconds).
_WAKE_INTERVAL: Final = 0.25


def create() -> Worker:
    """The worker; opens nothing yet."""
    preload()
    return NetlinkWorker()


class _Running:
    """What the worker has between ``start`` and ``stop``."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.rtnl = Rtnl()
        self.present = self.link() is not None
        self.outbox: asyncio.Queue[DeviceTampered | LinkGone] = asyncio.Queue()
        self.changed = asyncio.Event()
        self.again: asyncio.TimerHandle | None = None
        self.guard = DeviceGuard(self.rtnl, spec_of(context.config), self.link, self.outbox.put_nowait)
        try:
            self.monitor = NetworkMonitor(self.look, context.fail, self.rtnl.port_id)
        except MachineError:
            self.rtnl.close()
            raise
        self.tasks = Tasks(context.internal_error)
        self.tasks.spawn(self.report())
        if context.config.role is Role.CLIENT:
            self.tasks.spawn(self.wake_client())

    def link(self) -> Link | None:
        """The daemon's device; None when it is gone or belongs to another program."""
        config = self.context.config
        link = self.rtnl.link(config.device)
        return link if link is not None and is_ours(link, config.profile) else None

    def look(self, by: Mapping[Part, int]) -> None:
        """Something changed: whatever it was, a client that waits may be able to connect now."""
        self.changed.set()
        self.check(by)

    def check(self, by: Mapping[Part, int]) -> None:
        """Compare the device with its last state; report when it disappeared, put back what is missing."""
        if self.again is not None:
            self.again.cancel()
            self.again = None
        loop = asyncio.get_running_loop()
        try:
            present = self.link() is not None
            at = self.guard.look(by, loop.time())
        except MachineError as error:
            self.context.fail(str(error))
            return
        if at is not None:
            self.again = loop.call_at(at, self.check, by)
        if self.present and not present:
            self.outbox.put_nowait(LinkGone(device=self.context.config.device))
        self.present = present

    async def report(self) -> None:
        """Tell the supervisor what happened to the device."""
        while True:
            await self.context.send(Party.SUPERVISOR, await self.outbox.get())

    async def wake_client(self) -> None:
        """Tell the handshake worker that it is worth to try again, at most every so often."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            await self.context.send(Party.HANDSHAKE, NetworkChanged())
            await asyncio.sleep(_WAKE_INTERVAL)

    def sync(self, request: SyncDevice) -> None:
        if request.device != self.context.config.device:
            raise UserError(f"device {request.device}", "it does not belong to this daemon")
        if self.link() is None:
            raise MachineError(
                f"device {request.device}", "it is gone or belongs to another program", "restart the daemon"
            )
        spec = spec_of(request)
        sync_device(self.rtnl, spec)
        self.guard.spec = spec

    async def close(self) -> None:
        if self.again is not None:
            self.again.cancel()
        await self.tasks.end()
        self.monitor.close()
        self.rtnl.close()


class NetlinkWorker:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self) -> None:
        self._running: _Running | None = None
        self._kernel: KernelDataplane | None = None
        self._keys: KeysPair | None = None
        self._rules: ServerRules | None = None

    async def start(self, context: WorkerContext) -> None:
        """Raises MachineError when the device is missing, or the kernel module refuses."""
        running = self._running = _Running(context)
        try:
            if not running.present:
                raise MachineError(f"device {context.config.device}", "it does not exist", "restart the daemon")
            running.check({})  # what was changed while no worker watched
            if not context.config.user_dataplane:
                self._start_kernel(context)
            if context.config.role is Role.SERVER:
                self._rules = ServerRules(context, running.tasks)
        except BaseException:
            await self._close()
            raise

    def _start_kernel(self, context: WorkerContext) -> None:
        config = context.config
        kernel = self._kernel = KernelDataplane(context, self._report)
        kernel.qre.device_set(config.device, settings_of(config))
        if config.role is Role.SERVER and config.dest_profile is not None:
            kernel.store_dest_profile(config.dest_profile)
        self._keys = KeysPair(kernel.handle, context.fail)
        self._use_keys(context.descriptors.pop("keys", None))

    def _use_keys(self, fd: int | None) -> None:
        """Use a new pair; None: one comes when the handshake worker has started."""
        if fd is not None and self._keys is not None and self._kernel is not None:
            self._kernel.forget_requests()
            self._keys.use(fd)

    def _report(self, report: DataplaneReport) -> None:
        if self._keys is not None:
            self._keys.report(report)

    async def reload(self) -> None:
        """Sync qre.ko's settings; addresses, MTU and routes come as SyncDevice."""
        if self._kernel is not None:
            config = self._started.context.config
            self._kernel.qre.device_set(config.device, settings_of(config))
        if self._rules is not None:
            self._rules.look()

    async def handle(self, source: Party, message: Message) -> Message:
        """Requests of the supervisor; those of the handshake worker come over their pair."""
        match message:
            case SyncDevice() if source is Party.SUPERVISOR:
                try:
                    self._started.sync(message)
                except ValueError as error:  # an address that does not parse
                    raise UserError(f"device {message.device}", str(error)) from error
                return Done()
            case UseLoader() if source is Party.SUPERVISOR and self._kernel is not None:
                self._kernel.use_loader(message)
                return Done()
            case DestAddressReport() if source is Party.SUPERVISOR and self._rules is not None:
                self._rules.follow(message)
                return Done()
            case DestProfileReport(profile=profile) if source is Party.SUPERVISOR and self._kernel is not None:
                self._kernel.store_dest_profile(profile)
                return Done()
            case _:
                raise InternalError("netlink worker", f"{type(message).__name__} from {source} is not for it")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """A new ``keys`` pair comes whenever the handshake worker was started."""
        if name == "keys" and self._keys is not None:
            self._use_keys(fd)
        else:
            os.close(fd)
            raise InternalError("netlink worker", f"unexpected descriptor {name}")

    async def status(self) -> Message:
        """State of the link and, with qre.ko, of its device, port and connection IDs."""
        link = self._started.link()
        present, up = link is not None, link is not None and link.up
        restored = {part.value: count for part, count in self._started.guard.restored.items()}
        status = NetlinkStatus(device_present=present, link_up=up, restored=restored)
        if self._rules is not None:
            status = self._rules.told(status)
        if self._kernel is None:
            return status
        dataplane, port, cids = self._kernel.status()
        return msgspec.structs.replace(status, dataplane=dataplane, shared_port=port, connection_ids=cids)

    async def stop(self) -> None:
        """End the kernel's sessions, telling their peers, and release a server's port; undo its rules."""
        try:
            if self._rules is not None:
                self._rules.undo()
            if self._kernel is not None:
                self._kernel.end()
        finally:
            await self._close()

    async def _close(self) -> None:
        if self._rules is not None:
            self._rules.close()
            self._rules = None
        if self._keys is not None:
            self._keys.close()
            self._keys = None
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        if self._running is not None:
            await self._running.close()
            self._running = None

    @property
    def _started(self) -> _Running:
        if self._running is None:
            raise InternalError("netlink worker", "it was not started")
        return self._running


def spec_of(wanted: WorkerConfig | SyncDevice) -> DeviceSpec:
    """The device that a configuration, or a request, describes."""
    return DeviceSpec(
        device=wanted.device,
        addresses=wanted.address,
        mtu=wanted.mtu,
        allowed_ips=wanted.routes if isinstance(wanted, WorkerConfig) else wanted.allowed_ips,
        table=wanted.table,
        outer=wanted.outer,
        closed=wanted.closed,
    )


def settings_of(config: WorkerConfig) -> DeviceSettings:
    """The device's settings for qre.ko, overrides of the underlay included."""
    server = config.role is Role.SERVER
    return DeviceSettings(
        role=config.role,
        dest=host_port(config.dest_host, config.dest_port) if server else None,
        server_name=config.server_name,
        listen=(config.listen_ip, config.listen_port) if server else None,
        endpoint=None if server else host_port(config.endpoint_host, config.endpoint_port),
        keepalive_s=config.keepalive_s,
    )
