"""Records how a site answers a visitor that comes back: the server's port plays it to its clients."""

from __future__ import annotations

from typing import Final

import msgspec

from qre.dest_profile import (
    MAX_FLIGHT,
    RecordedReturn,
    ReturnedDatagram,
    ReturnedFrame,
    ReturnedPacket,
)
from qre.errors import UntrustedInputError
from qre.quic.client.client_connection import ClientConnection
from qre.quic.client.returning_client import ReturningClient
from qre.quic.client.visit_recorder import VisitRecorder
from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.shadow.dest_reader import DestReader
from qre.quic.shadow.server_hello import CannotFollowError
from qre.quic.shadow.shapes import CryptoPlace, InitialShape, PacketShape
from qre.wire.frames import Ack, read_frame_untrusted
from qre.wire.packet import PacketType
from qre.wire.varint import read_varint_untrusted

#: What comes later than this is no part of the flight (microseconds).
_LONGEST_FLIGHT: Final = 1_000_000
_MICROSECONDS: Final = 1_000_000
#: The packet numbers of a browser's hello.
_HELLO_NUMBERS: Final = ((1, 2),)
#: Where the length of the destination CID stands in a long header (RFC 9000 §17.2).
_CID_LENGTH_AT: Final = 5


class ReturnRecorder(VisitRecorder):
    """Of a connection that offers ``ticket``, whose Initial keys are derived from ``keys_cid``."""

    def __init__(self, ticket: HeldTicket, keys_cid: bytes) -> None:
        super().__init__(early=ticket.early_data)
        self._ticket = ticket
        self._reader = DestReader(keys_cid, b"")
        self._first_at: float | None = None
        self._flight: list[ReturnedDatagram] = []
        self._whole = True  # all of the flight has been read

    def in_flight(self, datagram: bytes, now: float) -> None:
        """A datagram of the flight."""
        try:
            shape = self._reader.read_untrusted(datagram)
        except (UntrustedInputError, CannotFollowError):
            self._whole = False
            return
        if not shape.needs_hello:
            return  # it acknowledges a part of the hello, which came late
        if self._first_at is None:
            self._first_at = now
        at_us = round((now - self._first_at) * _MICROSECONDS)
        if len(self._flight) == MAX_FLIGHT or at_us > _LONGEST_FLIGHT or shape.trailing:
            self._whole = False
            return
        try:
            packets = tuple(_returned_untrusted(packet) for packet in shape.packets)
            made = ReturnedDatagram(at_us, packets)
            self._flight.append(msgspec.convert(msgspec.to_builtins(made), ReturnedDatagram))
        except (UntrustedInputError, msgspec.ValidationError):
            self._whole = False

    def _crossed(self, connection: ClientConnection, now: float) -> bool:
        """Also a datagram that is read very late is of the flight; but HANDSHAKE_DONE says that Finished has come."""
        return not connection.handshake_confirmed and super()._crossed(connection, now)

    def returned(self, connection: ReturningClient) -> RecordedReturn | None:
        """None when the site did not resume, or its answer cannot be played."""
        visit, context = self.visit(connection), connection.context
        taken = connection.early_data_taken if self._ticket.early_data else connection.resumed
        if visit is None or context is None or not taken or connection.retried or not self._is_playable():
            return None
        return RecordedReturn(
            early_data=self._ticket.early_data,
            identity_length=len(self._ticket.identity),
            nonce_length=self._ticket.nonce_length,
            group=context.group,
            server_hello_extensions=context.server_hello_extensions[:16],
            flight=tuple(self._flight),
            visit=visit,
        )

    def _is_playable(self) -> bool:
        """Whether all was read, ServerHello came once and in order, and Handshake packets came, too."""
        at = 0
        for frame in (each for datagram in self._flight for packet in datagram.packets for each in packet.frames):
            if frame.crypto and frame.offset != at:
                return False
            at += frame.crypto
        kinds = {packet.kind for datagram in self._flight for packet in datagram.packets}
        return self._whole and at == len(self._reader.hello) and PacketType.HANDSHAKE.value in kinds


def recorder_of(connection: ReturningClient) -> VisitRecorder:
    """For a probe over this connection, which has made its hello."""
    ticket = connection.used_ticket
    return VisitRecorder() if ticket is None else ReturnRecorder(ticket, connection.peer_cid)


def _returned_untrusted(packet: PacketShape) -> ReturnedPacket:
    if packet.type is PacketType.ONE_RTT:
        return ReturnedPacket(PacketType.RETRY.value, packet.length)
    at = _CID_LENGTH_AT
    for _ in range(2):  # the connection IDs
        at += 1 + packet.header[at]
    if not isinstance(packet, InitialShape):
        return ReturnedPacket(packet.type.value, packet.length, len(packet.header) - at)
    token, end = read_varint_untrusted(packet.header, at)
    if token:
        raise UntrustedInputError("Dest", "an Initial with a token")
    frames = tuple(_frame_untrusted(frame) for frame in packet.frames)
    return ReturnedPacket(
        packet.type.value, packet.length, len(packet.header) - end, packet.number_length, _joined(frames)
    )


def _frame_untrusted(frame: bytes | CryptoPlace) -> ReturnedFrame:
    if isinstance(frame, CryptoPlace):
        return ReturnedFrame(frame.head, frame.offset, frame.length)
    parsed, _ = read_frame_untrusted(frame, 0)
    if isinstance(parsed, Ack) and tuple(parsed.ranges) != _HELLO_NUMBERS:
        raise UntrustedInputError("Dest", "it acknowledges a hello that was repeated")
    return ReturnedFrame(frame)


def _joined(frames: tuple[ReturnedFrame, ...]) -> tuple[ReturnedFrame, ...]:
    """Frames between CRYPTO as one."""
    joined: list[ReturnedFrame] = []
    for frame in frames:
        if joined and not frame.crypto and not joined[-1].crypto:
            joined[-1] = ReturnedFrame(joined[-1].raw + frame.raw)
        else:
            joined.append(frame)
    return tuple(joined)
