"""Classifies each datagram at the server's port: of an authenticated client, or of a visitor of Dest. Sans-IO.

One state for every source address and port; ``flow_rules`` has the table. This module translates a datagram, a reply
of Dest or a timer into an event (``FlowEvent``), looks up its row, and keeps the indexes. Effects are returned as
values (``flow_effects``), in order, and ``performer`` performs them before the next event. Only three callbacks are
called, none of which changes anything: for a new inspector, whether this server made a CID, and whether one is live.

What may begin a ClientHello is forwarded first and read later, by ``look``: reading it takes longer than the gap
between the two datagrams of a browser's hello, and Dest must see that gap as it is. Only in a flood of what is no
Initial at all newcomers are read first, and only where Dest does not answer that, too.

Nothing grows without bound: flows in all and of one prefix (the longest idle makes room), newcomers (``admission``),
undecided flows and their bytes, handshakes (what is over makes room first). Other garbage is counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from qre.errors import UntrustedInputError
from qre.quic.server.inspector import UNDECIDED, Authenticated, Forged, Undecided, Verdict
from qre.wire.packet import is_short, long_header_source_cid, retry_source_cid
from qre.workers.handshake.port.admission import Admission
from qre.workers.handshake.port.classification import event_of, is_of_client, may_begin_hello, of_dest
from qre.workers.handshake.port.flow_books import FlowBooks, Lives
from qre.workers.handshake.port.flow_effects import Copied, Effect, Feed, Forward, Happening, ToVisitor
from qre.workers.handshake.port.flow_parts import Address, Flow, FlowState, Handshake, Inspector, Limits, OwnCid
from qre.workers.handshake.port.flow_rules import FORWARDED, PASSED_BACK, RULES, FlowEvent
from qre.workers.handshake.port.proven_addresses import ProvenAddresses
from qre.workers.handshake.port.shown import shown_untrusted

#: How long datagrams of a handshake that is over are dropped (seconds).
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
_SHADOW, _OVER = FlowState.SHADOW, FlowState.OVER
#: The states of a client's address.
_CLIENTS: Final = frozenset({FlowState.SHADOW, FlowState.LEFT, FlowState.OVER})


class FlowTable:
    """``strangers`` counts flows that became Dest's, ``dropped`` datagrams over a bound or without a way to Dest,
    ``unproven`` datagrams of Dest that were too much for an address that had proved nothing."""

    def __init__(self, limits: Limits, inspector: Callable[[], Inspector], own_cid: OwnCid, lives: Lives) -> None:
        self.limits = limits
        self._inspector = inspector
        self._own_cid = own_cid
        self.strangers = 0
        self.dropped = 0
        self.unproven = 0
        self._books = FlowBooks(lives)
        self._proven = ProvenAddresses()
        self._hellos = Admission(HELLO_CAPACITY, LOOKS)
        self._others = Admission(OTHER_CAPACITY, LOOKS)

    # --- datagrams ---

    def datagram(self, source: Address, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        """One datagram at the server's port."""
        if self.limits.remembers_hello and self._books.answered.has(data, now):
            return _NOTHING  # as the site, which knows the connection
        flow = self._books.clients.get(source)
        if flow is not None and flow.state is not _OVER:
            return self._client_spoke(flow, data, ecn, now, unix_ms)
        flow = flow or self._books.visitors.get(source)
        if is_short(data):
            cid = self._own_cid(data)
            if cid is not None:
                return self._happens(flow or Flow(source, now), FlowEvent.OWN_CID, data=data, cid=cid)
        if flow is None:
            return self._newcomer(source, data, ecn, now, unix_ms)
        if flow.state is _OVER:
            return self._client_spoke(flow, data, ecn, now, unix_ms)
        self._books.touch(flow, now)
        if not flow.address.proven:
            self._heard(flow, data, now)
        if flow.inspector is not None:
            self._books.read_later(flow, data, unix_ms)
        if _AT_DATAGRAM[flow.state] is FORWARDED:  # the most frequent case, without the look-up
            return (Forward(flow, data, ecn),)
        return self._happens(flow, FlowEvent.DATAGRAM, now, data, ecn)

    def _heard(self, flow: Flow, data: bytes, now: float) -> None:
        """Not the first datagram of a flow: does it show that the visitor receives what is sent to its address?"""
        flow.address.visitor_spoke(data)
        if flow.address.proven:
            self._proven.add(flow.source[0], now)

    def reply(self, flow: Flow, data: bytes, ecn: int, now: float, segment: int = 0) -> Sequence[Effect]:
        """One datagram from Dest for the visitor of ``flow``, or several of ``segment`` bytes that it ``passes``.
        What is ``unread`` has to be looked at before."""
        ours = self._books.clients.get(flow.source) is flow
        if not ours and self._books.visitors.get(flow.source) is not flow:
            return _NOTHING
        if not flow.address.proven and not flow.address.may_answer(data, self.limits.overshoots):
            self.unproven += 1
            return _NOTHING
        if ours:
            return self._dest_spoke_to_client(flow, data, ecn, now)
        self._books.touch(flow, now)
        if flow.inspector is not None:
            return self._happens(flow, self._dest_spoke(flow, flow.inspector, data), now, data, ecn)
        if _AT_REPLY[flow.state] is PASSED_BACK:
            return (ToVisitor(flow.source, data, ecn, segment),)
        return self._happens(flow, FlowEvent.REPLY, now, data, ecn)

    def _dest_spoke(self, flow: Flow, inspector: Inspector, data: bytes) -> FlowEvent:
        """Classify a reply of Dest to a visitor that is still undecided."""
        retry = retry_source_cid(data)
        if retry is not None and flow.shown is None:
            inspector.retry_relayed(retry)
            self._books.forget_copies(flow)
            return FlowEvent.RETRY
        try:
            if not flow.held:
                raise UntrustedInputError("Dest", "a reply before the visitor's first datagram")
            flow.shown = shown_untrusted(data, flow.held[0], flow.shown)
        except UntrustedInputError:
            return FlowEvent.REPLY
        inspector.cid_shown(flow.shown.source_cid)
        return FlowEvent.ACKNOWLEDGED

    def _dest_spoke_to_client(self, flow: Flow, data: bytes, ecn: int, now: float) -> Sequence[Effect]:
        event = of_dest(flow, data, now)
        self._books.touch_client(flow, now)
        if event is FlowEvent.OTHER_REPLY:
            flow.others_at = now
        return self._happens(flow, event, now, data, ecn)

    # --- results of effects ---

    def no_way_to_dest(self, flow: Flow) -> Sequence[Effect]:
        """No relay could be opened. A visitor's flow is removed, and its next datagram tries again."""
        self.dropped += 1
        if self._books.visitors.get(flow.source) is not flow:
            return _NOTHING
        flow.unreachable = True
        return self._happens(flow, FlowEvent.NO_WAY)

    def hello_accepted(self, flow: Flow, begins: Handshake | Copied) -> Sequence[Effect]:
        """The hello is recorded, or a copy: its handshake begins, and receives its datagrams from now on."""
        flow.copied = isinstance(begins, Copied)
        handshake = begins.handshake if isinstance(begins, Copied) else begins
        if not flow.copied:
            self._hellos.know(flow.prefix)
        unread = flow.unread
        self._books.forget_copies(flow)
        effects = self._begun(flow, FlowEvent.ACCEPTED, handshake)
        return [*effects, *(Feed(handshake, data) for data, _ in unread)]

    def hello_refused(self, flow: Flow) -> Sequence[Effect]:
        """The hello is a replay, or could not be recorded: the flow is relayed to Dest."""
        self._books.forget_copies(flow)
        return self._stranger(flow, FlowEvent.REFUSED)

    # --- reading what was forwarded ---

    @property
    def unread(self) -> bool:
        """Whether ``look`` has something to read."""
        return bool(self._books.unread)

    def look(self, now: float) -> Sequence[Effect]:
        """Read what was forwarded of one flow: whether it comes from a client of ours. ``Accept`` is the last effect,
        and its result comes before any other event."""
        effects: list[Effect] = []
        flow = self._books.next_unread()
        while flow.unread and flow.inspector is not None:
            data, unix_ms = flow.unread.pop(0)
            flow.held.append(data)
            verdict = flow.inspector.datagram_received(data, unix_ms)
            effects += self._judged(flow, flow.inspector, verdict, now)
            if not isinstance(verdict, Undecided):
                break  # what is left belongs to the handshake
        return effects

    def looked(self) -> Sequence[Effect]:
        """Everything is read: the oldest of those that are undecided still, if they are too many, become Dest's."""
        effects: list[Effect] = []
        while (flow := self._books.too_many_undecided()) is not None:
            effects += self._stranger(flow, FlowEvent.TOO_MUCH)
        return effects

    def _judged(self, flow: Flow, inspector: Inspector, verdict: Verdict, now: float) -> Sequence[Effect]:
        if flow.source in self._books.clients:
            return self._judged_again(flow, inspector, verdict, now)
        if len(flow.held) == 1 and self._has_answer(inspector):
            self._hellos.charge(flow.prefix, now)
        if isinstance(verdict, Authenticated | Forged):
            return self._happens(flow, FlowEvent.OUR_HELLO, now, found=verdict)
        if verdict is UNDECIDED:
            return self._happens(flow, FlowEvent.UNDECIDED)
        if not self._has_answer(inspector) and self._hellos.waste(now):
            self.dropped += 1  # no Initial at all, of which Dest says nothing
            return self._happens(flow, FlowEvent.REMOVED)
        return self._stranger(flow, FlowEvent.NOT_OURS)

    def _has_answer(self, inspector: Inspector) -> bool:
        """Whether Dest says something: to an Initial, and to what only looks like one if it wants a token first."""
        return inspector.opened or self.limits.retries

    def _judged_again(self, flow: Flow, inspector: Inspector, verdict: Verdict, now: float) -> Sequence[Effect]:
        """Of a client's address: an Initial of another connection."""
        if len(flow.held) == 1 and self._has_answer(inspector):
            self._hellos.charge(flow.prefix, now)
        elif not self._has_answer(inspector):
            self._hellos.waste(now)
        found = verdict if isinstance(verdict, Authenticated) else None
        effects = self._happens(flow, event_of(verdict), now, found=found)
        if verdict is not UNDECIDED:
            flow.inspector, flow.held = None, []
            flow.unread = flow.unread if found else []
        return effects

    def _stranger(self, flow: Flow, event: FlowEvent) -> Sequence[Effect]:
        """Without a connection to Dest nothing is kept of it."""
        if flow.unreachable and flow.source not in self._books.clients:
            self.dropped += 1
            event = FlowEvent.REMOVED
        return self._happens(flow, event)

    # --- authenticated clients ---

    def _client_spoke(self, flow: Flow, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        self._books.touch_client(flow, now)
        if not flow.address.proven:
            self._heard(flow, data, now)
        if is_of_client(flow, data) and not self._books.answered.has(data, now):
            return self._happens(flow, FlowEvent.DATAGRAM, now, data, ecn)
        if may_begin_hello(data):
            if flow.state is _OVER and flow.others_at is None:
                effects = self._happens(flow, FlowEvent.MAY_BEGIN)
                return [*effects, *self._newcomer(flow.source, data, ecn, now, unix_ms)]
            if flow.inspector is not None or self._hellos.take(flow.prefix, now):
                flow.inspector = flow.inspector or self._inspector()
                self._books.read_later(flow, data, unix_ms)
        flow.another_spoke(long_header_source_cid(data), now)
        return self._happens(flow, FlowEvent.OTHER, now, data, ecn)

    def left(self, source: Address, handshake: Handshake, farewell: bytes, now: float) -> Sequence[Effect]:
        """``handshake`` follows Dest no more, and tells it so with ``farewell``; empty: it never did."""
        flow = self._books.clients.get(source)
        if flow is None or flow.handshake is not handshake or flow.state is not _SHADOW:
            return _NOTHING
        if farewell and not flow.copied:
            self._books.answered.add(handshake, now)
        return self._happens(flow, FlowEvent.FINISHED if farewell else FlowEvent.IMITATED, now, farewell)

    def not_followed(self, source: Address, handshake: Handshake) -> Sequence[Effect]:
        """Dest chose what ``handshake`` cannot have; the client gets Dest itself."""
        flow = self._books.clients.get(source)
        if flow is None or flow.handshake is not handshake or flow.state is not _SHADOW:
            return _NOTHING
        return [*self._room_for_visitor(flow.prefix), *self._happens(flow, FlowEvent.NOT_FOLLOWED)]

    def handed_over(self, source: Address, handshake: Handshake, now: float) -> Sequence[Effect]:
        """The front passes on an authenticated client; ``abandon`` was called for its address before."""
        flow = Flow(source, now)
        flow.address.proven = True  # the front bounds what it gets
        return self._begun(flow, FlowEvent.HANDED_OVER, handshake)

    def from_front(self, source: Address, data: bytes, now: float) -> Sequence[Effect]:
        """The front passes on a datagram of a client; dropped when its handshake is over."""
        flow = self._books.clients.get(source)
        if flow is None or flow.state is _OVER:
            return _NOTHING
        self._books.touch_client(flow, now)
        return self._happens(flow, FlowEvent.FROM_FRONT, now, data)

    def dest_at_front(self, source: Address, data: bytes, ecn: int, now: float) -> Sequence[Effect]:
        """The front passes on a datagram of Dest for a client; dropped when Dest is not followed any more."""
        flow = self._books.clients.get(source)
        return self.reply(flow, data, ecn, now) if flow is not None and flow.state is _SHADOW else _NOTHING

    def abandon(self, source: Address) -> Sequence[Effect]:
        """Abandon the handshake with a client; an unknown address is ignored."""
        flow = self._books.clients.get(source)
        return _NOTHING if flow is None else self._happens(flow, FlowEvent.REMOVED)

    def handshake_over(self, source: Address, handshake: Handshake, now: float) -> Sequence[Effect]:
        """``handshake`` succeeded or failed. What still comes for it is dropped for SILENCE seconds."""
        flow = self._books.clients.get(source)
        if flow is None or flow.handshake is not handshake:
            return _NOTHING
        return self._happens(flow, FlowEvent.REMOVED if flow.copied else FlowEvent.HANDSHAKE_OVER, now)

    # --- the table and its indexes ---

    def _happens(
        self,
        flow: Flow,
        event: FlowEvent,
        now: float = 0.0,
        data: bytes = b"",
        ecn: int = 0,
        *,
        found: Authenticated | Forged | None = None,
        cid: bytes = b"",
        handshake: Handshake | None = None,
    ) -> list[Effect]:
        """Look up the row, enter the next state and return the effects, those that make room first."""
        rule = RULES[flow.state, event]
        it = Happening(flow, now, data, ecn, found, cid, handshake, flow.handshake)
        room = [] if rule.becomes is flow.state else self._enter(flow, rule.becomes, now)
        return room + [kind.of(it) for kind in rule.effects]

    def _enter(self, flow: Flow, state: FlowState, now: float) -> list[Effect]:
        before, flow.state = flow.state, state
        books = self._books
        if before in _CLIENTS:
            books.over.pop(flow.source, None)
            books.shadowed.pop(flow.source, None)
            if state not in _CLIENTS:
                del books.clients[flow.source]
                flow.forget_handshake()
                books.forget_copies(flow)
        if state is _SHADOW:
            books.shadowed[flow.source] = flow
        match state:
            case FlowState.WATCHED:
                books.add(flow)
                flow.inspector = flow.inspector or self._inspector()
                books.undecided[flow.source] = flow
            case FlowState.RELAY:
                self.strangers += 1
                if before is FlowState.WATCHED:
                    books.decided(flow)
                else:
                    books.add(flow)
            case FlowState.SHADOW if before not in _CLIENTS:
                if before is not FlowState.NONE:
                    books.drop(flow)
                room = [each for old in books.clients_in_the_way(flow) for each in self._give_way(old)]
                books.clients[flow.source] = flow
                return room
            case FlowState.LEFT:
                flow.over_at = now
            case FlowState.OVER:
                flow.cids = frozenset(flow.handshake.cids) if flow.handshake is not None else ()
                flow.over_at = now
                flow.forget_handshake()
                books.forget_copies(flow)
                books.over[flow.source] = flow
            case FlowState.NONE if before not in _CLIENTS:
                books.drop(flow)
        return []

    def _give_way(self, flow: Flow) -> Sequence[Effect]:
        """A client's flow ends. Whoever else uses its connection to Dest keeps it, as a visitor."""
        if flow.state is not _OVER or flow.others_at is None:
            return self._happens(flow, FlowEvent.REMOVED)
        flow.seen = flow.others_at
        return [*self._room_for_visitor(flow.prefix), *self._happens(flow, FlowEvent.OTHERS_LEFT)]

    def _begun(self, flow: Flow, event: FlowEvent, handshake: Handshake) -> Sequence[Effect]:
        effects = self._happens(flow, event, handshake=handshake)
        flow.handshake = handshake
        flow.inspector, flow.held = None, []
        self._books.clients.move_to_end(flow.source)
        return effects

    # --- bounds ---

    def _newcomer(self, source: Address, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        flow = Flow(source, now)
        flow.address.visitor_spoke(data)
        flow.address.proven = flow.address.proven or self._proven.has(source[0], now)
        hello = may_begin_hello(data)
        admission = self._hellos if hello else self._others
        if not admission.take(flow.prefix, now):
            self.dropped += 1
            return _NOTHING
        if hello and self._hellos.flood(now):
            return self._read_first(flow, data, ecn, now, unix_ms)
        effects = self._room_for_visitor(flow.prefix)
        if not hello:
            admission.charge(flow.prefix, now)
            return effects + self._happens(flow, FlowEvent.DATAGRAM, now, data, ecn)
        effects += self._happens(flow, FlowEvent.MAY_BEGIN, now, data, ecn)
        self._books.read_later(flow, data, unix_ms)
        return effects

    def _read_first(self, flow: Flow, data: bytes, ecn: int, now: float, unix_ms: int) -> Sequence[Effect]:
        """In a flood: for what is no Initial at all not even a connection to Dest is made."""
        flow.inspector = inspector = self._inspector()
        verdict = inspector.datagram_received(data, unix_ms)
        if not self._has_answer(inspector):
            self._hellos.waste(now)
            self.dropped += 1
            return _NOTHING
        effects = self._room_for_visitor(flow.prefix)
        effects += self._happens(flow, FlowEvent.MAY_BEGIN, now, data, ecn)
        self._books.has_read(flow, data)
        effects += self._judged(flow, inspector, verdict, now)
        return [*effects, *self.looked()] if verdict is UNDECIDED else effects

    def _room_for_visitor(self, prefix: str) -> list[Effect]:
        in_the_way = self._books.in_the_way(prefix, self.limits)
        return [each for old in in_the_way for each in self._happens(old, FlowEvent.REMOVED)]

    # --- time ---

    def timer(self) -> float | None:
        """The monotonic time at which to call ``handle_timer``; None without a flow."""
        idle = self._books.longest_idle(), self._books.longest_shadowed()
        times = [flow.seen + self.limits.idle for flow in idle if flow is not None]
        if (over := self._books.first_over()) is not None:
            times.append(over.over_at + SILENCE)
        return min(times, default=None)

    def handle_timer(self, now: float) -> Sequence[Effect]:
        """End idle flows, and those that are long over."""
        effects: list[Effect] = []
        for longest in (self._books.longest_idle, self._books.longest_shadowed):
            while (flow := longest()) is not None and flow.seen + self.limits.idle <= now:
                effects += self._happens(flow, FlowEvent.REMOVED)
        while (flow := self._books.first_over()) is not None and flow.over_at + SILENCE <= now:
            effects += self._give_way(flow)
        return effects

    def close(self) -> Sequence[Effect]:
        """Remove every flow; the effects close the connections to Dest."""
        flows = [*self._books.clients.values(), *self._books.visitors.values()]
        return [each for flow in flows for each in self._happens(flow, FlowEvent.REMOVED)]

    # --- counters for ``show`` ---

    @property
    def pending(self) -> int:
        """The number of undecided flows and of handshakes."""
        return len(self._books.undecided) + sum(flow.state is not _OVER for flow in self._books.clients.values())

    @property
    def relayed(self) -> int:
        """The number of flows that are relayed to Dest."""
        return len(self._books.visitors) - len(self._books.undecided)
