"""What the flow table is made of, and what it asks of the world around it: inspectors, handshakes, relays, ports."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from qre.quic.server.inspector import Authenticated, Verdict
from qre.quic.server.server_handshake import ShownByDest

Address = tuple[str, int]


class Inspector(Protocol):
    """What ``qre.quic.server.inspector.HelloInspector`` offers."""

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict: ...

    def retry_relayed(self, source_cid: bytes) -> None: ...

    def cid_shown(self, source_cid: bytes) -> None: ...


class Handshake(Protocol):
    """A handshake that takes the flow's datagrams."""

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


class Ports(Protocol):
    """What the table asks of the world around it."""

    def inspector(self) -> Inspector: ...

    def accept(
        self,
        found: Authenticated,
        datagrams: list[bytes],
        source: Address,
        now: float,
        shown: ShownByDest | None,
    ) -> Handshake | None:
        """A handshake, once this hello is remembered; None: it was seen before, or cannot be remembered."""
        ...

    def open_relay(self, flow: Flow) -> Relay | None:
        """A connection to Dest; None: there is none to be had."""
        ...

    def to_visitor(self, source: Address, data: bytes, ecn: int) -> None: ...

    def own_cid(self, data: bytes) -> bytes | None:
        """The DCID of a short-header packet when this server once made it."""
        ...

    def forgotten(self, source: Address, cid: bytes, length: int) -> None:
        """A packet for a CID of ours arrived at the wrong socket: answer with a reset unless the session lives."""
        ...


class FlowState(enum.Enum):
    PENDING = "pending"
    WATCHED = "watched"
    RELAY = "relay"


class Flow:
    """A visitor, or a client that has not proved itself yet."""

    __slots__ = ("held", "inspector", "prefix", "relay", "seen", "shown", "since", "source", "state")

    def __init__(self, source: Address, prefix: str, now: float) -> None:
        self.source = source
        self.prefix = prefix
        self.state = FlowState.RELAY
        self.seen = self.since = now
        self.relay: Relay | None = None
        self.inspector: Inspector | None = None
        self.held: list[tuple[bytes, int]] | None = None  # datagrams and their ECN marks, while undecided
        self.shown: ShownByDest | None = None


class Ours:
    """A client of ours: its handshake, or the silence after it."""

    __slots__ = ("handshake", "held", "inspector", "silent_until")

    def __init__(self, handshake: Handshake) -> None:
        self.handshake: Handshake | None = handshake
        self.silent_until = 0.0
        self.inspector: Inspector | None = None  # of an Initial of another connection
        self.held: list[bytes] = []


@dataclass(frozen=True)
class Limits:
    """``idle`` in seconds."""

    flows: int
    flows_per_prefix: int
    idle: float
