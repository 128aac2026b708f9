"""Does what the flow table wants done: the one place where its effects become sockets, files and handshakes.

Effects are performed in order, and what an effect leads to (no way to Dest, a hello remembered or not) is told to the
table and performed before the next: at any time the world is as far as the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from qre.workers.handshake.port.flow_effects import (
    Abandon,
    Accept,
    Begin,
    CloseRelay,
    Effect,
    Feed,
    Forward,
    ForwardHeld,
    OpenRelay,
    Reset,
    ToVisitor,
)
from qre.workers.handshake.port.flow_parts import Address, Flow, Handshake, Hello, Relay
from qre.workers.handshake.port.flows import FlowTable


@dataclass
class Performer:
    """``accept`` gives a handshake once the hello is remembered, ``open_relay`` a connection to Dest; both may give
    None. ``disown`` answers a packet (source, CID, length) of a CID of ours unless its session lives."""

    table: FlowTable
    accept: Callable[[Hello], Handshake | None]
    open_relay: Callable[[Flow], Relay | None]
    to_visitor: Callable[[Address, bytes, int], None]
    disown: Callable[[Address, bytes, int], None]

    def perform(self, effects: Sequence[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case Forward():  # patterns without fields: these three come with every datagram
                    relay = effect.flow.relay
                    if relay is not None:  # otherwise there is no way to Dest, and the table knows
                        relay.send(effect.data, effect.ecn)
                case ToVisitor():
                    self.to_visitor(effect.source, effect.data, effect.ecn)
                case Feed():
                    effect.handshake.datagram_received(effect.data, now)
                case ForwardHeld(flow, held):
                    for data, ecn in held:
                        if flow.relay is not None:
                            flow.relay.send(data, ecn)
                case OpenRelay(flow):
                    flow.relay = self.open_relay(flow)
                    if flow.relay is None:
                        self.perform(self.table.no_way_to_dest(flow), now)
                case CloseRelay(flow):
                    if flow.relay is not None:
                        flow.relay.close()
                        flow.relay = None
                case Accept(flow, hello):
                    taken = self.accept(hello)
                    table = self.table
                    answered = table.hello_refused(flow) if taken is None else table.hello_accepted(flow, taken)
                    self.perform(answered, now)
                case Begin(handshake):
                    handshake.begin(now)
                case Abandon(handshake):
                    handshake.abandon()
                case Reset(source, cid, length):
                    self.disown(source, cid, length)
                case _:
                    assert_never(effect)
