"""The shape of a browser's packets before they are sealed: sizes, numbers, and the hello in shuffled pieces.

Datagrams with an Initial are full, and the padding is inside the Initial, never behind the last packet. The hello
goes in two packets of their own ("chaos protection"): the first has its beginning and its end, the second its
middle, so no datagram alone holds the whole. In each, the ranges are split at random, PINGs and PADDING are put
between, and all of it is shuffled. Each timeout repeats one of the two, in turn, shuffled anew. Packet numbers are
one byte long wherever the browser's are.

Stock takes everything that is outstanding for lost when a probe timeout ends (RFC 9002 §6.2), and sends all of it
again at once. A browser repeats one packet. Hook of aioquic: ``QuicPacketRecovery.reschedule_data``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

from aioquic.buffer import size_uint_var
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery

from qre.quic.client.fingerprint import ChaosShape
from qre.quic.packet_builder import LateSealingBuilder, UnsealedPacket
from qre.wire.frames import Crypto, encode_frame

_PING: Final = b"\x01"


class BrowserPacketBuilder(LateSealingBuilder):
    """A client's: every datagram with an Initial is full. ``number_length`` gives 1 or 2 for a packet number."""

    def __init__(self, *, number_length: Callable[[QuicSentPacket], int], **arguments: Any) -> None:
        super().__init__(is_client=True, **arguments)
        self._choose_number_length = number_length

    def _number_length_of(self, packet: QuicSentPacket) -> int:
        return self._choose_number_length(packet)

    def _pad_initial(self, initials: list[UnsealedPacket], missing: int) -> None:
        self.pad(initials[-1], missing, in_front=False)


class HelloFlight:
    """The ClientHello in transit: the ranges to be sent (again), and their packets."""

    def __init__(self, message: bytes, shape: ChaosShape, random: Random) -> None:
        self._message = message
        self._shape = shape
        self._random = random
        middle = random.randint(*shape.split_offset)
        end = middle + (len(message) + shape.split_excess + 1) // 2
        #: The ranges of each packet; together they are the whole message.
        self._packets = [[range(middle), range(end, len(message))], [range(middle, end)]]
        self._pending = [list(ranges) for ranges in self._packets] if message else []  # a packet each
        self._acknowledged = RangeSet()
        self._turn = 0  # the packet that a timeout repeats next
        self._at_first = 1  # how many of them the next timeout repeats
        self._begun = bool(message)

    def tear(self) -> None:
        """Early data follow: beside them a browser repeats the beginning and the end of the hello in packets of their
        own, and both at the first timeout."""
        self._packets = [[part] for packet in self._packets for part in packet]
        self._at_first = 2

    @property
    def pending(self) -> bool:
        """Whether bytes of the ClientHello wait to be sent (again)."""
        return any(self._pending)

    def repeat(self) -> bool:
        """A timeout: one packet's ranges are to be sent again. False: the peer has acknowledged all of them."""
        wanted, self._at_first = self._at_first, 1
        found = 0
        for _ in self._packets if self._begun else ():
            missing = self._missing(self._packets[self._turn])
            self._turn = (self._turn + 1) % len(self._packets)
            if missing:
                self._ask_for(missing)
                found += 1
            if found == wanted:
                break
        return found > 0

    def _ask_for(self, ranges: list[range]) -> None:
        if ranges not in self._pending:
            self._pending.append(ranges)

    def _missing(self, ranges: Iterable[range]) -> list[range]:
        """What the peer has not acknowledged of them."""
        found = RangeSet(ranges)
        for known in self._acknowledged:
            found.subtract(known.start, known.stop)
        return list(found)

    def write(self, builder: QuicPacketBuilder) -> None:
        """Fill the rest of the builder's packet with the hello's next ranges."""
        self._pending = [ranges for ranges in self._pending if ranges]
        ranges = self._pending[0]
        capacity = builder.remaining_flight_space
        taken = _take(ranges, capacity)
        if not taken:
            raise QuicPacketBuilderStop
        payload = shuffled_payload(self._message, taken, capacity, self._shape, self._random)
        buf = builder.start_frame(
            QuicFrameType.CRYPTO, capacity=capacity, handler=self._on_delivery, handler_args=(taken,)
        )
        buf.seek(buf.tell() - size_uint_var(QuicFrameType.CRYPTO))  # start_frame has written the type
        buf.push_bytes(payload)

    def _on_delivery(self, delivery: QuicDeliveryState, ranges: list[range]) -> None:
        if delivery is QuicDeliveryState.ACKED:
            for part in ranges:
                self._acknowledged.add(part.start, part.stop)
            self._pending = [self._missing(pending) for pending in self._pending]
            return
        lost = self._missing(ranges)
        for whole in self._packets:
            again = [each for each in lost if any(each.start in part for part in whole)]
            if again:
                self._ask_for(again)


