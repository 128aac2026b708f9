"""Records what a site sends after the handshake of a visit: the server's port plays it to its clients.

Times, lengths and what has to be acknowledged; of the content nothing.
"""

from __future__ import annotations

import math
from typing import Any, Final

from qre.dest_profile import LONGEST, MAX_SPOKEN, RecordedReturn, RecordedVisit, Spoken
from qre.quic.client.client_connection import ClientConnection
from qre.quic.client.returning_client import ReturningClient
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.wire.packet import is_short

#: A 1-RTT packet with the shortest header and payload, and its tag: what is shorter is no packet.
_SHORTEST: Final = 21
_MICROSECONDS: Final = 1_000_000


class VisitRecorder:
    """Gets every datagram of a connection, in order. ``asked`` is whether the page has been requested, ``icon`` the
    path of its icon, if that has. ``early``: the request goes with the hello, and all that follows follows Finished.
    """

    def __init__(self, *, early: bool = False) -> None:
        self._early = early
        self._finished_at: float | None = None
        self._asked_at: float | None = None
        self._icon = ""
        self._icon_at = self._icon_made_at = math.inf
        self._finishes = self._asks = self._asks_icon = False  # what is about to leave
        self._answering = False  # the site has begun to answer the request
        self._largest = 0  # of the handshake's datagrams
        self._heard = (0, 0)  # of the connection: what has to be acknowledged, and how much it has said
        self._acknowledgements = 0  # bytes of the site's
        self._eliciting = 0
        self._acknowledged: list[tuple[float, int]] = []  # when, and how many of the eliciting ones by then
        self._spoken: list[Spoken] = []
        self._longer = False

    def sent(self, connection: ClientConnection, now: float, *, asked: bool, icon: str = "") -> None:
        """What the connection had to send is about to leave."""
        if self._finished_at is None and connection.handshake_complete:
            self._finished_at, self._finishes = now, True
        if self._asked_at is None and asked:
            self._asked_at, self._asks = now, True
        if icon and not self._icon:
            self._icon, self._icon_at, self._icon_made_at, self._asks_icon = icon, now, now, True
        known = self._acknowledged[-1][1] if self._acknowledged else 0
        if self._eliciting > known and not connection.acknowledgement_pending:
            self._acknowledged.append((now, self._eliciting))

    def left(self, now: float) -> None:
        """It is on its way: making it took some time."""
        if self._finishes:
            self._finished_at = now
        if self._asks:
            self._asked_at = now
        if self._asks_icon:
            self._icon_at = now
        self._finishes = self._asks = self._asks_icon = False

    def received(self, datagram: bytes, connection: ClientConnection, now: float) -> None:
        """``connection`` has read this datagram."""
        before, self._heard = self._heard, (connection.eliciting_packets, connection.application_progress)
        ack_length = connection.acknowledgement_bytes - self._acknowledgements
        self._acknowledgements += ack_length
        if self._finished_at is None or not is_short(datagram) or self._crossed(connection, now):
            self._largest = max(self._largest, len(datagram))
            self._answering = self._answering or connection.answer_begun
            self.in_flight(datagram, now)
            return
        eliciting, progress = (after > earlier for after, earlier in zip(self._heard, before, strict=True))
        self._answering = self._answering or connection.answer_begun
        asked = self._answering and not self._early
        began = self._asked_at if asked and self._asked_at is not None else self._finished_at
        icon = asked and now >= self._icon_made_at
        if icon:
            began = self._icon_at
        probe = bool(eliciting and not progress and len(datagram) > self._largest)
        if len(self._spoken) == MAX_SPOKEN or now - began > LONGEST:
            self._longer = self._longer or (self._answering and progress)
            return
        if not _SHORTEST <= len(datagram) <= MAX_UDP_PAYLOAD:  # what a server of ours never sends
            return
        self._spoken.append(
            Spoken(
                asked=asked,
                at_us=max(0, round((now - began) * _MICROSECONDS)),  # it may be here before we know that ours left
                length=len(datagram),
                eliciting=eliciting,
                acknowledged=self._known_to_have_arrived(now - connection.round_trip),
                probe=probe,
                ack_length=min(ack_length, len(datagram)),
                icon=icon,
            )
        )
        self._eliciting += eliciting and not probe

    def in_flight(self, datagram: bytes, now: float) -> None:
        """It belongs to the site's flight."""

    def returned(self, connection: Any) -> RecordedReturn | None:
        """How the site answers whoever comes back; None for a visitor that does not."""
        return None

    def _crossed(self, connection: ClientConnection, now: float) -> bool:
        """Whether the site said it before it can have had Finished: it is the end of its flight, read late."""
        return self._finished_at is not None and now - self._finished_at < connection.round_trip / 2

    def _known_to_have_arrived(self, then: float) -> int:
        return max((count for at, count in self._acknowledged if at <= then), default=0)

    def visit(self, connection: ReturningClient) -> RecordedVisit | None:
        """None when the site has not answered."""
        if not self._answering:
            return None
        return RecordedVisit(
            round_trip_us=round(connection.round_trip * _MICROSECONDS),
            spoken=tuple(self._spoken),
            longer=self._longer,
            token=connection.kept_token,
            icon=self._icon if any(each.icon and each.eliciting and not each.probe for each in self._spoken) else "",
        )
