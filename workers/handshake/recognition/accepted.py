"""One authenticated client's handshake: what the flow table and the shadow of Dest ask of it."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final, Protocol

from qre.quic.server.inspector import Authenticated
from qre.quic.server.server_handshake import ServerHandshake, ShownByDest
from qre.quic.server.shadow_connection import DestAnswer, Mirrored, NotFollowed, NotOfThisConnection
from qre.quic.shadow.dest_reader import is_retry_of
from qre.quic.shadow.server_hello import Obstacle
from qre.wire.packet import is_short, long_header_source_cid, parse_header_untrusted
from qre.workers.handshake.port.flow_parts import Address, Hello
from qre.workers.handshake.port.volley import Volley

#: Of an answer, however far away Dest is (seconds).
_LONGEST_DELAY: Final = 1.0
#: Seconds until a handshake that follows Dest no more has to have asked for its session. A client gives up after 10;
#: to one that fell silent a site goes on to send until its idle timeout, of 30 s in most.
LIFETIME: Final = 45.0
#: What a script says is made so much earlier (seconds) than it is due: making it takes about as long.
_AHEAD: Final = 0.0005
#: Seconds of CPU for one handshake, of which an honest one takes some milliseconds; or, if more, times its hello.
MOST_CPU, TIMES_ITS_HELLO = 0.5, 50.0


class Handshakes(Protocol):
    """All of them: what one needs of it (``acceptance``)."""

    volley: Volley

    def progress(self, one: Accepted, now: float) -> None:
        """Send what is pending, and handle its events."""

    def metered(self, one: Accepted) -> AbstractContextManager[None]:
        """What is done meanwhile is done for it."""

    def is_taken(self, cid: bytes, by: Accepted) -> bool:
        """Whether this connection ID is another one's."""

    def mark_of(self, data: bytes) -> int:
        """ECN of a datagram of ours that stands for none of Dest's."""

    def cannot_follow(self, one: Accepted, obstacle: Obstacle) -> None:
        """Dest is not followed: its client sees Dest itself."""

    def new_handshake(
        self, found: Authenticated, source: Address, now: float, shown: ShownByDest | None, client_cid: bytes | None
    ) -> ServerHandshake:
        """``client_cid``: the client's source CID, where Dest is to be followed."""


class Accepted:
    """One handshake in progress. See ``flow_parts.Handshake``."""

    def __init__(
        self, acceptance: Handshakes, inner: ServerHandshake, hello: Hello, client_cid: bytes | None
    ) -> None:
        found = hello.found
        self._acceptance = acceptance
        self._first_flight = hello.datagrams
        self._found = found
        self._client_cid = client_cid
        self._asked_at = hello.now
        self._token = b""  # of Dest's Retry
        self._unanswered = True
        self.inner = inner
        self.source = hello.source
        self.short_id = found.short_id
        self.session_id: bytes | None = None
        self.ends_at = math.inf  # while Dest is followed, its flow ends it when it is idle
        self.spent, self.may_spend = 0.0, math.inf  # seconds of CPU
        #: How long Dest takes to answer (seconds): so long ours takes, once we speak for ourselves.
        self.delay = 0.0
        #: What waits for that, and when it is due.
        self.outbox: deque[tuple[float, bytes]] = deque()
        self._left = False

    def begin(self, now: float) -> None:
        """Process the datagrams that authenticated the client, and answer."""
        with self._acceptance.metered(self):
            for data in self._first_flight:
                self.inner.datagram_received(data, self.source[:2], now)
            self._first_flight = []
            self._acceptance.progress(self, now)
            self.inner.prepare()
        self.may_spend = max(MOST_CPU, TIMES_ITS_HELLO * self.spent)

    def datagram_received(self, data: bytes, now: float) -> None:
        """Process one more datagram of the client, and answer; one whose time is used up is not heard any more."""
        if self.spent <= self.may_spend:
            with self._acceptance.metered(self):
                self.inner.datagram_received(data, self.source[:2], now)
                self._acceptance.progress(self, now)
                if self._unanswered:  # behind a Retry it is the hello
                    self.inner.prepare()

    def timer(self) -> float | None:
        """When to call ``handle_timer`` (monotonic); None: not before the next datagram."""
        at = self.inner.timer()
        return None if at is None else at - _AHEAD * self.inner.scripted

    def handle_timer(self, now: float) -> None:
        """Make what is due, or soon will be; the outbox has it until then."""
        at = self.timer()
        if at is not None and at <= now:
            due = max(now, at + _AHEAD * self.inner.scripted)
            self.inner.handle_timer(due)
            self._acceptance.progress(self, due)

    def dest_spoke(self, data: bytes, ecn: int, now: float) -> None:
        """One datagram of Dest: send ours in its place, or what it is itself when it is not of this connection."""
        with self._acceptance.metered(self):
            self._dest_spoke(data, ecn, now)

    def _dest_spoke(self, data: bytes, ecn: int, now: float) -> None:
        first = self._unanswered
        if first:
            self._unanswered, self.delay = False, min(max(0.0, now - self._asked_at), _LONGEST_DELAY)
        volley = self._acceptance.volley
        cid = long_header_source_cid(data)
        if cid and (first or cid != self.inner.handshake_cid) and self._acceptance.is_taken(cid, self):
            answer: DestAnswer = NotFollowed(Obstacle.TAKEN, ())
        else:
            answer = self.inner.dest_spoke(data, now)
        match answer:
            case Mirrored(datagrams):
                for each in datagrams:
                    like = is_short(each) == is_short(data)
                    volley.say(self.source, each, ecn if like else self._acceptance.mark_of(each))
                volley.then(self.inner.prepare)
            case NotOfThisConnection():
                volley.say(self.source, data, ecn)
            case NotFollowed(obstacle, withheld):
                for each in (*withheld, data):
                    volley.say(self.source, each, ecn)
                volley.let_out()
                self._acceptance.cannot_follow(self, obstacle)
                return
        self._acceptance.progress(self, now)

    def dest_retried(self, retry: bytes, now: float) -> None:
        """The client repeats its hello under the Retry's connection ID; a second Retry changes nothing (RFC 9000
        §17.2.5.2), nor does one that is another connection's."""
        header = parse_header_untrusted(retry, short_cid_length=0)
        first = self._found.retry_source_cid is None and self._unanswered
        if not first or not is_retry_of(retry, self._found.original_destination_cid):
            return
        self._found = replace(self._found, retry_source_cid=header.source_cid)
        self._token, self._asked_at = header.token, now
        self.inner = self._acceptance.new_handshake(self._found, self.source, now, None, self._client_cid)

    @property
    def cids(self) -> frozenset[bytes]:
        """That of the client's first flight, which is the Retry's if there was one, and our own."""
        return frozenset({self.hello_cid, self.inner.handshake_cid, self.inner.routed_cid}) - {b""}

    @property
    def hello_cid(self) -> bytes:
        """The destination connection ID of the client's first flight."""
        return self._found.retry_source_cid or self._found.original_destination_cid

    def leaves_dest(self) -> bytes | None:
        """Once, when Dest is followed no more: what tells it so, which is empty if it never was."""
        if self._left or self.inner.following:
            return None
        self._left = True
        return self.inner.farewell(self._token)

    def abandon(self) -> None:
        """End the handshake and send nothing more."""
        self.inner.abandon()
        self._acceptance.progress(self, time.monotonic())
