"""The client's HTTP/3 (RFC 9114): a browser's SETTINGS and headers, a visit of "/", or a CONNECT-IP
tunnel.

The tunnel is extended CONNECT (RFC 9220, RFC 9484) on stream 0, with an ADDRESS_REQUEST capsule; the answer is 200
with ADDRESS_ASSIGN and perhaps ROUTE_ADVERTISEMENT. Anything else is an error. IP packets never pass here.

Hooks of aioquic's H3Connection: ``_init_connection``, ``_handle_control_frame``, ``_encode_headers``, and
``_decode_headers`` as ``BoundedHttp3`` has it: browsers open QPACK streams only when they have something to say on
them; stock opens both at once.
"""

from __future__ import annotations

import enum
from email.utils import parsedate_to_datetime
from random import Random
from typing import Final

import pylsqpack
from aioquic.h3.connection import (
    ErrorCode,
    FrameType,
    QpackDecompressionFailed,
    Setting,
    StreamType,
    encode_frame,
    encode_settings,
    parse_settings,
)
from aioquic.h3.events import DataReceived, Headers, HeadersReceived
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamReset

from qre.addresses import Interface, Network
from qre.causes import Cause, of_status
from qre.errors import PeerError
from qre.quic import bounds
from qre.quic.bounded_http3 import BoundedHttp3
from qre.quic.capsule_reader import CapsuleReader
from qre.quic.client.fingerprint import Http3Shape
from qre.quic.handshake_events import Granted
from qre.quic.page_icon import ICON_OFFER, MAX_READ, icon_path_untrusted, page_icon_untrusted
from qre.wire.capsule import (
    CapsuleType,
    RequestedAddress,
    encode_addresses,
    parse_addresses_untrusted,
    parse_routes_untrusted,
)
from qre.wire.datagram import SPLIT_FIELD
from qre.wire.varint import encode_varint

TUNNEL_PATH: Final = b"/.well-known/masque/ip/*/*/"
TUNNEL_PROTOCOL: Final = b"connect-ip"
#: The CONNECT stream: quarter stream id 0 in every HTTP Datagram (RFC 9297 §2.1).
TUNNEL_STREAM: Final = 0
#: More than any QRE server sends in one capsule.
MAX_CAPSULE: Final = 4096
#: Capsules of a tunnel, of whatever type: the grant is in the first two.
MAX_CAPSULES: Final = 64
#: A visit ends after this much of the page (bytes).
MAX_PAGE: Final = 4 << 20
#: Bytes of an HTTP date, of any of its forms (RFC 9110 §5.6.7).
_LONGEST_DATE: Final = 40
_PRIORITY_UPDATE: Final = 0xF0700  # RFC 9218 §7.2
_OK: Final = 200
#: The first of the reserved types: one byte.
_SHORTEST_RESERVED: Final = 0x21


