"""The client's half of the worker: authenticate, open the tunnel, hand over, and reconnect when the session is lost.

It never gives up: attempts are spaced by a bounded exponential backoff with jitter, Endpoint is resolved for each,
and every failure is reported in one line. A session that an earlier process left is resumed, not replaced. Of several
servers an attempt tries one after the other, in the order of ``qre/visit/servers``.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from ipaddress import ip_address
from random import SystemRandom
from typing import Final

from qre.addresses import Address
from qre.causes import Cause
from qre.config.values import show_short_id
from qre.dataplane.protocol import underlay_of
from qre.ends import Role
from qre.errors import MachineError, PeerError, QreError
from qre.ipc.messages import HandshakeStatus, Party, RoleState
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.profile_secrets import ProfileSecrets
from qre.quic.client.client_handshake import STEP_TIMEOUT
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.quic.handed_over import HandedOver
from qre.visit.candidates import ELSEWHERE, PATIENCE
from qre.visit.dest import Resolved
from qre.visit.exchange import shake_hands
from qre.visit.servers import KnownServer, Servers
from qre.wire.close_reason import CloseReason
from qre.workers.handshake.backoff import BY_THE_CLOCK, VISITS, Pauses, spread
from qre.workers.handshake.coming_back.client_tickets import ClientTickets
from qre.workers.handshake.dataplane_link import DataplaneLink
from qre.workers.handshake.early_attempt import EarlyAttempt
from qre.workers.handshake.memory import Forgetting
from qre.workers.handshake.names import addresses_of, lookup_of, refuse_loop
from qre.workers.handshake.sessions.awaited import AwaitedSession, AwaitedSessions, MadeFor
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.new_ports import NewPorts
from qre.workers.handshake.sessions.secrets import SecretsStore
from qre.workers.handshake.sessions.session_sockets import SessionSockets
from qre.workers.handshake.sessions.session_state import SessionEnd, Settings
from qre.workers.handshake.worker_settings import client_settings, known_servers

#: Between two new sessions beside silent ones at least (seconds): a server takes three in 25 s for two machines.
_APART: Final = 13.0
#: While there is a server to go back to, it is tried again after so much of ReconnectMax.
_GOING_BACK: Final = (0.75, 1.0)
#: Multiples of SessionLifetime.
_LIFETIMES: Final = (0.75, 1.25)
#: For so long packets for a renewed session may be on their way; its server may not have heard from the new one yet
#: (seconds).
_DRAINING: Final = (2.7, 2.9)
_FORMER: Final = "the session has the former Address or AllowedIPs, and one with those of the profile fails"
_LARGE: Final = "IPv6 inside needs datagrams above a browser's 1,250 bytes: this server cannot join split packets"
_OLD: Final = "datagrams are above a browser's 1,250 bytes: the loaded qre.ko is of an earlier version, reload it"


class Client:
    """See ``main.HandshakeWorker``, which calls it."""

    def __init__(
        self,
        context: WorkerContext,
        secrets: ProfileSecrets,
        store: SecretsStore,
        fingerprint: Fingerprint,
        trust: TrustStore,
    ) -> None:
        self._context = context
        self._secrets = secrets
        self._fingerprint = fingerprint
        self._tickets = ClientTickets(context, context.descriptors.pop("tickets", None), fingerprint, trust)
        self._random = SystemRandom()
        self._sessions = Sessions(store, Role.CLIENT, self._settings(), self._random)
        self.link = DataplaneLink(self._sessions, lambda: self._awaited.heard(self._sessions.events), context.fail)
        self._sockets = SessionSockets(context, self.link.sockets, self._sessions)
        self._early = EarlyAttempt()
        self._lookup = lookup_of(context)
        self._state = (False, "starting")
        self._forgetting = Forgetting()
        store.removed = self._forgetting.soon
        self._handshakes = 0
        self._servers = Servers(self._random)
        self._server_of: dict[bytes, KnownServer] = {}
        self._use_servers()
        self._tried = self._servers.first
        self._back_at = 0.0  # not before, an earlier server is tried again (monotonic)
        self._tasks = Tasks(context.internal_error)
        ports = NewPorts(self._sessions, self._sockets, self._tasks, self.link.pump, self._release_idle)
        abandoned = lambda: self._tasks.spawn(self._release_idle())  # noqa: E731
        self._awaited = AwaitedSessions(self._sessions, self.link.pump, self._orphaned, abandoned, ports.heard)
        self._attempting = False
        self._old_at = float("inf")  # then the session is to be renewed (monotonic)
        self._outdated_at = 0.0  # and then one that has not what the profile says now
        bounds = context.config.reconnect_min_ms / 1000, context.config.reconnect_max_ms / 1000
        self._pauses = Pauses(*bounds, self._random)
        self._beside_at = 0.0  # not before, a new session is made beside a silent one (monotonic)

    def _settings(self) -> Settings:
        return client_settings(self._context.config, self._fingerprint.transport_parameters.max_idle_timeout)

    def _use_servers(self) -> None:
        config = self._context.config
        known = known_servers(config, self._secrets)
        self._servers.use(known, config.endpoint_order)
        self._tickets.use(known)

    # --- life ---

    async def start(self) -> None:
        """Restore the sessions that an earlier process left, and begin to connect."""
        self._sockets.take_over()
        records, damaged = self._sessions.store.load()
        if damaged:
            self._context.log.warning("the session of the previous process could not be read")
        for record in (each for each in records if each.role is not Role.CLIENT):
            self._sessions.store.remove(record.session_id)
        kept = [record for record in records if record.role is Role.CLIENT]
        now = self._made_for()
        for record in kept:
            granted = frozenset(each.ip for each in record.handed_over.addresses)
            made_for = now if granted <= now.addresses else now._replace(addresses=granted)
            self._awaited.expect(record.session_id, made_for, confirmed=record.confirmed)
            self._servers.was_at(str(record.underlay.peer_ip), record.underlay.peer_port)
        self._sessions.restore(kept)
        self.link.pump()
        self._tasks.spawn(self._run())

    async def reload(self, secrets: ProfileSecrets) -> None:
        """Use the new secrets and settings from the next attempt on, which comes soon. The session stays, unless it
        has other addresses or AllowedIPs: then the next one is made at once, and takes its place."""
        self._secrets = secrets
        self._sessions.settings = self._settings()
        self._use_servers()
        self._early.wanted()
        self._outdated_at = 0.0
        self._awaited.wake()

    async def stop(self) -> None:
        """End the attempt under way and close every descriptor; the session stays in the data plane."""
        await self._tasks.end()
        self.link.close()
        self._sockets.close()
        self._tickets.close()

    def status(self) -> HandshakeStatus:
        """Whether the tunnel is up, the line for ``show``, and how many handshakes and rekeys there were."""
        up, text = self._state
        return HandshakeStatus(up=up, text=text, handshakes=self._handshakes, rekeys=self._sessions.rekeys)

    def network_changed(self) -> None:
        """Addresses, routes or links have changed: do not wait much longer for the next attempt."""
        self._early.changed()

    def socket_arrived(self, number: int, fd: int) -> None:
        """Keep underlay socket ``number``, which the supervisor has sent; takes ownership of ``fd``."""
        self._sockets.arrived(number, fd)

    # --- the loop ---

    async def _run(self) -> None:
        """Connect and reconnect until cancelled."""
        pauses = self._pauses
        session_id = await self._resumed()
        await self._sockets.release_unused()
        while True:
            cause: Cause | None = None
            try:
                if session_id is None:
                    self._early.began()
                    session_id = await self._attempt()
                began = time.monotonic()
                end = await self._until_lost(session_id)
                if isinstance(end, bytes):
                    session_id = end
                    await self._sockets.release_unused()
                    continue
                if end.reason is CloseReason.TWIN:
                    raise PeerError.of("session lost", Cause.TWIN)
                reason, remedy = f"session lost: {end.words}", ""
                pause = pauses.after_session(time.monotonic() - began, unanswered=end.unanswered)
            except QreError as error:
                cause, remedy = error.cause, error.remedy
                pause = pauses.after(cause)
                reason = f"{error}; UDP seems to be blocked on the way" if pauses.udp_seems_blocked else str(error)
                if cause is Cause.TWIN:
                    reason = f"short id {show_short_id(self._tried.short_id)}: {reason}"
            session_id = None
            await self._sockets.release_unused()
            self._context.limited(f"attempt {reason}", f"{reason}; next attempt in {pause:.1f} s")
            await self._tell(False, f"{reason}; next attempt in {pause:.1f} s", remedy)
            if await self._early.wait(pause, any_network=cause not in VISITS, clock=cause in BY_THE_CLOCK):
                pauses.network_changed()

    async def _resumed(self) -> bytes | None:
        """The id of the session that an earlier process left; None when it has ended."""
        confirmed = [record.session_id for record in self._sessions.records() if record.confirmed]
        for other in confirmed[1:]:  # that process was about to end it
            self._awaited.forget(other)
            self._replace(other, "another session goes on")
        if confirmed:
            return confirmed[0]
        for record in self._sessions.records():
            try:
                await self._awaited.until_begun(record.session_id)
                await self._until_heard(record.session_id)
            except QreError as error:
                self._context.log.info("%s", error)
            else:
                return record.session_id
        return None

    async def _until_lost(self, session_id: bytes) -> SessionEnd | bytes:
        """How it ended; or the id of a session that has taken its place."""
        server = self._server_of.pop(session_id, None)
        connected = f"connected to {server or self._servers.first}"
        await self._tell(True, connected)
        awaited = self._awaited.of(session_id)
        if awaited is None:
            return SessionEnd("it no longer exists")
        self._old_at, self._outdated_at = time.monotonic() + self._lifetime(), 0.0
        try:
            while not awaited.lost.done():
                back = self._servers.before(server)
                pause = self._context.config.reconnect_max_ms / 1000 * self._random.uniform(*_GOING_BACK)
                if self._state[1] != connected and not self._is_outdated(awaited):
                    await self._tell(True, connected)  # the profile is what it was
                young = max(0.0, self._renewal_at(awaited) - time.monotonic())
                await awaited.until_news(min(pause, young) if back else young)
                following = None
                if awaited.lost.done():
                    continue
                if awaited.silent:
                    following = await self._beside(session_id, awaited, server)
                elif time.monotonic() >= self._renewal_at(awaited):
                    following = await self._renewed(session_id, awaited, server)
                elif back and time.monotonic() >= self._back_at:
                    following = await self._back(session_id, back)
                if following is not None:
                    return following
            return awaited.lost.result()
        finally:
            self._awaited.forget(session_id)

    def _lifetime(self) -> float:
        """How old a session may become (seconds)."""
        lifetime = self._context.config.session_lifetime_ms / 1000
        return lifetime * self._random.uniform(*_LIFETIMES) if lifetime else float("inf")

    def _made_for(self) -> MadeFor:
        """What a session that is made now has for life."""
        return MadeFor.of(self._context.config)

    def _is_outdated(self, awaited: AwaitedSession) -> bool:
        return awaited.made_for != self._made_for()

    def _renewal_at(self, awaited: AwaitedSession) -> float:
        return min(self._old_at, self._outdated_at) if self._is_outdated(awaited) else self._old_at

    async def _renewed(self, session_id: bytes, awaited: AwaitedSession, server: KnownServer | None) -> bytes | None:
        """A session in place of one that is old, made beside it: that ends a moment later, when what was on its way
        has come. None when none could be made."""
        outdated = self._is_outdated(awaited)
        try:
            following = await self._attempt_with(self._servers.now(server), hurry=True)
        except QreError as error:
            pause = self._pauses.after(error.cause) if outdated or error.cause in VISITS else 0.0
            self._outdated_at = time.monotonic() + pause
            self._old_at = time.monotonic() + max(self._lifetime(), pause)
            self._context.limited(f"renew {error}", f"a new session fails, the old one goes on: {error}")
            if outdated:
                await self._tell(True, f"{_FORMER}: {error}; next attempt in {pause:.1f} s", error.remedy)
            await self._sockets.release_unused()
            return None
        soon = time.monotonic() + self._random.uniform(*_DRAINING)
        self._replace(session_id, "the profile has changed" if outdated else "SessionLifetime is over", soon)
        return following

    async def _back(self, session_id: bytes, servers: list[KnownServer]) -> bytes | None:
        """A session with one of these, which come before the one that carries packets now."""
        for server in servers:
            try:
                following = await self._attempt_with(server, hurry=True)
            except QreError as error:
                if error.cause in VISITS:  # nobody comes back to a page so soon
                    self._back_at = time.monotonic() + self._pauses.after(error.cause)
                self._context.log.debug("not back yet: %s", error)
            else:
                self._replace(session_id, "a server that comes before this one is back")
                self._context.limited("back", f"{server} is well again")
                return following
            await self._sockets.release_unused()
        return None

    def _replace(self, session_id: bytes, why: str, at: float = 0.0) -> None:
        self._sessions.delete(session_id, why, CloseReason.REPLACED, at)
        self.link.pump()

    async def _beside(self, session_id: bytes, awaited: AwaitedSession, server: KnownServer | None) -> bytes | None:
        """A new session beside one whose peer is silent: a server that was restarted does not know it any more. None
        when none could be made; then wait a while, because who replaces sessions all the time is taken for two."""
        wait = max(self._beside_at - time.monotonic(), spread(self._random, beside=True))
        await asyncio.wait({awaited.lost}, timeout=wait)
        if awaited.lost.done() or not awaited.silent:
            return None
        self._beside_at = time.monotonic() + _APART
        try:
            following = await self._attempt(silent=server)
        except QreError as error:
            if error.cause in VISITS:  # the server knows us no more: no browser comes back to a page so soon
                self._beside_at = time.monotonic() + max(_APART, self._pauses.after(error.cause))
            self._context.limited(f"attempt {error}", f"the server is silent, and a new session fails: {error}")
            await self._sockets.release_unused()
            return None
        self._replace(session_id, "it was silent, and has been replaced")
        self._context.limited("silent", "the server was silent: a new session has taken the place of the old one")
        return following

    # --- one attempt ---

    async def _attempt(self, silent: KnownServer | None = None) -> bytes:
        """Make a session, with the ``silent`` server last; its id once that server was heard with it. Raises QreError
        with the reason."""
        *servers, last = self._servers.after(silent)
        for server in servers:
            try:
                return await self._attempt_with(server, hurry=True)
            except QreError as error:
                if error.cause is Cause.TWIN:
                    raise
                self._context.limited(f"server {server}", f"{error}; another server is tried now")
            await self._sockets.release_unused()
        return await self._attempt_with(last, hurry=bool(servers))

    async def _attempt_with(self, server: KnownServer, *, hurry: bool) -> bytes:
        """The same with one server, which may say nothing for long unless there is a ``hurry``."""
        if self._state[1] == "starting":
            await self._tell(False, f"connecting to {server}")
        self._tried = server
        found = await addresses_of(server, self._context.config.outer_version, self._lookup, self._context.limited)
        order = server.candidates.order(found)
        for address in order[:-1]:
            try:
                return await self._attempt_at(server, address, PATIENCE)
            except QreError as error:
                if error.cause not in ELSEWHERE:
                    server.failed([address], found, error.cause)
                    raise
                line = f"{error}; the name has another address, which is tried now"
                self._context.limited(f"address {address[1][0]}", line)
            await self._sockets.release_unused()
        try:
            return await self._attempt_at(server, order[-1], PATIENCE if hurry else STEP_TIMEOUT)
        except QreError as error:
            server.failed(order, found, error.cause)
            raise

    async def _attempt_at(self, server: KnownServer, address: Resolved, patience: float) -> bytes:
        """The same at one address of the name, which may say nothing for ``patience`` seconds."""
        self._attempting = True
        try:
            return await self._attempt_on(server, address, patience)
        finally:
            self._attempting = False

    async def _attempt_on(self, server: KnownServer, address: Resolved, patience: float) -> bytes:
        made_for = self._made_for()
        number, source = await self._new_socket(ip_address(address[1][0]), address[1][1])
        handed_over, local = await self._shake_hands(server, number, address[1], patience, source)
        if handed_over.needs_large or not self._context.config.splits:
            self._context.limited("large", _LARGE if self._context.config.splits else _OLD)
        self._awaited.expect(handed_over.session_id, made_for, confirmed=False)
        self._sessions.install(handed_over, underlay_of(local, address[1]), socket_number=number)
        self.link.pump()
        await self._awaited.until_begun(handed_over.session_id)
        self._handshakes += 1
        await self._until_heard(handed_over.session_id, server)
        server.answered(address)
        self._server_of = {handed_over.session_id: server}
        return handed_over.session_id

    async def _until_heard(self, session_id: bytes, server: KnownServer | None = None) -> None:
        """Wait until the server, which has proved itself and granted the tunnel, was heard with a session that has
        begun. Raises QreError when it is lost first, or silent beside another; the only one goes on then."""
        first = not self._state[0]
        if first:
            await self._tell(True, f"connected to {server or self._servers.first}, its first packet is awaited")
        try:
            await self._awaited.until_confirmed(session_id, alone=first)
        except QreError as error:
            if first:
                await self._tell(False, str(error))
            raise

    async def _new_socket(self, peer: Address, port: int) -> tuple[int, Address | None]:
        """Its number, and where its packets to the server come from, if there is a route."""
        try:
            number, source = await self._sockets.new(peer, port)
        except MachineError:
            for session_id in list(self._sessions.orphans):  # one of them may occupy the configured port
                self._sessions.delete_orphan(session_id, CloseReason.REPLACED)
            self.link.pump()
            raise
        refuse_loop(self._context.config, peer, source)
        return number, source

    async def _shake_hands(
        self, server: KnownServer, number: int, peer: tuple[str, int], patience: float, source: Address | None
    ) -> tuple[HandedOver, tuple[str, int]]:
        where = str(server) if peer[0] == server.host else f"{server} at {peer[0]}"
        handshake = self._tickets.handshake(server, self._random)
        with socket.socket(fileno=os.dup(self.link.sockets[number])) as made:
            port = int(made.getsockname()[1])
            try:
                local = await shake_hands(handshake, made, peer, where, patience)
            except QreError as error:
                if error.cause in VISITS and self._tickets.refused(server, handshake):
                    self._pauses.ticket_refused()
                raise
            self._forgetting.soon()
            if local is None and source is None:
                raise MachineError.of(f"cannot reach {where}", Cause.NO_ROUTE)
            self._tickets.done(server, handshake)
            return handshake.hand_over(time.monotonic()), (local or str(source), port)

    # --- sessions ---

    def _orphaned(self) -> None:
        self._context.log.warning(
            "the kernel has a session of an earlier daemon, without its secrets: it carries traffic until a new"
            " session replaces it"
        )

    async def _release_idle(self) -> None:
        """Unless a socket may be one that an attempt has just got: then that attempt's end does it."""
        if not self._attempting:
            await self._sockets.release_unused()

    async def _tell(self, up: bool, text: str, remedy: str = "") -> None:
        up = up or self._sessions.up() > 0  # an orphan carries traffic, too
        self._state = (up, text[:512])
        await self._context.send(Party.SUPERVISOR, RoleState(up=up, text=text[:512], remedy=remedy[:512]))
