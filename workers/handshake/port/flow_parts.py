"""What the flow table is made of: its states, a flow, a hello that proved itself, and what flows hold of others."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from qre.quic.server.inspector import Authenticated, Verdict
from qre.quic.server.server_handshake import ShownByDest
from qre.workers.handshake.port.address_proof import AddressProof

Address = tuple[str, int]


class Inspector(Protocol):
    """What ``qre.quic.server.inspector.HelloInspector`` offers."""

    @property
    def opened(self) -> bool: ...

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict: ...

    def retry_relayed(self, source_cid: bytes) -> None: ...

    def cid_shown(self, source_cid: bytes) -> None: ...


class Handshake(Protocol):
    """A handshake that takes the flow's datagrams. The table asks ``owns`` alone; the rest is its effects'."""

    def begin(self, now: float) -> None:
        """Take the datagrams that proved it; the table knows it by now."""
        ...

    def datagram_received(self, data: bytes, now: float) -> None: ...

    def owns(self, destination_cid: bytes) -> bool:
        """Whether an Initial with this DCID belongs to it."""
        ...

    def abandon(self) -> None: ...


class Relay(Protocol):
    """One visitor's connection to Dest."""

    def send(self, data: bytes, ecn: int) -> None: ...

    def close(self) -> None: ...


class FlowState(enum.Enum):
    """Where an address stands; ``flow_rules`` has the drawing."""

    NONE = "(none)"
    PENDING = "PENDING"
    WATCHED = "WATCHED"
    RELAY = "RELAY"
    OURS = "OURS"
    SILENT = "SILENT"

    __hash__ = object.__hash__  # Enum's own is written in Python, and looked up with every datagram


@dataclass(frozen=True)
class Hello:
    """A client that holds our keys, and the datagrams that proved it; ``shown`` is what Dest has said to it."""

    found: Authenticated
    datagrams: list[bytes]
    source: Address
    now: float
    shown: ShownByDest | None


class Flow:
    """What comes from one address: a visitor's, a client's that has not proved itself yet, or a client's of ours."""

    __slots__ = (
        "address",
        "handshake",
        "held",
        "inspector",
        "prefix",
        "relay",
        "seen",
        "shown",
        "silent_until",
        "since",
        "source",
        "state",
    )

    def __init__(self, source: Address, now: float) -> None:
        self.source = source
        self.prefix = source[0].rpartition(".")[0]
        self.state = FlowState.NONE
        self.seen = self.since = now
        self.address = AddressProof()  # of a visitor
        #: Belongs to whoever performs the effects; the table never looks at it.
        self.relay: Relay | None = None
        #: While it is undecided; in OURS, of an Initial of another connection.
        self.inspector: Inspector | None = None
        self.held: list[tuple[bytes, int]] = []  # datagrams and their ECN marks
        self.shown: ShownByDest | None = None
        self.handshake: Handshake | None = None  # in OURS
        self.silent_until = 0.0  # in SILENT


@dataclass(frozen=True)
class Limits:
    """``idle`` in seconds."""

    flows: int
    flows_per_prefix: int
    idle: float