class Reserved:
    """Values that must be ignored, of the form 31 N + 33 (RFC 9114 §7.2.4.1, §7.2.8)."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def number(self) -> int:
        """A reserved type or identifier of at most 37 bits."""
        return 31 * self._random.getrandbits(32) + 33

    def value(self) -> int:
        """32 random bits, for a reserved setting."""
        return self._random.getrandbits(32)

    def frame(self, length: int) -> bytes:
        """A reserved frame of so many bytes; empty when it is too short for one."""
        head = encode_varint(_SHORTEST_RESERVED)
        for payload in (length - 2, length - 3):
            made = head + encode_varint(max(payload, 0)) + bytes(max(payload, 0))
            if len(made) == length:
                return made
        return b""

    def payload(self) -> bytes:
        """0 to 3 random bytes, for a reserved frame."""
        return self._random.randbytes(self._random.randint(0, 3))


class BrowserHttp3(BoundedHttp3):
    """aioquic's HTTP/3 with a browser's SETTINGS and H3_DATAGRAM."""

    bounds = bounds.CLIENT
    _decoder_stream_id: int | None

    def __init__(self, quic: QuicConnection, shape: Http3Shape, random: Random) -> None:
        self._shape = shape
        self._reserved = Reserved(random)
        super().__init__(quic)
        self._max_push_id = None  # a browser wants no pushes
        self._max_table_capacity = shape.settings.get(Setting.QPACK_MAX_TABLE_CAPACITY, 0)
        self._blocked_streams = shape.settings.get(Setting.QPACK_BLOCKED_STREAMS, 0)
        self._decoder = pylsqpack.Decoder(self._max_table_capacity, self._blocked_streams)

    @property
    def _local_decoder_stream_id(self) -> int | None:
        """Opened when it is first written to: stock does so for headers, and for a stream that is reset."""
        if self._decoder_stream_id is None:
            self._decoder_stream_id = self._create_uni_stream(StreamType.QPACK_DECODER)
        return self._decoder_stream_id

    @_local_decoder_stream_id.setter
    def _local_decoder_stream_id(self, value: int | None) -> None:
        self._decoder_stream_id = value

    def prioritise(self, stream_id: int, priority: str) -> None:
        """PRIORITY_UPDATE for a request that is sent next."""
        assert self._local_control_stream_id is not None
        frame = encode_varint(stream_id) + priority.encode("ascii")
        self._quic.send_stream_data(self._local_control_stream_id, encode_frame(_PRIORITY_UPDATE, frame))

    def ask(self, stream_id: int, headers: Headers, data: bytes, *, like: Headers) -> None:
        """A request whose stream goes on, in as many bytes as one with the headers ``like``, if it is not longer."""
        request = self._header_frame(stream_id, headers) + encode_frame(FrameType.DATA, data)
        missing = len(self._header_frame(stream_id, like)) - len(request)
        self._quic.send_stream_data(stream_id, request + self._reserved.frame(missing))

    def _header_frame(self, stream_id: int, headers: Headers) -> bytes:
        return encode_frame(FrameType.HEADERS, self._encode_headers(stream_id, headers))

    def _init_connection(self) -> None:
        """The control stream: SETTINGS with a reserved one, then a reserved frame."""
        self._local_control_stream_id = self._create_uni_stream(StreamType.CONTROL)
        settings = dict(self._shape.settings)
        settings[self._reserved.number()] = self._reserved.value()
        self._sent_settings = settings
        self._quic.send_stream_data(
            self._local_control_stream_id,
            encode_frame(FrameType.SETTINGS, encode_settings(settings))
            + encode_frame(self._reserved.number(), self._reserved.payload()),
        )

    def _handle_control_frame(self, frame_type: int, frame_data: bytes) -> None:
        """SETTINGS; the peer's dynamic table is not used: our headers need none."""
        if frame_type != FrameType.SETTINGS:
            super()._handle_control_frame(frame_type, frame_data)
            return
        settings = parse_settings(frame_data)
        self._validate_settings(settings)
        self._received_settings = settings
        self._settings_received = True

    def _encode_headers(self, stream_id: int, headers: Headers) -> bytes:
        _, block = self._encoder.encode(stream_id, headers)
        return bytes(block)

    def _decoded(self, stream_id: int, frame_data: bytes | None) -> Headers:
        """As stock, with nothing sent when there is nothing to say: the peer did not use its dynamic table."""
        try:
            if frame_data is None:
                instructions, headers = self._decoder.resume_header(stream_id)
            else:
                instructions, headers = self._decoder.feed_header(stream_id, frame_data)
        except pylsqpack.DecompressionFailed as error:
            raise QpackDecompressionFailed from error
        if instructions:
            assert self._local_decoder_stream_id is not None
            self._quic.send_stream_data(self._local_decoder_stream_id, instructions)
        decoded: Headers = headers
        return decoded


class Visit(enum.Enum):
    """The progress of a visit of "/"."""

    NONE = enum.auto()
    ASKED = enum.auto()
    ANSWERED = enum.auto()  # the whole page, or the site refused


