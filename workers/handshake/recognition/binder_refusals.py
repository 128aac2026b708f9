"""Tickets of ours with false binders: refused as by the site that gave the ticket.

Anybody can take a ticket off the wire, as Initials are under public keys, and send it in a hello of his own. Dest
cannot open it, and makes a whole handshake; a site of its make that had given the ticket would close (RFC 8446
§4.2.11). So the visitor gets that CLOSE, in the moment and under the connection ID and packet number of the first
datagram that has a part of Dest's ServerHello, and nothing more of Dest; Dest is told that the visit is over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

from qre.dest_profile import DestProfile
from qre.errors import UntrustedInputError
from qre.quic.shadow.dest_reader import DestReader
from qre.quic.shadow.farewell import farewell
from qre.quic.shadow.habits import habits_of
from qre.quic.shadow.server_hello import CannotFollowError, is_retry_request
from qre.quic.shadow.shapes import InitialShape
from qre.wire.frames import ConnectionClose, encode_frame
from qre.wire.number import encode_number
from qre.wire.packet import PacketType, build_long_header, long_header_source_cid
from qre.wire.protection import TAG_LENGTH
from qre.workers.handshake.port.flow_parts import Address, ForgedHello, PlacedHandshake
from qre.workers.handshake.port.volley import Volley
from qre.workers.handshake.recognition.accepted import LIFETIME

#: How long quic-go repeats its CLOSE (seconds): three probe timeouts of a connection that has measured nothing.
CLOSING: Final = 0.6
_NUMBER_LENGTH: Final = 2
#: The highest packet number of Dest's that is taken over, and that of the last Initial to Dest.
_HIGHEST: Final = 1000


class Acceptance(Protocol):
    """The part of ``acceptance.Acceptance`` that is used here."""

    dest: DestProfile | None

    def left(self, one: PlacedHandshake, farewell: bytes, /) -> None:
        """It follows Dest no more, which gets ``farewell``."""

    def not_followed(self, one: PlacedHandshake, /) -> None:
        """Its client has to see Dest itself."""

    def over(self, one: PlacedHandshake, /) -> None:
        """It has ended."""


class Refusal:
    """One of them. See ``flow_parts.Handshake``."""

    def __init__(self, refusals: Refusals, hello: ForgedHello, client_cid: bytes, error: int) -> None:
        self._refusals = refusals
        self._source = hello.source
        self._client_cid = client_cid
        self._error = error
        self._reader = DestReader(hello.found.original_destination_cid, client_cid)
        if hello.shown is not None:
            self._reader.shown(hello.shown.source_cid, hello.shown.highest_packet_number)
        self.hello_cid = hello.found.original_destination_cid
        self.ends_at = hello.now + LIFETIME
        self._close, self._ecn = b"", 0
        self._heard = 0  # datagrams of the visitor after the CLOSE

    @property
    def source(self) -> Address:
        """The visitor."""
        return self._source

    @property
    def cids(self) -> Collection[bytes]:
        """Where the visitor's packets go to: at first, and when it has heard of Dest."""
        return frozenset({self.hello_cid, self._reader.source_cid or b""}) - {b""}

    def begin(self, now: float) -> None:
        """Dest has the hello."""

    def datagram_received(self, data: bytes, now: float) -> None:
        """As from quic-go, the CLOSE comes again for the first, second, fourth, eighth datagram, and so on."""
        if self._close:
            self._heard += 1
            if self._heard.bit_count() == 1:
                self._refusals.volley.say(self._source, self._close, self._ecn)

    def dest_spoke(self, data: bytes, ecn: int, now: float) -> None:
        """Acknowledgements pass, and the CLOSE takes the place of ServerHello."""
        if self._close:
            return
        say, reader = self._refusals.volley.say, self._reader
        try:
            shape = reader.read_untrusted(data)
            hellos = [each for each in shape.packets if isinstance(each, InitialShape) and each.has_crypto]
            passes = reader.closed or is_retry_request(reader.hello) or any(each.number > _HIGHEST for each in hellos)
        except CannotFollowError:
            passes, hellos = True, []
        except UntrustedInputError:
            say(self._source, data, ecn)  # of another connection
            return
        if passes:
            say(self._source, data, ecn)
            self._refusals.acceptance.not_followed(self)
        elif hellos:
            self._refuse(hellos[0].number, ecn, now)
        elif not shape.needs_hello:
            say(self._source, data, ecn)

    def _refuse(self, number: int, ecn: int, now: float) -> None:
        reader = self._reader
        dest_cid = reader.source_cid or b""
        payload = encode_frame(ConnectionClose(self._error, application=False))
        encoded = encode_number(number, _NUMBER_LENGTH)
        length = len(encoded) + len(payload) + TAG_LENGTH
        header = build_long_header(PacketType.INITIAL, self._client_cid, dest_cid, encoded, length)
        self._close, self._ecn = reader.initial_keys.protect(header, number, payload), ecn
        self.ends_at = now + CLOSING
        self._refusals.volley.say(self._source, self._close, ecn)
        over = farewell(self.hello_cid, dest_cid, self._client_cid, _HIGHEST)
        self._refusals.acceptance.left(self, over)

    def dest_retried(self, retry: bytes, now: float) -> None:
        """Dest has what comes behind its Retry."""
        self._refusals.acceptance.not_followed(self)

    def abandon(self) -> None:
        """Nothing more is sent."""
        self._refusals.end(self)


@dataclass
class Refusals:
    """All of them; ``copies`` bounds their number. ``volley``: that of all handshakes."""

    acceptance: Acceptance
    volley: Volley
    _all: dict[Refusal, None] = field(default_factory=dict)

    def of(self, hello: ForgedHello) -> Refusal | None:
        """None when Dest gives no tickets, or nobody knows how a site of its make refuses one."""
        dest, client_cid = self.acceptance.dest, long_header_source_cid(hello.datagrams[0])
        if dest is None or not dest.returns or client_cid is None:
            return None
        error = habits_of(dest.transport_parameters).false_binder
        if error is None:
            return None
        made = Refusal(self, hello, client_cid, error)
        self._all[made] = None
        return made

    def end(self, one: Refusal) -> None:
        """Once."""
        if one in self._all:
            del self._all[one]
            self.acceptance.over(one)

    def timer(self) -> float | None:
        """The monotonic time at which to call ``handle_timer``; None when there is none."""
        return min((one.ends_at for one in self._all), default=None)

    def handle_timer(self, now: float) -> None:
        """End those whose time is over."""
        for one in [one for one in self._all if one.ends_at <= now]:
            self.end(one)

    def close(self) -> None:
        """Forget all of them; nothing is sent."""
        self._all.clear()