class BrowserRecovery(QuicPacketRecovery):
    """``repeat_hello`` is called at every probe timeout: whether it has queued a part of the hello."""

    def __init__(self, *, repeat_hello: Callable[[], bool], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._repeat_hello = repeat_hello

    def reschedule_data(self, *, now: float, speed_up_handshake: bool = False) -> None:
        """One part of the hello, and nothing is taken for lost; as stock once the hello has arrived."""
        if self._repeat_hello():
            self._send_probe()
            return
        super().reschedule_data(now=now, speed_up_handshake=speed_up_handshake)


def _take(ranges: list[range], capacity: int) -> list[range]:
    """Remove from ``ranges`` as much as fits into ``capacity`` bytes of CRYPTO frames."""
    taken: list[range] = []
    while ranges:
        part = ranges.pop(0)
        room = capacity - _overhead(part)
        if room <= 0:
            ranges.insert(0, part)
            break
        if len(part) > room:
            ranges.insert(0, part[room:])
            part = part[:room]
        taken.append(part)
        capacity -= _overhead(part) + len(part)
    return taken


def _overhead(part: range) -> int:
    """Bytes of a CRYPTO frame besides its data (RFC 9000 §19.6)."""
    return 1 + size_uint_var(part.start) + size_uint_var(len(part))


def shuffled_payload(
    message: bytes, ranges: Iterable[range], capacity: int, shape: ChaosShape, random: Random
) -> bytes:
    """``capacity`` bytes of CRYPTO, PING and PADDING frames that carry these ranges of the message."""
    parts = list(ranges)
    spare = capacity - sum(_overhead(part) + len(part) for part in parts)
    for _ in range(random.randint(*shape.splits)):
        spare -= _split_one(parts, spare, random)
    pings = min(random.randint(*shape.pings), spare)
    spare -= pings
    frames = [_crypto_frame(message, part) for part in parts] + [_PING] * pings
    paddings: list[bytes] = []
    for _ in frames:
        length = random.randint(0, spare)
        if length:
            paddings.append(bytes(length))
            spare -= length
    if spare:
        paddings.append(bytes(spare))
    frames += paddings
    random.shuffle(frames)
    return b"".join(frames)


def _split_one(parts: list[range], spare: int, random: Random) -> int:
    """Split one range at random, if possible; returns the bytes that the new frame costs."""
    long_enough = [index for index, part in enumerate(parts) if len(part) > 1]
    if not long_enough:
        return 0
    index = random.choice(long_enough)
    part = parts[index]
    length = random.randint(1, len(part) - 1)
    first, second = part[:length], part[length:]
    cost = _overhead(first) + _overhead(second) - _overhead(part)
    if cost > spare:
        return 0
    parts[index] = first
    parts.append(second)
    return cost


def _crypto_frame(message: bytes, part: range) -> bytes:
    data = message[part.start : part.stop]
    return encode_frame(Crypto(part.start, data))
