"""What the flow table wants done: plain values, which ``performer`` performs. Nothing here does anything.

A rule names the classes, in their order; ``of`` makes the value from what has happened.
"""

from __future__ import annotations

from typing import Self

import msgspec

from qre.quic.server.inspector import Authenticated
from qre.workers.handshake.port.flow_parts import Address, Flow, Handshake, Hello


class _Value(msgspec.Struct, frozen=True):
    """A struct costs a fraction of a dataclass, and one or more are made of every datagram."""


class Happening(_Value, frozen=True):
    """One event of a flow, and what the flow held before it entered its next state."""

    flow: Flow
    now: float
    data: bytes
    ecn: int
    found: Authenticated | None
    cid: bytes
    handshake: Handshake | None
    held: tuple[tuple[bytes, int], ...]
    before: Handshake | None


class OpenRelay(_Value, frozen=True):
    """A connection to Dest; ``FlowTable.no_way_to_dest`` wants to know when there is none to be had."""

    flow: Flow

    @classmethod
    def of(cls, it: Happening) -> Self:
        return cls(it.flow)


class CloseRelay(_Value, frozen=True):
    """The end of the connection to Dest, if there is one."""

    flow: Flow

    @classmethod
    def of(cls, it: Happening) -> Self:
        return cls(it.flow)


class Forward(_Value, frozen=True):
    """To Dest, with its mark."""

    flow: Flow
    data: bytes
    ecn: int

    @classmethod
    def of(cls, it: Happening) -> Self:
        return cls(it.flow, it.data, it.ecn)


class ForwardHeld(_Value, frozen=True):
    """To Dest, in order, whatever was held back."""

    flow: Flow
    held: tuple[tuple[bytes, int], ...]

    @classmethod
    def of(cls, it: Happening) -> Self:
        return cls(it.flow, it.held)


class ToVisitor(_Value, frozen=True):
    """From Dest, with its mark."""

    source: Address
    data: bytes
    ecn: int

    @classmethod
    def of(cls, it: Happening) -> Self:
        return cls(it.flow.source, it.data, it.ecn)


class Accept(_Value, frozen=True):
    """Remember this hello: then comes ``FlowTable.hello_accepted``, or ``hello_refused``."""

    flow: Flow
    hello: Hello

    @classmethod
    def of(cls, it: Happening) -> Self:
        flow = it.flow
        assert it.found is not None
        return cls(flow, Hello(it.found, [data for data, _ in it.held], flow.source, it.now, flow.shown))


class Begin(_Value, frozen=True):
    """The handshake takes the datagrams that proved it."""

    handshake: Handshake

    @classmethod
    def of(cls, it: Happening) -> Self:
        assert it.handshake is not None
        return cls(it.handshake)


class Feed(_Value, frozen=True):
    """The handshake takes one more datagram."""

    handshake: Handshake
    data: bytes

    @classmethod
    def of(cls, it: Happening) -> Self:
        assert it.before is not None
        return cls(it.before, it.data)


class Abandon(_Value, frozen=True):
    """The handshake that was under way is given up, without a word."""

    handshake: Handshake

    @classmethod
    def of(cls, it: Happening) -> Self:
        assert it.before is not None
        return cls(it.before)


class Reset(_Value, frozen=True):
    """A packet of ``length`` bytes for a CID of ours came to the wrong socket: a stateless reset, unless its session
    lives."""

    source: Address
    cid: bytes
    length: int

    @classmethod
    def of(cls, it: Happening) -> Self:
        return cls(it.flow.source, it.cid, len(it.data))


Effect = OpenRelay | CloseRelay | Forward | ForwardHeld | ToVisitor | Accept | Begin | Feed | Abandon | Reset
#: A class of them, as a rule names it.
EffectKind = type[Effect]
