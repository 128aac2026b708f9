"""Values of ``live_sessions``: a live session, its settings, events and requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from qre.addresses import Network
from qre.dataplane.install import handed_over_install, session_keys
from qre.dataplane.protocol import (
    Answer,
    DataplaneRequest,
    LossReason,
    PortTried,
    PortUse,
    PortWanted,
    Refusal,
    SessionBegun,
    SessionInstall,
    SessionLost,
    SessionMark,
    SessionSilent,
    SessionUpdate,
    digest,
)
from qre.ends import Role
from qre.wire.close_reason import CloseReason, close_words, reason_of
from qre.wire.overhead import BROWSER_UDP_PAYLOAD, MAX_UDP_PAYLOAD
from qre.wire.protection import next_secret
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_rules import SessionStage

#: The rekey interval varies by this fraction, so that two ends do not rekey at the same moment.
_JITTER = 0.1
#: A key update that was refused as too early is tried again after this (seconds).
UPDATE_RETRY = 1.0
#: One that failed for another reason, such as a lack of memory, after this (seconds): the session is intact, and
#: a client that cannot follow a change of keys hears nothing until then, and would give it up.
_TROUBLE_RETRY = 2.0


@dataclass(frozen=True)
class Settings:
    """The part of the configuration that concerns sessions; times in milliseconds."""

    rekey_interval_ms: int
    idle_timeout_ms: int
    keepalive_ms: int
    rekey_after_packets: int
    allowed_ips: tuple[Network, ...] = ()  # client
    #: The data plane is qre.ko: sessions outlive every process, and none is installed twice.
    in_kernel: bool = False
    #: The data plane sends and joins packets in two datagrams. An older qre.ko does not, nor keeps a client's to a
    #: browser's size.
    splits: bool = True
    #: Server: the networks of a client beside its granted addresses, by short id.
    behind: Callable[[bytes], tuple[Network, ...]] = lambda short_id: ()

    def next_rekey(self, now: float, random: Random) -> float:
        """When to rekey again after a rekey at ``now`` (seconds); infinity when RekeyInterval is 0."""
        interval = self.rekey_interval_ms / 1000
        return now + interval * random.uniform(1 - _JITTER, 1 + _JITTER) if interval else float("inf")


@dataclass(frozen=True)
class Installed:
    """The data plane holds the session."""

    session_id: bytes


@dataclass(frozen=True)
class Confirmed:
    """The peer was heard with the session: it uses it."""

    session_id: bytes


@dataclass(frozen=True)
class SessionEnd:
    """Why a session ends, in words; ``reason``: what the peer is told, or has said; ``unanswered``: nothing
    came back."""

    words: str
    reason: CloseReason | None = None
    unanswered: bool = False


@dataclass(frozen=True)
class Lost:
    """The session has ended, and its record is removed."""

    record: SessionRecord
    end: SessionEnd


@dataclass(frozen=True)
class PortsKnown:
    """What a new pair tells of a client's session: the port that it has moved to, and the number of the socket that
    it tries."""

    session_id: bytes
    port: PortUse | None
    lent: int


@dataclass(frozen=True)
class CidsChanged:
    """``Sessions.connection_ids`` has changed."""


@dataclass(frozen=True)
class Orphaned:
    """The kernel has sessions without secrets here: left by an earlier daemon, or installed by hand."""

    marks: tuple[SessionMark, ...]


@dataclass(frozen=True)
class OrphanEnded:
    """An orphan has ended."""

    session_id: bytes


PortEvent = PortWanted | PortTried | PortsKnown
#: What a data plane says of a session that is for its owner alone.
PassedOn = SessionBegun | SessionSilent | PortWanted | PortTried
Event = Installed | Confirmed | Lost | CidsChanged | Orphaned | OrphanEnded | PortsKnown | PassedOn


def known_of(mark: SessionMark) -> list[Event]:
    """What a new pair tells the owner of a session, beside its progress."""
    ports = PortsKnown(mark.session_id, mark.port, mark.lent)
    return [ports, SessionBegun(session_id=mark.session_id)] if mark.begun else [ports]


@dataclass(frozen=True)
class OutgoingRequest:
    """A request to the data plane; ``socket_number`` names the UDP socket to attach, 0: none."""

    request: DataplaneRequest
    socket_number: int = 0


class LiveWatcher(Protocol):
    """Whom a session tells of its changes."""

    def record_changed(self, live: Live, before: SessionRecord) -> None:
        """It has another record now."""
        ...

    def due_changed(self, live: Live) -> None:
        """It may be due at another time now."""
        ...


#: What ``due`` depends on.
_TIMED: Final = frozenset({"stage", "updating", "rekey_at", "settle_at", "leaving", "ends"})


@dataclass(eq=False)
class Live:
    """One session."""

    record: SessionRecord
    stage: SessionStage = SessionStage.NONE
    routed: bool = False  # packets for its connection IDs may be steered to the data plane
    rekey_at: float = float("inf")
    updating: bool = False
    settle_at: float | None = None
    began: bool = False  # settling has
    settling: int | None = None  # id of the FrameSend under way
    spares: int = 0
    leaving: tuple[
        tuple[float, bytes], ...
    ] = ()  # connection IDs that the peer has retired, and until when they lead here
    catch_ups: int = 0
    ends: tuple[float, SessionEnd] | None = None  # when, and why
    watched_by: LiveWatcher | None = field(default=None, repr=False)

    def __setattr__(self, name: str, value: object) -> None:
        before = self.record if name in ("record", "routed", "leaving") and self.watched_by is not None else None
        object.__setattr__(self, name, value)
        if self.watched_by is not None and before is not None:
            self.watched_by.record_changed(self, before)
        if self.watched_by is not None and name in _TIMED:
            self.watched_by.due_changed(self)

    @property
    def due(self) -> float:
        """When its timer fires: its end, a rekey, a frame that is sent again, or a retired connection ID."""
        rekey = self.rekey_at if self.stage is SessionStage.UP and not self.updating else float("inf")
        end = self.ends[0] if self.ends is not None else float("inf")
        settle = float("inf") if self.settle_at is None else self.settle_at
        return min(rekey, end, settle, self.leaving[0][0] if self.leaving else float("inf"))

    def connection_ids(self) -> tuple[bytes, ...]:
        """Those that lead to it, of its record and retired ones."""
        return *self.record.connection_ids(), *(cid for _, cid in self.leaving)


Then = Callable[[Answer, float], None]

_REASONS = {
    LossReason.IDLE: "the peer was silent for the idle timeout",
    LossReason.CLOSED: "the peer closed the session",
    LossReason.RESET: "the peer does not know the session (stateless reset)",
    LossReason.UNCONFIRMED: "the peer did not confirm the session in time",
    LossReason.LIMIT: "the packet limit of its keys was reached",
    LossReason.PROTOCOL: "the peer violated the protocol",
    LossReason.REPLACED: "replaced by a newer session",
    LossReason.DELETED: "deleted by request",
    LossReason.UNANSWERED: "nothing has come back for as long as a browser waits",
}


def ended(report: SessionLost) -> SessionEnd:
    """What the data plane says about a session that it has no more, and the peer about its CLOSE."""
    words = _REASONS[report.reason]
    if report.reason is not LossReason.CLOSED:
        return SessionEnd(words, unanswered=report.reason is LossReason.UNANSWERED)
    said = close_words(report.error_code)
    return SessionEnd(f"{words}: {said}" if said else words, reason_of(report.error_code))


def orphan_events(before: Mapping[bytes, SessionMark], kept: Mapping[bytes, SessionMark]) -> list[Event]:
    """What there is to tell when these orphans are found, and those were known."""
    events: list[Event] = [OrphanEnded(session_id) for session_id in before.keys() - kept.keys()]
    fresh = tuple(mark for session_id, mark in kept.items() if session_id not in before)
    return [*events, Orphaned(fresh)] if fresh else events


def allowed_ips(record: SessionRecord, settings: Settings) -> tuple[Network, ...]:
    """What is routed to the peer, and accepted from it."""
    if record.role is Role.CLIENT:
        return settings.allowed_ips
    granted = (address.network for address in record.handed_over.addresses)
    return (*granted, *settings.behind(record.short_id))


def stale(record: SessionRecord, settings: Settings, mark: SessionMark) -> SessionEnd | None:
    """Why the session cannot go on as the data plane has it; None when it can."""
    if mark.key_epoch < record.key_epoch:
        return SessionEnd("the data plane is at an earlier key epoch", CloseReason.OUT_OF_STEP)
    networks = allowed_ips(record, settings)
    if networks and mark.routed and mark.routed != digest(networks):
        return SessionEnd("its networks have changed while no daemon ran", CloseReason.CHANGED)
    return None


def installation(record: SessionRecord, settings: Settings, id: int) -> SessionInstall:
    """The request that installs this session, for the first time or again."""
    largest, usual = _payloads(record, settings)
    return handed_over_install(
        record.handed_over,
        record.role,
        record.underlay,
        id=id,
        allowed_ips=allowed_ips(record, settings),
        held=record.role is Role.SERVER and not record.confirmed,
        idle_timeout_ms=settings.idle_timeout_ms,
        keepalive_ms=settings.keepalive_ms,
        rekey_after_packets=settings.rekey_after_packets,
        splits=record.handed_over.splits and settings.splits,
        largest_payload=largest,
        usual_payload=usual,
    )


def _payloads(record: SessionRecord, settings: Settings) -> tuple[int, int]:
    """The largest UDP payload that this end sends, and the largest but for IPv6. A client's are a browser's, unless
    IPv6 inside, whose 1,280 bytes do not fit one, cannot go in two."""
    if record.role is Role.SERVER or not settings.splits:
        return MAX_UDP_PAYLOAD, MAX_UDP_PAYLOAD
    return MAX_UDP_PAYLOAD if record.handed_over.needs_large else BROWSER_UDP_PAYLOAD, BROWSER_UDP_PAYLOAD


def update_retry(refusal: Refusal) -> float:
    """After how many seconds a refused key update is tried again."""
    return UPDATE_RETRY if refusal in {Refusal.NOT_CONFIRMED, Refusal.CLOSING} else _TROUBLE_RETRY


def key_update(record: SessionRecord, id: int) -> SessionUpdate:
    """The request that carries the keys of the record's epoch and of the next."""
    h = record.handed_over
    return SessionUpdate(
        id=id,
        session_id=record.session_id,
        keys=session_keys(h.tx_secret, h.rx_secret),
        next_keys=session_keys(next_secret(h.tx_secret), next_secret(h.rx_secret)),
        key_epoch=record.key_epoch,
    )
