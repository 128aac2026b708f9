"""Handshakes with authenticated clients, from their first flight until the data plane has installed their sessions.

The replay file is written before a handshake begins. At its end, in the order of docs/protocol.md: the data plane
holds the session, the BPF map steers its connection ID, and only then the last frame is sent, which lets the client
switch.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from qre.addresses import Interface
from qre.dataplane.protocol import PathProven, underlay_of
from qre.dest_profile import DestProfile
from qre.errors import MachineError, QreError
from qre.ipc.steering import Steering
from qre.quic.bounds import Bound
from qre.quic.handshake_events import Closed, HandshakeFailed
from qre.quic.server.address_grants import Grants
from qre.quic.server.coming_back import TicketKeeper, is_forged
from qre.quic.server.connect_ip import AddressesRequested
from qre.quic.server.inspector import Authenticated
from qre.quic.server.server_handshake import InstallNow, LeftUnread, ServerHandshake, ShownByDest
from qre.quic.shadow.server_hello import Obstacle
from qre.reality.replay import NotRecorded, ReplayFilter
from qre.wire.close_reason import CloseReason
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.wire.packet import is_short, long_header_source_cid
from qre.workers.handshake.port.flow_parts import Address, Hello, PlacedHandshake
from qre.workers.handshake.port.volley import Volley
from qre.workers.handshake.recognition.accepted import LIFETIME, Accepted
from qre.workers.handshake.sessions.live_sessions import Sessions

#: Seconds; as long as a held session waits for its client.
_STEERING_TIMEOUT: Final = 8.0
#: Handshakes of one short id that have no confirmed session yet: a client has one, and one more when it begins again.
MAX_UNCONFIRMED: Final = 4


@dataclass
class Acceptance:
    """All handshakes in progress. ``volley`` puts datagrams on the wire. ``left`` is called with each
    handshake that follows Dest no more and what tells Dest so, ``not_followed`` with one whose client has to see Dest
    itself, ``over`` with each that has ended. ``imitate`` says whether Dest is down and is imitated; ``changed`` is
    called when the sessions have requests to send, ``complain`` with (key, line) for the log.
    ``turn_away`` says whether another machine with the client's profile is to stay connected.
    ``steering`` is None where the data plane steers connection IDs itself: qre.ko."""

    private_key: bytes  # of which connection IDs are made; stays when that of the profile changes
    routed_cid_len: int
    listen: tuple[str, int]
    replay: ReplayFilter
    replay_fd: int
    sessions: Sessions
    grants: Grants
    steering: Steering | None
    volley: Volley
    left: Callable[[PlacedHandshake, bytes], None]
    not_followed: Callable[[PlacedHandshake], None]
    over: Callable[[PlacedHandshake], None]
    changed: Callable[[], None]
    turn_away: Callable[[Accepted], bool]
    complain: Callable[[str, str], None]
    spawn: Callable[[Coroutine[Any, Any, None]], None]  # the task belongs to the caller, who ends it
    told: Callable[[], None]  # the state has changed
    waits: Callable[[], None]  # ``timer()`` may be sooner now
    imitate: Callable[[], bool]
    dest: DestProfile | None = None
    keeper: TicketKeeper | None = None  # of tickets; None: clients get none
    accepted: int = 0
    #: Why the last client was not recorded, and so is a stranger; empty when it was.
    unrecorded: str = ""
    #: How often a client went beyond which bound.
    excesses: Counter[Bound] = field(default_factory=Counter)
    _all: dict[Accepted, None] = field(default_factory=dict)  # the oldest first

    def admit(self, hello: Hello) -> Accepted:
        """A handshake for a hello that is recorded already."""
        self.accepted += 1
        client_cid = None if self.imitate() else long_header_source_cid(hello.datagrams[0])
        inner = self.new_handshake(hello.found, hello.source, hello.now, hello.shown, client_cid)
        self._make_room(hello.found.short_id)
        made = Accepted(self, inner, hello, client_cid)
        self._all[made] = None
        return made

    def new_handshake(
        self, found: Authenticated, source: Address, now: float, shown: ShownByDest | None, client_cid: bytes | None
    ) -> ServerHandshake:
        """``client_cid``: the client's source CID, where Dest is to be followed."""
        return ServerHandshake(
            authenticated=found,
            private_key=self.private_key,
            dest=self.dest,
            routed_cid_len=self.routed_cid_len,
            peer=source[:2],
            now=now,
            random=os.urandom,
            shown=shown,
            client_cid=client_cid,
            joins=self.sessions.settings.splits,
            keeper=self.keeper,
        )

    def _make_room(self, short_id: bytes) -> None:
        """One identity takes no more than its share: what is closed gives way, then its oldest handshake."""
        for one in [one for one in self._all if one.short_id == short_id and one.inner.visit_is_over]:
            one.abandon()
        rivals = [one for one in self._all if one.short_id == short_id]
        for one in rivals[: max(0, len(rivals) + 1 - MAX_UNCONFIRMED)]:
            self._give_up(one, Bound.HANDSHAKES)

    def _went_beyond(self, one: Accepted, bound: Bound) -> None:
        self.excesses[bound] += 1
        client = self.grants.identities.who(one.short_id)
        self.complain(f"bound {bound}", f"client {client} at {one.source[0]}: too many {bound}")

    def _give_up(self, one: Accepted, bound: Bound) -> None:
        self._went_beyond(one, bound)
        if one.session_id is not None:
            self.sessions.delete(one.session_id, f"too many {bound}", CloseReason.TOO_MUCH)
            self.changed()
        one.abandon()

    def remember(self, found: Authenticated) -> bool:
        """Record the hello in the replay file. False when it is a replay, or cannot be recorded, and for a ticket of
        ours without its key."""
        if found.repeated:
            return False
        entry = self.replay.accept(found.random_hash, found.short_id, int(time.time()))
        if isinstance(entry, NotRecorded):
            what = "answered as Dest does" if entry is NotRecorded.REPEATED else "forwarded to Dest"
            self.complain(
                f"replay {entry.name}",
                f"{entry.value} ({self.grants.identities.who(found.short_id)}): {what}",
            )
            self._recorded("" if entry is NotRecorded.REPEATED else entry.value)
            return False
        offset, record = entry
        try:
            written = os.pwrite(self.replay_fd, record, offset)
            why = "" if written == len(record) else "no space left"
        except OSError as error:
            why = error.strerror or "unknown error"
        if why:
            why = f"the replay file cannot be written ({why})"
            self.complain("replay file", f"{why}: forwarded to Dest")
        self._recorded(why)
        return not why and not is_forged(found, self.keeper)

    @contextmanager
    def metered(self, one: Accepted) -> Iterator[None]:
        """What is done meanwhile is done for ``one``. Whose time is used up is left to Dest, as long as Dest is
        followed; later it is given up, unless the data plane has its session."""
        began, before = time.thread_time(), one.spent
        yield
        one.spent += time.thread_time() - began
        if not before <= one.may_spend < one.spent or one not in self._all:
            return
        if one.session_id is None and not one.inner.following:
            self._give_up(one, Bound.CPU)
        else:
            self._went_beyond(one, Bound.CPU)
            if one.session_id is None:
                self.not_followed(one)

    def _recorded(self, unrecorded: str) -> None:
        """Whether the last client could be recorded: without that, clients are strangers."""
        if unrecorded != self.unrecorded:
            self.unrecorded = unrecorded
            self.told()

    # --- driving ---

    def progress(self, one: Accepted, now: float) -> None:
        """Send the pending datagrams of ``one`` and handle its events."""
        if one not in self._all:
            return
        farewell = one.leaves_dest()
        if farewell is not None:
            one.ends_at = now + LIFETIME
            self.left(one, farewell)
        self.send(one, now)
        while (event := one.inner.next_event()) is not None:
            match event:
                case AddressesRequested() if one.short_id not in self.grants.identities.short_ids:
                    one.inner.close(CloseReason.REMOVED)
                case AddressesRequested() if self.turn_away(one):
                    one.inner.close(CloseReason.TWIN)
                case AddressesRequested(addresses=wanted):
                    granted = self.grants.ask(one, one.short_id, wanted)
                    if granted:
                        one.inner.grant(granted, self.grants.routes())
                    else:
                        one.inner.refuse(self.grants.why_not(one.short_id, wanted))
                    self._tell_denials(one, wanted, granted)
                case InstallNow():
                    self._install(one)
                case LeftUnread(bound=bound):
                    self._went_beyond(one, bound)
                case HandshakeFailed(reason=reason, bound=bound):
                    if bound is not None:
                        self.excesses[bound] += 1
                    self.complain("handshake", f"handshake with {one.source[0]}: {reason}")
                case Closed():
                    self._ended(one)
                    return
            self.send(one, now)

    def _tell_denials(self, one: Accepted, wanted: tuple[Interface, ...], granted: tuple[Interface, ...]) -> None:
        """Say what was not granted, and whose it is."""
        words = self.grants.why_not_in_words(one.short_id, wanted, granted)
        if words:
            client = self.grants.identities.who(one.short_id)
            text = f"client {client} at {one.source[0]} asked for what it may not have: {words}"
            self.complain(f"grant {client}", text)

    def recheck(self, may_go_on: Callable[[Accepted, bytes], bool]) -> None:
        """After a reload: give up the handshakes that may not go on."""
        for one in list(self._all):
            if one.session_id is None and not may_go_on(one, one.short_id):
                one.abandon()

    def send(self, one: Accepted, now: float) -> None:
        """What one of them has to say, when it is due."""
        at = now if one.inner.scripted else now + one.delay
        one.outbox.extend((at, data) for data in one.inner.datagrams_to_send(now))
        self.send_due(one, min(now, time.monotonic()))
        if one.outbox:
            self.waits()

    def send_due(self, one: Accepted, now: float) -> None:
        """What has waited for its time."""
        while one.outbox and one.outbox[0][0] <= now:
            data = one.outbox.popleft()[1]
            self.volley.say(one.source, data, self.mark_of(data), whole=True)  # it may probe the path's MTU

    def mark_of(self, data: bytes) -> int:
        """ECN of a datagram of ours that stands for none of Dest's: as Dest marks its 1-RTT packets, others not."""
        return self.dest.ecn if self.dest is not None and is_short(data) else 0

    def is_taken(self, cid: bytes, by: Accepted) -> bool:
        """Whether ``cid`` reaches a session, or another handshake than this."""
        return self.sessions.has_connection_id(cid) or any(cid in one.cids for one in self._all if one is not by)

    def cannot_follow(self, one: Accepted, obstacle: Obstacle) -> None:
        """Dest chose what ``one`` cannot have: its client gets Dest itself."""
        client = self.grants.identities.who(one.short_id)
        self.complain(f"dest {obstacle.name}", f"client {client} at {one.source[0]} gets Dest itself: {obstacle}")
        self.not_followed(one)

    def _install(self, one: Accepted) -> None:
        try:
            handed_over = one.inner.hand_over_state()
            underlay = underlay_of((self._local_ip(one.source), self.listen[1]), one.source[:2])
            self.sessions.install(handed_over, underlay)
        except QreError as error:
            self.complain("install", str(error))
            one.inner.close(CloseReason.NO_ROOM)
            return
        one.session_id = handed_over.session_id
        self.grants.move(one, one.session_id)
        self.changed()

    def _local_ip(self, source: Address) -> str:
        """The address that the client speaks to: on a port of all our addresses it was seen in its packets."""
        return source[2] if len(source) == 3 else self.listen[0]

    def timer(self) -> float | None:
        """The monotonic time at which to call ``handle_timer``; None when no handshake waits."""
        return min((at for one in self._all if (at := self.next_time(one)) is not None), default=None)

    @staticmethod
    def next_time(one: Accepted) -> float | None:
        """When one of them has something to do; None: not before the next datagram."""
        times = [one.outbox[0][0]] if one.outbox else []
        own = one.timer()
        if own is not None:
            times.append(own)
        if one.session_id is None and one.ends_at < math.inf:  # a held session has a time limit in the data plane
            times.append(one.ends_at)
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Drive every handshake whose timer has expired."""
        for one in list(self._all):
            self.send_due(one, now)
            if one.session_id is None and one.ends_at <= now:
                self._give_up(one, Bound.LIFETIME)
            else:
                one.handle_timer(now)

    # --- events of the sessions ---

    def installed(self, session_id: bytes) -> None:
        """The data plane holds the session: steer its connection ID, then send the last frame."""
        one = self._of(session_id)
        if one is not None:
            self.spawn(self._release(one))

    async def _release(self, one: Accepted) -> None:
        try:
            if self.steering is not None:
                await self.steering.adopted(one.inner.routed_cid, _STEERING_TIMEOUT)
        except MachineError as error:
            self.complain("steering", str(error))
            if one.session_id is not None:
                self.sessions.delete(one.session_id, str(error), CloseReason.NOT_INSTALLED)
                self.changed()
            return
        if one in self._all and one.session_id is not None:
            one.inner.session_installed()
            self.progress(one, time.monotonic())
            self.waits()  # the last datagram of a visit waited for it

    def confirmed(self, session_id: bytes) -> None:
        """The client uses the session: its handshake is complete."""
        one = self._of(session_id)
        if one is not None:
            now = time.monotonic()
            if (proven := one.inner.proven_path) is not None:
                self._tell_path(session_id, *proven, now)
            one.inner.confirmed(now)
            self.progress(one, now)

    def _tell_path(self, session_id: bytes, size: int, at: float, now: float) -> None:
        ago, size = max(0, round((now - at) * 1000)), min(size, MAX_UDP_PAYLOAD)
        self.sessions.ask(lambda id: PathProven(id=id, session_id=session_id, size=size, ago_ms=ago), None)
        self.changed()

    def lost(self, session_id: bytes) -> None:
        """The session is gone: abandon its handshake, if that is still in progress."""
        one = self._of(session_id)
        if one is not None:
            one.session_id = None
            one.abandon()

    def _of(self, session_id: bytes) -> Accepted | None:
        return next((one for one in self._all if one.session_id == session_id), None)

    def _ended(self, one: Accepted) -> None:
        self._all.pop(one, None)
        self.send_due(one, math.inf)
        self.grants.free(one)
        self.over(one)

    def close(self) -> None:
        """Send CONNECTION_CLOSE in every handshake in progress, and forget all of them."""
        now = time.monotonic()
        for one in list(self._all):
            one.inner.close(CloseReason.STOPPED)
            self.progress(one, now)
        self._all.clear()
