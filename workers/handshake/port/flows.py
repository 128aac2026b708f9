"""Classifies each datagram at the server's port: of an authenticated client, or of a visitor of Dest. Sans-IO.

One state for every source address and port; ``flow_rules`` has the table. This module translates a datagram, a reply
of Dest or a timer into an event (``FlowEvent``), looks up its row, and keeps the indexes. Effects are returned as
values (``flow_effects``), in order, and ``performer`` performs them before the next event. Only two callbacks are
called, neither of which changes anything: for a new inspector, and whether this server made a CID.

Nothing grows without bound: flows in all and of one prefix (the longest idle makes room), newcomers a second
(``admission``), undecided flows and the bytes they hold, handshakes (silence makes room first). Newcomers that may
begin a hello are counted apart, so that a flood of other garbage does not keep clients out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from qre.errors import UntrustedInputError
from qre.quic.server.inspector import UNDECIDED, Authenticated, Verdict
from qre.wire.initial import MAX_DATAGRAM, MIN_DATAGRAM
from qre.wire.packet import is_initial, is_short, long_header_destination_cid, retry_source_cid
from qre.workers.handshake.port.admission import Admission
from qre.workers.handshake.port.flow_effects import Effect, Feed, Forward, Happening, ToVisitor
from qre.workers.handshake.port.flow_parts import Address, Flow, FlowState, Handshake, Inspector, Limits
from qre.workers.handshake.port.flow_rules import FED, FORWARDED, PASSED_BACK, RULES, FlowEvent
from qre.workers.handshake.port.shown import shown_untrusted

#: How long an undecided flow is held back (seconds); a browser's second datagram follows the first in 0.1 ms.
HOLD: Final = 0.001
MAX_UNDECIDED: Final = 256
MAX_UNDECIDED_BYTES: Final = 1 << 20
#: Handshakes at once, each of an authenticated client with a hello that is not a replay.
MAX_OURS: Final = 256
#: How long datagrams from a client's address are dropped after its handshake (seconds).
SILENCE: Final = 30.0
#: Newcomers a second that one core can work off: those that may begin a hello are decrypted and read.
HELLO_CAPACITY: Final = 500.0
OTHER_CAPACITY: Final = 1000.0
#: First looks a second: an Initial is decrypted, or refused.
LOOKS: Final = 4000.0

_NOTHING: Final[Sequence[Effect]] = ()
#: Two columns of the table, and two states, for the most frequent look-ups: in Python 3.11 a key of two costs a
#: tuple, and a member of an enum a call.
_AT_DATAGRAM: Final = {state: rule.effects for (state, event), rule in RULES.items() if event is FlowEvent.DATAGRAM}
_AT_REPLY: Final = {state: rule.effects for (state, event), rule in RULES.items() if event is FlowEvent.REPLY}
_OURS, _SILENT = FlowState.OURS, FlowState.SILENT


def may_begin_hello(data: bytes) -> bool:
    """Whether this could be the first datagram of a ClientHello: an Initial of version 1, of a length that counts."""
    return MIN_DATAGRAM <= len(data) <= MAX_DATAGRAM and is_initial(data)


class FlowTable:
    """``strangers`` counts flows that became Dest's, ``dropped`` datagrams over a bound or without a way to Dest,
    ``unproven`` datagrams of Dest that were too much for an address that had proved nothing.

    ``own_cid`` returns the DCID of a short-header packet, or None when this server did not make it.
    """

    def __init__(
        self, limits: Limits, inspector: Callable[[], Inspector], own_cid: Callable[[bytes], bytes | None]
    ) -> None:
        self.limits = limits
        self._inspector = inspector
        self._own_cid = own_cid
        self.strangers = 0
        self.dropped = 0
        self.unproven = 0
        self._flows: OrderedDict[Address, Flow] = OrderedDict()  # undecided and visitors, the longest idle first
        self._prefixes: dict[str, list[Flow]] = {}  # of the same
        self._undecided: OrderedDict[Address, Flow] = OrderedDict()  # the oldest first
        self._held_bytes = 0
        self._pending: OrderedDict[Address, Flow] = OrderedDict()  # the oldest first
        self._ours: OrderedDict[Address, Flow] = OrderedDict()  # OURS and SILENT
        self._hellos = Admission(HELLO_CAPACITY, LOOKS)
        self._others = Admission(OTHER_CAPACITY, LOOKS)

    # --- datagrams ---

    def datagram(self, source: Address, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        """One datagram at the server's port."""
        flow = self._ours.get(source)
        if flow is None:
            flow = self._flows.get(source)
        elif flow.state is _OURS:
            return self._client_spoke(flow, data, now, unix_ms)
        if is_short(data):
            cid = self._own_cid(data)
            if cid is not None:
                return self._happens(flow or Flow(source, now), FlowEvent.OWN_CID, data=data, cid=cid)
        if flow is None:
            return self._newcomer(source, data, ecn, now, unix_ms)
        if flow.state is _SILENT:
            if not may_begin_hello(data):
                return self._happens(flow, FlowEvent.DATAGRAM)
            self._happens(flow, FlowEvent.MAY_BEGIN)
            return self._newcomer(source, data, ecn, now, unix_ms)
        flow.seen = now
        self._flows.move_to_end(source)
        if not flow.address.proven:
            flow.address.visitor_spoke(data)
        if flow.inspector is not None:
            return self._inspect(flow, data, ecn, now, unix_ms)
        if _AT_DATAGRAM[flow.state] is FORWARDED:  # the most frequent case, without the look-up
            return (Forward(flow, data, ecn),)
        return self._happens(flow, FlowEvent.DATAGRAM, now, data, ecn)

    def reply(self, flow: Flow, data: bytes, ecn: int, now: float) -> Sequence[Effect]:
        """One datagram from Dest for the visitor of ``flow``."""
        if self._flows.get(flow.source) is not flow:
            return _NOTHING
        if not flow.address.proven and not flow.address.may_answer(data):
            self.unproven += 1
            return _NOTHING
        flow.seen = now
        self._flows.move_to_end(flow.source)
        if flow.inspector is not None:
            return self._happens(flow, self._dest_spoke(flow, flow.inspector, data), now, data, ecn)
        if _AT_REPLY[flow.state] is PASSED_BACK:
            return (ToVisitor(flow.source, data, ecn),)
        return self._happens(flow, FlowEvent.REPLY, now, data, ecn)

    def _dest_spoke(self, flow: Flow, inspector: Inspector, data: bytes) -> FlowEvent:
        """Classify a reply of Dest to a visitor that is still undecided."""
        retry = retry_source_cid(data)
        if retry is not None and flow.shown is None:
            inspector.retry_relayed(retry)
            self._forget_held(flow)
            return FlowEvent.RETRY
        try:
            if not flow.held:
                raise UntrustedInputError("Dest", "a reply before the visitor's first datagram")
            flow.shown = shown_untrusted(data, flow.held[0][0], flow.shown)
        except UntrustedInputError:
            return FlowEvent.REPLY
        inspector.cid_shown(flow.shown.source_cid)
        return FlowEvent.ACKNOWLEDGED

    # --- results of effects ---

    def no_way_to_dest(self, flow: Flow) -> Sequence[Effect]:
        """No relay could be opened: the flow is removed, and its next datagram tries again."""
        self.dropped += 1
        if self._flows.get(flow.source) is not flow:
            return _NOTHING
        return self._happens(flow, FlowEvent.NO_WAY)

    def hello_accepted(self, flow: Flow, handshake: Handshake) -> Sequence[Effect]:
        """The hello is recorded: ``handshake`` begins, and receives the client's datagrams from now on."""
        return self._begun(flow, FlowEvent.ACCEPTED, handshake)

    def hello_refused(self, flow: Flow) -> Sequence[Effect]:
        """The hello is a replay, or could not be recorded: the flow is relayed to Dest."""
        data, ecn = flow.held[-1] if flow.held else (b"", 0)
        return [*self._happens(flow, FlowEvent.REFUSED, data=data, ecn=ecn), *self._bound_undecided()]

    # --- undecided flows ---

    def _inspect(self, flow: Flow, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        assert flow.inspector is not None
        flow.held.append((data, ecn))
        self._held_bytes += len(data)
        verdict = flow.inspector.datagram_received(data, unix_ms)
        if isinstance(verdict, Authenticated):
            return self._happens(flow, FlowEvent.OUR_HELLO, now, found=verdict)
        if not flow.inspector.opened and self._hellos.waste(now):
            # No Initial at all, of which Dest would say nothing: its connection to Dest is not even made.
            self.dropped += 1
            return self._happens(flow, FlowEvent.REMOVED)
        return [*self._happens(flow, _named(verdict), now, data, ecn), *self._bound_undecided()]

    def _bound_undecided(self) -> list[Effect]:
        effects: list[Effect] = []
        while len(self._undecided) > MAX_UNDECIDED or self._held_bytes > MAX_UNDECIDED_BYTES:
            effects += self._happens(next(iter(self._undecided.values())), FlowEvent.TOO_MUCH)
        return effects

    # --- authenticated clients ---

    def _client_spoke(self, flow: Flow, data: bytes, now: float, unix_ms: int) -> Sequence[Effect]:
        handshake = flow.handshake
        assert handshake is not None
        if is_initial(data) and len(data) > 6 and not handshake.owns(long_header_destination_cid(data)):
            return self._begins_again(flow, data, now, unix_ms)
        if _AT_DATAGRAM[flow.state] is FED:
            return (Feed(handshake, data),)
        return self._happens(flow, FlowEvent.DATAGRAM, now, data)

    def _begins_again(self, flow: Flow, data: bytes, now: float, unix_ms: int) -> Sequence[Effect]:
        """Inspect an Initial of another connection."""
        if flow.inspector is None:
            flow.inspector = self._inspector()
        flow.held.append((data, 0))
        verdict = flow.inspector.datagram_received(data, unix_ms)
        found = verdict if isinstance(verdict, Authenticated) else None
        effects = self._happens(flow, _named(verdict), now, found=found)
        if verdict is not UNDECIDED:
            flow.inspector, flow.held = None, []
        return effects

    def handed_over(self, source: Address, handshake: Handshake, now: float) -> Sequence[Effect]:
        """The front passes on an authenticated client; ``abandon`` was called for its address before."""
        return self._begun(Flow(source, now), FlowEvent.HANDED_OVER, handshake)

    def from_front(self, source: Address, data: bytes, now: float) -> Sequence[Effect]:
        """The front passes on a datagram of a client; dropped when its handshake is over."""
        flow = self._ours.get(source)
        if flow is None or flow.state is FlowState.SILENT:
            return _NOTHING
        return self._happens(flow, FlowEvent.DATAGRAM, now, data)

    def abandon(self, source: Address) -> Sequence[Effect]:
        """Abandon the handshake with a client; an unknown address is ignored."""
        flow = self._ours.get(source)
        return _NOTHING if flow is None else self._happens(flow, FlowEvent.REMOVED)

    def handshake_over(self, source: Address, handshake: Handshake, now: float) -> Sequence[Effect]:
        """``handshake`` succeeded or failed. Datagrams of the client are dropped for SILENCE seconds."""
        flow = self._ours.get(source)
        if flow is None or flow.handshake is not handshake:
            return _NOTHING
        return self._happens(flow, FlowEvent.HANDSHAKE_OVER, now)

    # --- the table and its indexes ---

    def _happens(
        self,
        flow: Flow,
        event: FlowEvent,
        now: float = 0.0,
        data: bytes = b"",
        ecn: int = 0,
        *,
        found: Authenticated | None = None,
        cid: bytes = b"",
        handshake: Handshake | None = None,
    ) -> list[Effect]:
        """Look up the row, enter the next state and return the effects, those that make room first."""
        rule = RULES[flow.state, event]
        it = Happening(flow, now, data, ecn, found, cid, handshake, tuple(flow.held), flow.handshake)
        room = [] if rule.becomes is flow.state else self._enter(flow, rule.becomes, now)
        return room + [kind.of(it) for kind in rule.effects]

    def _enter(self, flow: Flow, state: FlowState, now: float) -> list[Effect]:
        before, flow.state = flow.state, state
        match state:
            case FlowState.PENDING:
                self._add(flow)
                flow.inspector = self._inspector()
                self._pending[flow.source] = self._undecided[flow.source] = flow
            case FlowState.WATCHED:
                del self._pending[flow.source]
            case FlowState.RELAY:
                self.strangers += 1
                if before is FlowState.NONE:
                    self._add(flow)
                else:
                    self._decided(flow)
            case FlowState.OURS:
                if before is not FlowState.NONE:
                    self._drop(flow)
                room = self._room_for_handshake()
                self._ours[flow.source] = flow
                return room
            case FlowState.SILENT:
                flow.handshake, flow.inspector, flow.held = None, None, []
                flow.silent_until = now + SILENCE
            case FlowState.NONE if before in {FlowState.OURS, FlowState.SILENT}:
                del self._ours[flow.source]
                flow.handshake, flow.inspector, flow.held = None, None, []
            case FlowState.NONE:
                self._drop(flow)
        return []

    def _add(self, flow: Flow) -> None:
        self._flows[flow.source] = flow
        self._prefixes.setdefault(flow.prefix, []).append(flow)

    def _drop(self, flow: Flow) -> None:
        self._decided(flow)
        del self._flows[flow.source]
        neighbours = self._prefixes[flow.prefix]
        neighbours.remove(flow)
        if not neighbours:
            del self._prefixes[flow.prefix]

    def _decided(self, flow: Flow) -> None:
        self._forget_held(flow)
        self._undecided.pop(flow.source, None)
        self._pending.pop(flow.source, None)
        flow.inspector = flow.shown = None

    def _forget_held(self, flow: Flow) -> None:
        self._held_bytes -= sum(len(data) for data, _ in flow.held)
        flow.held = []

    def _begun(self, flow: Flow, event: FlowEvent, handshake: Handshake) -> Sequence[Effect]:
        effects = self._happens(flow, event, handshake=handshake)
        flow.handshake = handshake
        self._ours.move_to_end(flow.source)
        return effects

    # --- bounds ---

    def _newcomer(self, source: Address, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        flow = Flow(source, now)
        flow.address.visitor_spoke(data)
        hello = may_begin_hello(data)
        admission = self._hellos if hello else self._others
        if not admission.take(flow.prefix, now):
            self.dropped += 1
            return _NOTHING
        effects = self._room_for_visitor(flow.prefix)
        if not hello:
            admission.charge(flow.prefix, now)
            return effects + self._happens(flow, FlowEvent.DATAGRAM, now, data, ecn)
        effects += self._happens(flow, FlowEvent.MAY_BEGIN, now)
        inspector = flow.inspector
        assert inspector is not None
        effects += self._inspect(flow, data, ecn, now, unix_ms)
        if inspector.opened:
            admission.charge(flow.prefix, now)
        return effects

    def _room_for_visitor(self, prefix: str) -> list[Effect]:
        """Remove the longest idle flow of a full prefix, and of all when there are too many."""
        effects: list[Effect] = []
        neighbours = self._prefixes.get(prefix, [])
        if len(neighbours) >= self.limits.flows_per_prefix:
            effects += self._happens(min(neighbours, key=_seen), FlowEvent.REMOVED)
        while len(self._flows) >= self.limits.flows:
            effects += self._happens(next(iter(self._flows.values())), FlowEvent.REMOVED)
        return effects

    def _room_for_handshake(self) -> list[Effect]:
        """Remove SILENT flows first, then the oldest handshake."""
        effects: list[Effect] = []
        while len(self._ours) >= MAX_OURS:
            oldest = next(iter(self._ours.values()))
            silent = (flow for flow in self._ours.values() if flow.state is FlowState.SILENT)
            effects += self._happens(next(silent, oldest), FlowEvent.REMOVED)
        return effects

    # --- time ---

    def timer(self) -> float | None:
        """The monotonic time at which to call ``handle_timer``; None without a flow."""
        if self._pending:
            return next(iter(self._pending.values())).since + HOLD
        times = []
        if self._flows:
            times.append(next(iter(self._flows.values())).seen + self.limits.idle)
        silent = [flow.silent_until for flow in self._ours.values() if flow.state is FlowState.SILENT]
        if silent:
            times.append(min(silent))
        return min(times, default=None)

    def handle_timer(self, now: float) -> Sequence[Effect]:
        """End hold times, idle flows and silences that are over."""
        effects: list[Effect] = []
        while self._pending:
            flow = next(iter(self._pending.values()))
            if flow.since + HOLD > now:
                break
            effects += self._happens(flow, FlowEvent.DELAY_OVER)
        while self._flows:
            flow = next(iter(self._flows.values()))
            if flow.seen + self.limits.idle > now:
                break
            effects += self._happens(flow, FlowEvent.REMOVED)
        silent = [flow for flow in self._ours.values() if flow.state is FlowState.SILENT and flow.silent_until <= now]
        for flow in silent:
            self._happens(flow, FlowEvent.REMOVED)
        return effects

    def close(self) -> Sequence[Effect]:
        """Remove every flow; the effects close the connections to Dest."""
        self._ours.clear()
        effects: list[Effect] = []
        for flow in list(self._flows.values()):
            effects += self._happens(flow, FlowEvent.REMOVED)
        return effects

    # --- counters for ``show`` ---

    @property
    def pending(self) -> int:
        """The number of undecided flows and of handshakes."""
        return len(self._undecided) + sum(flow.state is FlowState.OURS for flow in self._ours.values())

    @property
    def relayed(self) -> int:
        """The number of flows that are relayed to Dest."""
        return len(self._flows) - len(self._undecided)


def _named(verdict: Verdict) -> FlowEvent:
    if isinstance(verdict, Authenticated):
        return FlowEvent.OUR_HELLO
    return FlowEvent.UNDECIDED if verdict is UNDECIDED else FlowEvent.NOT_OURS


def _seen(flow: Flow) -> float:
    return flow.seen
