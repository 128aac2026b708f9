"""The live sessions: their secrets, epochs and connection IDs, and the requests to the data plane. Sans-IO.

RFC 9001 §6, RFC 9000 §5.1. A session's life is the table in ``session_rules``; this module translates reports of the
data plane into events of that table and performs its effects.

Rules. A record is in ``store`` from before the data plane is asked until the session is gone. Its epoch is one that
the data plane is known to have reached, so secrets are only ever derived forward. A new epoch begins when the rekey
interval is over, keys are worn, or the peer begins it; each time the data plane also gets the keys of the following
one. With a new data plane, or a new pair to it, all sessions are compared: missing ones are installed again, unknown
ones deleted, epochs catch up. Pending requests are forgotten then.

The kernel's data plane (``Settings.in_kernel``) outlives this process. A session that it no longer has is over: its
packet numbers are lost. A session whose secrets are lost is an *orphan*: it carries packets until its peer makes a
new one, it is idle for too long, or the peer changes keys, which is answered with a close.
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
from qre.wire.close_reason import CloseReason
from qre.workers.handshake.sessions.live_index import LiveIndex
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.secrets import SecretsStore, SessionRecord
from qre.workers.handshake.sessions.session_rules import SESSION_RULES, SessionEffect, SessionEvent, SessionStage
from qre.workers.handshake.sessions.session_state import (
    UPDATE_RETRY,
    CidsChanged,
    Confirmed,
    Event,
    Installed,
    Live,
    Lost,
    OrphanEnded,
    OutgoingRequest,
    PassedOn,
    SessionEnd,
    Settings,
    Then,
    ended,
    installation,
    key_update,
    known_of,
    orphan_events,
    stale,
    update_retry,
)
from qre.workers.handshake.sessions.settling import Settling

#: Refusals that are final.
_NEVER = frozenset({Refusal.OTHER_KEYS, Refusal.KEY_USED})
#: An installation whose epoch is behind more often than this fails.
_MAX_CATCH_UPS = 4
_UNKNOWN = SessionEnd("")


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
    _live: LiveIndex = field(default_factory=LiveIndex)
    _listed: dict[bytes, SessionMark] = field(default_factory=dict)  # what the data plane has listed so far
    _doomed: dict[bytes, CloseReason | None] = field(default_factory=dict)  # once there is a data plane, and why
    _pending: dict[int, Then] = field(default_factory=dict)
    _next_id: int = 0  # not from 1: the data plane may still answer requests of an earlier process
    compared: bool = False  # with this data plane

    def __post_init__(self) -> None:
        self._next_id = self.random.getrandbits(40)

    def restore(self, records: list[SessionRecord]) -> None:
        """Take over the sessions of an earlier process; they are compared when the data plane is connected."""
        for record in records:
            live = self._live.add(Live(record, routed=True))
            self._happens(live, SessionEvent.FOUND_CONFIRMED if record.confirmed else SessionEvent.FOUND)
        if records:
            self.events.append(CidsChanged())

    def install(self, handed_over: HandedOver, underlay: Underlay, *, socket_number: int = 0) -> None:
        """Begin a session after its handshake. Raises MachineError when there is no room."""
        if self._live.get(handed_over.session_id) is not None:
            raise InternalError("session", "exists already")
        record = SessionRecord(self.role, handed_over, underlay, socket_number)
        self.store.put(record)
        self._happens(self._live.add(Live(record)), SessionEvent.NEW)

    def delete(self, session_id: bytes, words: str, reason: CloseReason, at: float = 0.0) -> None:
        """End the session, now or ``at`` a later time, and tell the peer the reason; an unknown id is ignored."""
        live = self._live.get(session_id)
        if live is not None and at:
            live.ends = (at, SessionEnd(words, reason))
        elif live is not None:
            self._happens(live, SessionEvent.DELETED, end=SessionEnd(words, reason))

    def ends(self, session_id: bytes) -> bool:
        """Whether it only waits for its end."""
        return (live := self._live.get(session_id)) is not None and live.ends is not None

    def delete_orphan(self, session_id: bytes, reason: CloseReason) -> None:
        """End a session whose secrets are lost and tell its peer; an unknown id is ignored."""
        if self.orphans.pop(session_id, None) is not None:
            self._delete(session_id, reason)
            self.events.append(OrphanEnded(session_id))

    def records(self) -> tuple[SessionRecord, ...]:
        """Of every live session; orphans have none."""
        return tuple(live.record for live in self._live)

    def records_of(self, short_id: bytes) -> tuple[SessionRecord, ...]:
        """Of every live session of one client."""
        return tuple(live.record for live in self._live.of_short_id(short_id))

    def find(self, session_id: bytes) -> Live | None:
        """That session; None when it does not live."""
        return self._live.get(session_id)

    def up(self) -> int:
        """How many sessions are confirmed, orphans included."""
        return self._live.confirmed + sum(each.confirmed for each in self.orphans.values())

    def connection_ids(self) -> frozenset[bytes]:
        """Every routed connection ID of a session that the data plane has, or had and is given again."""
        return frozenset(self._live.routed)

    def has_connection_id(self, connection_id: bytes) -> bool:
        """Whether it is a routed connection ID of a live session or an orphan."""
        return self._live.of_cid(connection_id) is not None or any(
            connection_id in mark.connection_ids for mark in self.orphans.values()
        )

    # --- the data plane ---

    def connected(self, now: float) -> None:
        """There is a new pair to the data plane, or a new data plane: begin to compare."""
        self.disconnected()
        self._listed.clear()
        self._list(b"")

    def _list(self, after: bytes) -> None:
        self.outbox.append(OutgoingRequest(SessionList(id=self._number(self._compare), after=after)))

    def disconnected(self) -> None:
        """The pair is gone: forget pending requests, but not deletions."""
        self.compared = False
        requests = (outgoing.request for outgoing in self.outbox)
        self._doomed |= {each.session_id: each.reason for each in requests if isinstance(each, SessionDelete)}
        self.outbox.clear()
        self._pending.clear()
        for live in self._live:
            live.updating, live.settling = False, None

    def received(self, report: DataplaneReport, now: float) -> None:
        """Process a report, or the answer to a request."""
        if isinstance(report, Answer):
            if (then := self._pending.pop(report.id, None)) is not None:
                then(report, now)
            return
        if isinstance(report, SessionLost):
            self._listed.pop(report.session_id, None)
        if (live := self._live.get(report.session_id)) is None:
            self._of_no_record(report)
            return
        match report:
            case SessionConfirmed():
                self._happens(live, SessionEvent.CONFIRMED, now)
            case SessionLost():
                self._happens(live, SessionEvent.LOST, end=ended(report))
            case RekeyDue(key_epoch=epoch) if epoch == live.record.key_epoch:
                self._rekey(live)
            case KeyPhaseChanged(key_epoch=epoch):
                if self._reached(live, epoch, now):
                    self._give_next_keys(live)
            case KeyPhaseConfirmed(key_epoch=epoch) if epoch == live.record.key_epoch:
                if live.rekey_at <= now + UPDATE_RETRY:
                    self._rekey(live)
            case PeerMoved(underlay=underlay):
                self.change(live, replace(live.record, underlay=underlay))
            case FrameReceived(frames=frames):
                self._settling.frames_received(live, frames, now)
            case _ if isinstance(report, PassedOn):
                self.events.append(report)
            case FrameFate(id=id, acknowledged=acknowledged) if id == live.settling:
                self._settling.settled(live, acknowledged, now)

    def _of_no_record(self, report: DataplaneReport) -> None:
        """The report is about an orphan, or a session deleted meanwhile."""
        match report:
            case SessionLost(session_id=session_id) if self.orphans.pop(session_id, None) is not None:
                self.events.append(OrphanEnded(session_id))
            case SessionConfirmed(session_id=session_id) if session_id in self.orphans:
                self.orphans[session_id] = msgspec.structs.replace(self.orphans[session_id], confirmed=True)
            case KeyPhaseChanged(session_id=session_id) if self.role is Role.SERVER:
                self.delete_orphan(session_id, CloseReason.FORGOTTEN)  # after the next change nobody could read it

    def timer(self) -> float | None:
        """The monotonic time at which to call ``handle_timer``; None when nothing is due."""
        return self._live.soonest()

    def handle_timer(self, now: float) -> None:
        """Rekey and end sessions that are due, and send lost frames again."""
        for live in self._live.due_by(now):
            if now >= live.rekey_at:
                self._rekey(live)
            if live.settle_at is not None and now >= live.settle_at:
                live.settle_at = None
                self._settling.settle(live, now)
            if live.leaving and now >= live.leaving[0][0]:
                self._settling.leave(live, now)
            if live.ends is not None and now >= live.ends[0]:
                self._happens(live, SessionEvent.DELETED, end=live.ends[1])

    # --- the table and its effects; settling is made anew each time, to avoid a reference cycle ---

    @property
    def _settling(self) -> Settling:
        return Settling(self)

    def _happens(self, live: Live, event: SessionEvent, now: float = 0.0, end: SessionEnd = _UNKNOWN) -> None:
        """Effects that set a timer need ``now``; the end of a session needs ``end``."""
        rule = SESSION_RULES[live.stage, event]
        live.stage = rule.becomes
        for effect in rule.effects:
            match effect:
                case SessionEffect.ASK_INSTALL:
                    self._ask_install(live)
                case SessionEffect.ASK_DELETE:
                    self._delete(live.record.session_id, end.reason)
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
                    self._live.remove(live)
                    self.store.remove(live.record.session_id)
                    self.events += (Lost(live.record, end), CidsChanged())

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
            end = SessionEnd(f"the data plane refused the session: {answer.error}")
            self._happens(live, SessionEvent.LOST, end=end)

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
        """A client has one session; on a server a new session replaces the others of its short id."""
        for session_id, mark in list(self.orphans.items()):
            if record.role is Role.CLIENT or mark.short_id == record.short_id:
                self.delete_orphan(session_id, CloseReason.REPLACED)

    def _delete(self, session_id: bytes, reason: CloseReason | None) -> None:
        if self.ask(lambda id: SessionDelete(id=id, session_id=session_id, reason=reason), None) is None:
            self._doomed[session_id] = reason

    def _gone(self, live: Live) -> None:
        """The data plane does not have the session."""
        if self.settings.in_kernel and live.routed:
            self._happens(live, SessionEvent.LOST, end=SessionEnd("the kernel no longer has the session"))
        else:
            self._happens(live, SessionEvent.MISSING)

    def is_live(self, live: Live) -> bool:
        """Whether the session still exists; it may end before an answer arrives."""
        return self._live.get(live.record.session_id) is live

    def change(self, live: Live, record: SessionRecord) -> None:
        """Write the record to ``store`` before anything else happens."""
        self.store.put(record)
        live.record = record

    # --- comparing with the data plane ---

    def _compare(self, answer: Answer, now: float) -> None:
        if answer.refusal is not None:
            return  # a data plane that cannot list its sessions is about to be replaced
        self._listed |= {mark.session_id: mark for mark in answer.sessions}
        if answer.more and answer.sessions and len(self._listed) <= MAX_SESSIONS_PER_DEVICE:
            self._list(answer.sessions[-1].session_id)
            return
        known, self._listed = self._listed, {}
        self.compared = True
        self._compare_strangers([mark for session_id, mark in known.items() if self._live.get(session_id) is None])
        for live in self._live:
            if (mark := known.get(live.record.session_id)) is None:
                self._gone(live)
            else:
                self._compare_one(live, mark, now)

    def _compare_strangers(self, marks: list[SessionMark]) -> None:
        """Delete sessions without a record; the kernel's become orphans."""
        doomed, self._doomed = self._doomed, {}
        kept = {mark.session_id: mark for mark in marks if self.settings.in_kernel and mark.session_id not in doomed}
        for mark in marks:
            if mark.session_id not in kept:
                self._delete(mark.session_id, doomed.get(mark.session_id, CloseReason.FORGOTTEN))
        self.events += orphan_events(self.orphans, kept)
        self.orphans = kept

    def _compare_one(self, live: Live, mark: SessionMark, now: float) -> None:
        end = stale(live.record, self.settings, mark)
        if end is not None:
            self._happens(live, SessionEvent.DELETED, end=end)
            return
        self.events += known_of(mark)
        self._reached(live, mark.key_epoch, now)
        self._happens(live, SessionEvent.HELD, now)
        if mark.confirmed and not live.record.confirmed:
            self._happens(live, SessionEvent.CONFIRMED, now)
        self._give_next_keys(live)

    # --- keys ---

    def _rekey(self, live: Live) -> None:
        """Ask the data plane to begin the next epoch."""
        if live.updating or live.stage is not SessionStage.UP or not self.compared:
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
            self._reached(live, answer.key_epoch, now)  # the peer began it first
            self._give_next_keys(live)
        elif answer.refusal is Refusal.NO_SUCH:
            self._gone(live)
        elif live.record.key_epoch >= wanted.key_epoch:
            return  # outdated: KeyPhaseChanged came first
        else:
            live.rekey_at = now + update_retry(answer.refusal)
            if answer.refusal in _NEVER:
                words = f"the data plane refused new keys: {answer.error}"
                self.delete(live.record.session_id, words, CloseReason.OUT_OF_STEP)

    def _give_next_keys(self, live: Live) -> None:
        """Send the keys of the current epoch again, with those of the next."""
        record = live.record
        self.ask(lambda id: key_update(record, id), lambda answer, now: self._next_keys_answered(live, answer, now))

    def _next_keys_answered(self, live: Live, answer: Answer, now: float) -> None:
        if answer.refusal is None or not self.is_live(live):
            return
        if answer.key_epoch is not None and answer.key_epoch > live.record.key_epoch:
            self._reached(live, answer.key_epoch, now)
            self._give_next_keys(live)
        elif answer.refusal is Refusal.NO_SUCH:
            self._gone(live)
        elif answer.refusal is Refusal.OTHER_KEYS:  # both ends can no longer follow each other's epochs
            words = f"the data plane has different keys: {answer.error}"
            self.delete(live.record.session_id, words, CloseReason.OUT_OF_STEP)

    def _reached(self, live: Live, epoch: int, now: float) -> bool:
        """Record that the data plane is at ``epoch``. False when that was known."""
        if epoch <= live.record.key_epoch:
            return False
        self.rekeys += epoch - live.record.key_epoch
        self.change(live, live.record.at(epoch))
        live.rekey_at = self.settings.next_rekey(now, self.random)
        return True

    # --- requests ---

    def ask(self, make: Callable[[int], DataplaneRequest], then: Then | None, socket_number: int = 0) -> int | None:
        """Queue a request; its id. None without a data plane: the next comparison makes up for it."""
        if not self.compared:
            return None
        id = self._number(then)
        self.outbox.append(OutgoingRequest(make(id), socket_number))
        return id

    def _number(self, then: Then | None) -> int:
        id, self._next_id = self._next_id, self._next_id + 1
        if then is not None:
            self._pending[id] = then
        return id
