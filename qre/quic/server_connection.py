"""A server's QUIC connection for one authenticated client: aioquic's, by subclassing.

Each method below overrides a hook of aioquic 1.7.2, and says why. What must never happen here: a packet number at or
above ``PACKET_NUMBER_BASE``, a reason phrase in a CLOSE, a datagram after ``stop()``, an exception out of a datagram.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import Buffer, size_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    NEW_CONNECTION_ID_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicTransportParameters,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from qre.quic.initial import QUIC_VERSION_1
from qre.quic.keys import Secrets
from qre.quic.packet_builder import ShapedPacketBuilder
from qre.quic.server_tls import ServerFlight, ServerTlsContext

#: quic-go's values, as Caddy sends them.
IDLE_TIMEOUT_MS: Final = 30_000
MAX_ACK_DELAY_MS: Final = 26
ACTIVE_CONNECTION_ID_LIMIT: Final = 4
_MAX_DATA: Final = 786_432
_MAX_STREAM_DATA: Final = 524_288
_MAX_STREAMS: Final = 100
#: Larger than Caddy's 1452: the client's data plane fills datagrams up to this.
_MAX_UDP_PAYLOAD: Final = 1472
_MAX_DATAGRAM_FRAME: Final = 65_535
_NEW_TOKEN_LENGTH: Final = 90
#: RFC 9000 §18.1: reserved parameters are 27 mod 31. Caddy's is empty and has an id of two bytes.
_GREASE_STEP: Final = 31
_GREASE_OFFSET: Final = 27


@dataclass(frozen=True)
class RoutedConnectionId:
    """The connection ID that leads to the data plane, and the token that resets it."""

    cid: bytes
    reset_token: bytes


class _NeverSpins(QuicConnection):
    """Stock aioquic toggles the spin bit, in the clear; a site's stays 0."""

    @property
    def _spin_bit(self) -> bool:
        return False

    @_spin_bit.setter
    def _spin_bit(self, value: bool) -> None:
        """Nothing changes it."""


