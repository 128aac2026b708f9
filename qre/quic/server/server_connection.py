"""A server's QUIC connection for one authenticated client, shaped like quic-go's.

Each method below overrides a hook of aioquic 1.7.2, and says why; what both ends change is in the base class. It
issues no connection ID except the routed one, and that only when ``issue`` is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import UINT_VAR_MAX_SIZE, Buffer, size_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    NEW_CONNECTION_ID_FRAME_CAPACITY,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoError, CryptoPair
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from qre.errors import UntrustedInputError
from qre.quic import bounds
from qre.quic.connection import HandshakeConnection
from qre.quic.packet_builder import SitePacketBuilder
from qre.quic.server.server_tls import Resumption, ServerFlight, ServerTlsContext, TicketMaker
from qre.wire.frames import Ack, ConnectionClose, Crypto, Frame, Ping, encode_frame, frames_untrusted
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.wire.packet import VERSION_1

#: quic-go's values, as Caddy sends them.
IDLE_TIMEOUT_MS: Final = 30_000
MAX_ACK_DELAY_MS: Final = 26
ACTIVE_CONNECTION_ID_LIMIT: Final = 4
_MAX_DATA: Final = 786_432
_MAX_STREAM_DATA: Final = 524_288
_MAX_STREAMS: Final = 100
_MAX_DATAGRAM_FRAME: Final = 65_535
#: Caddy's has 90; what we send besides it in the same datagram (QPACK streams) is longer.
_NEW_TOKEN_LENGTH: Final = 76
#: RFC 9000 §18.1: reserved parameters are 27 mod 31. Caddy's is empty and has an id of two bytes.
_GREASE_STEP: Final = 31
_GREASE_OFFSET: Final = 27
#: Stock's name for the PING of a probe timeout.
_PROBE: Final = "probe"
#: Of a long header's first byte, unprotected (RFC 9000 §17.2).
_RESERVED_BITS: Final = 0x0C
#: Stock refuses a payload without frames.
_PADDING: Final = b"\0"


@dataclass(frozen=True)
class RoutedConnectionId:
    """The connection ID of the data plane, and its stateless reset token."""

    cid: bytes
    reset_token: bytes


class _InitialKeys(CryptoPair):
    """Whoever sees a hello has these keys, too; stock closes the connection for a packet with reserved bits set."""

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        header, payload, number = super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        if header[0] & _RESERVED_BITS:
            raise CryptoError("reserved bits are set")
        return header, payload, number


class ServerConnection(HandshakeConnection):
    """``handshake_cid`` is the source CID of the handshake, ``routed`` is issued later, unless it is the same.
    ``tickets``: without it tickets only look like some."""

    def __init__(
        self,
        *,
        client_hello: bytes,
        proof_key: bytes,
        original_destination_cid: bytes,
        retry_source_cid: bytes | None,
        handshake_cid: bytes,
        handshake_reset_token: bytes,
        flight: ServerFlight,
        max_datagram_size: int,
        datagram_lengths: list[int],
        first_packet_number: int,
        random_bytes: Callable[[int], bytes],
        resumption: Resumption | None = None,
        tickets: TicketMaker | None = None,
    ) -> None:
        configuration = QuicConfiguration(
            alpn_protocols=["h3"],
            is_client=False,
            connection_id_length=len(handshake_cid),
            idle_timeout=IDLE_TIMEOUT_MS / 1000,
            max_data=_MAX_DATA,
            max_stream_data=_MAX_STREAM_DATA,
            max_datagram_size=max_datagram_size,
            max_datagram_frame_size=_MAX_DATAGRAM_FRAME,
            supported_versions=[VERSION_1],
            certificate=b"made for each connection",  # stock insists on both
            private_key=b"made for each connection",
        )
        super().__init__(
            configuration=configuration,
            bounds=bounds.SERVER,
            original_destination_connection_id=original_destination_cid,
            retry_source_connection_id=retry_source_cid,
        )
        self._client_hello = client_hello
        self._proof_key = proof_key
        self._flight = flight
        self._resumption = resumption
        self._tickets = tickets
        self._datagram_lengths = datagram_lengths
        self._random_bytes = random_bytes
        self._handshake_cid = handshake_cid
        self._first_destination_cid = retry_source_cid or original_destination_cid
        self._host_cids[0] = QuicConnectionId(handshake_cid, 0, handshake_reset_token, was_sent=True)
        self.host_cid = handshake_cid
        self._local_initial_source_connection_id = handshake_cid
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = _MAX_STREAMS
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = _MAX_STREAMS
        self._local_active_connection_id_limit = ACTIVE_CONNECTION_ID_LIMIT
        self._packet_number = first_packet_number
        self._gives_token = True
        self._ack_delay = 0.0  # the first ACK goes with HANDSHAKE_DONE, as a site's does
        # Stock takes a hello in shuffled pieces for a sign of loss; reset once we have answered.
        self._crypto_retransmitted = True

    # --- set-up ---

    def _initialize(self, peer_cid: bytes) -> None:
        """Our own TLS and Initial keys in place of the stock ones."""
        super()._initialize(peer_cid)
        keys = _InitialKeys()
        keys.setup_initial(cid=peer_cid, is_client=False, version=VERSION_1)
        self._cryptos_initial = {VERSION_1: keys}
        self._cryptos[tls.Epoch.INITIAL] = keys
        context = self._new_tls()
        context.handshake_extensions = self.tls.handshake_extensions
        context.alpn_cb = self.tls.alpn_cb
        context.update_traffic_key_cb = self.tls.update_traffic_key_cb
        self.tls = context

    def _new_tls(self) -> ServerTlsContext:
        return ServerTlsContext(
            client_hello=self._client_hello,
            proof_key=self._proof_key,
            flight=self._flight,
            random_bytes=self._random_bytes,
            tickets=self._tickets,
        )

    def _serialize_transport_parameters(self) -> bytes:
        """quic-go's parameters, values and order, GREASE first (RFC 9000 §18)."""
        buf = Buffer(capacity=512)

        def push(identifier: int, value: int | bytes) -> None:
            buf.push_uint_var(identifier)
            if isinstance(value, int):
                buf.push_uint_var(size_uint_var(value))
                buf.push_uint_var(value)
            else:
                buf.push_uint_var(len(value))
                buf.push_bytes(value)

        brief = self._resumption is not None  # Dest's flight is short then, and varies
        if not brief:
            push(_GREASE_OFFSET + _GREASE_STEP * (64 + self._random_bytes(1)[0]), b"")
        push(0x05, _MAX_STREAM_DATA)  # initial_max_stream_data_bidi_local
        push(0x06, _MAX_STREAM_DATA)  # initial_max_stream_data_bidi_remote
        push(0x07, _MAX_STREAM_DATA)  # initial_max_stream_data_uni
        push(0x04, _MAX_DATA)  # initial_max_data
        push(0x08, _MAX_STREAMS)  # initial_max_streams_bidi
        push(0x09, _MAX_STREAMS)  # initial_max_streams_uni
        push(0x01, IDLE_TIMEOUT_MS)  # max_idle_timeout
        push(
            0x03, MAX_UDP_PAYLOAD
        )  # max_udp_payload_size; Caddy's is 1452, but our client's data plane fills datagrams
        push(0x0B, MAX_ACK_DELAY_MS)  # max_ack_delay
        push(0x02, self._host_cids[0].stateless_reset_token)  # stateless_reset_token
        push(0x00, self._original_destination_connection_id)  # original_destination_connection_id
        if not brief:
            push(0x0E, ACTIVE_CONNECTION_ID_LIMIT)  # active_connection_id_limit
        push(0x0F, self._local_initial_source_connection_id)  # initial_source_connection_id
        if self._retry_source_connection_id is not None:
            push(0x10, self._retry_source_connection_id)  # retry_source_connection_id
        push(0x20, _MAX_DATAGRAM_FRAME)  # max_datagram_frame_size (RFC 9221)
        return buf.data

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Stock derives Initial keys from the first packet; ours are those of the authenticated hello."""
        if self._state is QuicConnectionState.FIRSTFLIGHT:
            cid = self._first_destination_cid
            if not data.startswith(bytes([len(cid)]) + cid, 5):
                return
        super().receive_datagram(data, addr, now)

    # --- Initials: whoever sees a hello can make more of them (RFC 9001 §5.2) ---

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        """Stock closes the connection for a frame that is malformed or not allowed."""
        if context.epoch is tls.Epoch.INITIAL:
            plain, crypto_frame_required = self._frames_of_initial(plain), False
        return super()._payload_received(context, plain, crypto_frame_required)

    def _frames_of_initial(self, payload: bytes) -> bytes:
        """Those that say something, up to the first that cannot be read."""
        taken = [_PADDING]
        with contextlib.suppress(UntrustedInputError):
            taken.extend(encode_frame(each) for each in frames_untrusted(payload) if self._takes_of_initial(each))
        return b"".join(taken)

    def _takes_of_initial(self, frame: Frame) -> bool:
        """CRYPTO only of the hello that was authenticated, ACK only of what was sent."""
        match frame:
            case Crypto(offset=offset, data=data):
                return self._client_hello[offset : offset + len(data)] == data
            case Ack(ranges=ranges):
                return ranges[0][1] < self._packet_number
            case ConnectionClose(application=application):
                return not application
        return isinstance(frame, Ping)

    # --- connection IDs ---

    def issue(self, routed: RoutedConnectionId) -> None:
        """Send NEW_CONNECTION_ID, until it is acknowledged."""
        self._host_cids.append(QuicConnectionId(routed.cid, self._host_cid_seq, routed.reset_token))
        self._host_cid_seq += 1

    def _write_new_connection_id_frame(self, builder: QuicPacketBuilder, connection_id: QuicConnectionId) -> None:
        """With Retire Prior To = its own sequence number (stock: 0)."""
        buf = builder.start_frame(
            QuicFrameType.NEW_CONNECTION_ID,
            capacity=NEW_CONNECTION_ID_FRAME_CAPACITY,
            handler=self._on_new_connection_id_delivery,
            handler_args=(connection_id,),
        )
        buf.push_uint_var(connection_id.sequence_number)
        buf.push_uint_var(connection_id.sequence_number)
        buf.push_uint8(len(connection_id.cid))
        buf.push_bytes(connection_id.cid)
        buf.push_bytes(connection_id.stateless_reset_token)
        connection_id.was_sent = True

    # --- what is sent ---

    def _new_builder(self) -> SitePacketBuilder:
        return SitePacketBuilder(
            datagram_lengths=self._datagram_lengths,
            host_cid=self._handshake_cid,
            max_datagram_size=self._max_datagram_size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            version=self._version,
        )

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """Also imitate the small datagrams that Dest sends with its flight: PADDING where we have no data."""
        super()._write_application(builder, network_path, now)
        if not self._datagram_lengths or not self._cryptos[tls.Epoch.ONE_RTT].send.is_valid():
            return
        assert isinstance(builder, SitePacketBuilder)
        builder.end_datagram()
        while self._datagram_lengths:
            builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
            builder.start_frame(QuicFrameType.PADDING)
            builder.end_datagram()

    def _write_ping_frame(self, builder: QuicPacketBuilder, uids: list[int] | None = None, comment: str = "") -> None:
        """A PING in 1-RTT is the last frame, which tells the client to switch: suppress stock's own.

        A probe repeats MAX_DATA if its packet would not be acknowledged otherwise. ACKs of ACKs are not asked for.
        """
        packet = builder._packet
        assert packet is not None
        if uids or packet.epoch is not tls.Epoch.ONE_RTT:
            super()._write_ping_frame(builder, uids or [], comment)
        elif comment == _PROBE and not packet.is_ack_eliciting:
            buf = builder.start_frame(QuicFrameType.MAX_DATA, capacity=1 + UINT_VAR_MAX_SIZE)
            buf.push_uint_var(self._local_max_data.value)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """(UDP payload, address) pairs to send now, in order."""
        sent = super().datagrams_to_send(now)
        if sent and self._cryptos[tls.Epoch.HANDSHAKE].send.is_valid():
            self._crypto_retransmitted = False
        return sent

    def _write_handshake_done_frame(self, builder: QuicPacketBuilder) -> None:
        """quic-go sends a token for the next connection along."""
        super()._write_handshake_done_frame(builder)
        if not self._gives_token:
            return
        buf = builder.start_frame(QuicFrameType.NEW_TOKEN, capacity=3 + _NEW_TOKEN_LENGTH)
        buf.push_uint_var(_NEW_TOKEN_LENGTH)
        buf.push_bytes(self._random_bytes(_NEW_TOKEN_LENGTH))
