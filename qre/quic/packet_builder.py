"""aioquic's packet builder, without aioquic's recognisable shape on the wire.

Stock aioquic seals a packet at once and pads a datagram with literal zeros behind the last one, where anyone can see
them. Here the packets of a datagram are sealed when it is complete, so that all PADDING is inside an Initial. And no
packet gets a number that belongs to the data plane (``PACKET_NUMBER_BASE``).

Hooks of aioquic: ``QuicPacketBuilder.start_packet``, ``_end_packet``, ``_flush_current_datagram``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import (
    PACKET_NUMBER_SEND_SIZE,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)

from qre.wire.number import PACKET_NUMBER_BASE, encode_number
from qre.wire.packet import PacketType, build_long_header, build_short_header
from qre.wire.protection import TAG_LENGTH

#: RFC 9001 §5.4.2: packet number and payload together, so that there is enough to sample.
_SHORTEST: Final = 4
#: 1-RTT cannot be followed by another packet, and behind 0-RTT browsers put none.
_LAST: Final = (QuicPacketType.ONE_RTT, QuicPacketType.ZERO_RTT)


@dataclass
class UnsealedPacket:
    """A packet that waits for its datagram to be complete."""

    packet: QuicSentPacket
    crypto: CryptoPair
    number_length: int
    payload: bytes

    @property
    def is_initial(self) -> bool:
        """Datagrams with an Initial packet are padded (RFC 9000 §14.1)."""
        return self.packet.packet_type is QuicPacketType.INITIAL


class LateSealingBuilder(QuicPacketBuilder):
    """Use it like its base, for one ``datagrams_to_send``; a subclass says which datagrams are filled up, and how."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._number_length = PACKET_NUMBER_SEND_SIZE
        self._unsealed: list[UnsealedPacket] = []

    def _number_length_of(self, packet: QuicSentPacket) -> int:
        """The length of its packet number in bytes: 1 or 2."""
        return PACKET_NUMBER_SEND_SIZE

    def _pad_initial(self, initials: list[UnsealedPacket], missing: int) -> None:
        """``missing`` bytes are free in a datagram with these Initials: ``pad`` one of them, or none."""
        raise NotImplementedError

    def start_packet(self, packet_type: QuicPacketType, crypto: CryptoPair) -> None:
        """As stock, with packet numbers as short as they may be, and none that belongs to the data plane."""
        if self._packet is not None:
            self._end_packet()
        if self._packet_number >= PACKET_NUMBER_BASE:
            raise QuicPacketBuilderStop
        super().start_packet(packet_type, crypto)
        assert self._packet is not None
        self._number_length = self._number_length_of(self._packet)
        self._header_size -= PACKET_NUMBER_SEND_SIZE - self._number_length
        self._buffer.seek(self._packet_start + self._header_size)

    def end_datagram(self) -> None:
        """The next packet goes into another datagram."""
        if self._packet is not None:
            self._end_packet()
        self._flush_current_datagram()

    def _end_packet(self) -> None:
        """Keep the packet unsealed: the padding of its datagram is not known yet."""
        packet, crypto, buf = self._packet, self._packet_crypto, self._buffer
        assert packet is not None and crypto is not None
        if self.packet_is_empty:
            super()._end_packet()
            return
        padding = self._padding_of(packet)
        if padding > 0:
            buf.push_bytes(bytes(padding))
            packet.in_flight = True
        payload = buf.data_slice(self._packet_start + self._header_size, buf.tell())
        buf.push_bytes(bytes(TAG_LENGTH))  # takes the room of the tag
        packet.sent_bytes = buf.tell() - self._packet_start
        if packet.in_flight:
            self._datagram_flight_bytes += packet.sent_bytes
        self._unsealed.append(UnsealedPacket(packet, crypto, self._number_length, payload))
        self._packets.append(packet)
        self._packet_number += 1
        self._packet = None
        self.quic_logger_frames = None
        if packet.packet_type in _LAST:
            self._flush_current_datagram()

    def _padding_of(self, packet: QuicSentPacket) -> int:
        """The PADDING behind the frames of a packet that ends here."""
        written = self._buffer.tell() - self._packet_start - self._header_size
        if packet.packet_type is QuicPacketType.ONE_RTT and self._datagram_needs_padding:  # RFC 9000 §8.2.1
            return self.remaining_flight_space
        return _SHORTEST - self._number_length - written

    def _flush_current_datagram(self) -> None:
        """Fill the datagram up inside its Initial (RFC 9000 §14.1), then seal its packets."""
        if not self._unsealed:
            return
        initials = [unsealed for unsealed in self._unsealed if unsealed.is_initial]
        missing = self._buffer_capacity - self._buffer.tell()
        if initials and missing > 0:
            self._pad_initial(initials, missing)
        datagram = b"".join(map(self._seal, self._unsealed))
        self._unsealed = []
        self._datagrams.append(datagram)
        self._flight_bytes += self._datagram_flight_bytes
        self._total_bytes += len(datagram)
        self._datagram_init = True
        self._datagram_needs_padding = False
        self._buffer.seek(0)

    def pad(self, unsealed: UnsealedPacket, length: int, *, in_front: bool) -> None:
        """PADDING in front of or behind the other frames; it makes a packet count as in flight (RFC 9002 §2)."""
        unsealed.payload = bytes(length) + unsealed.payload if in_front else unsealed.payload + bytes(length)
        packet = unsealed.packet
        self._datagram_flight_bytes += length if packet.in_flight else packet.sent_bytes + length
        packet.in_flight = True
        packet.sent_bytes += length

    def _seal(self, unsealed: UnsealedPacket) -> bytes:
        number = unsealed.packet.packet_number
        encoded_number = encode_number(number, unsealed.number_length)
        kind = unsealed.packet.packet_type
        if kind is QuicPacketType.ONE_RTT:
            header = build_short_header(self._peer_cid, encoded_number, key_phase=unsealed.crypto.key_phase)
        else:
            length = unsealed.number_length + len(unsealed.payload) + TAG_LENGTH
            header = build_long_header(
                PacketType[kind.name], self._peer_cid, self._host_cid, encoded_number, length, self._peer_token
            )
        return unsealed.crypto.encrypt_packet(header, unsealed.payload, number)


