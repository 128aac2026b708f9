"""The live sessions: their secrets, epochs and connection IDs, and what is asked of the data plane for them. Sans-IO.

RFC 9001 §6, RFC 9000 §5.1. A session's life is the table in ``session_rules``; here what the data plane says becomes
an event of it, and its effects are done.

Rules. A record is in ``store`` from before the data plane is asked until the session is gone. The epoch in it is one
that the data plane is known to have reached, so secrets are only ever derived forward. Whoever decides on a new epoch
(we, when the interval is over or the data plane says that keys are worn; or the peer, and the data plane followed),
the data plane is given the keys after it, too. Whenever there is a new data plane or a new pair to it, everything is
compared: sessions it does not have are installed again, those we have no secrets of are deleted, epochs are caught
up. Requests that were on their way then are forgotten, because the comparison makes up for them.

The kernel's data plane (``Settings.in_kernel``) outlives us, which changes two things. A session that it had and has
no more is over: its packet numbers are forgotten, so it is never installed again. One that we have no secrets of is
an *orphan*: its packets flow on until its peer comes back with a new session (a client makes that itself, at once),
its idle time is over, or the peer has changed keys and no later ones can be given, which it is told with a close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import msgspec

from qre.dataplane.protocol import (
    MAX_SESSIONS_PER_DEVICE,
    Answer,
    DataplaneReport,
    DataplaneRequest,
    FrameFate,
    FrameReceived,
    KeyPhaseChanged,
    KeyPhaseConfirmed,
    PeerMoved,
    Refusal,
    RekeyDue,
    SessionConfirmed,
    SessionDelete,
    SessionList,
    SessionLost,
    SessionMark,
    Underlay,
)
from qre.ends import Role
from qre.errors import InternalError
from qre.quic.handed_over import HandedOver
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.secrets import SecretsStore, SessionRecord
from qre.workers.handshake.sessions.session_rules import SESSION_RULES, SessionEffect, SessionEvent, SessionStage
from qre.workers.handshake.sessions.session_state import (
    REASONS,
    CidsChanged,
    Confirmed,
    Event,
    Installed,
    Live,
    Lost,
    Orphaned,
    OrphanEnded,
    OutgoingRequest,
    Settings,
    Then,
    installation,
    key_update,
)
from qre.workers.handshake.sessions.settling import Settling

#: A refused key update is asked for again when the data plane says it may be, or after this (seconds).
_UPDATE_RETRY = 1.0
#: One that failed for another reason, such as a lack of memory, after this: the session is well.
_TROUBLE_RETRY = 10.0
#: What no later try will change.
_NEVER = frozenset({Refusal.OTHER_KEYS, Refusal.KEY_USED})
#: An installation whose epoch keeps being behind is broken.
_MAX_CATCH_UPS = 4


@dataclass
class Sessions:
    """``random`` spreads timers; ``cids`` makes spare routed connection IDs (server)."""

    store: SecretsStore
    role: Role
    settings: Settings
    random: Random
    cids: RoutedCids | None = None
    rekeys: int = 0
    outbox: deque[OutgoingRequest] = field(default_factory=deque)
    events: deque[Event] = field(default_factory=deque)
    orphans: dict[bytes, SessionMark] = field(default_factory=dict)
    _live: dict[bytes, Live] = field(default_factory=dict)
    #: What the data plane has told so far of what it has.
    _listed: dict[bytes, SessionMark] = field(default_factory=dict)
    #: To be deleted as soon as there is a data plane.
    _doomed: set[bytes] = field(default_factory=set)
    _pending: dict[int, Then] = field(default_factory=dict)
    #: Not from 1: the data plane may still speak of what the process before us asked.
    _next_id: int = 0
    _synced: bool = False

    def __post_init__(self) -> None:
        self._next_id = self.random.getrandbits(40)

    @property
    def _settling(self) -> Settling:
        """Made anew each time: we hold nobody who holds us."""
        return Settling(self)

    # --- what others ask ---

    def restore(self, records: list[SessionRecord]) -> None:
        """Sessions that a process before us left; what the data plane has of them is seen when it is connected."""
        for record in records:
            live = self._live[record.session_id] = Live(record, routed=True)
            self._happens(live, SessionEvent.FOUND_CONFIRMED if record.confirmed else SessionEvent.FOUND)
        if records:
            self.events.append(CidsChanged())

    def install(self, handed_over: HandedOver, underlay: Underlay, *, socket_number: int = 0) -> None:
        """A handshake is over: from here on it is a session. Raises MachineError when there is no room."""
        if handed_over.session_id in self._live:
            raise InternalError("session", "it is there already")
        record = SessionRecord(self.role, handed_over, underlay, socket_number)
        self.store.put(record)
        live = self._live[record.session_id] = Live(record)
        self._happens(live, SessionEvent.NEW)

    def delete(self, session_id: bytes, reason: str) -> None:
        """End it; the peer is told."""
        live = self._live.get(session_id)
        if live is not None:
            self._happens(live, SessionEvent.DELETED, reason=reason)

    def delete_orphan(self, session_id: bytes) -> None:
        """End a session that we have no secrets of; its peer is told."""
        if self.orphans.pop(session_id, None) is not None:
            self._delete(session_id)
            self.events.append(OrphanEnded(session_id))

    @property
    def compared(self) -> bool:
        """Is it known what the data plane has?"""
        return self._synced

    def records(self) -> tuple[SessionRecord, ...]:
        return tuple(live.record for live in self._live.values())

    def up(self) -> int:
        """How many sessions are confirmed."""
        return sum(live.record.confirmed for live in self._live.values()) + sum(
            mark.confirmed for mark in self.orphans.values()
        )

    def connection_ids(self) -> frozenset[bytes]:
        """Every routed connection ID that leads to a session the data plane has, or had and is given again."""
        return frozenset(cid for live in self._live.values() if live.routed for cid in live.record.connection_ids())

    def has_connection_id(self, connection_id: bytes) -> bool:
        """Whether it leads to a session that lives."""
        return any(connection_id in live.record.connection_ids() for live in self._live.values()) or any(
            connection_id in mark.connection_ids for mark in self.orphans.values()
        )

    # --- the data plane ---

    def connected(self, now: float) -> None:
        """There is a new pair to a data plane, perhaps a new one."""
        self.disconnected()
        self._listed.clear()
        self._list(b"")

    def _list(self, after: bytes) -> None:
        self.outbox.append(OutgoingRequest(SessionList(id=self._number(self._compare), after=after)))

    def disconnected(self) -> None:
        self._synced = False
        requests = (outgoing.request for outgoing in self.outbox)
        self._doomed.update(request.session_id for request in requests if isinstance(request, SessionDelete))
        self.outbox.clear()
        self._pending.clear()
        for live in self._live.values():
            live.updating, live.settling = False, None

    def received(self, report: DataplaneReport, now: float) -> None:
        if isinstance(report, Answer):
            then = self._pending.pop(report.id, None)
            if then is not None:
                then(report, now)
            return
        if isinstance(report, SessionLost):
            self._listed.pop(report.session_id, None)
        live = self._live.get(report.session_id)
        if live is None:
            self._of_no_record(report)
            return
        match report:
            case SessionConfirmed():
                self._happens(live, SessionEvent.CONFIRMED, now)
            case SessionLost(reason=reason):
                self._happens(live, SessionEvent.LOST, reason=REASONS[reason])
            case RekeyDue(key_epoch=epoch) if epoch == live.record.key_epoch:
                self._rekey(live)
            case KeyPhaseChanged(key_epoch=epoch):
                if self._reached(live, epoch, now):
                    self._give_next_keys(live)
            case KeyPhaseConfirmed(key_epoch=epoch):
                if epoch == live.record.key_epoch and live.rekey_at <= now + _UPDATE_RETRY:
                    self._rekey_if_due(live, now + _UPDATE_RETRY)
            case PeerMoved(underlay=underlay):
                self.change(live, replace(live.record, underlay=underlay))
            case FrameReceived(frames=frames):
                self._settling.frames_received(live, frames, now)
            case FrameFate(id=id, acknowledged=acknowledged) if id == live.settling:
                self._settling.settled(live, acknowledged, now)
            case _:
                pass  # of an epoch or a frame that has been overtaken

    def _of_no_record(self, report: DataplaneReport) -> None:
        """Of an orphan, or of what was deleted meanwhile."""
        match report:
            case SessionLost(session_id=session_id) if self.orphans.pop(session_id, None) is not None:
                self.events.append(OrphanEnded(session_id))
            case SessionConfirmed(session_id=session_id) if session_id in self.orphans:
                self.orphans[session_id] = msgspec.structs.replace(self.orphans[session_id], confirmed=True)
            case KeyPhaseChanged(session_id=session_id) if self.role is Role.SERVER:
                self.delete_orphan(session_id)  # with the next change nothing would be heard of the peer any more

    def timer(self) -> float | None:
        """When ``handle_timer`` wants to be called."""
        soonest = float("inf")
        for live in self._live.values():
            if live.stage is SessionStage.UP and not live.updating:
                soonest = min(soonest, live.rekey_at)
            if live.settle_at is not None:
                soonest = min(soonest, live.settle_at)
        return None if soonest == float("inf") else soonest

    def handle_timer(self, now: float) -> None:
        for live in list(self._live.values()):
            self._rekey_if_due(live, now)
            if live.settle_at is not None and now >= live.settle_at:
                live.settle_at = None
                self._settling.settle(live, now)

    # --- the table, and what it wants done ---

    def _happens(self, live: Live, event: SessionEvent, now: float = 0.0, reason: str = "") -> None:
        """``now`` is wanted by what times something, ``reason`` by an end."""
        rule = SESSION_RULES[live.stage, event]
        live.stage = rule.becomes
        for effect in rule.effects:
            match effect:
                case SessionEffect.ASK_INSTALL:
                    self._ask_install(live)
                case SessionEffect.ASK_DELETE:
                    self._delete(live.record.session_id)
                case SessionEffect.READY:
                    self._ready(live, now)
                case SessionEffect.CONFIRM:
                    live.rekey_at = self.settings.next_rekey(now, self.random)
                    self.change(live, replace(live.record, confirmed=True))
                    self.events.append(Confirmed(live.record.session_id))
                case SessionEffect.SETTLE:
                    self._settling.settle(live, now)
                case SessionEffect.REPLACE_ORPHANS:
                    self._replace_orphans(live.record)
                case SessionEffect.FORGET:
                    del self._live[live.record.session_id]
                    self.store.remove(live.record.session_id)
                    self.events += (Lost(live.record, reason), CidsChanged())

    def _ask_install(self, live: Live) -> None:
        record = live.record
        self.ask(
            lambda id: installation(record, self.settings, id),
            lambda answer, now: self._install_answered(live, answer, now),
            record.socket_number,
        )

    def _install_answered(self, live: Live, answer: Answer, now: float) -> None:
        if not self.is_live(live):
            return
        epoch = live.record.key_epoch
        if answer.refusal is None or (answer.refusal is Refusal.INSTALLED and answer.key_epoch == epoch):
            self._happens(live, SessionEvent.HELD, now)
        elif answer.key_epoch is not None and answer.key_epoch > epoch and live.catch_ups < _MAX_CATCH_UPS:
            live.catch_ups += 1
            self._reached(live, answer.key_epoch, now)
            self._happens(live, SessionEvent.MISSING)
        else:
            self._happens(live, SessionEvent.LOST, reason=f"the data plane refused it: {answer.error}")

    def _ready(self, live: Live, now: float) -> None:
        live.catch_ups = 0
        live.rekey_at = self.settings.next_rekey(now, self.random)
        if not live.routed:
            live.routed = True
            self.events.append(CidsChanged())
        self.events.append(Installed(live.record.session_id))
        if live.record.spare_cid:
            self._settling.adopt_spare(live)

    def _replace_orphans(self, record: SessionRecord) -> None:
        """A client has one session; on a server a newer one of the same short id takes the place of the others."""
        for session_id, mark in list(self.orphans.items()):
            if record.role is Role.CLIENT or mark.short_id == record.short_id:
                self.delete_orphan(session_id)

    def _delete(self, session_id: bytes) -> None:
        if self.ask(lambda id: SessionDelete(id=id, session_id=session_id), None) is None:
            self._doomed.add(session_id)

    def _gone(self, live: Live) -> None:
        """The data plane does not have it (any more)."""
        if self.settings.in_kernel and live.routed:
            self._happens(live, SessionEvent.LOST, reason="the kernel does not have it any more")
        else:
            self._happens(live, SessionEvent.MISSING)

    def is_live(self, live: Live) -> bool:
        """Or is it gone since somebody was asked about it?"""
        return self._live.get(live.record.session_id) is live

    def change(self, live: Live, record: SessionRecord) -> None:
        """Remember it, before anything else happens."""
        self.store.put(record)
        live.record = record

    # --- comparing with the data plane ---

    def _compare(self, answer: Answer, now: float) -> None:
        if answer.refusal is not None:
            return  # a data plane that cannot tell is about to be another one
        self._listed |= {mark.session_id: mark for mark in answer.sessions}
        if answer.more and answer.sessions and len(self._listed) <= MAX_SESSIONS_PER_DEVICE:
            self._list(answer.sessions[-1].session_id)
            return
        known, self._listed = self._listed, {}
        self._synced = True
        self._compare_strangers([mark for session_id, mark in known.items() if session_id not in self._live])
        for live in list(self._live.values()):
            mark = known.get(live.record.session_id)
            if mark is None:
                self._gone(live)
            else:
                self._compare_one(live, mark, now)

    def _compare_strangers(self, marks: list[SessionMark]) -> None:
        """Sessions that we have no record of."""
        doomed, self._doomed = self._doomed, set()
        kept = {mark.session_id: mark for mark in marks if self.settings.in_kernel and mark.session_id not in doomed}
        for mark in marks:
            if mark.session_id not in kept:
                self._delete(mark.session_id)
        for session_id in self.orphans.keys() - kept.keys():
            self.events.append(OrphanEnded(session_id))
        fresh = tuple(mark for session_id, mark in kept.items() if session_id not in self.orphans)
        self.orphans = kept
        if fresh:
            self.events.append(Orphaned(fresh))

    def _compare_one(self, live: Live, mark: SessionMark, now: float) -> None:
        if mark.key_epoch < live.record.key_epoch:
            self.delete(live.record.session_id, "the data plane is at an earlier key epoch")
            return
        self._reached(live, mark.key_epoch, now)
        self._happens(live, SessionEvent.HELD, now)
        if mark.confirmed and not live.record.confirmed:
            self._happens(live, SessionEvent.CONFIRMED, now)
        self._give_next_keys(live)

    # --- keys ---

    def _rekey_if_due(self, live: Live, now: float) -> None:
        if live.stage is SessionStage.UP and now >= live.rekey_at:
            self._rekey(live)

    def _rekey(self, live: Live) -> None:
        """Ask for the next epoch."""
        if live.updating or live.stage is not SessionStage.UP or not self._synced:
            return
        live.updating = True
        wanted = live.record.at(live.record.key_epoch + 1)
        self.ask(
            lambda id: key_update(wanted, id), lambda answer, now: self._rekey_answered(live, wanted, answer, now)
        )

    def _rekey_answered(self, live: Live, wanted: SessionRecord, answer: Answer, now: float) -> None:
        if not self.is_live(live):
            return
        live.updating = False
        if answer.refusal is None:
            self._reached(live, wanted.key_epoch, now)
        elif answer.key_epoch is not None and answer.key_epoch > live.record.key_epoch:
            self._reached(live, answer.key_epoch, now)  # the peer was faster
            self._give_next_keys(live)
        elif answer.refusal is Refusal.NO_SUCH:
            self._gone(live)
        elif live.record.key_epoch >= wanted.key_epoch:
            return  # overtaken: KeyPhaseChanged came first
        else:
            later = answer.refusal in {Refusal.NOT_CONFIRMED, Refusal.CLOSING}
            live.rekey_at = now + (_UPDATE_RETRY if later else _TROUBLE_RETRY)
            if answer.refusal in _NEVER:
                self.delete(live.record.session_id, f"the data plane refused new keys: {answer.error}")

    def _give_next_keys(self, live: Live) -> None:
        """The keys of the current epoch once more, and those after it."""
        record = live.record
        self.ask(lambda id: key_update(record, id), lambda answer, now: self._next_keys_answered(live, answer, now))

    def _next_keys_answered(self, live: Live, answer: Answer, now: float) -> None:
        if answer.refusal is None or not self.is_live(live):
            return
        if answer.key_epoch is not None and answer.key_epoch > live.record.key_epoch:
            if self._reached(live, answer.key_epoch, now):
                self._give_next_keys(live)
        elif answer.refusal is Refusal.NO_SUCH:
            self._gone(live)
        elif answer.refusal is Refusal.OTHER_KEYS:  # the peer and we cannot follow each other any more
            self.delete(live.record.session_id, f"the data plane has other keys: {answer.error}")

    def _reached(self, live: Live, epoch: int, now: float) -> bool:
        """The data plane is at ``epoch``; whether that is news."""
        if epoch <= live.record.key_epoch:
            return False
        self.rekeys += epoch - live.record.key_epoch
        self.change(live, live.record.at(epoch))
        live.rekey_at = self.settings.next_rekey(now, self.random)
        return True

    # --- requests ---

    def ask(self, make: Callable[[int], DataplaneRequest], then: Then | None, socket_number: int = 0) -> int | None:
        """Put a request into the outbox; its id. None: there is no data plane, and comparing will make up for it."""
        if not self._synced:
            return None
        id = self._number(then)
        self.outbox.append(OutgoingRequest(make(id), socket_number))
        return id

    def _number(self, then: Then | None) -> int:
        id, self._next_id = self._next_id, self._next_id + 1
        if then is not None:
            self._pending[id] = then
        return id
