"""The server's half of the worker: the asyncio shell around flows, relays, handshakes and sessions.

Datagrams from the userspace socket go to the flow table, and the effects that it returns to the performer. Handshakes
and sessions send through sockets, to the data plane and to the BPF loader. The rules are in those; here is the rest.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from random import SystemRandom
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.addresses import address_ports
from qre.dataplane.protocol import Stray
from qre.dest_profile import DestProfile
from qre.ends import Role
from qre.errors import QreError
from qre.exact_timers import add_first_reader, remove_first_reader
from qre.ipc.messages import DestProfileReport, HandshakeStatus, Party, RoleState
from qre.ipc.steering import Steering
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.kernel.udp.control_messages import as_told, every_like, is_every
from qre.profile_secrets import ProfileSecrets
from qre.quic.bounds import Bound
from qre.quic.server.inspector import HelloInspector
from qre.reality.replay import replay_window
from qre.visit.probe import imitable
from qre.workers.handshake.acceptance import Acceptance
from qre.workers.handshake.clients import Clients
from qre.workers.handshake.dataplane_link import DataplaneLink
from qre.workers.handshake.dest_errors.passing_on import DestErrors
from qre.workers.handshake.dest_watch import DestWatch
from qre.workers.handshake.memory import Forgetting, HighWater
from qre.workers.handshake.port.datagrams import port_socket, receive_into, send_to
from qre.workers.handshake.port.flow_effects import Copied, Effect
from qre.workers.handshake.port.flow_parts import Address, Flow, ForgedHello, Handshake, Hello, PlacedHandshake
from qre.workers.handshake.port.flows import FlowTable
from qre.workers.handshake.port.performer import Later, Performer
from qre.workers.handshake.port.relay import LONGEST, DestSocket, Relays
from qre.workers.handshake.port.volley import Volley
from qre.workers.handshake.port_sharing import PortSharing
from qre.workers.handshake.recognition.accepted import Accepted
from qre.workers.handshake.recognition.copies import Copies
from qre.workers.handshake.recognition.late_inspector import LateInspector
from qre.workers.handshake.recognition.recogniser import Recogniser
from qre.workers.handshake.recognition.replay_file import read_replay_file
from qre.workers.handshake.sessions.disowning import Disowning
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.secrets import SecretsStore
from qre.workers.handshake.sessions.session_state import (
    CidsChanged,
    Confirmed,
    Installed,
    Lost,
    Orphaned,
    OrphanEnded,
)
from qre.workers.handshake.worker_settings import flow_limits, follows

#: Datagrams read in one turn of the loop.
_TURN: Final = 64
#: How long after the last datagram hellos are looked at (seconds): the second half of one comes in 0.1 ms.
_SECOND_HALF: Final = 0.0004


class Server:
    """See ``main.HandshakeWorker``, which calls it."""

    def __init__(self, context: WorkerContext, secrets: ProfileSecrets, store: SecretsStore) -> None:
        self._context = context
        config = context.config
        self._socket = port_socket(context.descriptors.pop("udp_userspace"))
        #: Receives what the kernel's data plane does not take; the user data plane reads this slot itself.
        kernel_slot = None if config.user_dataplane or config.joined else context.descriptors.pop("udp_kernel_slot")
        self._kernel_slot = None if kernel_slot is None else port_socket(kernel_slot)
        self._replay_fd = context.descriptors.pop("replay")
        self._clients = Clients(context, secrets, context.descriptors.pop("leases"))
        self._listen = (config.listen_ip, config.listen_port)
        self._buffer = bytearray(LONGEST)
        self._received = memoryview(self._buffer)
        self._family = int(self._socket.family)  # asking a socket costs as much as sending by it
        self._ours_at = frozenset(map(as_told, config.listen_only)) if is_every(config.listen_ip) else None
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False
        self._tasks = Tasks(context.internal_error)
        self._told: tuple[bool, str] | None = None
        self._high_water = HighWater()
        self._forgetting = Forgetting()
        store.removed = self._forgetting.soon
        self._cids = RoutedCids(secrets.private_key, config.routed_cid_len, os.urandom)
        self._dest = DestWatch(context, self._dest_probed)
        self._volley = Volley(self._to_visitor)
        self._errors = DestErrors(context, self._dest.is_imitated)
        self._relays = Relays(self._reply, self._volley.together, self._dest.doubt, context.limited, self._errors)
        limits = flow_limits(config, config.dest_profile)
        inspector = partial(LateInspector, self._new_inspector)
        self._table = FlowTable(limits, inspector, self._cids.of_datagram, self._have_session)
        self._performer = Performer(self._table, self._accept, self._open_relay, self._volley.say, self._disown)
        self._port = PortSharing(self._table, self._performer, self._ours, self._admit, self._arm, context.limited)
        if config.joined:
            self._port.join(context.descriptors.pop("front_feed"))
        self._steering = (
            Steering(context.request, lambda text: context.limited("steering", text))
            if config.user_dataplane
            else None
        )
        self._sessions = Sessions(store, Role.SERVER, self._clients.settings(), SystemRandom(), self._cids)
        self._disowning = Disowning(self._cids, self._sessions, self._port.guests.any, followed=config.followed)
        self.link = DataplaneLink(self._sessions, self._sessions_changed, context.fail, self._strayed)
        self._use_secrets(secrets)
        self._acceptance = self._new_acceptance()
        acceptance, guests, perform = self._acceptance, self._port.guests, self._perform_late
        self._copies = Copies(acceptance, os.urandom, self._volley)
        told, copy_of = self._tell_state, self._copies.answer
        self.recogniser = Recogniser(context, acceptance, guests, self._ours, self._table, perform, told, copy_of)

    # --- set-up ---

    def _new_acceptance(self) -> Acceptance:
        return Acceptance(
            private_key=self._secrets.private_key,
            routed_cid_len=self._context.config.routed_cid_len,
            listen=self._listen,
            replay=read_replay_file(self._replay_fd, self._context.config, len(self._clients.short_ids)),
            replay_fd=self._replay_fd,
            sessions=self._sessions,
            grants=self._clients.grants,
            steering=self._steering,
            volley=self._volley,
            left=lambda one, farewell: self._port.left(one.source, one, farewell),
            not_followed=lambda one: self._port.not_followed(one.source, one),
            over=self._handshake_over,
            changed=self.link.pump,
            turn_away=lambda one: self._clients.turn_away(one.short_id, one.source[0], self._sessions),
            complain=self._context.limited,
            spawn=self._tasks.spawn,
            told=self._tell_state,
            waits=self._arm,
            imitate=self._dest.is_imitated,
            dest=imitable(self._context.config.dest_profile),
            keeper=self._clients.tickets,
        )

    def _use_secrets(self, secrets: ProfileSecrets) -> None:
        self._private_key = X25519PrivateKey.from_private_bytes(secrets.private_key)
        self._previous_key = (
            X25519PrivateKey.from_private_bytes(secrets.previous_key) if secrets.previous_key else None
        )
        self._secrets = secrets

    # --- life ---

    async def start(self) -> None:
        """Restore the sessions that an earlier process left, probe Dest, and begin to serve."""
        records, damaged = self._sessions.store.load()
        if damaged:
            self._context.log.warning("%d sessions of the previous process could not be read", damaged)
        kept = self._clients.restore(record for record in records if record.role is Role.SERVER)
        for record in records:
            if record not in kept:
                self._sessions.store.remove(record.session_id)
        self._sessions.restore(kept)
        self.recogniser.use(self._secrets)
        await self._dest.start()
        if self._steering is not None:
            self._tasks.spawn(self._steering.run())
        add_first_reader(self._relays.fileno(), self._relays_readable)
        await self._dest.first_look()
        self._relays.prepare_next(self._dest.current)
        for each in self._sockets():
            self._errors.watch(each)
            add_first_reader(each.fileno(), partial(self._readable, each))
        if self._port.feed is not None:
            self._port.feed.open()
        self.link.pump()
        self._tell_state()

    async def reload(self, secrets: ProfileSecrets) -> None:
        """Apply new clients, Dest, keys and limits; sessions that may not go on end. Raises QreError for a new key
        without the old one as RealityPreviousKey, and for a short id of another daemon at this port.

        Connection IDs go on to be made with the key that this process began with: those in use were."""
        config = self._context.config
        if not follows(self._secrets, secrets):
            remedy = "write the old key as RealityPreviousKey, as `qre-tool rotate-key` does, or down and up"
            raise QreError("reload", "RealityPrivateKey changed", remedy)
        self._port.guests.refuse_clients(secrets)
        self._use_secrets(secrets)
        self.recogniser.use(secrets)
        self._table.limits = flow_limits(config, self._dest.profile)
        self._acceptance.replay.window = replay_window(config.max_time_diff_ms)
        self._clients.reload(secrets, self._sessions)
        self._sessions.settings = self._clients.settings()
        self._acceptance.recheck(self._clients.may_go_on)
        self._acceptance.replay.owners = len(self._clients.short_ids)
        self._dest.reload()
        self.link.pump()

    async def stop(self) -> None:
        """End handshakes, relays and guests, and close every descriptor; sessions stay in the data plane."""
        for fd in (self._relays.fileno(), *(each.fileno() for each in self._sockets())):
            remove_first_reader(fd)
        self.recogniser.close()
        self._acceptance.close()
        self._copies.close()
        self._port.close()
        self._performer.perform(self._table.close(), time.monotonic())
        self._relays.close()
        self._errors.close()
        if self._timer is not None:
            self._timer.cancel()
        self._dest.close()
        self._tasks.cancel()
        self.link.close()
        for each in {self._socket, *self._sockets()}:
            each.close()
        os.close(self._replay_fd)
        self._clients.close()

    def status(self) -> HandshakeStatus:
        """The line and the counters for ``show``, and the profile of Dest."""
        up, text = self._state()
        excesses = self._acceptance.excesses + Counter({Bound.UNPROVEN: self._table.unproven})  # less what is 0
        return HandshakeStatus(
            up=up,
            text=text,
            pending_flows=self._table.pending,
            relay_flows=self._table.relayed,
            handshakes=self._acceptance.accepted,
            strangers=self._table.strangers,
            rekeys=self._sessions.rekeys,
            excesses={bound.value: count for bound, count in excesses.items()},
            clients=self._clients.listed(),
            dest_profile=self._dest.profile,
        )

    # --- packets ---

    def _sockets(self) -> tuple[socket.socket, ...]:
        """The sockets to read. A joined daemon reads none: it only answers through the front's socket."""
        if self._port.feed is not None:
            return ()
        return (self._socket,) if self._kernel_slot is None else (self._socket, self._kernel_slot)

    def _readable(self, arrived: socket.socket) -> None:
        table, perform = self._table, self._performer.perform
        for _ in range(_TURN):
            try:
                length, source, ecn, came = receive_into(arrived, self._buffer, ours=self._ours_at)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error for a datagram sent earlier, or nobody to answer
                continue
            now = time.monotonic()
            data, unix_ms = bytes(self._received[:length]), int(time.time() * 1000)
            self._errors.latest = data, came
            perform(table.datagram(source, data, ecn, now, unix_ms), now)
        if not table.unread:
            self._settle()
        elif not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look_at, time.monotonic() + _SECOND_HALF)

    def _look_at(self, at: float) -> None:
        """Look at hellos at ``at`` (monotonic), unless Dest answered first. The loop's timers are too coarse."""
        now = time.monotonic()
        if self._table.unread and now < at:
            asyncio.get_running_loop().call_soon(self._look_at, at)
            return
        self._looking = False
        self._performer.look(now)
        asyncio.get_running_loop().call_soon(self._settle)  # Dest may have answered meanwhile

    def _settle(self) -> None:
        """What has time until datagrams are on their way and hellos are read."""
        self._perform_late(self._table.handle_timer(now := time.monotonic()), now)
        self._relays.prepare_next()

    def _relays_readable(self) -> None:
        self._relays.readable()
        self._arm()

    def _reply(self, flow: Flow, data: bytes, segment: int, ecn: int, age: float) -> None:
        now, table = time.monotonic(), self._table
        if table.unread:
            self._performer.look(now)
        self._volley.answers(data, ours=flow.shadows, age=age)
        if len(data) <= segment or flow.passes(data, segment):
            self._performer.perform(table.reply(flow, data, ecn, now, segment), now)
            return
        with self._volley.in_one_piece():
            for at in range(0, len(data), segment):
                self._performer.perform(table.reply(flow, data[at : at + segment], ecn, now), now)

    def _arm(self) -> None:
        timers = self._table.timer(), self._acceptance.timer(), self._copies.timer()
        times = [at for at in timers if at is not None]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times:
            delay = max(0.0, min(times) - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer, now = None, time.monotonic()
        self._performer.perform(self._table.handle_timer(now), now)
        self._high_water.seen(self._table.pending + self._table.relayed)
        self._acceptance.handle_timer(now)
        self._copies.handle_timer(now)
        self._arm()

    # --- callbacks of the performer ---

    def _new_inspector(self) -> HelloInspector:
        config = self._context.config
        return HelloInspector(
            server_name=config.server_name,
            private_key=self._private_key,
            previous_key=self._previous_key if time.time() < self._secrets.previous_key_until else None,
            short_ids=self._clients.short_ids | self._port.guests.short_ids(),
            max_time_diff_ms=config.max_time_diff_ms,
            tickets=self._clients.tickets,
        )

    def _have_session(self, cids: Collection[bytes]) -> bool:
        return any(map(self._sessions.has_connection_id, cids))

    def _accept(self, flow: Flow, hello: Hello | ForgedHello) -> Handshake | Copied | Later | None:
        return self.recogniser.accept(flow, hello)

    def _ours(self) -> frozenset[bytes]:
        return self._clients.short_ids

    def _admit(self, hello: Hello) -> Accepted:
        return self._acceptance.admit(hello)

    def _open_relay(self, flow: Flow) -> DestSocket | None:
        current, visitor = self._dest.current, flow.source[0]
        own = self._dest.for_visitor(visitor) if ":" in visitor else current
        if own is None or own == current or self._relays.is_silent(own[1], time.monotonic()):
            return None if current is None else self._relays.open(flow, *current)
        return self._relays.open(flow, *own) or (None if current is None else self._relays.open(flow, *current))

    def _to_visitor(self, source: Address, data: bytes, ecn: int, segment: int = 0, whole: bool = False) -> None:
        try:
            send_to(self._socket, source, data, ecn, segment, whole=whole, family=self._family)
        except OSError:  # no room, no route, or an ICMP error for an earlier one: UDP may lose datagrams
            return

    def _disown(self, source: Address, cid: bytes, length: int) -> None:
        answer = self._disowning.answer(cid, length)
        if answer is not None:
            self._to_visitor(source, answer, 0)

    # --- one port, several daemons ---

    def guest_joins(self, number: int, profile: str, secrets: ProfileSecrets, feed: int) -> None:
        """Pass a joined daemon its clients from now on. Raises UserError when its configuration does not fit."""
        self._port.guests.join(number, profile, self._secrets, secrets, feed)

    def guest_reloads(self, number: int, secrets: ProfileSecrets) -> None:
        """A joined daemon has other clients from now on. Raises QreError when its configuration does not fit."""
        self._port.guests.reload(number, self._secrets, secrets)

    def guest_leaves(self, number: int) -> None:
        """Close guest ``number``; its clients are relayed to Dest from now on."""
        self._port.guests.leave(number)

    # --- handshakes and sessions ---

    def _handshake_over(self, one: PlacedHandshake) -> None:
        self._forgetting.soon()
        self._port.over(one.source, one)

    def _sessions_changed(self) -> None:
        while self._sessions.events:
            match self._sessions.events.popleft():
                case Installed(session_id=session_id):
                    self._acceptance.installed(session_id)
                case Confirmed(session_id=session_id):
                    self._acceptance.confirmed(session_id)
                    self._clients.welcome(session_id, self._sessions)
                case Lost(record=record, end=end):
                    self._acceptance.lost(record.session_id)
                    self._clients.lost(record, end)
                case CidsChanged():
                    if self._steering is not None:
                        self._steering.want(self._sessions.connection_ids())
                case Orphaned(marks=marks):
                    self._clients.take_over(marks, self._sessions)
                case OrphanEnded(session_id=session_id):
                    self._clients.grants.free(session_id)
        self._tell_state()

    def _strayed(self, stray: Stray) -> None:
        """A stranger's packet that was steered to a session: it goes to Dest as every other does."""
        now = time.monotonic()
        source: Address = (stray.ip, stray.port)
        if self._ours_at is not None:
            ours = self._sessions.find(stray.session_id)
            source = (*source, str(ours.record.underlay.local_ip) if ours is not None else every_like(stray.ip))
        self._perform_late(self._table.datagram(source, stray.data, stray.ecn, now, int(time.time() * 1000)), now)

    def _perform_late(self, effects: Sequence[Effect], now: float) -> None:
        """Of what nothing at the port has caused."""
        self._performer.perform(effects, now)
        self._arm()

    # --- reports to the supervisor ---

    def _state(self) -> tuple[bool, str]:
        count = self._sessions.up()
        listen = address_ports(self._context.config.listen, self._listen[1])
        text = f"serving {listen}, {count} session{'' if count == 1 else 's'}"
        if self._port.feed is not None:
            text += "; another daemon has the port"
        if twins := self._clients.twins():
            text += f"; on two machines: client {', '.join(twins[:4])}"
        text += "".join(f"; {each}" for each in (self._dest.trouble, self._errors.trouble) if each)
        if self.recogniser.why_nobody:
            text += f"; clients are not recognised: {self.recogniser.why_nobody}"
        return count > 0, text[:512]

    def _tell_state(self) -> None:
        state = self._state()
        if state != self._told:
            self._told = state
            self._tasks.spawn(self._context.send(Party.SUPERVISOR, RoleState(up=state[0], text=state[1])))

    async def dest_found(self, profile: DestProfile) -> None:
        """A command has visited Dest."""
        await self._dest.take(profile)

    async def _dest_probed(self, profile: DestProfile) -> None:
        self._acceptance.dest = imitable(profile) or self._acceptance.dest
        self._table.limits = flow_limits(self._context.config, self._acceptance.dest)
        self._tell_state()  # its name may be resolved now
        await self._context.send(Party.SUPERVISOR, DestProfileReport(profile=profile))
