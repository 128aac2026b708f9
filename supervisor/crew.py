"""All workers of one daemon: started in order, handed their descriptors, restarted when they die.

The order of a start: greeted (privileges dropped) → descriptors → Start → ready. Sessions live behind one of two
workers, dataplane or (in qre.ko) netlink; when it or the handshake worker is started, both get a new
``keys`` pair, so that neither ever talks to a dead one. With qre.ko a server's netlink worker is ready when it has
registered the loader's map.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from qre.dataplane.health import TrafficHealth
from qre.device.tampering import tampering_line
from qre.ends import Role
from qre.errors import InternalError, MachineError, QreError
from qre.ipc.channel import Channel, ChannelClosedError
from qre.ipc.latest import Latest
from qre.ipc.messages import (
    DataplaneStatus,
    DestAddressReport,
    DestProfileReport,
    DeviceTampered,
    Done,
    HandshakeStatus,
    Hello,
    LinkGone,
    LoaderStatus,
    NetlinkStatus,
    NetworkChanged,
    Party,
    ResolveName,
    RoleState,
    SocketGranted,
    SocketRelease,
    SocketRequest,
    Start,
    StatusRequest,
    Stop,
    StoreRequest,
    UseLoader,
    VisitDest,
    WorkerConfig,
)
from qre.ipc.roles import CLIENT_UDP, KEYS, ROLES
from qre.ipc.tasks import Tasks
from qre.structs import Message
from qre.supervisor.client_accounts import ClientAccounts
from qre.supervisor.client_sockets import ClientSockets
from qre.supervisor.dest_reports import DestReports
from qre.supervisor.members import heartbeats
from qre.supervisor.members.errands import Errands
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.supervised import Members, Supervised
from qre.supervisor.parent_messages import Alive, DaemonState, DestProbed, GuestCount, PinThese, Setup, ToParent
from qre.supervisor.port_guests import PortGuests
from qre.supervisor.reloads import Reloads
from qre.supervisor.store_connection import StoreAttempts

if TYPE_CHECKING:
    from qre.supervisor.members.router import Router

_GREET_TIMEOUT: Final = 60.0
_START_TIMEOUT: Final = 30.0
_PIN_TIMEOUT: Final = 10.0
_STATE_INTERVAL: Final = 0.05
_PROBED_INTERVAL: Final = 1.0
#: Objects that the loader hands up and is handed again after a restart.
_BPF_OBJECTS: Final = ("cid_routes", "sockets", "program")
#: The tasks that must go on while workers are told to stop.
_SERVE: Final = "serve"


class CrewOwner(Protocol):
    """The part of the supervisor that the crew uses."""

    def tell(self, message: ToParent, fds: tuple[int, ...] = ()) -> None:
        """Send ``message`` to the parent; the caller keeps ``fds``."""

    def fail(self, reason: str, *, final: bool = False) -> None:
        """End the daemon with a failure; ``final``: another start would only meet it again."""


class Crew:
    """All workers of one daemon; see the module."""

    def __init__(
        self,
        setup: Setup,
        supplies: dict[str, int],
        pair: tuple[socket.socket, socket.socket] | None,
        routers: dict[Party, Router],
        errands: dict[type[Message], Errands],
        runtime: Path,
        owner: CrewOwner,
    ) -> None:
        self.setup = setup
        self.config = setup.config
        self.state = RoleState(up=False, text="starting")  # as the handshake worker last got it
        self._said_up = False
        self.traffic = TrafficHealth(setup.config.role)
        self.accounts = ClientAccounts()
        self._dataplane = dataplane_of(setup.config)
        self.supplies = supplies
        self._pair = pair
        self._owner = owner
        self._log = logging.getLogger("qre.supervisor")
        self._store = StoreAttempts()
        #: From a front that we succeed, or from our own loader.
        self._bpf: dict[str, int] = {
            name: fd for name in _BPF_OBJECTS if (fd := supplies.pop(name, None)) is not None
        }
        self._pin_answer: asyncio.Future[str] | None = None
        self._client_sockets = ClientSockets(setup.client_bind_ip, setup.client_bind_port)
        self._tasks = Tasks(self._failed)
        self._stopping = False
        self._complete = False  # every worker was ready once
        self._tell_state: Latest[DaemonState] = Latest(self._say_state, _STATE_INTERVAL)
        self._tell_probed: Latest[DestProbed] = Latest(owner.tell, _PROBED_INTERVAL)
        self.routers = routers
        self.members = Members()
        for party, router in routers.items():
            self.members[party] = Supervised(party, router, runtime, self._died, self._offered)
        self.guests = PortGuests(self.members[Party.HANDSHAKE], lambda count: owner.tell(GuestCount(count=count)))
        self.dest = DestReports(self.members, lambda: self.config, self._use, self._tell_probed, self._tasks)
        self._reloads = Reloads(self.members, setup, self.supplies, lambda: self.config, self._use)
        for router in routers.values():
            self._tasks.spawn(router.serve(self._handle, routers), _SERVE)
        self._errands = errands
        for each in errands.values():
            self._tasks.spawn(each.serve(), _SERVE)

    # --- start, restart, end ---

    async def start_all(self) -> None:
        """Start every worker, in the order of ``routers``, and wait until each is ready and the pins are made."""
        for member in self.members.values():
            member.spawn()
        for member in self.members.values():
            await self._bring_up(member)
            if member.party is Party.BPF_LOADER:
                await self._pin()
        self._complete = True
        self._tasks.spawn(heartbeats.watch(self.members, lambda: self._owner.tell(Alive()), self._log))

    async def _bring_up(self, member: Supervised) -> None:
        """From spawned to ready. Raises QreError."""
        try:
            async with asyncio.timeout(_GREET_TIMEOUT):
                await member.greeted.wait()
        except TimeoutError:
            raise MachineError(f"worker {member.party}", "it did not start") from None
        config = self.config
        self._hand_everything(member)
        member.life("supplied")
        await member.router.request(Party.SUPERVISOR, Start(config=config), _START_TIMEOUT)
        member.take_offers()
        if member.life.stage is not WorkerStage.STARTING:
            raise MachineError(f"worker {member.party}", "it ended while it started", "see its messages above")
        if member.party is Party.NETLINK:
            await self._name_loader()
        member.life("started")
        self._log.debug("worker %s, process %d, is ready", member.party, member.pid)
        self.members.changed()
        if member.party is Party.HANDSHAKE:
            await self.guests.announce_all()
        if member.party is Party.BPF_LOADER and self._complete:
            try:
                await self._name_loader()  # it is another process now
            except MachineError as error:
                self._log.warning("%s", error)  # a dying netlink worker registers it after its restart
        if self.config is not config:  # a reload came between
            await self._reloads.reconfigure(member)

    async def _name_loader(self) -> None:
        """Tell the netlink worker the loader and its map, to be registered with qre.ko."""
        loader, netlink = self.members.get(Party.BPF_LOADER), self.members[Party.NETLINK]
        if self._dataplane is not Party.NETLINK or loader is None:
            return
        if loader.life.stage is not WorkerStage.READY or netlink.life.stage not in (
            WorkerStage.STARTING,
            WorkerStage.READY,
        ):
            return  # the one that is restarted last does it
        status = await self.status(Party.BPF_LOADER)
        if not isinstance(status, LoaderStatus):
            return
        named = UseLoader(
            program=status.program[:31],
            pin_dir=self.setup.pin_dir[:255],
            routed_cid_len=status.routed_cid_len,
            pid=loader.pid,
            map_id=status.map_id,
        )
        await netlink.router.request(Party.SUPERVISOR, named, _START_TIMEOUT)

    def _hand_everything(self, member: Supervised) -> None:
        """Hand over the descriptors in the row of its role that are available at a start."""
        held = {**self.supplies, **self._bpf}
        if self._pair is not None:
            held |= zip(("udp_userspace", "udp_kernel_slot"), (sock.fileno() for sock in self._pair), strict=True)
        for expected in ROLES[member.party].descriptors:
            if not expected.given.applies(self.config):
                continue
            if expected.name == KEYS.name:
                self._hand_keys_pair(member)
            elif expected.name == CLIENT_UDP.name:
                for number, fd in self._client_sockets.held():
                    member.hand(expected.name, fd, number)
            elif expected.name in held:
                member.hand(expected.name, held[expected.name])

    def _hand_keys_pair(self, member: Supervised) -> None:
        """Make a new pair for this worker and its counterpart; a missing counterpart makes another when it starts."""
        peer = self.members[self._dataplane if member.party is Party.HANDSHAKE else Party.HANDSHAKE]
        ours, theirs = Channel.pair()
        try:
            member.hand_socket("keys", ours)
            if peer.life.stage in (WorkerStage.STARTING, WorkerStage.READY):
                peer.hand("keys", theirs.fileno())
        except ChannelClosedError:
            # One of them is dying; its restart makes another pair for both.
            self._log.debug("no keys pair for %s and %s", member.party, peer.party)
        finally:
            theirs.close()

    def pair_descriptors(self) -> tuple[int, int]:
        """The port's two sockets."""
        assert self._pair is not None, "only a server has a port"
        return self._pair[0].fileno(), self._pair[1].fileno()

    def steering(self) -> list[int]:
        """The BPF objects of the port: CID map, socket map, program."""
        return [self._bpf[name] for name in _BPF_OBJECTS]

    def _died(self, member: Supervised) -> None:
        self.members.changed()
        if self._stopping:
            member.life("died")
            return
        was = member.life.stage
        pause = member.life.died(asyncio.get_running_loop().time())
        self._log.warning("worker %s died while %s", member.party, was.value)
        if not self._complete:
            self._owner.fail(f"worker {member.party} ended while the daemon started (see its messages above)")
        elif pause is None:
            self._owner.fail(f"worker {member.party} died too often")
        else:
            self.report_state()
            self._tasks.spawn(self._restart(member, pause))

    async def _restart(self, member: Supervised, pause: float) -> None:
        await asyncio.sleep(pause)
        try:
            member.spawn()
        except QreError as error:
            self._log.error("%s", error)
            self._died(member)
            return
        try:
            await self._bring_up(member)
        except QreError as error:
            self._log.error("%s", error)
            member.kill()
            return
        self._log.warning("worker %s is back", member.party)
        self.report_state()

    async def stop(self, timeout: float) -> None:
        """End all workers in order, those that others depend on last; kill what does not end in time."""
        self._stopping = True
        self._tell_probed.close()
        self._tasks.cancel(spare=_SERVE)
        deadline = asyncio.get_running_loop().time() + timeout
        for party in (Party.HANDSHAKE, Party.DATAPLANE, Party.NETLINK, Party.BPF_LOADER):
            member = self.members.get(party)
            if member is None or not member.running:
                continue
            if self.guests.any() and party in (Party.NETLINK, Party.BPF_LOADER):
                member.kill()  # other daemons share the port: leave it as it is
            elif member.life.stage in (WorkerStage.STARTING, WorkerStage.READY):
                member.life("stopping")
                left = max(0.5, min(3.0, deadline - asyncio.get_running_loop().time()))
                try:
                    await member.router.request(Party.SUPERVISOR, Stop(), left)
                except QreError as error:
                    self._log.warning("%s", error)
                    member.kill()
            else:
                member.kill()
        await self._wait_for_ends(deadline)
        for each in self._errands.values():
            await each.close()
        for router in self.routers.values():
            router.close()

    async def _wait_for_ends(self, deadline: float) -> None:
        left = deadline - asyncio.get_running_loop().time()
        while not await self.members.until(lambda: not any(one.running for one in self.members.values()), left):
            for member in self.members.values():
                member.kill()
            left = 2.0

    # --- what workers ask for ---

    async def _handle(self, source: Party, message: Message) -> Message | None:
        member = self.members[source]
        match message:
            case Hello(role=role, pid=pid):
                if role is not source or pid != member.pid:
                    raise InternalError(f"worker {source}", "Hello has the wrong role or process id")
                member.life("greeted")
                member.greeted.set()
            case SocketRequest(peer=peer, port=port) if self.config.role is Role.CLIENT:
                number, fd, local = self._client_sockets.grant(peer, port)
                member.hand(CLIENT_UDP.name, fd, number)
                return SocketGranted(number=number, local=local)
            case StoreRequest() if self.config.replay_store:
                name, made = await self._store.connect(self.config.replay_store)
                with made:
                    member.hand(name, made.fileno())
                return Done()
            case SocketRelease(number=number):
                self._client_sockets.release(number)
            case NetworkChanged():
                self._client_sockets.network_changed()
            case RoleState():
                self.state = message
                self.report_state()
            case DestProfileReport() | DestAddressReport():
                self.dest.take(message)
            case VisitDest() | ResolveName() if type(message) in self._errands:
                return await self._errands[type(message)].run(self.config, message)
            case DeviceTampered(final=final):
                text = tampering_line(self.config.device, message)
                if final:
                    self._owner.fail(text, final=True)
                else:
                    self._log.warning("%s", text)
            case LinkGone(device=device):
                if device == self.config.device:
                    self._owner.fail(f"device {device} was removed by another program")
            case _:
                raise InternalError("supervisor", f"no handler for {type(message).__name__}")
        return None

    @property
    def text(self) -> str:
        """What the handshake worker says, and what the packets say."""
        return "; ".join(filter(None, (self.state.text, self.traffic.words)))

    def report_state(self) -> None:
        """Report the state and the workers that are being restarted."""
        missing = [
            member.party.value for member in self.members.values() if member.life.stage is not WorkerStage.READY
        ]
        text = self.text
        if missing and self._complete and not self._stopping:
            text = f"restarting {', '.join(missing)}; {text}"
        self._tell_state(DaemonState(up=self.state.up, text=text[:512]))

    def _say_state(self, told: DaemonState) -> None:
        """To the parent; and in the log when a client's session came or went. No more often than that."""
        self._owner.tell(told)
        came_or_went = told.up != self._said_up and self.config.role is Role.CLIENT
        self._said_up = told.up
        self._log.log(logging.INFO if came_or_went else logging.DEBUG, "%s", self.state.text)

    def _offered(self, party: Party, name: str, fd: int) -> None:
        """Take each object once: a pinned object is never replaced."""
        if name in self._bpf:
            os.close(fd)
            self.members[party].kill()
            return
        self._bpf[name] = fd
        self.members.changed()

    # --- pins ---

    async def _pin(self) -> None:
        """Ask the parent to pin the loader's objects."""
        if not await self.members.until(lambda: set(self._bpf) == set(_BPF_OBJECTS), _PIN_TIMEOUT):
            raise MachineError("BPF", "the loader did not hand over its maps")
        self._pin_answer = asyncio.get_running_loop().create_future()
        self._owner.tell(PinThese(), tuple(self._bpf[name] for name in _BPF_OBJECTS))
        async with asyncio.timeout(_PIN_TIMEOUT):
            error = await self._pin_answer
        if error:
            raise MachineError("BPF pins", error)

    def pinned(self, error: str) -> None:
        """The parent's answer."""
        if self._pin_answer is not None and not self._pin_answer.done():
            self._pin_answer.set_result(error)

    # --- reload, status, heartbeats ---

    async def reload(self, config: WorkerConfig) -> None:
        """Apply a new configuration to device and workers, or leave everything unchanged (QreError)."""
        await self._reloads.apply(self.dest.known(config))

    def _use(self, config: WorkerConfig) -> None:
        self.config = config

    async def status(self, party: Party) -> Message | None:
        """A worker's own status; None when it is not running or does not answer."""
        member = self.members.get(party)
        if member is None or member.life.stage is not WorkerStage.READY:
            return None
        try:
            answer = await member.router.request(Party.SUPERVISOR, StatusRequest(), 5.0)
        except MachineError:
            return None
        expected = {
            Party.HANDSHAKE: HandshakeStatus,
            Party.DATAPLANE: DataplaneStatus,
            Party.BPF_LOADER: LoaderStatus,
            Party.NETLINK: NetlinkStatus,
        }
        return answer if isinstance(answer, expected[party]) else None

    def _failed(self, error: BaseException) -> None:
        self._owner.fail(f"internal error: {type(error).__name__}: {error}")


def dataplane_of(config: WorkerConfig) -> Party:
    """The worker that has the sessions."""
    return Party.DATAPLANE if config.user_dataplane else Party.NETLINK


def parties_of(config: WorkerConfig) -> tuple[Party, ...]:
    """The workers of a daemon, in the order in which they start."""
    loader = (Party.BPF_LOADER,) if config.role is Role.SERVER and not config.joined else ()
    dataplane = (Party.DATAPLANE,) if config.user_dataplane else ()
    return (*loader, Party.NETLINK, *dataplane, Party.HANDSHAKE)
