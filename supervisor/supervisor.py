"""The supervisor process: makes the sockets, drops privileges that it does not need, keeps the workers alive.

It holds the memfds of secrets and number marks without ever mapping them, forwards messages by ``members/routes``,
and never reads a packet or a key. The parent watches it and cleans up after it; it ends when the parent does.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

import capng
import zmq.asyncio

from qre.device.device_lock import port_name
from qre.ends import Role
from qre.errors import MachineError, QreError, UntrustedInputError
from qre.freed_memory import give_back, keep_one_arena
from qre.ipc import sandbox
from qre.ipc.channel import Channel, ChannelClosedError
from qre.ipc.journal import lines_are_of, log_to_stderr
from qre.ipc.messages import Party
from qre.ipc.roles import USERS_REMEDY, missing_users
from qre.ipc.tasks import Tasks
from qre.ipc.worker import LimitedLog, place_of
from qre.kernel.capabilities import NUMBERS
from qre.kernel.port_sockets import bound_sockets
from qre.kernel.udp.icmp_sockets import icmp_sockets
from qre.kernel.udp.underlay_sockets import AbsentAddressError, server_pair
from qre.supervisor.control import ControlSocket
from qre.supervisor.crew import Crew, parties_of
from qre.supervisor.daemon_status import watch_traffic
from qre.supervisor.front import join_of
from qre.supervisor.front_listener import FrontListener, Host
from qre.supervisor.members.errands import ERRANDS, Errands
from qre.supervisor.members.router import Router, make_directories
from qre.supervisor.parent_messages import (
    MAX_SIZE,
    AllReady,
    ApplyReload,
    DaemonFailed,
    EndAll,
    Pinned,
    Reloaded,
    ReloadFinished,
    Setup,
    Supply,
    ToParent,
    ToSupervisor,
)

_SETUP_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 8.0
#: To start and signal workers of other uids, to hand them the capability they are granted, to read this program's
#: own files wherever it is installed.
_KEPT: Final = (
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_ADMIN",
    "CAP_BPF",
)


def run_supervisor(sock: socket.socket, parent: int, log_level: str) -> None:
    """The whole life of the supervisor, in a fresh interpreter. Ends with SystemExit."""
    log_to_stderr("qre-tool supervisor", log_level)
    keep_one_arena()
    sandbox.set_name("qre:supervisor")
    sandbox.die_with_parent(parent)
    sandbox.forbid_new_privileges()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(asyncio.run(_Supervisor(sock, parent).run()))


def _keep_only_what_spawning_needs() -> None:
    capng.capng_get_caps_process()
    wanted = [NUMBERS[name] for name in _KEPT]
    kept = [number for number in wanted if capng.capng_have_capability(capng.CAPNG_PERMITTED, number)]
    capng.capng_clear(capng.CAPNG_SELECT_ALL)
    for number in kept:
        kinds = capng.CAPNG_EFFECTIVE | capng.CAPNG_PERMITTED | capng.CAPNG_BOUNDING_SET
        capng.capng_update(capng.CAPNG_ADD, kinds, number)
    if capng.capng_apply(capng.CAPNG_SELECT_ALL):
        raise OSError(errno.EPERM, "dropping the supervisor's capabilities")


def _follow_the_parent() -> NoReturn:
    """The parent was killed: end now, a moment before its death signal arrives.

    Without any clean-up: the kernel's data plane keeps its state, and the next start takes it over.
    """
    os._exit(1)


class _Supervisor:
    def __init__(self, sock: socket.socket, parent: int) -> None:
        self._parent_pid = parent
        self._parent: Channel[ToSupervisor] = Channel(sock, ToSupervisor, MAX_SIZE)
        self._supplies: dict[str, int] = {}
        self._inbox: asyncio.Queue[ToSupervisor] = asyncio.Queue(64)
        self._ended = asyncio.Event()
        self._tasks = Tasks(lambda error: self.fail(f"internal error at {place_of(error)}: {type(error).__name__}"))
        self._status = 0
        self._crew: Crew | None = None
        self._control: ControlSocket | None = None
        self._front: FrontListener | None = None
        self._log = logging.getLogger("qre.supervisor")

    def tell(self, message: ToParent, fds: tuple[int, ...] = ()) -> None:
        """Send a message to the parent; end when it is gone."""
        try:
            self._parent.send(message, fds)
        except ChannelClosedError:
            _follow_the_parent()
        except MachineError:
            self._end(1)

    def _end(self, status: int) -> None:
        self._status = max(self._status, status)
        self._ended.set()

    def fail(self, reason: str, *, passing: bool = False, final: bool = False) -> None:
        """The daemon cannot continue: tell the parent and end everything."""
        self.tell(DaemonFailed(reason=reason[:512], passing=passing, final=final))
        self._end(1)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._parent.fileno(), self._receive)
        loop.add_signal_handler(signal.SIGTERM, self._end, 0)
        self._tasks.spawn(self._work())
        await self._ended.wait()
        await self._tasks.end()
        if self._control is not None:
            self._control.close()
        if self._crew is not None:
            await self._crew.stop(_STOP_TIMEOUT)
        if self._front is not None:
            self._front.close()
        return self._status

    async def _work(self) -> None:
        try:
            async with asyncio.timeout(_SETUP_TIMEOUT):  # not wait_for: that one may swallow our cancellation
                setup = await self._setup()
            crew = await self._begin(setup)
            await crew.start_all()
            self._control = ControlSocket(Path(setup.runtime_dir), setup.config.device, crew, self.tell)
            await self._control.open()
            self._open_front(setup, crew)
            self.tell(AllReady())
            give_back()
            if missing := missing_users():
                self._log.info("%s: no such user: fixed user ids are used; %s", ", ".join(missing), USERS_REMEDY)
            self._tasks.spawn(watch_traffic(crew))
            while True:
                await self._serve_parent(await self._inbox.get(), crew)
        except TimeoutError:
            self.fail("the parent or a worker did not answer in time")
        except (QreError, OSError) as error:
            self.fail(str(error), passing=isinstance(error, AbsentAddressError))

    async def _setup(self) -> Setup:
        while True:
            message = await self._inbox.get()
            if isinstance(message, Setup):
                return message

    async def _begin(self, setup: Setup) -> Crew:
        """Sockets and directories while privileged; then drop; then ZeroMQ."""
        config = setup.config
        lines_are_of(config.profile, config.device)
        pair = self._server_pair(setup) if config.role is Role.SERVER else None
        if config.role is Role.SERVER and config.sends_errors and not config.joined:
            self._supplies |= icmp_sockets()
        parties = parties_of(config)
        runtime = Path(setup.runtime_dir) / f"{config.device}.workers"
        errands = (Party.RESOLVER, Party.VISIT) if config.role is Role.SERVER else (Party.RESOLVER,)
        make_directories(runtime, (*parties, *errands), self._parent_pid)
        _keep_only_what_spawning_needs()
        sandbox.keep_scheduling()
        context = zmq.asyncio.Context(io_threads=1)
        limited = LimitedLog(self._log)
        routers = {party: Router(context, runtime, party, limited) for party in parties}
        done = {ERRANDS[party]: Errands(Router(context, runtime, party, limited), runtime) for party in errands}
        self._crew = Crew(setup, self._supplies, pair, routers, done, runtime, self)
        return self._crew

    def _server_pair(self, setup: Setup) -> tuple[socket.socket, socket.socket]:
        """The port's sockets: those of a daemon that we have joined or succeed, or new ones."""
        held = [self._supplies.pop(name, None) for name in ("udp_userspace", "udp_kernel_slot")]
        if held[0] is not None and held[1] is not None:
            return socket.socket(fileno=held[0]), socket.socket(fileno=held[1])
        at = setup.config.listen_ip, setup.config.listen_port
        beside_kernel = bound_sockets(*at) if setup.kernel_holds_port else None
        return server_pair(*at, setup.config.listen_only, beside_kernel=beside_kernel)

    def _open_front(self, setup: Setup, crew: Crew) -> None:
        """Let other daemons join our port."""
        config = setup.config
        if config.role is not Role.SERVER or config.joined:
            return
        name = port_name(config.listen_ip, config.listen_port)
        guests = crew.guests
        host = Host(
            lambda: join_of(crew.config),
            crew.pair_descriptors(),
            crew.steering,
            guests.admit,
            guests.reload,
            guests.leave,
        )
        self._front = FrontListener(Path(setup.runtime_dir), name, host)
        self._front.open()

    async def _serve_parent(self, message: ToSupervisor, crew: Crew) -> None:
        match message:
            case ApplyReload(config=config):
                try:
                    await crew.reload(config)
                    self.tell(Reloaded())
                except QreError as error:
                    self.tell(Reloaded(error=str(error)[:512]))
            case ReloadFinished(error=error):
                if self._control is not None:
                    self._control.reload_finished(error)
            case _:
                self._log.error("unexpected message from the parent: %s", type(message).__name__)

    def _receive(self) -> None:
        self._parent.drain(self._take, closed=_follow_the_parent, malformed=self._malformed, most=1)

    def _malformed(self, error: UntrustedInputError) -> None:
        del error  # the parent is trusted: a malformed message is a defect
        asyncio.get_running_loop().remove_reader(self._parent.fileno())
        self._end(1)

    def _take(self, message: ToSupervisor, fds: list[int]) -> None:
        match message:
            case Supply(name=name) if len(fds) == 1:
                held = self._supplies.pop(name, None)
                if held is not None:
                    os.close(held)
                self._supplies[name] = fds.pop()
            case EndAll():
                self._end(0)
            case Pinned() if self._crew is not None:
                self._crew.pinned(message.error)  # ``start_all`` waits for it
            case _ if not self._inbox.full():
                self._inbox.put_nowait(message)
            case _:
                self._end(1)
