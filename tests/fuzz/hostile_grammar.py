"""What a hostile peer with keys can say, by its grammar: QUIC frames, HTTP/3, QPACK and capsules.

Everything comes from the ``Random`` of the play, so that a seed repeats it. Most of it is well-formed and merely
unusual, because what is broken at its first byte reaches nothing; ``broken`` breaks a part of it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from random import Random

import pylsqpack

from qre.wire.capsule import CapsuleType, RequestedAddress, encode_addresses, encode_capsule, encode_routes
from qre.wire.frames import (
    ConnectionClose,
    Crypto,
    Datagram,
    FlowControl,
    HandshakeDone,
    NewConnectionId,
    NewToken,
    Padding,
    PathChallenge,
    PathResponse,
    Ping,
    ResetStream,
    RetireConnectionId,
    StopSending,
    Stream,
    encode_ack,
    encode_frame,
)
from qre.wire.varint import MAX_VARINT, encode_varint, encode_vector
from tests.fuzz.fuzz_wire import broken

Fields = list[tuple[bytes, bytes]]

#: RFC 9114 §7.2, §11.2.1; RFC 9218; RFC 9297; the draft of WebTransport. 0x2, 0x6, 0x8, 0x9 are reserved.
HTTP_FRAMES = (0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xD, 0x21, 0x41, 0xF0700, 0xF0701, 0x1F * 9 + 0x21)
#: RFC 9114 §6.2, §11.2.4; RFC 9204 §4.2; reserved ones; the draft of WebTransport.
STREAM_TYPES = (0x0, 0x1, 0x2, 0x3, 0x21, 0x40, 0x54, 0x1F * 7 + 0x21)
SETTINGS = (0x1, 0x2, 0x6, 0x7, 0x8, 0x33, 0x276, 0x2B603742, 0x1F * 3 + 0x21)
ERROR_CODES = (0, 1, 0xA, 0x100, 0x101, 0x10C, 0x110, 0x128, 0x1FF, 0x200, MAX_VARINT)
CONNECT: Fields = [
    (b":method", b"CONNECT"),
    (b":protocol", b"connect-ip"),
    (b":scheme", b"https"),
    (b":authority", b"site.test"),
    (b":path", b"/.well-known/masque/ip/*/*/"),
    (b"capsule-protocol", b"?1"),
]
ANSWER: Fields = [(b":status", b"200"), (b"capsule-protocol", b"?1")]
#: The tunnel's addresses: what a client of these plays asks for, and what a server may grant.
WANTED = (IPv4Interface("10.0.0.2/32"), IPv6Interface("fd00::2/128"))
_ODD_FIELDS: Fields = [
    (b":status", b"100"), (b":status", b"404"), (b":status", b"99999999999999999999"), (b":status", b"\xb2"),
    (b":path", b""), (b":authority", b"x" * 300), (b":method", b"GET"), (b":nothing", b"1"),
    (b"Upper", b"case"), (b"content-length", b"-1"), (b"content-length", b"18446744073709551616"),
    (b"content-length", b"0"), (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"date", b"99 99 99999999"),
    (b"date", b"Mon, 1 Jan 0000 00:00:00 -9999"), (b"cookie", b"a=b" * 40), (b"te", b"trailers"), (b"x", b"\n\x00"),
    (b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"content-security-policy", b"script-src"),
]  # fmt: skip


def prefixed(value: int, bits: int, first: int) -> bytes:
    """A QPACK integer (RFC 7541 §5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytes([first | most]), value - most
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def http_frame(kind: int, payload: bytes) -> bytes:
    """RFC 9114 §7.1."""
    return encode_varint(kind) + encode_vector(payload)


class Grammar:
    """``client``: it speaks for a client. ``cids``: connection IDs of either end; ``acks``: numbers that the other
    end has sent."""

    def __init__(self, rng: Random, *, client: bool, cids: list[bytes]) -> None:
        self.rng = rng
        self.client = client
        self.cids = cids
        self.crypto_at = 0  # where its next TLS message would begin
        self._encoder = pylsqpack.Encoder()
        self.encoder_stream = b""  # what the encoder wants to say on its stream
        if rng.random() < (0.05 if client else 0.5):  # our server offers no dynamic table
            self.encoder_stream = self._encoder.apply_settings(rng.choice((64, 4096, 65_536)), rng.choice((0, 16)))

    # --- numbers and bytes ---

    def number(self) -> int:
        """Small, at an edge of the encoding, or huge."""
        rng = self.rng
        edge = rng.choice((64, 16_384, 1 << 30, 1 << 32, 1 << 60, MAX_VARINT))
        return rng.choice((rng.randrange(16), rng.randrange(300), min(MAX_VARINT, edge + rng.randrange(-2, 2))))

    def stream_id(self) -> int:
        """Mostly one that is in use or may be."""
        rng = self.rng
        small = 4 * rng.choice((0, 0, 0, 1, 2, 3, rng.randrange(110))) + rng.randrange(4)
        return small if rng.random() < 0.9 else self.number()

    def text(self, most: int) -> bytes:
        """Bytes of one of three tempers: random, equal, ascending."""
        rng, count = self.rng, self.rng.randrange(most + 1)
        return rng.choice((rng.randbytes(count), bytes([rng.randrange(256)]) * count, bytes(range(count % 256))))

    def maybe_broken(self, data: bytes, chance: float) -> bytes:
        """As it is, or with something flipped, cut, put in or repeated."""
        return broken(data, self.rng) if self.rng.random() < chance else data

    # --- QUIC ---

    def harmless(self) -> bytes:
        """One frame that nobody minds."""
        rng = self.rng
        kinds = (
            lambda: Padding(rng.randrange(1, 30)),
            lambda: Ping(rng.choice((1, 1, 40))),
            lambda: PathChallenge(rng.randbytes(8)),
            lambda: Datagram(rng.choice((b"\x00\x00", b"\x04\x02")) + self.text(100)),
            lambda: FlowControl(rng.choice((0x10, 0x14)), self.number()),
            lambda: FlowControl(rng.choice((0x12, 0x13, 0x16, 0x17)), rng.randrange(1 << 60)),
            lambda: FlowControl(0x11, self.number(), 0),
        )
        # A client takes a PING behind the grant for the last frame.
        return encode_frame(rng.choice(kinds if self.client else kinds[2:])())

    def frame(self) -> bytes:
        """One frame of RFC 9000 §19 or RFC 9221, with fields that mostly mean something."""
        rng = self.rng
        kinds = (
            lambda: Padding(rng.randrange(1, 30)),
            lambda: Ping(rng.choice((1, 1, 40))),
            self._reset,
            lambda: StopSending(self.stream_id(), rng.choice(ERROR_CODES)),
            lambda: Crypto(rng.choice((self.crypto_at, 0, self.number())), self._tls()),
            lambda: NewToken(self.text(80)),
            lambda: Stream(self.stream_id(), self.text(120), rng.choice((0, 1, self.number())), rng.random() < 0.3),
            lambda: FlowControl(rng.choice((0x10, 0x12, 0x13, 0x14, 0x16, 0x17)), self.number()),
            lambda: FlowControl(rng.choice((0x11, 0x15)), self.number(), self.stream_id()),
            self._new_cid,
            lambda: RetireConnectionId(rng.choice((0, 1, 2, self.number()))),
            lambda: PathChallenge(rng.randbytes(8)),
            lambda: PathResponse(rng.randbytes(8)),
            lambda: ConnectionClose(rng.choice(ERROR_CODES), rng.random() < 0.5, self.number(), self.text(40)),
            HandshakeDone,
            lambda: Datagram(rng.choice((b"\x00\x00", b"", b"\x00", b"\x04\x02")) + self.text(100)),
        )
        # Closing and what ends the connection at once would leave little to try.
        weights = (3, 3, 3, 3, 2, 1, 3, 3, 3, 2, 2, 3, 3, 0.15, 1 if not self.client else 0.2, 4)
        made = rng.choices(kinds, weights)[0]()
        try:
            return encode_frame(made)
        except (ValueError, OverflowError):  # more than a varint holds
            return b"\x01"

    def ack(self, numbers: list[int]) -> bytes:
        """ACK of some of these, of all, or of what was never sent."""
        rng = self.rng
        taken = sorted(numbers if rng.random() < 0.7 else rng.sample(numbers, rng.randrange(len(numbers) + 1)))
        if not taken or rng.random() < 0.1:
            first = rng.choice((0, 1, self.number()))
            taken = [max(0, first - 2 * n) for n in range(rng.choice((1, 2, 300)))][::-1]
        ranges: list[tuple[int, int]] = []
        for number in sorted(set(taken), reverse=True):
            if ranges and ranges[-1][0] == number + 1:
                ranges[-1] = (number, ranges[-1][1])
            else:
                ranges.append((number, number))
        ecn = (self.number(), 0, self.number()) if rng.random() < 0.1 else ()
        return encode_ack(ranges, rng.choice((0, 25, 1000, self.number())), ecn)

    def _reset(self) -> ResetStream:
        rng = self.rng
        return ResetStream(self.stream_id(), rng.choice(ERROR_CODES), rng.choice((0, 1, 100, self.number())))

    def _new_cid(self) -> NewConnectionId:
        rng = self.rng
        sequence = rng.choice((1, 1, 2, 3, self.number()))
        cid = rng.choice((*self.cids, rng.randbytes(rng.choice((0, 1, 4, 8, 20, 21)))))
        return NewConnectionId(sequence, rng.choice((0, 1, sequence)), cid, rng.randbytes(16))

    def tickets(self, count: int) -> bytes:
        """So many NewSessionTicket messages, the shortest there are."""
        return (b"\x04\x00\x00\x0e" + bytes(9) + b"\x00\x01t\x00\x00") * count

    def _tls(self) -> bytes:
        """TLS messages after the handshake (RFC 8446 §4.6), and such as have no place there."""
        rng = self.rng
        body = self.text(200)
        return bytes([rng.choice((0, 1, 2, 4, 8, 11, 15, 20, 24))]) + len(body).to_bytes(3, "big") + body

    # --- HTTP/3 ---

    def reserved(self) -> bytes:
        """A frame of HTTP/3 that must be ignored."""
        return http_frame(31 * self.rng.randrange(1 << 20) + 33, self.text(60))

    def http(self, fields: Fields) -> bytes:
        """Some frames of a request stream."""
        rng = self.rng
        out = b""
        for _ in range(rng.randrange(1, 4)):
            out += rng.choice((self._header_frame, self._data_frame, self._any_frame))(fields)
        return self.maybe_broken(out, 0.3)

    def control(self) -> bytes:
        """Some frames of a control stream."""
        rng = self.rng
        kinds = (
            lambda: http_frame(0x4, self.settings()),
            lambda: http_frame(0x7, encode_varint(self.number())),
            lambda: http_frame(0xD, encode_varint(self.number())),
            lambda: http_frame(0xF0700, encode_varint(self.stream_id()) + b"u=0, i"),
            lambda: http_frame(rng.choice(HTTP_FRAMES), self.text(40)),
        )
        return self.maybe_broken(b"".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 4))), 0.3)

    def settings(self) -> bytes:
        """The payload of SETTINGS."""
        rng = self.rng
        pairs = {rng.choice(SETTINGS): rng.choice((0, 1, self.number())) for _ in range(rng.randrange(6))}
        return b"".join(encode_varint(key) + encode_varint(value) for key, value in pairs.items())

    def unidirectional(self) -> bytes:
        """The beginning of another unidirectional stream."""
        kind = self.rng.choice(STREAM_TYPES)
        payload = {
            0x0: self.control,
            0x1: lambda: encode_varint(self.number()) + self.http(ANSWER),
            0x2: self.encoder_instructions,
            0x3: self.decoder_instructions,
        }.get(kind, lambda: self.text(60))()
        return encode_varint(kind) + payload

    def _header_frame(self, fields: Fields) -> bytes:
        return http_frame(0x1, self.section(fields))

    def _data_frame(self, _: Fields) -> bytes:
        return http_frame(0x0, self.rng.choice((self.capsules(), self.text(60), b"")))

    def _any_frame(self, _: Fields) -> bytes:
        rng = self.rng
        if rng.random() < 0.2:
            return encode_varint(rng.choice(HTTP_FRAMES)) + encode_varint(self.number())
        return http_frame(rng.choice(HTTP_FRAMES), self.text(60))

    # --- QPACK (RFC 9204) ---

    def section(self, fields: Fields) -> bytes:
        """A field section, as an encoder makes it, or with fields added, dropped and exchanged, or by hand."""
        rng = self.rng
        if rng.random() < 0.25:
            return self._raw_section()
        chosen = list(fields)
        for _ in range(rng.choice((0, 0, 1, 3))):
            at = rng.randrange(len(chosen) + 1)
            match rng.randrange(3):
                case 0:
                    chosen.insert(at, rng.choice(_ODD_FIELDS))
                case 1 if at < len(chosen):
                    del chosen[at]
                case _:
                    chosen.insert(at, (b"x" + self.text(20), self.text(60)))
        return self.maybe_broken(self.honest_section(chosen), 0.2)

    def honest_section(self, fields: Fields) -> bytes:
        """As an encoder makes it; what it wants to say on its stream is added to ``encoder_stream``."""
        instructions, block = self._encoder.encode(0, fields)
        self.encoder_stream += instructions
        return bytes(block)

    def _raw_section(self) -> bytes:
        """§4.5: a prefix, and field lines by hand: indexed, literal, post-base, Huffman or not."""
        rng = self.rng
        out = prefixed(rng.choice((0, 0, 1, 2, self.number())), 8, 0) + prefixed(rng.choice((0, 1, 40)), 7, 0)
        for _ in range(rng.choice((1, 3, 20, 200))):
            index = rng.choice((0, 17, 98, 99, rng.randrange(120), self.number()))
            first, bits = rng.choice(((0xC0, 6), (0x80, 6), (0x10, 4), (0x50, 4), (0x40, 4), (0x00, 3), (0x20, 3)))
            out += prefixed(index, bits, first)
            if first in {0x50, 0x40, 0x00} or rng.random() < 0.05:
                out += self._string(7, rng.choice((0, 0x80)))
            if first == 0x20:
                out += self.text(8) + self._string(7, 0x80)
        return out

    def _string(self, bits: int, first: int) -> bytes:
        content = self.text(30)
        length = len(content) if self.rng.random() < 0.9 else self.number()
        return prefixed(length, bits, first) + content

    def from_encoder(self) -> bytes:
        """What an honest encoder says on its stream."""
        said, self.encoder_stream = self.encoder_stream, b""
        return said

    def encoder_instructions(self) -> bytes:
        """§4.3: capacity, insertions, duplicates."""
        rng = self.rng
        out = self.from_encoder()
        for _ in range(rng.randrange(4)):
            out += rng.choice(
                (
                    lambda: prefixed(rng.choice((0, 64, 4096, 65_536, self.number())), 5, 0x20),
                    lambda: prefixed(rng.randrange(110), 6, rng.choice((0x80, 0xC0))) + self._string(7, 0),
                    lambda: self._string(5, 0x40) + self._string(7, 0),
                    lambda: prefixed(rng.choice((0, 1, self.number())), 5, 0),
                )
            )()
        return self.maybe_broken(out, 0.2)

    def decoder_instructions(self) -> bytes:
        """§4.4: acknowledgements, cancellations, increments."""
        rng = self.rng
        firsts = ((0x80, 7), (0x40, 6), (0x00, 6))
        made = [prefixed(rng.choice((0, 1, 4, self.number())), bits, first) for first, bits in firsts]
        return b"".join(rng.choices(made, k=rng.choice((0, 1, 2, 30))))

    # --- capsules (RFC 9297 §3.2, RFC 9484 §4.7) ---

    def capsules(self) -> bytes:
        """Some, of every kind, mostly well-formed; maybe cut."""
        rng = self.rng
        out = b""
        for _ in range(rng.choice((1, 1, 2, 5))):
            kinds = (
                lambda: encode_addresses(CapsuleType.ADDRESS_REQUEST, self._addresses()),
                lambda: encode_addresses(CapsuleType.ADDRESS_ASSIGN, self._addresses()),
                self.routes,
                lambda: encode_capsule(self.number(), self.text(40)),
                lambda: encode_capsule(rng.choice((0, 1, 2, 3)), self.text(40)),
                lambda: encode_varint(rng.choice((0, 1, 2, 3))) + encode_varint(self.number()),
            )
            out += rng.choice(kinds)()
        out = self.maybe_broken(out, 0.3)
        return out[: rng.randrange(len(out) + 1)] if rng.random() < 0.2 else out

    def unknown_capsule(self) -> bytes:
        """One that must be skipped."""
        return encode_capsule(self.rng.choice((0, 5, 41, 1 << 40)), self.text(60))

    def _addresses(self) -> list[RequestedAddress]:
        rng = self.rng
        some = (
            *WANTED,
            IPv4Interface("0.0.0.0/0"),
            IPv6Interface("::/0"),
            IPv4Interface((IPv4Address(rng.getrandbits(32)), 32)),
            IPv6Interface((IPv6Address(rng.getrandbits(128)), 128)),
        )
        count = rng.choice((0, 1, 2, 2, 3, 90))
        return [RequestedAddress(rng.choice((number, number, 0, self.number())), rng.choice(some))
                for number in range(1, count + 1)]  # fmt: skip

    def routes(self) -> bytes:
        """ROUTE_ADVERTISEMENT with prefixes, or with ranges that become many."""
        rng = self.rng
        if rng.random() < 0.5:
            return encode_routes(ip_network(rng.choice(("0.0.0.0/0", "::/0", "192.0.2.0/24", "fd00::/8")))
                                 for _ in range(rng.randrange(4)))  # fmt: skip
        value, low = b"", rng.randrange(4)
        for _ in range(rng.choice((1, 2, 60, 110))):  # each from ::1 to …fe: two prefixes a bit
            top = low + (1 << rng.choice((8, 64, 110))) - 2
            if top >= 1 << 128:
                break
            value += b"\x06" + low.to_bytes(16, "big") + top.to_bytes(16, "big") + bytes([rng.choice((0, 0, 0, 17))])
            low = top + 3
        return encode_capsule(CapsuleType.ROUTE_ADVERTISEMENT, value)