class HttpClient:
    """One connection's requests: either a visit or a tunnel. Drive it with ``handle_event``."""

    def __init__(self, quic: QuicConnection, shape: Http3Shape, server_name: str, random: Random) -> None:
        self._quic = quic
        self._http = BrowserHttp3(quic, shape, random)
        self._shape = shape
        self._headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in shape.headers]
        self._authority = server_name.encode("ascii")
        self._stream: int | None = None
        self._capsules = CapsuleReader(MAX_CAPSULE, MAX_CAPSULES)
        self._tunnel_open = False
        self._splits = False
        self._assigned: tuple[Interface, ...] | None = None
        self._routes: tuple[Network, ...] | None = None
        self._asked: tuple[Interface, ...] = ()
        self._granted = False
        self._page_length = 0
        self._page = b""  # its beginning
        self._fields: dict[bytes, bytes] = {}  # of the answer
        #: The path of the icon that belongs to the page, or that a browser would request now; empty: none.
        self.icon = shape.icon.path
        #: That of the icon that was requested; empty: none.
        self.asked_icon = ""
        self.visit_state = Visit.NONE
        self.status = 0
        self.date: int | None = None  # the server's time (Unix seconds), as it says

    @property
    def settings(self) -> dict[int, int] | None:
        """The server's SETTINGS; None before they arrived."""
        return self._http.received_settings

    @property
    def asked(self) -> bool:
        """Whether the page has been requested."""
        return self.visit_state is not Visit.NONE

    def tunnel_possible(self) -> bool:
        """True; PeerError when the server's SETTINGS have come and do not allow extended CONNECT and HTTP Datagrams.
        They are not waited for (RFC 9220 §3 would have it so): a server with the proof allows both, and a browser's
        request does not wait."""
        if self.settings is None:
            return True
        if not (self.settings.get(Setting.ENABLE_CONNECT_PROTOCOL) and self.settings.get(Setting.H3_DATAGRAM)):
            raise PeerError("server", "its HTTP/3 settings allow no tunnel")
        return True

    # --- requests ---

    def visit(self) -> None:
        """GET / as a navigation."""
        stream_id = self._next_stream()
        self._http.prioritise(stream_id, self._shape.priority)
        self._http.send_headers(stream_id, [*self._pseudo(b"GET", b"/"), *self._headers], end_stream=True)
        self.visit_state = Visit.ASKED

    def ask_icon(self) -> None:
        """GET the page's icon; the answer is of no interest."""
        self.asked_icon = self.icon
        icon, authority = self._shape.icon, self._authority.decode()
        stream_id = self._quic.get_next_available_stream_id()
        headers = [(name.encode(), value.format(authority=authority).encode()) for name, value in icon.headers]
        self._http.prioritise(stream_id, icon.priority)
        self._http.send_headers(stream_id, [*self._pseudo(b"GET", self.icon.encode()), *headers], end_stream=True)

    def open_tunnel(self, addresses: tuple[Interface, ...], *, asks_icon: bool = False) -> None:
        """Send CONNECT and request these addresses (as host prefixes), in as many bytes as ``visit`` takes: what is
        missing is a reserved frame (RFC 9114 §7.2.8). ``asks_icon``: offer to request the icon that the answer
        names."""
        stream_id = self._next_stream()
        assert stream_id == TUNNEL_STREAM
        self._asked = addresses
        headers = [
            *self._pseudo(b"CONNECT", TUNNEL_PATH),
            (b":protocol", TUNNEL_PROTOCOL),
            (b"capsule-protocol", b"?1"),
            SPLIT_FIELD,
            *([ICON_OFFER] if asks_icon else []),
        ]
        entries = [
            RequestedAddress(number, type(address)(address.ip)) for number, address in enumerate(addresses, start=1)
        ]
        capsule = encode_addresses(CapsuleType.ADDRESS_REQUEST, entries)
        self._http.prioritise(stream_id, self._shape.priority)
        self._http.ask(stream_id, headers, capsule, like=[*self._pseudo(b"GET", b"/"), *self._headers])

    def _next_stream(self) -> int:
        self._stream = self._quic.get_next_available_stream_id()
        return self._stream

    def _pseudo(self, method: bytes, path: bytes) -> Headers:
        return [(b":method", method), (b":authority", self._authority), (b":scheme", b"https"), (b":path", path)]

    # --- answers ---

    def handle_event(self, event: QuicEvent) -> Granted | None:
        """The server's grant, once. Raises PeerError when it refused or ended the tunnel."""
        granted = None
        for answer in self._http.handle_event(event):
            if isinstance(answer, HeadersReceived) and answer.stream_id == self._stream:
                self._handle_headers(answer)
            elif isinstance(answer, DataReceived) and answer.stream_id == self._stream:
                granted = self._handle_data(answer) or granted
        if isinstance(event, StreamReset) and event.stream_id == self._stream:
            self._broken_off()
        return granted

    def _handle_headers(self, headers: HeadersReceived) -> None:
        status = dict(headers.headers).get(b":status", b"")
        if not status.isdigit() or status.startswith(b"1"):
            return  # interim, or trailers
        self.status = int(status)
        self._fields = dict(headers.headers)
        self.date = _date_untrusted(self._fields.get(b"date", b""))
        if self.visit_state is Visit.ASKED:
            if headers.stream_ended:
                self._page_here()
        elif self.status != _OK or headers.stream_ended:
            asked = ", ".join(str(address) for address in self._asked)
            raise PeerError.of("server", of_status(self.status), f"{asked}: HTTP status {self.status}")
        else:
            self._tunnel_open = True
            self._splits = SPLIT_FIELD in headers.headers
            self.icon = icon_path_untrusted(headers.headers)

    def _handle_data(self, data: DataReceived) -> Granted | None:
        if self.visit_state is Visit.ASKED:
            self._page_length += len(data.data)
            self._page += data.data[: MAX_READ - len(self._page)]
            if data.stream_ended or self._page_length > MAX_PAGE:
                self._page_here()
            return None
        if not self._tunnel_open:
            return None
        granted = self._read_capsules(data.data)
        if data.stream_ended:
            self._broken_off()
        return granted

    def _broken_off(self) -> None:
        if self.visit_state is Visit.ASKED:
            self._page_here()
        else:
            raise PeerError("server", "it closed the tunnel")

    def _page_here(self) -> None:
        self.visit_state = Visit.ANSWERED
        usual = self._shape.icon.path
        self.icon = page_icon_untrusted(self.status, self._fields, self._page, self._authority.decode(), usual)

    def _read_capsules(self, data: bytes) -> Granted | None:
        """The first ADDRESS_ASSIGN and ROUTE_ADVERTISEMENT together are the grant."""
        for kind, value in self._capsules.received(data):
            if kind == CapsuleType.ADDRESS_ASSIGN and self._assigned is None:
                self._assigned = tuple(entry.address for entry in parse_addresses_untrusted(value))
            elif kind == CapsuleType.ROUTE_ADVERTISEMENT and self._routes is None:
                self._routes = parse_routes_untrusted(value)
        if self._granted or self._assigned is None or self._routes is None:
            return None
        self._granted = True
        asked = {address.ip for address in self._asked}
        if not self._assigned or not asked.issuperset(address.ip for address in self._assigned):
            raise PeerError.of("server", Cause.ADDRESS_REFUSED, ", ".join(str(address) for address in self._asked))
        return Granted(self._assigned, self._routes, self._splits)

    def close_quietly(self) -> None:
        """Close as a browser does with its tab."""
        self._quic.close(error_code=ErrorCode.H3_NO_ERROR)


def _date_untrusted(text: bytes) -> int | None:
    """An HTTP date as Unix time; None for anything else."""
    if len(text) > _LONGEST_DATE or not text.isascii():
        return None
    try:
        return int(parsedate_to_datetime(text.decode()).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
