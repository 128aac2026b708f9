"""The server's side of CONNECT-IP (RFC 9484): one request, one address request, one grant.

The client opens the tunnel with extended CONNECT (RFC 9220) and asks for its addresses in an ADDRESS_REQUEST capsule;
the caller decides the answer: 200 with ADDRESS_ASSIGN and ROUTE_ADVERTISEMENT, or a refusal. Any other request gets
the answer of a site without such a page. IP packets never pass here: HTTP Datagrams are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pylsqpack
from aioquic.h3.connection import FrameType, Setting, StreamType, encode_frame, encode_settings
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived, StreamReset

from qre.addresses import Interface, Network
from qre.errors import InternalError
from qre.quic import bounds
from qre.quic.bounded_http3 import BoundedHttp3
from qre.quic.bounds import Bound, OverBoundError
from qre.quic.capsule_reader import CapsuleReader
from qre.quic.page_icon import ICON_FIELD, ICON_OFFER
from qre.wire.capsule import (
    CapsuleType,
    RequestedAddress,
    encode_addresses,
    encode_routes,
    parse_request_untrusted,
)
from qre.wire.datagram import SPLIT_FIELD

PATH: Final = b"/.well-known/masque/ip/*/*/"
PROTOCOL: Final = b"connect-ip"
#: Caddy's SETTINGS, and H3_DATAGRAM.
SETTINGS: Final = {
    int(Setting.MAX_FIELD_SECTION_SIZE): 16_384,
    int(Setting.ENABLE_CONNECT_PROTOCOL): 1,
    int(Setting.H3_DATAGRAM): 1,
}
#: A longer capsule is not a request for addresses.
MAX_CAPSULE: Final = 2048
#: More requests than a client of a tunnel makes.
MAX_REQUESTS: Final = 64
#: Capsules that are skipped before the one that asks for addresses.
MAX_SKIPPED: Final = 64


@dataclass(frozen=True)
class AddressesRequested:
    """The client wants these addresses. Answer with ``grant`` or ``refuse``."""

    addresses: tuple[Interface, ...]


class SiteHttp3(BoundedHttp3):
    """HTTP/3 with quic-go's SETTINGS and streams."""

    bounds = bounds.SERVER

    def __init__(self, quic: QuicConnection) -> None:
        """Without the dynamic table that SETTINGS do not offer: stock has one all the same."""
        super().__init__(quic)
        self._max_table_capacity = self._blocked_streams = 0
        self._decoder = pylsqpack.Decoder(0, 0)

    def _init_connection(self) -> None:
        """The control stream alone, as quic-go has it; stock opens three streams at once."""
        self._local_control_stream_id = self._create_uni_stream(StreamType.CONTROL)
        self._sent_settings = dict(SETTINGS)
        frame = encode_frame(FrameType.SETTINGS, encode_settings(self._sent_settings))
        self._quic.send_stream_data(self._local_control_stream_id, frame)

    def open_qpack_streams(self) -> None:
        """Call it before encoding anything with QPACK: stock writes to these streams, even if nothing."""
        if self._local_encoder_stream_id is None:
            self._local_encoder_stream_id = self._create_uni_stream(StreamType.QPACK_ENCODER)
            self._local_decoder_stream_id = self._create_uni_stream(StreamType.QPACK_DECODER)