class SitePacketBuilder(LateSealingBuilder):
    """A server's builder, like quic-go's: PADDING goes in front of an Initial's frames, and only with ack-eliciting
    ones.

    ``datagram_lengths``: one is consumed by every datagram, and a datagram of 1-RTT packets alone is padded up to it.
    """

    def __init__(self, *, datagram_lengths: list[int], **arguments: Any) -> None:
        super().__init__(is_client=False, **arguments)
        self._datagram_lengths = datagram_lengths

    def _pad_initial(self, initials: list[UnsealedPacket], missing: int) -> None:
        if any(unsealed.packet.is_ack_eliciting for unsealed in initials):
            self.pad(initials[-1], missing, in_front=True)

    def _padding_of(self, packet: QuicSentPacket) -> int:
        """Up to the length that Dest's datagram of this place had."""
        lengths = self._datagram_lengths
        needed = super()._padding_of(packet)
        if packet.packet_type is not QuicPacketType.ONE_RTT or self._packet_start > 0:
            return needed
        while lengths and lengths[0] >= self._buffer_capacity:
            lengths.pop(0)  # Dest had more full ones than we need
        if not lengths:
            return needed
        return max(needed, min(lengths[0] - TAG_LENGTH - self._buffer.tell(), self.remaining_flight_space))

    def _flush_current_datagram(self) -> None:
        if self._unsealed and self._datagram_lengths:
            self._datagram_lengths.pop(0)
        super()._flush_current_datagram()


class OnePacketBuilder(LateSealingBuilder):
    """One 1-RTT packet that fills its datagram, however little there is to say."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(is_client=False, **arguments)
        self._begun = False

    def start_packet(self, packet_type: QuicPacketType, crypto: CryptoPair) -> None:
        """As its base, for the first packet alone."""
        if self._begun and (self._packet is None or not self.packet_is_empty):
            raise QuicPacketBuilderStop
        self._begun = True
        super().start_packet(packet_type, crypto)

    def _pad_initial(self, initials: list[UnsealedPacket], missing: int) -> None:
        """There is none."""

    def _padding_of(self, packet: QuicSentPacket) -> int:
        return self.remaining_flight_space


class UnsealedBuilder(OnePacketBuilder):
    """The same without PADDING, and not sealed: what there is to say, before it is known in how long a packet."""

    def unsealed(self) -> UnsealedPacket | None:
        """The packet, if there is anything in it; the builder is not used again."""
        if self._packet is not None:
            self._end_packet()
        return self._unsealed[0] if self._unsealed else None

    def _padding_of(self, packet: QuicSentPacket) -> int:
        return 0

    def _flush_current_datagram(self) -> None:
        """It stays unsealed."""