class ServerConnection(_NeverSpins):
    """``handshake_cid`` is the source CID of the handshake, ``routed`` the one to be issued unless it is that one."""

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
        one_rtt_lengths: list[int],
        first_packet_number: int,
        random_bytes: Callable[[int], bytes],
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
            supported_versions=[QUIC_VERSION_1],
            certificate=b"made for each connection",  # stock insists on both
            private_key=b"made for each connection",
        )
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_cid,
            retry_source_connection_id=retry_source_cid,
        )
        self._client_hello = client_hello
        self._proof_key = proof_key
        self._flight = flight
        self._one_rtt_lengths = one_rtt_lengths
        self._random_bytes = random_bytes
        self._handshake_cid = handshake_cid
        self._host_cids[0] = QuicConnectionId(handshake_cid, 0, handshake_reset_token, was_sent=True)
        self.host_cid = handshake_cid
        self._local_initial_source_connection_id = handshake_cid
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = _MAX_STREAMS
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = _MAX_STREAMS
        self._local_active_connection_id_limit = ACTIVE_CONNECTION_ID_LIMIT
        self._packet_number = first_packet_number
        # A hello in shuffled pieces is no sign of loss, as stock takes it; set back once we have answered.
        self._crypto_retransmitted = True
        self._shaping: ShapedPacketBuilder | None = None
        self._stopped = False
        self.peer_parameters: QuicTransportParameters | None = None

    # --- set-up ---

    def _initialize(self, peer_cid: bytes) -> None:
        """Our own TLS in place of the stock one."""
        super()._initialize(peer_cid)
        context = ServerTlsContext(
            client_hello=self._client_hello,
            proof_key=self._proof_key,
            flight=self._flight,
            random_bytes=self._random_bytes,
        )
        context.handshake_extensions = self.tls.handshake_extensions
        context.alpn_cb = self.tls.alpn_cb
        context.update_traffic_key_cb = self.tls.update_traffic_key_cb
        self.tls = context

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

        push(_GREASE_OFFSET + _GREASE_STEP * (64 + self._random_bytes(1)[0]), b"")
        push(0x05, _MAX_STREAM_DATA)  # initial_max_stream_data_bidi_local
        push(0x06, _MAX_STREAM_DATA)  # initial_max_stream_data_bidi_remote
        push(0x07, _MAX_STREAM_DATA)  # initial_max_stream_data_uni
        push(0x04, _MAX_DATA)  # initial_max_data
        push(0x08, _MAX_STREAMS)  # initial_max_streams_bidi
        push(0x09, _MAX_STREAMS)  # initial_max_streams_uni
        push(0x01, IDLE_TIMEOUT_MS)  # max_idle_timeout
        push(0x03, _MAX_UDP_PAYLOAD)  # max_udp_payload_size
        push(0x0B, MAX_ACK_DELAY_MS)  # max_ack_delay
        push(0x02, self._host_cids[0].stateless_reset_token)  # stateless_reset_token
        push(0x00, self._original_destination_connection_id)  # original_destination_connection_id
        push(0x0E, ACTIVE_CONNECTION_ID_LIMIT)  # active_connection_id_limit
        push(0x0F, self._local_initial_source_connection_id)  # initial_source_connection_id
        if self._retry_source_connection_id is not None:
            push(0x10, self._retry_source_connection_id)  # retry_source_connection_id
        push(0x20, _MAX_DATAGRAM_FRAME)  # max_datagram_frame_size (RFC 9221)
        return buf.data

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        """Keep what the data plane wants to know; stock forgets some and misreads ack_delay_exponent."""
        super()._parse_transport_parameters(data, from_session_ticket)
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        self.peer_parameters = parameters
        if parameters.ack_delay_exponent is not None:
            self._remote_ack_delay_exponent = parameters.ack_delay_exponent

    # --- connection IDs ---

    def _replenish_connection_ids(self) -> None:
        """Nothing: the one connection ID there is to issue is the routed one, by ``issue``."""

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

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Short headers carry no length of their CID: take that of ours which they begin with."""
        if self._stopped:
            return
        if data and not data[0] & 0x80:
            for connection_id in self._host_cids:
                if data.startswith(connection_id.cid, 1):
                    self._configuration.connection_id_length = len(connection_id.cid)
                    break
        super().receive_datagram(data, addr, now)

    # --- what is sent ---

    def _shaped(self, builder: QuicPacketBuilder) -> ShapedPacketBuilder:
        """The builder that is used in place of the stock one of this ``datagrams_to_send``."""
        if self._shaping is None:
            self._shaping = ShapedPacketBuilder(
                one_rtt_lengths=self._one_rtt_lengths,
                host_cid=self._handshake_cid,
                is_client=False,
                max_datagram_size=self._max_datagram_size,
                packet_number=self._packet_number,
                peer_cid=self._peer_cid.cid,
                version=self._version,
            )
            self._shaping.max_flight_bytes = builder.max_flight_bytes
            self._shaping.max_total_bytes = builder.max_total_bytes
        return self._shaping

    def _write_handshake(self, builder: QuicPacketBuilder, epoch: tls.Epoch, now: float) -> None:
        super()._write_handshake(self._shaped(builder), epoch, now)

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        super()._write_application(self._shaped(builder), network_path, now)

    def _flush_builder(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, peer_cid: bytes, now: float
    ) -> list[tuple[bytes, Any]]:
        shaped, self._shaping = self._shaping, None
        sent = super()._flush_builder(shaped or builder, network_path, peer_cid, now)
        if sent and self._cryptos[tls.Epoch.HANDSHAKE].send.is_valid():
            self._crypto_retransmitted = False
        return sent

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        """ACK delays of long-header packets are 0 (RFC 9000 §13.2.1), and readable in Initials."""
        if not space.is_application_data:
            space.largest_received_time = now
        super()._write_ack_frame(builder, space, now)

    def _write_crypto_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> bool:
        """CRYPTO with lengths in their shortest form: Initials are readable, and stock always takes two bytes."""
        overhead = 3 + size_uint_var(stream.sender.next_offset)
        frame = stream.sender.get_frame(builder.remaining_flight_space - overhead)
        if frame is None:
            return False
        buf = builder.start_frame(
            QuicFrameType.CRYPTO,
            capacity=overhead,
            handler=stream.sender.on_data_delivery,
            handler_args=(frame.offset, frame.offset + len(frame.data), False),
        )
        buf.push_uint_var(frame.offset)
        buf.push_uint_var(len(frame.data))
        buf.push_bytes(frame.data)
        return True

    def _write_handshake_done_frame(self, builder: QuicPacketBuilder) -> None:
        """quic-go sends a token for the next connection along."""
        super()._write_handshake_done_frame(builder)
        buf = builder.start_frame(QuicFrameType.NEW_TOKEN, capacity=3 + _NEW_TOKEN_LENGTH)
        buf.push_uint_var(_NEW_TOKEN_LENGTH)
        buf.push_bytes(self._random_bytes(_NEW_TOKEN_LENGTH))

    def close(
        self,
        error_code: int = QuicErrorCode.NO_ERROR,
        frame_type: int | None = None,
        reason_phrase: str = "",
    ) -> None:
        """Stock's texts name it: none of them leaves."""
        super().close(error_code=error_code, frame_type=frame_type, reason_phrase="")

    # --- what the hand-over asks ---

    def everything_acknowledged(self) -> bool:
        """The handshake is complete, and nothing of ours waits to be sent or acknowledged."""
        if not self._handshake_confirmed or self._close_pending or self._state is not QuicConnectionState.CONNECTED:
            return False
        space = self._spaces[tls.Epoch.ONE_RTT]
        senders = [stream.sender for stream in self._streams.values()]
        senders.append(self._crypto_streams[tls.Epoch.ONE_RTT].sender)
        return (
            not space.ack_eliciting_in_flight
            and not self._handshake_done_pending
            and not self._probe_pending
            and not self._ping_pending
            and all(sender.buffer_is_empty and not sender.reset_pending for sender in senders)
        )

    def stop(self) -> None:
        """Never send again, not even a CLOSE, and forget the keys."""
        if self._stopped:
            return
        self._stopped = True
        self._set_state(QuicConnectionState.TERMINATED)
        for epoch in self._spaces:
            self._discard_epoch(epoch)
        self._close_at = self._loss_at = self._pacing_at = None

    def application_secrets(self) -> Secrets:
        """Of the current key epoch."""
        pair = self._cryptos[tls.Epoch.ONE_RTT]
        assert pair.send.secret is not None and pair.recv.secret is not None
        return Secrets(client=pair.recv.secret, server=pair.send.secret)

    @property
    def key_phase(self) -> int:
        return self._cryptos[tls.Epoch.ONE_RTT].key_phase

    @property
    def next_packet_number(self) -> int:
        return self._packet_number

    @property
    def peer_cid(self) -> bytes:
        return self._peer_cid.cid

    def send(self, now: float) -> list[bytes]:
        """``datagrams_to_send`` without addresses: there is one peer. Stock fails before the first datagram came."""
        if self._stopped or not self._network_paths:
            return []
        return [datagram for datagram, _ in self.datagrams_to_send(now)]

    def get_timer(self) -> float | None:
        """Stock compares with a time that there is none of before the first datagram and after ``stop``."""
        return None if self._close_at is None else super().get_timer()

    def handle_timer(self, now: float) -> None:
        if self._close_at is not None:
            super().handle_timer(now)
