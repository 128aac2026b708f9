"""The effects of the flow table: plain values, which ``performer`` performs.

A rule lists the classes in their order; ``of`` makes the value for one event.
"""

from __future__ import annotations

from typing import Self

import msgspec

from qre.quic.server.inspector import Authenticated, Forged
from qre.workers.handshake.port.flow_parts import Address, Flow, ForgedHello, Handshake, Hello


class _Value(msgspec.Struct, frozen=True):
    """A struct costs a fraction of a dataclass, and every datagram makes one or more."""


class Happening(_Value, frozen=True):
    """One event of a flow, and what the flow held before it entered its next state."""

    flow: Flow
    now: float
    data: bytes
    ecn: int
    found: Authenticated | Forged | None
    cid: bytes
    handshake: Handshake | None
    before: Handshake | None


class OpenRelay(_Value, frozen=True):
    """Open a connection to Dest; ``FlowTable.no_way_to_dest`` is called when that fails."""

    flow: Flow

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the flow of this event."""
        return cls(it.flow)


class CloseRelay(_Value, frozen=True):
    """Close the connection to Dest, if there is one."""

    flow: Flow

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the flow of this event."""
        return cls(it.flow)


class Forward(_Value, frozen=True):
    """Send the datagram to Dest, with its ECN mark."""

    flow: Flow
    data: bytes
    ecn: int

    @classmethod
    def of(cls, it: Happening) -> Self:
        """With the datagram and the mark of this event."""
        return cls(it.flow, it.data, it.ecn)


class ToVisitor(_Value, frozen=True):
    """Send a datagram of Dest to the visitor, with its ECN mark; or several of ``segment`` bytes at once."""

    source: Address
    data: bytes
    ecn: int
    segment: int = 0

    @classmethod
    def of(cls, it: Happening) -> Self:
        """With the datagram and the mark of this event, to the address of its flow."""
        return cls(it.flow.source, it.data, it.ecn)


class Accept(_Value, frozen=True):
    """Record this hello, unless it is forged, then call ``FlowTable.hello_accepted`` or ``hello_refused``."""

    flow: Flow
    hello: Hello | ForgedHello

    @classmethod
    def of(cls, it: Happening) -> Self:
        """With the verdict of this event and every datagram that the flow held."""
        flow = it.flow
        if isinstance(it.found, Forged):
            return cls(flow, ForgedHello(it.found, list(flow.held), flow.source, flow.seen, flow.shown))
        assert it.found is not None
        return cls(flow, Hello(it.found, list(flow.held), flow.source, flow.seen, flow.shown))


class Copied(_Value, frozen=True):
    """A result of ``Accept``: what answers a hello that was accepted before, or whose time is over, or whose binder
    is false, as a site would. It leads to nothing."""

    handshake: Handshake


class Begin(_Value, frozen=True):
    """Start the handshake with the datagrams that authenticated it."""

    handshake: Handshake

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the handshake of this event."""
        assert it.handshake is not None
        return cls(it.handshake)


class Feed(_Value, frozen=True):
    """Pass one more datagram to the handshake."""

    handshake: Handshake
    data: bytes

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the flow's handshake, with the datagram of this event."""
        assert it.before is not None
        return cls(it.before, it.data)


class Mirror(_Value, frozen=True):
    """Give the handshake a datagram of Dest, in whose place it sends one of ours."""

    handshake: Handshake
    data: bytes
    ecn: int

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the flow's handshake, with the datagram and the mark of this event."""
        assert it.before is not None
        return cls(it.before, it.data, it.ecn)


class Retried(_Value, frozen=True):
    """Tell the handshake that Dest's Retry makes its client begin again."""

    handshake: Handshake
    retry: bytes

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the flow's handshake, with the datagram of this event."""
        assert it.before is not None
        return cls(it.before, it.data)


class Abandon(_Value, frozen=True):
    """Abandon the handshake in progress without telling the client."""

    handshake: Handshake

    @classmethod
    def of(cls, it: Happening) -> Self:
        """For the handshake that the flow had before this event."""
        assert it.before is not None
        return cls(it.before)


class Reset(_Value, frozen=True):
    """Answer a packet of ``length`` bytes to one of the server's CIDs with a stateless reset, unless its session is
    live."""

    source: Address
    cid: bytes
    length: int

    @classmethod
    def of(cls, it: Happening) -> Self:
        """With the CID and the length of this event's packet."""
        return cls(it.flow.source, it.cid, len(it.data))


Effect = OpenRelay | CloseRelay | Forward | ToVisitor | Accept | Begin | Feed | Mirror | Retried | Abandon | Reset
#: The class of an effect, as a rule lists it.
EffectKind = type[Effect]
