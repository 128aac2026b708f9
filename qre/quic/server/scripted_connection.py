"""A server's QUIC connection that can say what it has to say in datagrams of given lengths, at given times.

A recorded visit says which (``performance``): PADDING fills what is longer than our frames, and what has no room
waits for the next datagram. What is lost, or repeated because the client fell silent, has the length that a site's
has: that of the first time, less the ACK that was in it. Packet numbers come from aioquic's one counter.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any, Final, TypeVar

from aioquic import tls
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from qre.quic.packet_builder import OnePacketBuilder
from qre.quic.server.server_connection import ServerConnection
from qre.quic.shadow.habits import Habits
from qre.wire.frames import Ack, encode_frame
from qre.wire.protection import TAG_LENGTH
from qre.wire.varint import encode_vector

Builder = TypeVar("Builder", bound=OnePacketBuilder)

#: Bytes of the packet numbers of Handshake and 1-RTT packets; only their sum with the payload shows.
NUMBER_LENGTH: Final = 2
#: Stock acknowledges what is due before now (seconds).
_AT_ONCE: Final = 1e-6
#: Type and length of a NEW_TOKEN frame (RFC 9000 §19.7), at most (bytes).
_TOKEN_HEADER: Final = 3
#: What stock wants for an ACK frame, and for something behind it (bytes).
_ROOM_FOR_ACK: Final = 64


class ScriptedConnection(ServerConnection):
    """``speak`` and ``probe`` make one datagram each; ``scripted``: they are called. ``habits``: Dest's. ``arrived``
    counts the datagrams of ``speak`` that had to be acknowledged and are, be it when they were repeated."""

    def __init__(self, *, scripted: bool, habits: Habits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._scripted = scripted
        self.habits = habits
        self.arrived = 0
        self._lost: deque[tuple[int, bool]] = deque()  # lengths of datagrams, and whether ``arrived`` counts them
        self._spoken: dict[int, bool] = {}  # packets of a script to be acknowledged: whether they say something
        self._probes: set[int] = set()  # packets that probe the path's MTU
        #: quic-go writes token and ticket in any order, and a browser forgets a token when a ticket comes behind it.
        self._token_due = scripted and self._tickets is not None and self._random_bytes(1)[0] % 2 == 0
        self._token = b""
        #: (bytes, when it was sent) of the largest probe of the path's MTU that has arrived.
        self.proven_size: tuple[int, float] | None = None

    def speak(
        self, length: int, now: float, *, eliciting: bool, counted: bool = True, again: int | None = None
    ) -> bytes:
        """One 1-RTT datagram of ``length`` bytes, 21 at least, with what there is to say as far as it fits; where the
        client need not acknowledge it, with an ACK at most. ``again``: its length when it is repeated."""
        builder = self._one_packet(length)
        space = self._spaces[tls.Epoch.ONE_RTT]
        room = length - 1 - len(self._peer_cid.cid) - NUMBER_LENGTH - TAG_LENGTH
        said_done = not self._handshake_done_pending
        with contextlib.suppress(QuicPacketBuilderStop):  # the packet is full
            if eliciting:
                self._write_eliciting(builder, space, room, now)
            else:
                builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
                self._write_brief_ack(builder, space, room)
        datagram, packet = self._flushed(builder)
        if eliciting:
            old = [self._on_ack_delivery] + [self._on_handshake_done_delivery] * said_done
            news = [each for each in packet.delivery_handlers if each[0] not in old]
            self._spoken[packet.packet_number] = bool(news)
            if said_done:  # what only fills is not sent again
                packet.delivery_handlers[:] = [each for each in packet.delivery_handlers if each[0] != old[1]]
            self._repeat_if_lost(packet, counted=counted, again=again)
        return self._sealed(datagram, packet, now)

    def probe(self, length: int, now: float) -> bytes:
        """One 1-RTT datagram of ``length`` bytes that says nothing: does the path carry it?"""
        builder = self._one_packet(length)
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        builder.start_frame(
            QuicFrameType.HANDSHAKE_DONE, capacity=1, handler=self._on_probe_delivery, handler_args=(length, now)
        )
        datagram, packet = self._flushed(builder)
        self._probes.add(packet.packet_number)
        packet.in_flight = packet.is_ack_eliciting = False  # it is not repeated, and says nothing about congestion
        return self._sealed(datagram, packet, now)

    def repeated(self, now: float) -> list[bytes]:
        """What is lost, and what a probe timeout repeats, each as long as it was before."""
        timeout, self._probe_pending = self._probe_pending, False
        sent = []
        while self._lost:
            length, counted = self._lost.popleft()
            sent.append(self.speak(length, now, eliciting=True, counted=counted, again=length))
            if timeout and not self._lost and len(sent) < self.habits.at_a_timeout:
                self._loss.reschedule_data(now=now)  # the next one, or the same again
                self._probe_pending = False
        self._probe_pending = timeout and not sent
        return sent

    def _repeat_if_lost(self, packet: QuicSentPacket, *, counted: bool, again: int | None = None) -> None:
        if self._scripted:
            again = packet.sent_bytes + self.habits.pings if again is None else again
            packet.delivery_handlers.append((self._on_datagram_delivery, (again, counted)))

    def _on_datagram_delivery(self, delivery: QuicDeliveryState, length: int, counted: bool) -> None:
        if delivery is QuicDeliveryState.LOST:
            self._lost.append((length, counted))
        else:
            self.arrived += counted

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """Also see to it that what is sent in no script's time is repeated like the rest."""
        before = self._packet_number
        sent = super().datagrams_to_send(now)
        unacknowledged = self._spaces[tls.Epoch.ONE_RTT].sent_packets
        for number in range(before, self._packet_number):
            if (packet := unacknowledged.get(number)) is not None and packet.is_ack_eliciting:
                self._repeat_if_lost(packet, counted=False)
        return sent

    def _on_probe_delivery(self, delivery: QuicDeliveryState, length: int, at: float) -> None:
        if delivery is QuicDeliveryState.ACKED and (self.proven_size is None or length > self.proven_size[0]):
            self.proven_size = (length, at)

    def _write_eliciting(self, builder: OnePacketBuilder, space: QuicPacketSpace, room: int, now: float) -> None:
        """HANDSHAKE_DONE is the shortest frame that may be said again; a script has times of its own for pacing."""
        self._handshake_done_pending = True
        self._loss._pacer.packet_time = None
        ack_at, fits = space.ack_at, room >= _ROOM_FOR_ACK or 0 < len(_brief_ack(space)) < room
        space.ack_at = now - _AT_ONCE if len(space.ack_queue) and fits else None
        try:
            super()._write_application(builder, self._network_paths[0], now)
        finally:
            if not fits:
                space.ack_at = ack_at

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        """The newest packets alone where stock's has no room."""
        if space.is_application_data and builder.remaining_flight_space < _ROOM_FOR_ACK:
            self._write_brief_ack(builder, space, builder.remaining_flight_space)
        else:
            super()._write_ack_frame(builder, space, now)

    def _write_crypto_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> bool:
        """Behind the last ticket a token of Dest's, if there is room, as in Dest's own datagram of that length."""
        written = super()._write_crypto_frame(builder, space, stream)
        if (
            self._token_due
            and self._tickets is not None
            and self._handshake_complete
            and stream.sender.buffer_is_empty
        ):
            self._token_due = False
            room = builder.remaining_flight_space - _TOKEN_HEADER
            self._token = self._token or self._tickets.take_token(room)
            if 0 < len(self._token) <= room:
                buf = builder.start_frame(
                    QuicFrameType.NEW_TOKEN,
                    capacity=_TOKEN_HEADER + len(self._token),
                    handler=self._on_token_delivery,
                )
                buf.push_bytes(encode_vector(self._token))
        return written

    def _on_token_delivery(self, delivery: QuicDeliveryState) -> None:
        self._token_due = delivery is QuicDeliveryState.LOST  # it goes again with the ticket

    def _write_brief_ack(self, builder: QuicPacketBuilder, space: QuicPacketSpace, room: int) -> None:
        """ACK of the newest packets; stock's needs more room than any has. PADDING where not even this has room."""
        frame = _brief_ack(space)
        if not 0 < len(frame) <= room:
            builder.start_frame(QuicFrameType.PADDING)
            return
        buf = builder.start_frame(
            QuicFrameType.ACK,
            capacity=len(frame),
            handler=self._on_ack_delivery,
            handler_args=(space, space.largest_received_packet),
        )
        buf.push_bytes(frame[1:])
        space.ack_at = None

    def loss_timer(self) -> float | None:
        """When something is lost, or the connection is idle; a script says when anything else is sent."""
        super().get_timer()  # which works out the first
        return min((at for at in (self._close_at, self._loss_at) if at is not None), default=None)

    @property
    def must_speak(self) -> bool:
        """Whether something has to be sent that no script knows of: it was lost, or the connection ends."""
        return self._probe_pending or self.ended

    def _data_in_flight(self) -> bool:
        """What says nothing need not arrive."""
        return any(
            packet.is_ack_eliciting and number not in self._probes and self._spoken.get(number, True)
            for number, packet in self._spaces[tls.Epoch.ONE_RTT].sent_packets.items()
        )

    def _flushed(self, builder: OnePacketBuilder) -> tuple[bytes, QuicSentPacket]:
        """The one packet that was built, and what recovery has to know of it."""
        (datagram,), (packet,) = builder.flush()
        self._packet_number = builder.packet_number
        return datagram, packet

    def _one_packet(self, size: int) -> OnePacketBuilder:
        return self._builder_of_one(OnePacketBuilder, size)

    def _builder_of_one(self, kind: type[Builder], size: int) -> Builder:
        return kind(
            host_cid=self._handshake_cid,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            version=self._version,
        )

    def _sealed(self, packet: bytes, sent: QuicSentPacket, now: float) -> bytes:
        sent.sent_time = now
        self._loss.on_packet_sent(packet=sent, space=self._spaces[sent.epoch])
        return packet


def _brief_ack(space: QuicPacketSpace) -> bytes:
    """An ACK frame of the newest packets; empty when there are none."""
    if not len(space.ack_queue):
        return b""
    newest = space.ack_queue[len(space.ack_queue) - 1]
    return encode_frame(Ack(((newest.start, newest.stop - 1),), 0))