class ConnectIpServer:
    """Reads the connection's HTTP/3 events and answers requests; that for the tunnel waits for ``grant`` or
    ``refuse``."""

    def __init__(self, quic: QuicConnection, authority: str) -> None:
        self._h3 = SiteHttp3(quic)
        self._authority = authority.encode().lower()
        self._tunnel: int | None = None  # the stream of the CONNECT request
        self._capsules = CapsuleReader(MAX_CAPSULE, MAX_SKIPPED)
        self._requested: tuple[RequestedAddress, ...] | None = None
        self._answered = False
        self._not_found: set[int] = set()  # other requests, answered
        self._can_split = False
        #: Whether the client offers to request the page's icon.
        self.offers_icon = False
        #: Whether the client sends packets in two datagrams, now that it has the answer.
        self.splits = False

    def handle_event(self, event: QuicEvent) -> AddressesRequested | None:
        """The client's request for addresses, once."""
        if isinstance(event, StreamDataReceived | StreamReset):
            self._h3.open_qpack_streams()
        found = None
        for h3_event in self._h3.handle_event(event):
            found = self._handle_h3_event(h3_event) or found
        return found

    @property
    def other_requests(self) -> int:
        """How many there were beside that for the tunnel."""
        return len(self._not_found)

    def grant(
        self, addresses: tuple[Interface, ...], routes: tuple[Network, ...], *, joins: bool, icon: str = ""
    ) -> None:
        """Answer 200 with the client's addresses and routes. ``joins``: packets in two datagrams are joined, which a
        client that can send them is told. ``icon``: the path of what it is to request behind it, if it offered to."""
        stream_id = self._take_answer()
        self.splits = joins and self._can_split
        taken = [SPLIT_FIELD] if self.splits else []
        if icon:
            taken.append((ICON_FIELD, icon.encode()))
        self._h3.send_headers(stream_id, [(b":status", b"200"), (b"capsule-protocol", b"?1"), *taken])
        capsules = encode_addresses(CapsuleType.ADDRESS_ASSIGN, self._assignments(addresses)) + encode_routes(routes)
        self._h3.send_data(stream_id, capsules, end_stream=False)

    def refuse(self, status: int) -> None:
        """Answer the request for a tunnel with this status (``qre.causes.status_of``) and end its stream."""
        stream_id = self._take_answer()
        self._h3.send_headers(stream_id, [(b":status", b"%d" % status)], end_stream=True)

    def _take_answer(self) -> int:
        if self._tunnel is None or self._requested is None or self._answered:
            raise InternalError("CONNECT-IP", "there is no request to answer")
        self._answered = True
        return self._tunnel

    def _handle_h3_event(self, event: H3Event) -> AddressesRequested | None:
        if isinstance(event, HeadersReceived):
            self._handle_headers(event)
        elif isinstance(event, DataReceived) and event.stream_id == self._tunnel and self._requested is None:
            return self._read_capsules(event.data)
        return None

    def _handle_headers(self, event: HeadersReceived) -> None:
        if self._opens_tunnel(event):
            self._tunnel = event.stream_id
            self._can_split = SPLIT_FIELD in event.headers
            self.offers_icon = ICON_OFFER in event.headers
        elif event.stream_id != self._tunnel and event.stream_id not in self._not_found:  # those would be trailers
            if len(self._not_found) == MAX_REQUESTS:
                raise OverBoundError(Bound.REQUESTS)
            self._not_found.add(event.stream_id)
            self._h3.send_headers(event.stream_id, [(b":status", b"404"), (b"content-length", b"0")], end_stream=True)

    def _opens_tunnel(self, event: HeadersReceived) -> bool:
        headers = dict(event.headers)
        return (
            self._tunnel is None
            and not event.stream_ended
            and headers.get(b":method") == b"CONNECT"
            and headers.get(b":protocol") == PROTOCOL
            and headers.get(b":scheme") == b"https"
            and headers.get(b":path") == PATH
            and headers.get(b":authority", b"").lower() in (self._authority, self._authority + b":443")
        )

    def _read_capsules(self, data: bytes) -> AddressesRequested | None:
        """The first ADDRESS_REQUEST; capsules of other types are skipped (RFC 9297 §3.3)."""
        for kind, value in self._capsules.received(data):
            if kind == CapsuleType.ADDRESS_REQUEST:
                self._requested = parse_request_untrusted(value)
                return AddressesRequested(tuple(entry.address for entry in self._requested))
        return None

    def _assignments(self, addresses: tuple[Interface, ...]) -> list[RequestedAddress]:
        """Each granted address with the id of its request (RFC 9484 §4.7.2)."""
        requests = {entry.address: entry.request_id for entry in self._requested or ()}
        return [RequestedAddress(requests.get(address, 0), address) for address in addresses]
