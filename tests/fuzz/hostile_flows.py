"""What a hostile peer does with its frames: streams in pieces and in any order, floods of small frames, data withheld
until one packet lets all of it be read at once. Yields payloads of 1-RTT packets, an input each.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random

from qre.wire.frames import Crypto, Stream, encode_ack, encode_frame
from qre.wire.varint import MAX_VARINT, encode_varint
from tests.fuzz.hostile_grammar import Fields, Grammar, http_frame, prefixed

#: Bytes of frames in one packet; leaves room for header and tag.
ROOM = 1100


class Flows:
    """One peer's. ``fields``: of its ordinary request or answer."""

    def __init__(self, rng: Random, grammar: Grammar, fields: Fields) -> None:
        self.rng = rng
        self.grammar = grammar
        self.fields = fields
        self.offsets: dict[int, int] = {}  # of each stream, what was sent
        self.tunnel = False  # its headers are out
        self.uni = 0 if grammar.client else 1
        #: How many of its acts may end the session at once.
        self.fatal = rng.choice((0.0, 0.05, 0.3, 1.0))
        #: The next bidirectional and the next unidirectional stream of its own.
        self.next_bidi, self.next_uni = self.uni, 2 + self.uni

    def packed(self, frames: list[bytes]) -> list[bytes]:
        """Payloads of as many frames as fit, or fewer."""
        payloads: list[bytes] = []
        for frame in frames:
            if payloads and len(payloads[-1]) + len(frame) <= ROOM and self.rng.random() < 0.7:
                payloads[-1] += frame
            else:
                payloads.append(frame)
        return payloads

    def stream(self, stream_id: int, data: bytes, *, fin: bool = False, wild: bool = True) -> list[bytes]:
        """STREAM frames that bring ``data``, in pieces; ``wild``: overlapping, repeated, and in another order."""
        rng = self.rng
        begin = self.offsets.get(stream_id, 0)
        self.offsets[stream_id] = begin + len(data)
        cuts = sorted({0, len(data), *range(0, len(data), 1000)})
        if data and rng.random() < 0.4:
            cuts = sorted({*cuts, *(rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 6))))})
        pieces = list(pairwise(cuts)) or [(0, 0)]
        if wild and rng.random() < 0.3:
            pieces = [(max(0, first - rng.randrange(20)), last) for first, last in pieces]
            pieces += rng.sample(pieces, 1)
            rng.shuffle(pieces)
        return [
            encode_frame(Stream(stream_id, data[first:last], begin + first, fin=fin and last == len(data)))
            for first, last in pieces
        ]

    def new_bidi(self) -> int:
        """The next bidirectional stream that it may open; a server opens none, so it is the client's."""
        stream_id, self.next_bidi = self.next_bidi, self.next_bidi + 4
        return stream_id

    def new_uni(self) -> int:
        """The next unidirectional stream that it may open."""
        stream_id, self.next_uni = self.next_uni, self.next_uni + 4
        return stream_id

    def anything(self, acks: list[int]) -> list[bytes]:
        """The payloads of one hostile act. ``acks``: the numbers of the other end's packets."""
        return self._fatal(acks) if self.rng.random() < self.fatal else self._odd(acks)

    def _odd(self, acks: list[int]) -> list[bytes]:
        """What is allowed, and seldom done."""
        rng, grammar, control = self.rng, self.grammar, 2 + self.uni
        kinds = (
            lambda: [b"".join(grammar.harmless() for _ in range(rng.choice((1, 1, 2, 8))))],
            lambda: [encode_ack([(number, number)], rng.choice((0, 1000))) for number in acks[-1:]],
            lambda: self.packed(
                self.stream(self.new_uni(), encode_varint(31 * rng.randrange(99) + 33) + grammar.text(90))
            ),
            lambda: self.packed(self.stream(control, grammar.reserved())) if control in self.offsets else [],
            lambda: self.packed(self.stream(0, grammar.reserved())) if 0 in self.offsets else [],
            lambda: self.packed(self.stream(0, http_frame(0, grammar.unknown_capsule()))) if self.tunnel else [],
            self._other_request,
        )
        return rng.choice(kinds)()

    def _other_request(self) -> list[bytes]:
        if not self.grammar.client or self.next_bidi == 0:  # the first one is the tunnel's
            return []
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"site.test"), (b":path", b"/")]
        body = http_frame(1, self.grammar.honest_section(fields)) + self.grammar.reserved()
        return self.packed(self.stream(self.new_bidi(), body, fin=self.rng.random() < 0.8))

    def _fatal(self, acks: list[int]) -> list[bytes]:
        """What may end the session, or must."""
        rng, grammar = self.rng, self.grammar
        used = [stream_id for stream_id in self.offsets if stream_id & 3 in {0, 1}] or [0]
        unis = [stream_id for stream_id in self.offsets if stream_id & 2] or [2 + self.uni]
        kinds = (
            lambda: [b"".join(grammar.maybe_broken(grammar.frame(), 0.15) for _ in range(rng.choice((1, 1, 2, 8))))],
            lambda: [grammar.maybe_broken(grammar.ack(acks), 0.1)],
            lambda: self.packed(self.stream(self.new_bidi(), grammar.http(self.fields), fin=rng.random() < 0.5)),
            lambda: self.packed(self.stream(rng.choice(used), grammar.http(self.fields), fin=rng.random() < 0.1)),
            lambda: self.packed(self.stream(self.new_uni(), grammar.unidirectional(), fin=rng.random() < 0.1)),
            lambda: self.packed(self.stream(rng.choice(unis), grammar.control())),
            lambda: self.packed(self.stream(rng.choice(unis), grammar.encoder_instructions())),
            lambda: self.packed(self.stream(rng.choice(used), http_frame(0, grammar.capsules()))),
            self._flood,
            lambda: list(self._withheld()),
            lambda: [grammar.text(ROOM)],
        )
        return rng.choices(kinds, (6, 4, 3, 3, 3, 3, 2, 3, 1, 1.5, 0.3))[0]()

    def _flood(self) -> list[bytes]:
        """A packet full of the same small frame, with another number in each."""
        rng = self.rng
        first, step = rng.choice((0, 1, 100, self.grammar.number())), rng.choice((1, 2, 4))
        stream_id = self.grammar.stream_id()

        def number(at: int) -> bytes:
            return encode_varint(min(MAX_VARINT, first + step * at))

        kinds = (
            lambda at: encode_frame(Stream(stream_id, b"x", min(MAX_VARINT - 1, first + step * at))),
            lambda at: encode_frame(Stream(4 * (at % 100) + (stream_id & 3), b"\x01")),
            lambda at: b"\x06" + number(at) + b"\x01x",
            lambda at: b"\x04" + encode_varint(4 * at + (stream_id & 3)) + b"\x00\x00",
            lambda at: b"\x05" + encode_varint(4 * at + (stream_id & 3)) + b"\x00",
            lambda at: b"\x11" + encode_varint(4 * at) + b"\x40\xff",
            lambda at: b"\x1a" + at.to_bytes(8, "big"),
            lambda at: b"\x1b" + at.to_bytes(8, "big"),
            lambda at: b"\x19" + number(at),
            lambda at: b"\x18" + number(at) + number(at) + b"\x08" + bytes(24),
            lambda at: b"\x31\x03\x00\x00E",
            lambda at: b"\x02" + number(at) + b"\x00\x00\x00",
            lambda at: b"\x10" + number(at),
            lambda at: b"\x01\x00",
        )
        kind = rng.choice(kinds)
        payload = b""
        for at in range(ROOM):
            frame = kind(at)
            if len(payload) + len(frame) > ROOM:
                break
            payload += frame
        return [payload] * rng.choice((1, 1, 2, 8))

    def _withheld(self) -> Iterator[bytes]:
        """A long body of which the first byte comes last."""
        rng = self.rng
        most = 14 if self.grammar.client else rng.choices((14, 16, 18, 20), (4, 4, 3, 1))[0]
        length = int(2 ** rng.uniform(most - 3, most))
        if rng.random() < 0.1:
            yield from self.withheld_tls(length)
            return
        unit, head = rng.choice(
            (
                (b"\x00\x01x", b""),  # DATA of a byte
                (b"\x21\x00", b""),  # reserved frames without payload
                (b"\x05\x00", b"\x00" + encode_varint(length)),  # DATA with small capsules
                (http_frame(1, self.grammar.honest_section(self.fields)), b""),
                (http_frame(1, b"\x00\x00\xff\x00"), b""),  # interim answers, also with many fields
                (http_frame(1, b"\x00\x00\xff\x00" + b"\x23xyz\x00" * 40), b""),
                (http_frame(1, b"\x00\x00"), http_frame(1, b"\x00\x00\xd9")),
                (b"\xff\x16", b"\x01" + encode_varint(min(length, 65_000)) + b"\x00\x00"),  # static references
                (b"\xd1", b"\x01" + encode_varint(min(length, 65_000)) + b"\x00\x00"),
                (b"\x80", b"\x01" + encode_varint(min(length, 65_000)) + b"\x02\x00"),  # dynamic references
                (b"\x27\x00" + b"\x00" * 6 + b"\x00", b"\x01" + encode_varint(min(length, 65_000)) + b"\x00\x00"),
                (prefixed(0, 5, 0), b"\x02"),  # on an encoder stream: duplicates
                (prefixed(0, 6, 0xC0) + b"\x00", b"\x02"),  # insertions
                (b"\x40", b"\x03"),  # on a decoder stream: cancellations
                (b"\x0d\x01\x05", b"\x00\x04\x00"),  # on a control stream: MAX_PUSH_ID
                (b"\x21\x00", b"\x00\x04\x00"),
                (b"\x07\x01\x00", b"\x00\x04\x00"),  # GOAWAY
            )
        )
        uni = head[:1] in {b"\x02", b"\x03"} or head.startswith(b"\x00\x04\x00")
        own = self.new_uni if uni else self.new_bidi
        stream_id = own() if uni or self.grammar.client else 0
        body = head + unit * (length // len(unit))
        begin = self.offsets.get(stream_id, 0)
        self.offsets[stream_id] = begin + len(body)
        yield from withheld(stream_id, body, begin, fin=rng.random() < 0.5)

    def withheld_tls(self, length: int) -> Iterator[bytes]:
        """The same of TLS: tickets without end."""
        begin, body = self.grammar.crypto_at, self.grammar.tickets(length // 18)
        for at in range(1, len(body), ROOM - 20):
            yield encode_frame(Crypto(begin + at, body[at : at + ROOM - 20]))
        yield encode_frame(Crypto(begin, body[:1]))


def withheld(stream_id: int, body: bytes, begin: int = 0, *, fin: bool = False) -> Iterator[bytes]:
    """STREAM frames that bring ``body``, its first byte last."""
    for at in range(1, len(body), ROOM - 20):
        yield encode_frame(Stream(stream_id, body[at : at + ROOM - 20], begin + at))
    yield encode_frame(Stream(stream_id, body[:1], begin, fin=fin))
