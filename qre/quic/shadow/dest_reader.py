"""Reads Dest's datagrams of one flow without any key of its connection: their shapes, and its ServerHello as it
comes. Dest is not trusted; what a flow can make this keep is bounded."""

from __future__ import annotations

from typing import Final

from aioquic.quic.packet import get_retry_integrity_tag

from qre.errors import UntrustedInputError
from qre.quic.shadow.server_hello import CannotFollowError, Obstacle
from qre.quic.shadow.shapes import CryptoPlace, DatagramShape, InitialShape, PacketShape
from qre.wire.frames import Ack, ConnectionClose, Crypto, Padding, Ping, read_frame_untrusted
from qre.wire.initial import CryptoStream
from qre.wire.packet import RETRY_TAG_LENGTH, SHORTEST_DEST_CID, VERSION_1, Header, PacketType, packets_untrusted
from qre.wire.protection import Protection, initial_secrets

#: Of Dest's ServerHello: bytes and pieces.
_LONGEST_HELLO, _MOST_PIECES = 4096, 64
_NUMBER_LENGTH_BITS: Final = 0x03
_COPIED: Final = (Ack, Padding, Ping, ConnectionClose)


def is_retry_of(retry: bytes, original_cid: bytes) -> bool:
    """Whether this Retry answers the connection that began with this destination connection ID (RFC 9001 §5.8)."""
    body, tag = retry[:-RETRY_TAG_LENGTH], retry[-RETRY_TAG_LENGTH:]
    return get_retry_integrity_tag(body, original_cid, VERSION_1) == tag


class DestReader:
    """``client_cid``: the client's source CID; ``keys_cid``: the DCID from which the Initial keys are derived."""

    def __init__(self, keys_cid: bytes, client_cid: bytes) -> None:
        #: Seals Initials as Dest's.
        self.initial_keys = Protection(initial_secrets(keys_cid)[1])
        self._client_cid = client_cid
        self._expected = 0
        self._hello = CryptoStream(_LONGEST_HELLO, _MOST_PIECES)
        #: Dest's source CID, once it has answered.
        self.source_cid: bytes | None = None
        #: Whether Dest has closed the connection.
        self.closed = False

    def shown(self, source_cid: bytes, highest_packet_number: int) -> None:
        """Initials of Dest up to this number were passed on before the flow was ours."""
        self.source_cid, self._expected = source_cid, highest_packet_number + 1

    @property
    def hello(self) -> bytes:
        """What has come of Dest's ServerHello without a gap."""
        return self._hello.contiguous

    def read_untrusted(self, datagram: bytes) -> DatagramShape:
        """The shape of ``datagram``. Raises UntrustedInputError when it is not of this connection, and
        CannotFollowError when the connection cannot be ours."""
        shapes: list[PacketShape] = []
        end = 0
        for header in packets_untrusted(datagram, short_cid_length=len(self._client_cid)):
            self._check_ends_untrusted(header)
            packet = datagram[header.start : header.end]
            if header.type is PacketType.INITIAL:
                shapes.append(self._initial_untrusted(packet, header))
            elif header.type in (PacketType.HANDSHAKE, PacketType.ONE_RTT):
                clear = header.number_offset - header.start
                shapes.append(PacketShape(header.type, packet[:clear], len(packet) - clear))
            else:
                raise UntrustedInputError("Dest", f"a packet of type {header.type.name}")
            end = header.end
        if not shapes:
            raise UntrustedInputError("Dest", "an empty datagram")
        return DatagramShape(tuple(shapes), datagram[end:])

    def _check_ends_untrusted(self, header: Header) -> None:
        if header.destination_cid != self._client_cid:
            raise UntrustedInputError("Dest", "a packet of another connection")
        # Overtaken by a 1-RTT packet, Dest's Initials are still on their way.
        if header.type is not PacketType.ONE_RTT and self.source_cid not in (None, header.source_cid):
            raise UntrustedInputError("Dest", "a packet of another connection")

    def _initial_untrusted(self, packet: bytes, header: Header) -> InitialShape:
        number_offset = header.number_offset - header.start
        plain, number, payload = self.initial_keys.unprotect_untrusted(packet, number_offset, self._expected)
        if len(header.source_cid) < SHORTEST_DEST_CID:
            raise CannotFollowError(Obstacle.CONNECTION_ID)
        self.source_cid = header.source_cid
        self._expected = max(self._expected, number + 1)
        frames: list[bytes | CryptoPlace] = []
        at = 0
        while at < len(payload):
            frame, end = read_frame_untrusted(payload, at)
            raw = payload[at:end]
            if isinstance(frame, Crypto):
                self._hello.add_untrusted(frame.offset, frame.data)
                frames.append(CryptoPlace(raw[: len(raw) - len(frame.data)], frame.offset, len(frame.data)))
            elif isinstance(frame, _COPIED):
                frames.append(raw)
                self.closed = self.closed or isinstance(frame, ConnectionClose)
            else:
                raise CannotFollowError(Obstacle.UNREADABLE)
            at = end
        return InitialShape(
            type=PacketType.INITIAL,
            header=plain[:1] + packet[1:number_offset],
            length=len(packet) - number_offset,
            number=number,
            number_length=(plain[0] & _NUMBER_LENGTH_BITS) + 1,
            frames=tuple(frames),
        )
