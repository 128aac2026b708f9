"""Types of the flow table: its states, a flow, an authenticated hello, and the interfaces that it uses."""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from qre.quic.server.inspector import Authenticated, Forged, Verdict
from qre.quic.server.server_handshake import ShownByDest
from qre.workers.handshake.port.address_proof import AddressProof

#: A visitor: its IP and port; on a port of all our addresses also the one that it speaks to, and is answered from.
Address = tuple[str, int] | tuple[str, int, str]

#: The DCID of a short-header packet, or None when this server did not make it.
OwnCid = Callable[[bytes], bytes | None]
#: Connections of others at one client's address of which Dest's short headers are known.
_MOST_OTHERS: Final = 8


def network_of(ip: str) -> str:
    """A name of the network that shares a visitor's bounds: 24 bits of IPv4, 56 of IPv6, as one household has."""
    if ":" not in ip:
        return ip.rpartition(".")[0]
    return socket.inet_pton(socket.AF_INET6, ip)[:7].hex()


class Inspector(Protocol):
    """The part of ``qre.quic.server.inspector.HelloInspector`` that the table uses."""

    @property
    def opened(self) -> bool:
        """Whether a datagram came that decrypts as an Initial."""
        ...

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict:
        """The verdict after one more datagram of the visitor."""
        ...

    def retry_relayed(self, source_cid: bytes) -> None:
        """Dest sent a Retry with this source CID: the visitor begins again."""
        ...

    def cid_shown(self, source_cid: bytes) -> None:
        """Dest answered under this source CID, which the visitor's next Initials carry."""
        ...


class Handshake(Protocol):
    """A handshake that receives the flow's datagrams. The table reads ``cids``; effects call the rest."""

    def begin(self, now: float) -> None:
        """Process the datagrams that authenticated the client; called once the table holds the handshake."""
        ...

    def datagram_received(self, data: bytes, now: float) -> None:
        """Process one more datagram of the client."""
        ...

    def dest_spoke(self, data: bytes, ecn: int, now: float) -> None:
        """Process one datagram of Dest, which the client does not get as it is."""
        ...

    def dest_retried(self, retry: bytes, now: float) -> None:
        """Dest has sent this Retry: the client's first flight comes once more, with its token."""
        ...

    @property
    def cids(self) -> Collection[bytes]:
        """The destination connection IDs of its client's packets."""
        ...

    @property
    def hello_cid(self) -> bytes:
        """That of its client's first flight: of the one behind a Retry, if Dest sent one; empty: not known."""
        ...

    def abandon(self) -> None:
        """End the handshake without telling the client."""
        ...


class PlacedHandshake(Handshake, Protocol):
    """One that knows whose it is."""

    @property
    def source(self) -> Address:
        """Its client."""
        ...


class Relay(Protocol):
    """One visitor's connection to Dest."""

    def send(self, data: bytes, ecn: int) -> None:
        """Send one datagram with this ECN codepoint; it may be lost."""
        ...

    def close(self) -> None:
        """Close the socket; nothing is received any more."""
        ...


class FlowState(enum.Enum):
    """The state of one source address; see the table in ``flow_rules``."""

    NONE = "(none)"
    WATCHED = "WATCHED"
    RELAY = "RELAY"
    SHADOW = "SHADOW"
    LEFT = "LEFT"
    OVER = "OVER"

    __hash__ = object.__hash__  # Enum's is written in Python, and every datagram needs it


@dataclass(frozen=True)
class Hello:
    """An authenticated client and its datagrams so far; ``shown`` is what Dest has revealed to it. ``now``: when its
    last datagram came and went on to Dest."""

    found: Authenticated
    datagrams: list[bytes]
    source: Address
    now: float
    shown: ShownByDest | None


@dataclass(frozen=True)
class ForgedHello:
    """A stranger with a ticket of ours and a false binder; the rest as in ``Hello``."""

    found: Forged
    datagrams: list[bytes]
    source: Address
    now: float
    shown: ShownByDest | None


class Flow:
    """The traffic of one source address: a visitor's, an authenticated client's, or not decided yet."""

    __slots__ = (
        "address",
        "cids",
        "copied",
        "handshake",
        "held",
        "inspector",
        "others",
        "others_at",
        "over_at",
        "prefix",
        "relay",
        "seen",
        "shown",
        "source",
        "state",
        "unreachable",
        "unread",
    )

    def __init__(self, source: Address, now: float) -> None:
        self.source = source
        self.prefix = network_of(source[0])
        self.state = FlowState.NONE
        self.seen = now
        self.address = AddressProof()
        #: Owned by ``performer``; the table never uses it.
        self.relay: Relay | None = None
        self.unreachable = False  # no connection to Dest could be opened
        #: While the flow is undecided; later for an Initial of another connection.
        self.inspector: Inspector | None = None
        self.unread: list[tuple[bytes, int]] = []  # datagrams that the inspector still has to read, with its time
        self.held: list[bytes] = []  # those that it has read
        self.shown: ShownByDest | None = None
        self.handshake: Handshake | None = None  # in SHADOW and LEFT
        self.cids: Collection[bytes] = ()  # in OVER: of the handshake, whose packets may still come
        self.copied = False  # in SHADOW and LEFT: the handshake is that of a copy
        self.over_at = 0.0  # in LEFT and OVER: since when
        #: Of connections at a client's address that are not the client's: their source CIDs, and when one of them
        #: was used last.
        self.others: tuple[bytes, ...] = ()
        self.others_at: float | None = None

    @property
    def shadows(self) -> bool:
        """Whether what Dest says is said in other words."""
        return self.state is FlowState.SHADOW

    def passes(self, data: bytes, segment: int) -> bool:
        """Whether these replies of Dest, of ``segment`` bytes each, all go to the visitor as they are: at once."""
        return self.state is FlowState.RELAY and self.address.is_free(data, segment)

    def another_spoke(self, source_cid: bytes | None, now: float) -> None:
        """A packet of another connection came from a client's address, with a long header if it has a source CID."""
        self.others_at = now
        if source_cid and source_cid not in self.others:
            self.others = (*self.others, source_cid)[-_MOST_OTHERS:]

    def forget_handshake(self) -> None:
        """Nothing of its secrets is kept."""
        self.handshake = self.inspector = None


@dataclass(frozen=True)
class Limits:
    """Bounds on relayed and undecided flows; ``idle`` in seconds. ``remembers_hello``: what Dest does with a first
    flight that is repeated while its connection lives (``habits``): it is silent, or takes it for another visit.
    ``retries``: it answers whatever looks like an Initial with a Retry, unread. ``overshoots``: what it sends to an
    unproven address ends one datagram beyond the bound (``habits``)."""

    flows: int
    flows_per_prefix: int
    idle: float
    remembers_hello: bool = True
    retries: bool = False
    overshoots: bool = False
