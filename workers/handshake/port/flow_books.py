"""Which flows there are: by address, by network, undecided ones and those with datagrams to be read.

Only keeps the books: which flow enters which state is decided by ``flows``. All look-ups are by address.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from qre.wire.packet import is_initial, long_header_destination_cid
from qre.workers.handshake.port.flow_parts import Address, Flow, Handshake, Limits

MAX_UNDECIDED: Final = 256
MAX_UNDECIDED_BYTES: Final = 1 << 20
#: Handshakes at once, each of an authenticated client with a hello that is not a replay.
MAX_OURS: Final = 256
#: Hellos that are known: more than there can be sessions and handshakes.
MOST_HELLOS: Final = 4096
#: How long a hello is known whose client has finished, without a session of it (seconds).
UNCONFIRMED: Final = 30.0
#: Whether one of these connection IDs is a live session's.
Lives = Callable[[Collection[bytes]], bool]


class AnsweredHellos:
    """The connection IDs that first flights went to whose clients have finished: Dest was told that these visits are
    over, where a site would still know them."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives
        self._known: OrderedDict[bytes, tuple[float, Collection[bytes]]] = OrderedDict()

    def add(self, handshake: Handshake, now: float) -> None:
        """Its client has finished; the oldest hello makes room."""
        if handshake.hello_cid:
            self._known[handshake.hello_cid] = now, frozenset(handshake.cids)
        if len(self._known) > MOST_HELLOS:
            self._known.popitem(last=False)

    def has(self, data: bytes, now: float) -> bool:
        """Whether an Initial goes where the first flight of a connection went that lives; what does not is
        forgotten."""
        if not self._known or not is_initial(data):
            return False
        cid = long_header_destination_cid(data)
        since, cids = self._known.get(cid, (-UNCONFIRMED, ()))
        if now - since < UNCONFIRMED or self._lives(cids):
            return True
        self._known.pop(cid, None)
        return False


class FlowBooks:
    """``visitors``: undecided flows and those of strangers, the longest idle first; ``clients``: all others.
    ``shadowed``: those of them whose handshake follows Dest, the longest idle first; ``over``: those whose handshake
    has ended, the first one first."""

    def __init__(self, lives: Lives) -> None:
        self.answered = AnsweredHellos(lives)
        self.visitors: OrderedDict[Address, Flow] = OrderedDict()
        self.clients: OrderedDict[Address, Flow] = OrderedDict()
        self.shadowed: OrderedDict[Address, Flow] = OrderedDict()
        self.over: dict[Address, Flow] = {}
        self.unread: dict[Address, Flow] = {}
        self.undecided: OrderedDict[Address, Flow] = OrderedDict()  # the oldest first
        self._undecided_bytes = 0
        self._networks: dict[str, list[Flow]] = {}  # of visitors

    # --- visitors ---

    def add(self, flow: Flow) -> None:
        """A new visitor."""
        self.visitors[flow.source] = flow
        self._networks.setdefault(flow.prefix, []).append(flow)

    def drop(self, flow: Flow) -> None:
        """It is no visitor any more."""
        self.decided(flow)
        del self.visitors[flow.source]
        neighbours = self._networks[flow.prefix]
        neighbours.remove(flow)
        if not neighbours:
            del self._networks[flow.prefix]

    def decided(self, flow: Flow) -> None:
        """It is known whose it is: nothing of it is kept."""
        self.forget_copies(flow)
        self.undecided.pop(flow.source, None)
        flow.inspector = flow.shown = None

    def touch(self, flow: Flow, now: float) -> None:
        """A visitor or its Dest has spoken."""
        flow.seen = now
        self.visitors.move_to_end(flow.source)

    def touch_client(self, flow: Flow, now: float) -> None:
        """A client, another connection at its address, or Dest has spoken."""
        flow.seen = now
        if flow.source in self.shadowed:
            self.shadowed.move_to_end(flow.source)

    # --- what is to be read, and what has been read ---

    def read_later(self, flow: Flow, data: bytes, unix_ms: int) -> None:
        """Keep a copy until it is looked at."""
        flow.unread.append((data, unix_ms))
        self.unread[flow.source] = flow
        self._count(flow, len(data))

    def has_read(self, flow: Flow, data: bytes) -> None:
        """Keep a copy that was looked at before it was forwarded."""
        flow.held.append(data)
        self._count(flow, len(data))

    def next_unread(self) -> Flow:
        """The flow that has waited longest, which waits no more."""
        return self.unread.pop(next(iter(self.unread)))

    def forget_copies(self, flow: Flow) -> None:
        """Of all of its datagrams."""
        self._count(flow, -sum(map(len, flow.held)) - sum(len(data) for data, _ in flow.unread))
        flow.held, flow.unread = [], []
        self.unread.pop(flow.source, None)

    def _count(self, flow: Flow, length: int) -> None:
        if flow.source in self.undecided:
            self._undecided_bytes += length

    # --- bounds ---

    def too_many_undecided(self) -> Flow | None:
        """The oldest undecided flow, when there are too many of them or they hold too much."""
        if len(self.undecided) > MAX_UNDECIDED or self._undecided_bytes > MAX_UNDECIDED_BYTES:
            return next(iter(self.undecided.values()))
        return None

    def in_the_way(self, prefix: str, limits: Limits) -> Iterable[Flow]:
        """Remove each of these for one more visitor: the longest idle of all, and while half of the room is taken,
        that of a network which has its share."""
        return () if 2 * len(self.visitors) < limits.flows else self._in_the_way(prefix, limits)

    def _in_the_way(self, prefix: str, limits: Limits) -> Iterator[Flow]:
        neighbours = self._networks.get(prefix, [])
        if len(neighbours) >= limits.flows_per_prefix and 2 * len(self.visitors) >= limits.flows:
            yield min(neighbours, key=lambda flow: flow.seen)
        while len(self.visitors) >= limits.flows:
            yield next(iter(self.visitors.values()))

    def clients_in_the_way(self, newcomer: Flow) -> Iterator[Flow]:
        """Remove each of these for one more client: what is over first, then the oldest handshake. Copies have a
        bound of their own (``recognition.copies``), and nobody gives way to one."""
        if newcomer.copied:
            return
        while len(self.clients) >= MAX_OURS and self._genuine() >= MAX_OURS:
            yield next(iter((self.over or self.clients).values()))

    def _genuine(self) -> int:
        return sum(not flow.copied for flow in self.clients.values())

    # --- time ---

    def longest_idle(self) -> Flow | None:
        """Of the visitors."""
        return next(iter(self.visitors.values()), None)

    def longest_shadowed(self) -> Flow | None:
        """Of the clients whose handshake follows Dest, the longest idle."""
        return next(iter(self.shadowed.values()), None)

    def first_over(self) -> Flow | None:
        """Of the clients whose handshake has ended, the one of which that was first."""
        return next(iter(self.over.values()), None)
