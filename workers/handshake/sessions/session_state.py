"""What a live session is made of, and what its table tells and asks: plain values for ``live_sessions``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from qre.dataplane.install import handed_over_install, session_keys
from qre.dataplane.protocol import Answer, DataplaneRequest, LossReason, SessionInstall, SessionMark, SessionUpdate
from qre.ends import Role
from qre.wire.protection import next_secret
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_rules import SessionStage

#: Two ends that were set up together must not rekey in lock-step: the interval varies by this part of it.
_JITTER = 0.1


@dataclass(frozen=True)
class Settings:
    """What of the configuration concerns sessions; times in milliseconds."""

    rekey_interval_ms: int
    idle_timeout_ms: int
    keepalive_ms: int
    rekey_after_packets: int
    allowed_ips: tuple[str, ...] = ()  # client: of the profile; server: beside the granted addresses
    #: The data plane is qre.ko: sessions outlive every process, and none is ever given to it twice.
    in_kernel: bool = False

    def next_rekey(self, now: float, random: Random) -> float:
        """When a session that is rekeyed ``now`` (seconds) is to be rekeyed again; infinity where that is off."""
        interval = self.rekey_interval_ms / 1000
        return now + interval * random.uniform(1 - _JITTER, 1 + _JITTER) if interval else float("inf")


@dataclass(frozen=True)
class Installed:
    """The data plane holds the session."""

    session_id: bytes


@dataclass(frozen=True)
class Confirmed:
    """The peer uses it."""

    session_id: bytes


@dataclass(frozen=True)
class Lost:
    """It is gone, and forgotten."""

    record: SessionRecord
    reason: str


@dataclass(frozen=True)
class CidsChanged:
    """Other routed connection IDs than before lead to the data plane: ``Sessions.connection_ids``."""


@dataclass(frozen=True)
class Orphaned:
    """The kernel has sessions that we have no secrets of: what a daemon before us left, or somebody installed."""

    marks: tuple[SessionMark, ...]


@dataclass(frozen=True)
class OrphanEnded:
    """One of them is gone."""

    session_id: bytes


Event = Installed | Confirmed | Lost | CidsChanged | Orphaned | OrphanEnded


@dataclass(frozen=True)
class OutgoingRequest:
    """A request for the data plane; ``socket_number`` names the UDP socket that goes along, 0: none."""

    request: DataplaneRequest
    socket_number: int = 0


@dataclass
class Live:
    """One session."""

    record: SessionRecord
    stage: SessionStage = SessionStage.NONE
    routed: bool = False  # packets for its connection IDs may be steered to the data plane
    rekey_at: float = float("inf")
    updating: bool = False
    settle_at: float | None = None
    settling: int | None = None  # id of the FrameSend under way
    spares: int = 0
    catch_ups: int = 0


Then = Callable[[Answer, float], None]

REASONS = {
    LossReason.IDLE: "nothing came from the peer any more",
    LossReason.CLOSED: "the peer closed it",
    LossReason.RESET: "the peer has forgotten it (stateless reset)",
    LossReason.UNCONFIRMED: "the peer did not confirm it in time",
    LossReason.LIMIT: "its keys are used up",
    LossReason.PROTOCOL: "the peer broke the protocol",
    LossReason.REPLACED: "a newer session took its place",
    LossReason.DELETED: "it was deleted",
}


def installation(record: SessionRecord, settings: Settings, id: int) -> SessionInstall:
    """The request that installs this session, new or lost by its data plane."""
    allowed = settings.allowed_ips
    if record.role is Role.SERVER:
        allowed = (*(str(address) for address in record.handed_over.addresses), *allowed)
    return handed_over_install(
        record.handed_over,
        record.role,
        record.underlay,
        id=id,
        allowed_ips=allowed,
        held=record.role is Role.SERVER and not record.confirmed,
        idle_timeout_ms=settings.idle_timeout_ms,
        keepalive_ms=settings.keepalive_ms,
        rekey_after_packets=settings.rekey_after_packets,
    )


def key_update(record: SessionRecord, id: int) -> SessionUpdate:
    """The keys of the record's epoch, and of the one after it."""
    h = record.handed_over
    return SessionUpdate(
        id=id,
        session_id=record.session_id,
        keys=session_keys(h.tx_secret, h.rx_secret),
        next_keys=session_keys(next_secret(h.tx_secret), next_secret(h.rx_secret)),
        key_epoch=record.key_epoch,
    )
