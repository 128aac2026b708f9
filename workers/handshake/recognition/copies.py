"""Copies of a first flight that resumed: they are answered as by the site that gave the ticket, and lead to nothing.

A site takes its ticket again, whoever sends it. Dest cannot open ours, and would make a whole handshake. So a copy
gets what a returning client gets (``ReturningConnection``), under keys that nobody has: not whoever copied it, nor
the client itself. Its early data cannot be read, no Finished can come, nothing of it counts for its network or for
its client, and no genuine handshake gives way to it. Tickets with false binders count (``binder_refusals``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from qre.dest_profile import DestProfile
from qre.quic.handshake_events import Closed
from qre.quic.server.coming_back import TicketKeeper, returning
from qre.quic.server.inspector import Authenticated
from qre.quic.server.server_handshake import ServerHandshake, ShownByDest
from qre.quic.shadow.server_hello import Obstacle
from qre.reality.replay import ReplayFilter
from qre.wire.packet import long_header_source_cid
from qre.workers.handshake.port.flow_parts import Address, ForgedHello, Hello, PlacedHandshake
from qre.workers.handshake.port.volley import Volley
from qre.workers.handshake.recognition.accepted import LIFETIME, Accepted, Handshakes
from qre.workers.handshake.recognition.binder_refusals import Refusal, Refusals

#: Begun in LIFETIME seconds, and so at once; what is more goes to Dest.
MOST_COPIES: Final = 64


class Genuine(Handshakes, Protocol):
    """The part of ``acceptance.Acceptance`` that is used here."""

    replay: ReplayFilter
    unrecorded: str
    dest: DestProfile | None
    keeper: TicketKeeper | None

    def imitate(self) -> bool:
        """Whether Dest is down and is imitated."""

    def left(self, one: PlacedHandshake, farewell: bytes, /) -> None:
        """It follows Dest no more, which gets ``farewell``."""

    def not_followed(self, one: PlacedHandshake, /) -> None:
        """Its client has to see Dest itself."""

    def over(self, one: PlacedHandshake, /) -> None:
        """It has ended."""

    def send(self, one: Accepted, now: float) -> None:
        """What one has to say, when it is due."""

    def send_due(self, one: Accepted, now: float) -> None:
        """What has waited for its time."""

    def mark_of(self, data: bytes) -> int:
        """ECN of a datagram of ours that stands for none of Dest's."""

    def next_time(self, one: Accepted) -> float | None:
        """When one has something to do."""


class Copy(Accepted):
    """One of them. See ``flow_parts.Handshake``."""

    def dest_retried(self, retry: bytes, now: float) -> None:
        """A hello that comes again behind a Retry gets no resumption from us: Dest has it."""
        self._acceptance.cannot_follow(self, Obstacle.UNREADABLE)


@dataclass
class Copies:
    """All of them. ``random``: n random bytes; ``volley``: that of all handshakes. See ``accepted.Handshakes``."""

    acceptance: Genuine
    random: Callable[[int], bytes]
    volley: Volley
    _all: dict[Accepted, None] = field(default_factory=dict)
    _begun: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._refusals = Refusals(self.acceptance, self.volley)

    def __len__(self) -> int:
        return len(self._all)

    def answer(self, hello: Hello | ForgedHello) -> Copy | Refusal | None:
        """What answers as a site would; None when Dest does."""
        return self._refused(hello) if isinstance(hello, ForgedHello) else self.of(hello)

    def _refused(self, hello: ForgedHello) -> Refusal | None:
        if self.acceptance.imitate() or not self._has_room(hello.now):
            return None
        refusal = self._refusals.of(hello)
        if refusal is not None:
            self._begun.append(hello.now)
        return refusal

    def _has_room(self, now: float) -> bool:
        while self._begun and self._begun[0] + LIFETIME <= now:
            self._begun.popleft()
        return len(self._begun) < MOST_COPIES

    def of(self, hello: Hello) -> Copy | None:
        """None when it is no copy of a resumed hello, when there are too many, and when Dest is not followed: then it
        is a stranger's, and Dest's."""
        acceptance, found = self.acceptance, replace(hello.found, repeated=True)
        if acceptance.imitate() or acceptance.unrecorded:
            return None
        if not hello.found.repeated and found.random_hash not in acceptance.replay:
            return None
        if not self._has_room(hello.now):
            return None
        if returning(found, acceptance.keeper, acceptance.dest, self.random) is None:
            return None
        self._begun.append(hello.now)
        client_cid = long_header_source_cid(hello.datagrams[0])
        inner = self.new_handshake(found, hello.source, hello.now, hello.shown, client_cid)
        made = Copy(self, inner, replace(hello, found=found), client_cid)
        made.ends_at = hello.now + LIFETIME
        self._all[made] = None
        return made

    # --- what one of them needs ---

    def new_handshake(
        self, found: Authenticated, source: Address, now: float, shown: ShownByDest | None, client_cid: bytes | None
    ) -> ServerHandshake:
        """As for a returning client."""
        return self.acceptance.new_handshake(found, source, now, shown, client_cid)

    def mark_of(self, data: bytes) -> int:
        """As of a returning client's."""
        return self.acceptance.mark_of(data)

    def progress(self, one: Accepted, now: float) -> None:
        """Send what is pending; of all events only the end matters."""
        if one not in self._all:
            return
        if one.leaves_dest() is not None:
            self.acceptance.left(one, b"")  # Dest knows the connection for as long as a site would know this one
        self.acceptance.send(one, now)
        while (event := one.inner.next_event()) is not None:
            if isinstance(event, Closed):
                self._ended(one)
                return

    @contextmanager
    def metered(self, one: Accepted) -> Iterator[None]:
        """One whose time is used up ends."""
        began = time.thread_time()
        yield
        one.spent += time.thread_time() - began
        if one.spent > one.may_spend:
            self._ended(one)

    def is_taken(self, cid: bytes, by: Accepted) -> bool:
        """Whether it is a session's, or a client's handshake's."""
        return self.acceptance.is_taken(cid, by)

    def cannot_follow(self, one: Accepted, obstacle: Obstacle) -> None:
        """Dest's answer is shown as it is."""
        del obstacle  # nobody's client misses anything
        self.acceptance.not_followed(one)

    def _ended(self, one: Accepted) -> None:
        if one in self._all:
            del self._all[one]
            self.acceptance.over(one)

    # --- time ---

    def timer(self) -> float | None:
        """The monotonic time at which to call ``handle_timer``; None when there is no copy."""
        times = [at for one in self._all if (at := self.acceptance.next_time(one)) is not None]
        refused = self._refusals.timer()
        return min(times if refused is None else [*times, refused], default=None)

    def handle_timer(self, now: float) -> None:
        """Repeat what had no answer, and end what has lasted LIFETIME."""
        self._refusals.handle_timer(now)
        for one in list(self._all):
            self.acceptance.send_due(one, now)
            if one.ends_at <= now:
                one.abandon()
            else:
                one.handle_timer(now)

    def close(self) -> None:
        """Forget all of them; nothing is sent."""
        self._all.clear()
        self._refusals.close()
