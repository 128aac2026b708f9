"""What becomes of handshakes at a port that several daemons may share: of our own, of our guests', of our front's.

A daemon is the front of its port, with or without guests, or it has joined another's and is fed by that. Every step
of a handshake is told to the flow table, and to the front where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from qre.workers.handshake.port.flow_parts import Address, Handshake, Hello
from qre.workers.handshake.port.flows import FlowTable
from qre.workers.handshake.port.performer import Performer
from qre.workers.handshake.recognition.accepted import Accepted
from qre.workers.handshake.shared.feed_messages import Abandon, Begin, DestSpoke, More, ToGuest
from qre.workers.handshake.shared.front_feed import FrontFeed
from qre.workers.handshake.shared.guests import GuestCalls, Guests


class PortSharing:
    """``ours``: the short ids of our own clients. ``admit`` makes a handshake for one of them that the front passes
    on, ``arm`` sets the server's timer anew, ``complain`` takes (key, line) for the log."""

    def __init__(
        self,
        table: FlowTable,
        performer: Performer,
        ours: Callable[[], Collection[bytes]],
        admit: Callable[[Hello], Accepted],
        arm: Callable[[], None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._table = table
        self._perform = performer.perform
        self._ours = ours
        self._admit = admit
        self._arm = arm
        self._complain = complain
        self.guests = Guests(GuestCalls(self.over, self.left, self.not_followed, complain))
        #: From the front that this daemon has joined; None: it has a port of its own.
        self.feed: FrontFeed | None = None

    def join(self, fd: int) -> None:
        """Be fed through ``fd`` by the front; takes ownership of it."""
        self.feed = FrontFeed(fd, self._handed_over, self._complain)

    def close(self) -> None:
        """End guests, and the feed."""
        self.guests.close()
        if self.feed is not None:
            self.feed.close()

    # --- what a handshake has done ---

    def left(self, source: Address, handshake: Handshake, farewell: bytes) -> None:
        """It follows Dest no more, and tells it so; empty: it never did."""
        if self.feed is not None:
            self.feed.left(source, farewell)
        now = time.monotonic()
        self._perform(self._table.left(source, handshake, farewell, now), now)

    def not_followed(self, source: Address, handshake: Handshake) -> None:
        """It cannot be what Dest is: its client gets Dest itself."""
        if self.feed is not None:
            self.feed.not_followed(source)
        self._perform(self._table.not_followed(source, handshake), time.monotonic())

    def over(self, source: Address, handshake: Handshake) -> None:
        """It has succeeded or failed."""
        now = time.monotonic()
        self._perform(self._table.handshake_over(source, handshake, now), now)
        if self.feed is not None:
            self.feed.over(source)
        self._arm()

    # --- what the front says ---

    def _handed_over(self, message: ToGuest) -> None:
        now, table, perform = time.monotonic(), self._table, self._perform
        source = message.visitor.address
        match message:
            case Begin(short_id=short_id) if short_id not in self._ours():  # the front may not know of a reload yet
                if self.feed is not None:
                    self.feed.not_followed(source)
            case Begin():
                perform(table.abandon(source), now)
                made = self._admit(message.hello(now))
                if self.feed is not None:
                    self.feed.began(source, made.inner.handshake_cid)
                perform(table.handed_over(source, made, now), now)
            case More(data=data):
                perform(table.from_front(source, data, now), now)
            case DestSpoke(data=data, ecn=ecn):
                perform(table.dest_at_front(source, data, ecn, now), now)
            case Abandon():
                perform(table.abandon(source), now)
        self._arm()
