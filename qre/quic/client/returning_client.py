"""A browser's connection that may come back with a ticket: 0-RTT packets, and what follows when it is taken or not.

Control stream and request go in 0-RTT packets, each in a datagram of its own behind the hello. A server that takes
the ticket gets one datagram with all that its flight asks for. One that does not gets early data again in 1-RTT
packets, in front of Finished, if it has proved who it is; a site never sees a word of what was meant for ours.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aioquic import tls
from aioquic.quic.connection import QuicNetworkPath
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicSentPacket

from qre.dest_profile import MOST_TOKEN
from qre.quic.client.client_connection import ClientConnection
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.hello import OfferedHello
from qre.quic.connection import HandshakeConnection
from qre.quic.resumption.held_ticket import HeldTicket
from qre.wire.varint import encode_vector

#: The least first timeout of a browser that knows the round trip (seconds), and how many of them it takes.
_LEAST_TIMEOUT, _ROUND_TRIPS = 0.030, 3
#: The stock timeout before anything is known, in round trips.
_STOCK_ROUND_TRIPS: Final = 2
#: RFC 9000 §2.1: the client's first streams.
_FIRST_BIDIRECTIONAL, _FIRST_UNIDIRECTIONAL = 0, 2


#: Of an Initial: all of its header but the token and the destination CID, and its tag.
_INITIAL_OVERHEAD: Final = 1 + 4 + 1 + 1 + 2 + 2 + 16
#: Of the CRYPTO frames of the larger half, as few as there can be (RFC 9000 §19.6).
_FRAME_OVERHEAD: Final = 6


def _have_room(hello: bytes, token: bytes, fingerprint: Fingerprint) -> bool:
    """Whether two datagrams have room for the hello and, each of them, for the token."""
    room = fingerprint.datagram_length - _INITIAL_OVERHEAD - fingerprint.destination_cid_length
    half = (len(hello) + fingerprint.chaos.split_excess + 1) // 2
    return half + _FRAME_OVERHEAD + len(encode_vector(token)) <= room


class ReturningClient(ClientConnection):
    """``round_trip_us``: as known of an earlier connection, 0: not known."""

    def __init__(self, *, hello: OfferedHello, round_trip_us: int = 0, **arguments: Any) -> None:
        super().__init__(hello=hello, **arguments)
        back = hello.comes_back
        self._ticket = back.ticket if back is not None else None
        self._finished_waits = False  # for early data, which goes again
        self._token, self._token_behind = b"", 0  # the last one that came, and how many tickets had
        self._token_handler = self._keep_token
        if self._ticket is not None and _have_room(hello.message, self._ticket.token, self._fingerprint):
            self._peer_token = self._ticket.token
        self._shows_token = bool(self._peer_token)
        if round_trip_us:
            timeout = max(_LEAST_TIMEOUT, _ROUND_TRIPS * round_trip_us / 1e6)
            self._configuration.initial_rtt = timeout / _STOCK_ROUND_TRIPS
            self._loss = self._new_recovery()

    def _initialize(self, peer_cid: bytes) -> None:
        """With the limits of the earlier connection, until those of this one come."""
        super()._initialize(peer_cid)
        if self._ticket is not None and self._ticket.early_data:
            self._parse_transport_parameters(self._ticket.parameters, from_session_ticket=True)

    def _push_crypto_data(self) -> None:
        """As its base; a hello with early data is repeated otherwise."""
        before = self._flight
        super()._push_crypto_data()
        if self._flight is not before and self.sends_early_data:
            self._flight.tear()

    # --- what is known ---

    @property
    def sends_early_data(self) -> bool:
        """Whether what is said now goes in 0-RTT packets."""
        return bool(self._cryptos) and self._cryptos[tls.Epoch.ZERO_RTT].send.is_valid()

    @property
    def offered_early_data(self) -> bool:
        """Whether the hello offered early data."""
        return self._ticket is not None and self._ticket.early_data

    @property
    def resumed(self) -> bool:
        """Whether the server has taken the ticket."""
        context = self.context
        return context is not None and context.session_resumed

    @property
    def early_data_taken(self) -> bool:
        """Whether the server has taken early data, once its flight is read."""
        context = self.context
        return context is not None and context.session_resumed and context.early_data_accepted

    @property
    def used_ticket(self) -> HeldTicket | None:
        """The ticket of the hello."""
        return self._ticket

    @property
    def smoothed_round_trip_us(self) -> int:
        """0: not known."""
        return round(self._loss._rtt_smoothed * 1e6) if self._loss._rtt_initialized else 0

    @property
    def tickets(self) -> tuple[HeldTicket, ...]:
        """Those that this connection has brought, with the round trip that it has measured."""
        context, measured = self.context, self.smoothed_round_trip_us
        held = context.tickets if context is not None else []
        last, token = len(held) - 1, self.kept_token
        return tuple(
            msgspec.structs.replace(each, round_trip_us=measured, token=token if number == last else b"")
            for number, each in enumerate(held)
        )

    @property
    def kept_token(self) -> bytes:
        """For the next connection's Initials (RFC 9000 §8.1.3). Of a token a browser keeps what came behind the last
        ticket, which takes the place of all that it knew of the server; empty: none."""
        context = self.context
        tickets = len(context.tickets) if context is not None else 0
        return self._token if 0 < tickets == self._token_behind else b""

    def _keep_token(self, token: bytes) -> None:
        context = self.context
        if context is not None and len(token) <= MOST_TOKEN:
            self._token, self._token_behind = token, len(context.tickets)

    # --- early data that is not taken ---

    def take_back(self, *, again: bool) -> None:
        """The server has not read early data: send it ``again``, or forget it and its streams."""
        space = self._spaces[tls.Epoch.ONE_RTT]
        sent = list(space.sent_packets.values())
        self._loss.discard_space(space)
        if again:
            self._finished_waits = bool(sent)
            for packet in sent:
                for handler, arguments in packet.delivery_handlers:
                    handler(QuicDeliveryState.LOST, *arguments)
            return
        self._streams.clear()
        self._streams_queue.clear()
        self._local_next_stream_id_bidi = _FIRST_BIDIRECTIONAL
        self._local_next_stream_id_uni = _FIRST_UNIDIRECTIONAL
        self._remote_max_data_used = 0

    # --- what goes out ---

    def _kinds_of_close(self) -> list[tuple[tls.Epoch, QuicPacketType]]:
        """Also in 0-RTT, as long as nothing better can be sealed."""
        kinds = super()._kinds_of_close()
        if self.sends_early_data:
            kinds.append((tls.Epoch.ZERO_RTT, QuicPacketType.ZERO_RTT))
        return kinds

    def _number_length(self, packet: QuicSentPacket) -> int:
        """Beside a token, too, numbers have one byte (17 of 17)."""
        if packet.packet_type is QuicPacketType.ZERO_RTT or self._shows_token:
            return 1
        return super()._number_length(packet)

    def _write_handshake(self, builder: QuicPacketBuilder, epoch: tls.Epoch, now: float) -> None:
        """Of a resumed handshake one packet, with the ACK and Finished; behind early data that goes again an ACK
        alone."""
        if epoch is tls.Epoch.INITIAL or not (self.resumed or self._finished_waits):
            super()._write_handshake(builder, epoch, now)
            return
        crypto, space = self._cryptos[epoch], self._spaces[epoch]
        if not crypto.send.is_valid():
            return
        if self._finished_waits:
            if space.ack_at is not None:
                builder.start_packet(QuicPacketType.HANDSHAKE, crypto)
                self._write_ack_frame(builder, space, now)
            return
        idle = self._crypto_streams[epoch].sender.buffer_is_empty and not self._probe_pending
        if not idle or self._acknowledgement_due(space):
            HandshakeConnection._write_handshake(self, builder, epoch, now)

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        super()._write_application(builder, network_path, now)
        if self._finished_waits:
            self._finished_waits = False
            HandshakeConnection._write_handshake(self, builder, tls.Epoch.HANDSHAKE, now)
