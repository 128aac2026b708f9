"""How a browser's packets look before they are sealed: sizes, numbers, and the hello in shuffled pieces.

Datagrams with an Initial are full, and the padding is inside the Initial, never behind the last packet. The hello
goes in two packets of their own ("chaos protection"): the first has its beginning and its end, the second its
middle, so no datagram alone holds the whole. In each, the ranges are split at random, PINGs and PADDING are put
between, and all of it is shuffled. A retransmission is shuffled anew. Packet numbers are one byte long wherever the
browser's are.

Hooks of aioquic: ``QuicPacketBuilder.start_packet``, ``_end_packet``, ``_flush_current_datagram``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from aioquic.buffer import encode_uint_var, size_uint_var
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import PACKET_FIXED_BIT, QuicFrameType, QuicPacketType, encode_long_header_first_byte
from aioquic.quic.packet_builder import (
    PACKET_NUMBER_SEND_SIZE,
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)

from qre.quic.fingerprint import ChaosShape
from qre.session import PACKET_NUMBER_BASE

TAG_LENGTH: Final = 16
_PING: Final = b"\x01"


@dataclass
class _Unsealed:
    packet: QuicSentPacket
    crypto: CryptoPair
    packet_start: int  # in the datagram as it was written
    packet_end: int
    number_length: int
    payload: bytes


class BrowserPacketBuilder(QuicPacketBuilder):
    """Seals a datagram's packets when the datagram is complete. ``number_length``: 1 or 2 bytes for its number."""

    def __init__(self, *, number_length: Callable[[QuicSentPacket], int], **arguments: Any) -> None:
        super().__init__(is_client=True, **arguments)
        self._choose_number_length = number_length
        self._number_length = PACKET_NUMBER_SEND_SIZE
        self._unsealed: list[_Unsealed] = []

    def start_packet(self, packet_type: QuicPacketType, crypto: CryptoPair) -> None:
        """As stock, with packet numbers as short as they may be, and none that belongs to the data plane."""
        super().start_packet(packet_type, crypto)
        assert self._packet is not None
        if self._packet.packet_number >= PACKET_NUMBER_BASE:
            self._packet = None
            raise QuicPacketBuilderStop
        self._number_length = self._choose_number_length(self._packet)
        self._header_size -= PACKET_NUMBER_SEND_SIZE - self._number_length
        self._buffer.seek(self._packet_start + self._header_size)

    def end_datagram(self) -> None:
        """What is started next goes into another datagram."""
        if self._packet is not None:
            self._end_packet()
        self._flush_current_datagram()

    def _end_packet(self) -> None:
        """Keep the packet as it is: how much padding its datagram needs is not known yet."""
        packet, crypto, buf = self._packet, self._packet_crypto, self._buffer
        assert packet is not None and crypto is not None
        if self.packet_is_empty:
            super()._end_packet()
            return
        padding = 4 - self._number_length - (buf.tell() - self._packet_start - self._header_size)  # RFC 9001 §5.4.2
        if packet.packet_type is QuicPacketType.ONE_RTT and self._datagram_needs_padding:
            padding = max(padding, self.remaining_flight_space)
            self._datagram_needs_padding = False
        if padding > 0:
            buf.push_bytes(bytes(padding))
            packet.in_flight = True
        payload = buf.data_slice(self._packet_start + self._header_size, buf.tell())
        buf.push_bytes(bytes(TAG_LENGTH))  # takes the room of the tag
        packet.sent_bytes = buf.tell() - self._packet_start
        if packet.in_flight:
            self._datagram_flight_bytes += packet.sent_bytes
        self._unsealed.append(_Unsealed(packet, crypto, self._packet_start, buf.tell(), self._number_length, payload))
        self._packets.append(packet)
        self._packet_number += 1
        self._packet = None
        self.quic_logger_frames = None
        if packet.packet_type is QuicPacketType.ONE_RTT:  # cannot be followed by another packet
            self._flush_current_datagram()

    def _flush_current_datagram(self) -> None:
        """Fill the datagram up inside its Initial (RFC 9000 §14.1), then seal its packets."""
        if not self._unsealed:
            return
        initials = [unsealed for unsealed in self._unsealed if unsealed.packet.packet_type is QuicPacketType.INITIAL]
        missing = self._buffer_capacity - self._buffer.tell()
        if initials and missing > 0:
            self._pad(initials[-1], missing)
        datagram = b"".join(map(self._seal, self._unsealed))
        self._unsealed = []
        self._datagrams.append(datagram)
        self._flight_bytes += self._datagram_flight_bytes
        self._total_bytes += len(datagram)
        self._datagram_init = True
        self._datagram_needs_padding = False
        self._buffer.seek(0)

    def _pad(self, unsealed: _Unsealed, length: int) -> None:
        unsealed.payload += bytes(length)
        packet = unsealed.packet
        self._datagram_flight_bytes += length if packet.in_flight else packet.sent_bytes + length
        packet.in_flight = True
        packet.sent_bytes += length

    def _seal(self, unsealed: _Unsealed) -> bytes:
        number = unsealed.packet.packet_number
        encoded_number = (number & ((1 << 8 * unsealed.number_length) - 1)).to_bytes(unsealed.number_length, "big")
        kind = unsealed.packet.packet_type
        if kind is QuicPacketType.ONE_RTT:
            first = PACKET_FIXED_BIT | unsealed.crypto.key_phase << 2 | unsealed.number_length - 1
            header = bytes([first]) + self._peer_cid
        else:
            first = encode_long_header_first_byte(self._version, kind, unsealed.number_length - 1)
            length = unsealed.number_length + len(unsealed.payload) + TAG_LENGTH
            header = b"".join(
                (
                    bytes([first]),
                    self._version.to_bytes(4, "big"),
                    bytes([len(self._peer_cid)]),
                    self._peer_cid,
                    bytes([len(self._host_cid)]),
                    self._host_cid,
                    encode_uint_var(len(self._peer_token)) + self._peer_token
                    if kind is QuicPacketType.INITIAL
                    else b"",
                    (length | 0x4000).to_bytes(2, "big"),
                )
            )
        return unsealed.crypto.encrypt_packet(header + encoded_number, unsealed.payload, number)


class HelloFlight:
    """The ClientHello on its way: what of it is to be sent (again), and in which packets."""

    def __init__(self, message: bytes, shape: ChaosShape, random: Random) -> None:
        self._message = message
        self._shape = shape
        self._random = random
        middle = random.randint(*shape.split_offset)
        end = middle + (len(message) + shape.split_excess + 1) // 2
        #: The ranges of each packet; together they are the whole message.
        self._packets = ([range(middle), range(end, len(message))], [range(middle, end)])
        self._pending = [list(ranges) for ranges in self._packets] if message else []

    @property
    def pending(self) -> bool:
        return any(self._pending)

    def write(self, builder: QuicPacketBuilder) -> None:
        """Fill the rest of the builder's packet with the hello's next ranges."""
        ranges = next(ranges for ranges in self._pending if ranges)
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
            return
        for lost in ranges:
            for whole, pending in zip(self._packets, self._pending, strict=True):
                if any(lost.start in part for part in whole):
                    pending.append(lost)


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
    """Split one range at random, if it can be; the bytes that the new frame costs."""
    index = random.randrange(len(parts))
    part = parts[index]
    if len(part) < 2:
        return 0
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
    return b"\x06" + encode_uint_var(part.start) + encode_uint_var(len(data)) + data
