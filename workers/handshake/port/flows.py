"""Who a datagram at the server's port belongs to: a client of ours, or a visitor of Dest. Sans-IO.

One state for every source address and port (RFC 9000 §5.2, and the rules of «Looking like the real thing»)::

    state     what comes in                      becomes   and then
    -------   --------------------------------   -------   ------------------------------------------------------
    (none)    short header, a CID of ours        (none)    of a live session: dropped, its packets have a socket
                                                           of their own. Otherwise a stateless reset
    (none)    may begin a ClientHello            PENDING   buffered
    (none)    anything else                      RELAY     forwarded
    PENDING   a hello of ours, seen for the      OURS      the buffer goes to a handshake, nothing to Dest
              first time
    PENDING   a hello of somebody else, a        RELAY     the buffer goes to Dest, in order
              repeated one, or no hello at all
    PENDING   the delay is over                  WATCHED   the buffer goes to Dest, and is kept
    WATCHED   a datagram, still undecided        WATCHED   it goes to Dest at once, and is kept
    WATCHED   a Retry of Dest                    WATCHED   passed back; what was kept is forgotten
    WATCHED   Dest acknowledges, and no more     WATCHED   passed back: its CID and packet numbers are noted
    WATCHED   another reply of Dest              RELAY     passed back: the visitor has seen Dest's own words
    WATCHED   the rest of a hello of ours        OURS      the connection to Dest is dropped; the handshake takes over
                                                           what Dest has shown
    RELAY     anything, either way               RELAY     passed on, byte for byte, with its ECN mark
    OURS      anything                           OURS      goes to the handshake, until it is over
    OURS      an Initial of another connection   OURS      a client that began again: it replaces the handshake
                                                           when it proves to be ours, and is dropped otherwise
    SILENT    anything but such an Initial       SILENT    dropped: the handshake has become a session
    any       idle, evicted                      (none)    the connection to Dest is closed

Whatever fails takes the RELAY path. Nothing here grows without bound: flows in all and of one prefix (the longest
idle makes room), newcomers a second in all and of one prefix, undecided flows and the bytes they hold. A newcomer
that may begin a hello has a budget of its own, so that a flood of other garbage does not keep clients out.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from qre.errors import UntrustedInputError
from qre.quic.server.inspector import STRANGER, UNDECIDED, Authenticated
from qre.wire.initial import MAX_DATAGRAM, MIN_DATAGRAM
from qre.wire.packet import is_initial, is_short, long_header_destination_cid, retry_source_cid
from qre.workers.handshake.port.admission import Admission
from qre.workers.handshake.port.flow_parts import Address, Flow, FlowState, Handshake, Limits, Ours, Ports
from qre.workers.handshake.port.shown import shown_untrusted

#: How long an undecided flow is held back, a browser's second datagram comes 0.1 ms after the first (seconds).
HOLD: Final = 0.001
MAX_UNDECIDED: Final = 256
MAX_UNDECIDED_BYTES: Final = 1 << 20
#: Handshakes at once; clients of ours, each with a hello that was never seen before.
MAX_OURS: Final = 256
#: How long what still comes from a client's address after its handshake is swallowed (seconds).
SILENCE: Final = 30.0
#: Newcomers a second: what one core can do, and what one network may have of it.
HELLO_RATE: Final = 4000.0
OTHER_RATE: Final = 1000.0
PREFIX_RATE: Final = 64.0


def may_begin_hello(data: bytes) -> bool:
    """Whether this could be the first datagram of a ClientHello: an Initial of version 1, of a length that counts."""
    return MIN_DATAGRAM <= len(data) <= MAX_DATAGRAM and is_initial(data)


class FlowTable:
    """``strangers`` counts flows that were found to be Dest's; ``dropped`` datagrams that were over a bound."""

    def __init__(self, ports: Ports, limits: Limits) -> None:
        self._ports = ports
        self.limits = limits
        self.strangers = 0
        self.dropped = 0
        self._flows: OrderedDict[Address, Flow] = OrderedDict()  # the longest idle first
        self._prefixes: dict[str, list[Flow]] = {}
        self._undecided: OrderedDict[Address, Flow] = OrderedDict()  # the oldest first
        self._held_bytes = 0
        self._pending: OrderedDict[Address, Flow] = OrderedDict()  # the oldest first
        self._ours: OrderedDict[Address, Ours] = OrderedDict()
        burst = PREFIX_RATE * 2
        self._hellos = Admission(rate=HELLO_RATE, burst=HELLO_RATE, prefix_rate=PREFIX_RATE, prefix_burst=burst)
        self._others = Admission(rate=OTHER_RATE, burst=OTHER_RATE, prefix_rate=PREFIX_RATE, prefix_burst=burst)

    # --- what comes in ---

    def datagram(self, source: Address, data: bytes, ecn: int, now: float, unix_ms: int) -> None:
        """One datagram at our port."""
        ours = self._ours.get(source)
        if ours is not None and self._ours_received(ours, source, data, now, unix_ms):
            return
        if is_short(data):
            cid = self._ports.own_cid(data)
            if cid is not None:
                self._ports.forgotten(source, cid, len(data))
                return
        flow = self._flows.get(source)
        if flow is None:
            flow = self._admit(source, data, now)
            if flow is None:
                self.dropped += 1
                return
        else:
            flow.seen = now
            self._flows.move_to_end(source)
        if flow.state is FlowState.RELAY:
            self._forward(flow, data, ecn)
        else:
            self._inspect(flow, data, ecn, now, unix_ms)

    def reply(self, flow: Flow, data: bytes, ecn: int, now: float) -> None:
        """One datagram from Dest for this visitor."""
        if self._flows.get(flow.source) is not flow:
            return
        flow.seen = now
        self._flows.move_to_end(flow.source)
        if flow.state is not FlowState.RELAY:
            self._dest_spoke(flow, data)
        self._ports.to_visitor(flow.source, data, ecn)

    def _dest_spoke(self, flow: Flow, data: bytes) -> None:
        """To a visitor who is undecided still."""
        assert flow.inspector is not None and flow.held is not None
        retry = retry_source_cid(data)
        if retry is not None and flow.shown is None:
            flow.inspector.retry_relayed(retry)
            self._forget_held(flow)
            return
        try:
            if not flow.held:
                raise UntrustedInputError("Dest", "it speaks before the visitor did")
            flow.shown = shown_untrusted(data, flow.held[0][0], flow.shown)
        except UntrustedInputError:
            self._decide_stranger(flow)
        else:
            flow.inspector.cid_shown(flow.shown.source_cid)

    # --- undecided flows ---

    def _inspect(self, flow: Flow, data: bytes, ecn: int, now: float, unix_ms: int) -> None:
        assert flow.inspector is not None and flow.held is not None
        flow.held.append((data, ecn))
        self._held_bytes += len(data)
        verdict = flow.inspector.datagram_received(data, unix_ms)
        if isinstance(verdict, Authenticated):
            handshake = self._ports.accept(verdict, [held for held, _ in flow.held], flow.source, now, flow.shown)
            if handshake is not None:
                self._remove(flow)
                self.become_ours(flow.source, handshake, now)
                return
            verdict = STRANGER
        if verdict is STRANGER:
            self._relay(flow, data, ecn)
        elif flow.state is FlowState.WATCHED:
            self._forward(flow, data, ecn)
        while len(self._undecided) > MAX_UNDECIDED or self._held_bytes > MAX_UNDECIDED_BYTES:
            self._relay(next(iter(self._undecided.values())), None, 0)

    def _relay(self, flow: Flow, data: bytes | None, ecn: int) -> None:
        """It is Dest's. ``data`` came last; Dest has seen what was held before it, unless nothing was sent yet."""
        unsent = [] if data is None else [(data, ecn)]
        if flow.state is FlowState.PENDING:
            unsent = list(flow.held or ())
        self._decide_stranger(flow)
        self._forward_all(flow, unsent)

    def _decide_stranger(self, flow: Flow) -> None:
        self.strangers += 1
        self._forget_held(flow)
        self._undecided.pop(flow.source, None)
        self._pending.pop(flow.source, None)
        flow.inspector = flow.held = flow.shown = None
        flow.state = FlowState.RELAY

    def _forget_held(self, flow: Flow) -> None:
        if flow.held:
            self._held_bytes -= sum(len(data) for data, _ in flow.held)
            flow.held.clear()

    # --- relaying ---

    def _forward(self, flow: Flow, data: bytes, ecn: int) -> None:
        if flow.relay is None:
            flow.relay = self._ports.open_relay(flow)
            if flow.relay is None:
                self._remove(flow)  # nothing can be done for it: its next datagram tries again
                self.dropped += 1
                return
        flow.relay.send(data, ecn)

    def _forward_all(self, flow: Flow, datagrams: list[tuple[bytes, int]]) -> None:
        for data, ecn in datagrams:
            if self._flows.get(flow.source) is flow:
                self._forward(flow, data, ecn)

    # --- coming and going ---

    def _admit(self, source: Address, data: bytes, now: float) -> Flow | None:
        prefix = source[0].rpartition(".")[0]
        hello = may_begin_hello(data)
        if not (self._hellos if hello else self._others).take(prefix, now):
            return None
        neighbours = self._prefixes.get(prefix, [])
        if len(neighbours) >= self.limits.flows_per_prefix:
            self._remove(min(neighbours, key=_seen))
        while len(self._flows) >= self.limits.flows:
            self._remove(next(iter(self._flows.values())))
        flow = Flow(source, prefix, now)
        self._flows[source] = flow
        self._prefixes.setdefault(prefix, []).append(flow)
        if hello:
            flow.state = FlowState.PENDING
            flow.inspector, flow.held = self._ports.inspector(), []
            self._pending[source] = self._undecided[source] = flow
        else:
            self.strangers += 1
        return flow

    def _remove(self, flow: Flow) -> None:
        if self._flows.get(flow.source) is not flow:
            return
        self._forget_held(flow)
        del self._flows[flow.source]
        self._undecided.pop(flow.source, None)
        self._pending.pop(flow.source, None)
        neighbours = self._prefixes[flow.prefix]
        neighbours.remove(flow)
        if not neighbours:
            del self._prefixes[flow.prefix]
        if flow.relay is not None:
            flow.relay.close()
            flow.relay = None

    # --- clients of ours ---

    def become_ours(self, source: Address, handshake: Handshake, now: float) -> None:
        """A client has proved itself: what comes from it goes to its handshake, which begins now."""
        while len(self._ours) >= MAX_OURS and self._evict_ours():
            pass
        self._ours[source] = Ours(handshake)
        handshake.begin(now)

    def _evict_ours(self) -> bool:
        """Make room: silence first, then the oldest handshake."""
        silent = next((source for source, ours in self._ours.items() if ours.handshake is None), None)
        source = silent if silent is not None else next(iter(self._ours), None)
        if source is None:
            return False
        ours = self._ours.pop(source)
        if ours.handshake is not None:
            ours.handshake.abandon()
        return True

    def _ours_received(self, ours: Ours, source: Address, data: bytes, now: float, unix_ms: int) -> bool:
        """Whether the datagram was dealt with."""
        if is_initial(data) and len(data) > 6:
            destination = long_header_destination_cid(data)
            if ours.handshake is None:
                if not may_begin_hello(data):
                    return True
                del self._ours[source]
                return False
            if not ours.handshake.owns(destination):
                self._begin_again(ours, source, data, now, unix_ms)
                return True
        if ours.handshake is not None:
            ours.handshake.datagram_received(data, now)
            return True
        return self._ports.own_cid(data) is None

    def _begin_again(self, ours: Ours, source: Address, data: bytes, now: float, unix_ms: int) -> None:
        if ours.inspector is None:
            ours.inspector = self._ports.inspector()
        ours.held.append(data)
        verdict = ours.inspector.datagram_received(data, unix_ms)
        if verdict is UNDECIDED:
            return
        held, ours.inspector, ours.held = ours.held, None, []
        if isinstance(verdict, Authenticated):
            handshake = self._ports.accept(verdict, held, source, now, None)
            if handshake is not None:
                if ours.handshake is not None:
                    ours.handshake.abandon()
                self._ours.pop(source, None)
                self.become_ours(source, handshake, now)

    def of_ours(self, source: Address, data: bytes, now: float) -> None:
        """A datagram that another process took for a client of ours; dropped when there is none any more."""
        ours = self._ours.get(source)
        if ours is not None and ours.handshake is not None:
            ours.handshake.datagram_received(data, now)

    def abandon(self, source: Address) -> None:
        """Give up the handshake with a client."""
        ours = self._ours.pop(source, None)
        if ours is not None and ours.handshake is not None:
            ours.handshake.abandon()

    def handshake_over(self, source: Address, handshake: Handshake, now: float) -> None:
        """It ended, well or badly. What the client still sends is swallowed for a while."""
        ours = self._ours.get(source)
        if ours is not None and ours.handshake is handshake:
            ours.handshake, ours.inspector, ours.held = None, None, []
            ours.silent_until = now + SILENCE

    # --- time ---

    def timer(self) -> float | None:
        """When ``handle_timer`` wants to be called."""
        if self._pending:
            return next(iter(self._pending.values())).since + HOLD
        times = []
        if self._flows:
            times.append(next(iter(self._flows.values())).seen + self.limits.idle)
        silent = [ours.silent_until for ours in self._ours.values() if ours.handshake is None]
        if silent:
            times.append(min(silent))
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        while self._pending:
            flow = next(iter(self._pending.values()))
            if flow.since + HOLD > now:
                break
            del self._pending[flow.source]
            flow.state = FlowState.WATCHED
            self._forward_all(flow, list(flow.held or ()))
        while self._flows:
            flow = next(iter(self._flows.values()))
            if flow.seen + self.limits.idle > now:
                break
            self._remove(flow)
        for source in [s for s, o in self._ours.items() if o.handshake is None and o.silent_until <= now]:
            del self._ours[source]

    def close(self) -> None:
        """Let go of every connection to Dest."""
        for flow in list(self._flows.values()):
            self._remove(flow)
        self._ours.clear()

    # --- what ``show`` wants to know ---

    @property
    def pending(self) -> int:
        """Flows that are not decided yet, and handshakes."""
        return len(self._undecided) + sum(ours.handshake is not None for ours in self._ours.values())

    @property
    def relayed(self) -> int:
        return len(self._flows) - len(self._undecided)


def _seen(flow: Flow) -> float:
    return flow.seen
