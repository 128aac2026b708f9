"""aioquic's packet builder, made to leave nothing of aioquic's shape on the wire.

Stock aioquic pads a datagram with literal zeros behind its last packet, where anybody sees them. Here Initial packets
are sealed only when their datagram is full, so that PADDING frames go inside them, in front of the other frames as
quic-go does. And no packet gets a number that belongs to the data plane (``PACKET_NUMBER_BASE``).

Hooks used: ``start_packet``, ``_end_packet``, ``_flush_current_datagram``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType, encode_long_header_first_byte
from aioquic.quic.packet_builder import (
    PACKET_NUMBER_SEND_SIZE,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)

from qre.session import PACKET_NUMBER_BASE

_TAG_SIZE: Final = 16


@dataclass
class _UnsealedInitial:
    packet: QuicSentPacket
    crypto: CryptoPair
    start: int  # in the datagram
    payload: bytes
    space: int  # bytes kept for it in the buffer


class ShapedPacketBuilder(QuicPacketBuilder):
    """Use it like its base, for one ``datagrams_to_send``.

    ``datagram_lengths``: one is taken off for every datagram, and a datagram of 1-RTT alone is padded up to it.
    """

    def __init__(self, *, datagram_lengths: list[int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._unsealed: list[_UnsealedInitial] = []
        self._pad_initial = False
        self._datagram_lengths = datagram_lengths

    def start_packet(self, packet_type: QuicPacketType, crypto: CryptoPair) -> None:
        if self._packet is not None:
            self._end_packet()
        if self._packet_number >= PACKET_NUMBER_BASE:
            raise QuicPacketBuilderStop
        super().start_packet(packet_type, crypto)

    def _end_packet(self) -> None:
        if self.packet_is_empty:
            super()._end_packet()
        elif self._packet_type is QuicPacketType.INITIAL:
            self._keep_initial()
        else:
            if self._packet_type is QuicPacketType.ONE_RTT and self._packet_start == 0:
                self._pad_one_rtt()
            super()._end_packet()

    def end_datagram(self) -> None:
        """What comes next begins a new one."""
        if self._packet is not None:
            self._end_packet()
        self._flush_current_datagram()

    def _pad_one_rtt(self) -> None:
        """PADDING behind the frames, up to the length that Dest's datagram of this place had."""
        lengths = self._datagram_lengths
        while lengths and lengths[0] >= self._buffer_capacity:
            lengths.pop(0)  # Dest had more full ones than we need
        if not lengths:
            return
        missing = min(lengths[0] - _TAG_SIZE - self._buffer.tell(), self.remaining_flight_space)
        if missing > 0:
            self._buffer.push_bytes(bytes(missing))

    def _keep_initial(self) -> None:
        """End an Initial without sealing it: its length is not known before the datagram's is."""
        packet, crypto, buf = self._packet, self._packet_crypto, self._buffer
        assert packet is not None and crypto is not None
        payload = buf.data_slice(self._packet_start + self._header_size, buf.tell())
        shortest = 4 - PACKET_NUMBER_SEND_SIZE  # RFC 9001 §5.4.2: enough bytes to sample
        payload = payload.ljust(shortest, b"\x00")
        buf.seek(self._packet_start + self._header_size + len(payload))
        buf.push_bytes(bytes(_TAG_SIZE))
        packet.sent_bytes = buf.tell() - self._packet_start
        if packet.in_flight:
            self._datagram_flight_bytes += packet.sent_bytes
        # RFC 9000 §14.1: a server expands datagrams with ack-eliciting Initials, a client all of them.
        self._pad_initial |= self._is_client or packet.is_ack_eliciting
        self._unsealed.append(_UnsealedInitial(packet, crypto, self._packet_start, payload, packet.sent_bytes))
        self._packets.append(packet)
        self._packet_number += 1
        self._packet = None
        self.quic_logger_frames = None

    def _flush_current_datagram(self) -> None:
        if self._buffer.tell() and self._datagram_lengths:
            self._datagram_lengths.pop(0)
        if not self._unsealed:
            super()._flush_current_datagram()
            return
        content = self._buffer.data
        missing = self._buffer_capacity - len(content) if self._pad_initial else 0
        if missing > 0:
            self._pad_last_initial(missing)
        sealed = bytearray()
        position = 0
        for initial in self._unsealed:
            sealed += content[position : initial.start]
            sealed += self._seal(initial)
            position = initial.start + initial.space
        sealed += content[position:]
        self._unsealed = []
        self._pad_initial = False
        self._datagrams.append(bytes(sealed))
        self._flight_bytes += self._datagram_flight_bytes
        self._total_bytes += len(sealed)
        self._datagram_init = True
        self._buffer.seek(0)

    def _pad_last_initial(self, missing: int) -> None:
        last = self._unsealed[-1]
        last.payload = bytes(missing) + last.payload
        if last.packet.in_flight:
            self._datagram_flight_bytes += missing
        else:
            last.packet.in_flight = True
            self._datagram_flight_bytes += last.packet.sent_bytes + missing
        last.packet.sent_bytes += missing

    def _seal(self, initial: _UnsealedInitial) -> bytes:
        number = initial.packet.packet_number
        length = PACKET_NUMBER_SEND_SIZE + len(initial.payload) + _TAG_SIZE
        first = encode_long_header_first_byte(self._version, QuicPacketType.INITIAL, PACKET_NUMBER_SEND_SIZE - 1)
        header = b"".join(
            (
                bytes([first]),
                self._version.to_bytes(4, "big"),
                bytes([len(self._peer_cid)]),
                self._peer_cid,
                bytes([len(self._host_cid)]),
                self._host_cid,
                b"\x00",  # a server's Initials have no token
                (length | 0x4000).to_bytes(2, "big"),
                (number & 0xFFFF).to_bytes(2, "big"),
            )
        )
        return initial.crypto.encrypt_packet(header, initial.payload, number)
