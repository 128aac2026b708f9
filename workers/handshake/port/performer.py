"""Performs the effects of the flow table: only here do they reach sockets, files and handshakes.

Effects are performed in order. The result of one (Dest unreachable, a hello accepted or refused) goes back to the
table, and its effects are performed before the next: sockets and table always agree.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from qre.workers.handshake.port.flow_effects import (
    Abandon,
    Accept,
    Begin,
    CloseRelay,
    Copied,
    Effect,
    Feed,
    Forward,
    Mirror,
    OpenRelay,
    Reset,
    Retried,
    ToVisitor,
)
from qre.workers.handshake.port.flow_parts import Address, Flow, ForgedHello, Handshake, Hello, Relay
from qre.workers.handshake.port.flows import FlowTable


class Later(enum.Enum):
    """Not known yet: whether a hello is accepted."""

    LATER = "later"


LATER: Final = Later.LATER


@dataclass
class Performer:
    """``accept`` records a hello and returns its handshake, or LATER when that comes by itself; ``open_relay``
    returns a connection to Dest. Both return None on failure. ``disown`` answers a packet (source, CID, length) with
    a stateless reset unless its session is live."""

    table: FlowTable
    accept: Callable[[Flow, Hello | ForgedHello], Handshake | Copied | Later | None]
    open_relay: Callable[[Flow], Relay | None]
    to_visitor: Callable[[Address, bytes, int, int], None]
    disown: Callable[[Address, bytes, int], None]

    def look(self, now: float) -> None:
        """Read all that was forwarded. What follows from one flow is performed before the next is read: a client's
        handshake may end another's, or need its place."""
        while self.table.unread:
            self.perform(self.table.look(now), now)
        self.perform(self.table.looked(), now)

    def perform(self, effects: Sequence[Effect], now: float) -> None:
        """Perform ``effects`` in order, and those that they lead to."""
        for effect in effects:
            match effect:
                case Forward():  # patterns without fields: these four occur with every datagram
                    relay = effect.flow.relay
                    if relay is not None:  # otherwise Dest is unreachable, and the table knows
                        relay.send(effect.data, effect.ecn)
                case ToVisitor():
                    self.to_visitor(effect.source, effect.data, effect.ecn, effect.segment)
                case Feed():
                    effect.handshake.datagram_received(effect.data, now)
                case Mirror():
                    effect.handshake.dest_spoke(effect.data, effect.ecn, now)
                case OpenRelay():
                    effect.flow.relay = self.open_relay(effect.flow)
                    if effect.flow.relay is None:
                        self.perform(self.table.no_way_to_dest(effect.flow), now)
                case CloseRelay(flow):
                    if flow.relay is not None:
                        flow.relay.close()
                        flow.relay = None
                case Accept(flow, hello):
                    taken = self.accept(flow, hello)
                    if taken is None:
                        self.perform(self.table.hello_refused(flow), now)
                    elif not isinstance(taken, Later):
                        self.perform(self.table.hello_accepted(flow, taken), now)
                case Begin(handshake):
                    handshake.begin(now)
                case Retried(handshake, retry):
                    handshake.dest_retried(retry, now)
                case Abandon(handshake):
                    handshake.abandon()
                case Reset(source, cid, length):
                    self.disown(source, cid, length)
                case _:
                    assert_never(effect)
