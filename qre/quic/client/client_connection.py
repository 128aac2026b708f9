"""A client's QUIC connection that looks like a browser's: aioquic's, by subclassing.

Zero-length source connection ID, one ClientHello whatever happens, packets as ``first_flight`` builds them. On the
wire the client keeps the server's handshake CID until the hand-over: a routed CID that arrives is kept for the data
plane, not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Final, TextIO

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicNetworkPath, QuicReceiveContext
from aioquic.quic.packet import (
    CONNECTION_ID_MAX_SIZE,
    STATELESS_RESET_TOKEN_SIZE,
    QuicFrameType,
    QuicPacketType,
    QuicTransportParameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from qre.addresses import Interface
from qre.quic import bounds
from qre.quic.browser_frames import has_data, has_frames, write_parting, write_stream
from qre.quic.client.acknowledgements import Acknowledging
from qre.quic.client.client_tls import ClientTlsContext, Peer
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.first_flight import BrowserPacketBuilder, BrowserRecovery, HelloFlight
from qre.quic.client.hello import OfferedHello
from qre.quic.client.trust import TrustStore
from qre.quic.connection import HandshakeConnection
from qre.quic.handed_over import HandedOver, limits_of, session_id
from qre.wire.close_reason import BROWSER_CLOSE_PADDING
from qre.wire.packet import SHORTEST_DEST_CID
from qre.wire.protection import derive

QUIC_VERSION_1: Final = 1
#: Datagrams that cannot be opened yet are kept and tried again, as in browsers: at most this many.
MAX_EARLY_DATAGRAMS: Final = 10
#: RFC 9000 §18.2, default of active_connection_id_limit: the hello does not raise it.
ACTIVE_CONNECTION_ID_LIMIT: Final = 2
#: One-byte packet numbers while at most this many are not acknowledged (RFC 9000 §17.1 allows twice as many).
_ONE_BYTE_WINDOW: Final = 64
#: RFC 9000 §2.1: the client's first bidirectional stream.
_FIRST_REQUEST: Final = 0


@dataclass(frozen=True)
class RoutedCid:
    """The connection ID of the server's data plane, its reset token, and the sequence number that it replaces."""

    cid: bytes
    reset_token: bytes | None
    retire_sequence: int | None


def _configuration(fingerprint: Fingerprint, server_name: str, key_log: TextIO | None) -> QuicConfiguration:
    """What stock takes as a configuration of the browser's behaviour."""
    parameters = fingerprint.transport_parameters
    return QuicConfiguration(
        alpn_protocols=list(fingerprint.hello.alpn),
        connection_id_length=0,
        idle_timeout=parameters.max_idle_timeout / 1000,
        initial_rtt=fingerprint.patience.first_timeout_ms / 2000,  # the first timeout takes two of them
        is_client=True,
        max_data=parameters.initial_max_data,
        max_datagram_frame_size=parameters.max_datagram_frame_size,
        max_datagram_size=fingerprint.datagram_length,
        max_stream_data=parameters.initial_max_stream_data_bidi_local,
        secrets_log_file=key_log,
        server_name=server_name,
        supported_versions=[QUIC_VERSION_1],
    )


class ClientConnection(HandshakeConnection):
    """``hello`` was made for this connection; TLS decides who the peer is (``context``)."""

    def __init__(
        self,
        *,
        hello: OfferedHello,
        fingerprint: Fingerprint,
        server_name: str,
        trust: TrustStore,
        unix_time: int,
        random: Random,
        key_log: TextIO | None = None,
    ) -> None:
        parameters = fingerprint.transport_parameters
        super().__init__(
            configuration=_configuration(fingerprint, server_name, key_log),
            bounds=bounds.CLIENT,
        )
        self._loss = self._new_recovery()
        # Stock gives both connection IDs one length.
        self._peer_cid.cid = random.randbytes(fingerprint.destination_cid_length)
        self._original_destination_connection_id = self._peer_cid.cid
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = parameters.initial_max_streams_bidi
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = parameters.initial_max_streams_uni
        self._local_max_stream_data_uni = parameters.initial_max_stream_data_uni
        self._local_active_connection_id_limit = ACTIVE_CONNECTION_ID_LIMIT
        self._first_packet_number = fingerprint.first_packet_number
        self._packet_number = self._first_packet_number
        self._crypto_retransmitted = True  # stock would answer a reordered flight with its whole hello again
        self._hello = hello
        self._fingerprint = fingerprint
        self._trust = trust
        self._unix_time = unix_time
        self._random = random
        self._flight = HelloFlight(b"", fingerprint.chaos, random)
        self._timed_out = False  # what is sent next is for a timeout
        #: The reason phrase of a CLOSE before 1-RTT, when a browser has one.
        self.parting = b""
        #: When a packet of the peer's was last read; None: never.
        self.heard_at: float | None = None
        self._early: list[tuple[bytes, Any]] = []
        self._acknowledging = Acknowledging(fingerprint.acknowledgements)
        self._ecn = 0  # of the datagram that is being read
        #: The routed CID of NEW_CONNECTION_ID, if one came from a proven server.
        self.routed: RoutedCid | None = None
        #: PINGs of a proven server in 1-RTT packets: it sends them only as the last frame of a hand-over.
        self.pings = 0
        #: 1-RTT packets that have to be acknowledged, received so far.
        self.eliciting_packets = 0
        self._moment = 0.0  # of the last datagram or timer: what is due since then goes together

    @property
    def context(self) -> ClientTlsContext | None:
        """The TLS context; None before ``connect``."""
        context = getattr(self, "tls", None)
        return context if isinstance(context, ClientTlsContext) else None

    @property
    def proven(self) -> bool:
        """Whether the handshake is complete and the peer's certificate carries the server's proof."""
        context = self.context
        return self._handshake_complete and context is not None and context.peer is Peer.PROVEN

    # --- set-up ---

    def _new_recovery(self) -> BrowserRecovery:
        return BrowserRecovery(
            repeat_hello=self._repeat_hello,
            congestion_control_algorithm=self._configuration.congestion_control_algorithm,
            initial_rtt=self._configuration.initial_rtt,
            max_datagram_size=self._max_datagram_size,
            peer_completed_address_validation=False,
            send_probe=self._send_probe,
            logger=self._logger,
        )

    def _initialize(self, peer_cid: bytes) -> None:
        """Our TLS in place of the stock one; called again after a Retry, with the same hello."""
        super()._initialize(peer_cid)
        context = ClientTlsContext(
            hello=self._hello,
            fingerprint=self._fingerprint,
            server_name=self._configuration.server_name or "",
            trust=self._trust,
            unix_time=self._unix_time,
        )
        context.alpn_cb = self.tls.alpn_cb
        context.update_traffic_key_cb = self.tls.update_traffic_key_cb
        self.tls = context

    def _serialize_transport_parameters(self) -> bytes:
        """The parameters of the hello: stock's order and set identify aioquic."""
        return self._hello.transport_parameters

    def _push_crypto_data(self) -> None:
        """Send the hello in pieces; stock sends it in order. Everything else stays stock."""
        hello = self._crypto_buffers[tls.Epoch.INITIAL]
        if hello.tell():
            self._flight = HelloFlight(hello.data, self._fingerprint.chaos, self._random)
            hello.seek(0)
        super()._push_crypto_data()

    # --- when nothing answers ---

    def _repeat_hello(self) -> bool:
        return not self._cryptos[tls.Epoch.HANDSHAKE].send.is_valid() and self._flight.repeat()

    def _send_probe(self) -> None:
        """A browser's packet for a timeout comes after a number that is not used."""
        super()._send_probe()
        if not self._timed_out:
            self._timed_out = True
            self._packet_number += 1

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """As its base; a timeout's packets are sent once."""
        sent = super().datagrams_to_send(now)
        self._timed_out = False
        return sent

    def handle_timer(self, now: float) -> None:
        """As its base."""
        self._moment = now
        super().handle_timer(now)

    # --- what goes out ---

    def _new_builder(self) -> QuicPacketBuilder:
        return BrowserPacketBuilder(
            number_length=self._number_length,
            host_cid=self.host_cid,
            max_datagram_size=self._max_datagram_size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            peer_token=self._peer_token,
            version=QUIC_VERSION_1,
        )

    def _write_connection_close_frame(
        self,
        builder: QuicPacketBuilder,
        epoch: tls.Epoch,
        error_code: int,
        frame_type: int | None,
        reason_phrase: str,
    ) -> None:
        """In 1-RTT with PADDING up to the length of a browser's, which has a reason phrase."""
        if self.parting and epoch is not tls.Epoch.ONE_RTT:
            write_parting(builder, self.parting)
            return
        super()._write_connection_close_frame(builder, epoch, error_code, frame_type, reason_phrase)
        if epoch is tls.Epoch.ONE_RTT:
            buf = builder.start_frame(QuicFrameType.PADDING, capacity=BROWSER_CLOSE_PADDING)
            buf.push_bytes(bytes(BROWSER_CLOSE_PADDING - 1))

    def _number_length(self, packet: QuicSentPacket) -> int:
        """The browser's choice: one byte for the very first and after timeouts, two until something is acknowledged,
        then one."""
        if packet.packet_number == self._first_packet_number or self._timed_out:
            return 1
        if not any(space.largest_acked_packet for space in self._spaces.values()):
            return 2
        behind = packet.packet_number - self._spaces[packet.epoch].largest_acked_packet
        return 1 if behind <= _ONE_BYTE_WINDOW else 2

    def _write_handshake(self, builder: QuicPacketBuilder, epoch: tls.Epoch, now: float) -> None:
        """Initials carry the hello in pieces. What a datagram causes is coalesced: the ACKs that are due, Finished.
        But an ACK of Handshake packets that is due goes before Finished, which takes along one that is not."""
        assert isinstance(builder, BrowserPacketBuilder)
        crypto = self._cryptos[epoch]
        if not crypto.send.is_valid():
            return
        if epoch is tls.Epoch.INITIAL:
            self._write_initials(builder, now)
            return
        space, sender = self._spaces[epoch], self._crypto_streams[epoch].sender
        due = self._acknowledgement_due(space)
        if not due and sender.buffer_is_empty and not self._probe_pending:
            return
        if due and not sender.buffer_is_empty and not sender.highest_offset:
            builder.start_packet(QuicPacketType.HANDSHAKE, crypto)
            self._write_ack_frame(builder, space, now)
            builder.end_datagram()
        super()._write_handshake(builder, epoch, now)

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """What is said takes along the ACK that waits."""
        space = self._spaces[tls.Epoch.ONE_RTT]
        if space.ack_at is not None and any(map(has_data, self._streams_queue)):
            space.ack_at = now
        super()._write_application(builder, network_path, now)

    def _write_initials(self, builder: BrowserPacketBuilder, now: float) -> None:
        """The hello, or a probe, has a datagram of its own; an ACK alone may be followed by Handshake packets."""
        space = self._spaces[tls.Epoch.INITIAL]
        while self._acknowledgement_due(space) or self._flight.pending or self._initial_probe_pending():
            builder.start_packet(QuicPacketType.INITIAL, self._cryptos[tls.Epoch.INITIAL])
            if space.ack_at is not None:
                self._write_ack_frame(builder, space, now)
            if self._flight.pending:
                self._flight.write(builder)
            elif self._initial_probe_pending():
                self._write_ping_frame(builder)
            else:
                continue
            self._probe_pending = False
            builder.end_datagram()

    def _acknowledgement_due(self, space: QuicPacketSpace) -> bool:
        """Of Initial and Handshake packets: reading a datagram takes a while, in which no further ACK becomes due."""
        return space.ack_at is not None and space.ack_at <= self._moment

    def _initial_probe_pending(self) -> bool:
        return self._probe_pending and not self._cryptos[tls.Epoch.HANDSHAKE].send.is_valid()

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: Any, now: float) -> None:
        self._acknowledging.write(builder, space, now, self._on_ack_delivery)
        self._acknowledging.sent(next(epoch for epoch, each in self._spaces.items() if each is space))

    def _write_stream_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream, max_offset: int
    ) -> int:
        """As a browser encodes it."""
        last = not builder._datagram_needs_padding and all(
            other is stream or not has_frames(other) for other in self._streams_queue
        )
        return write_stream(builder, stream, max_offset, last=last)

    # --- what comes in ---

    def receive_marked(self, data: bytes, addr: Any, now: float, ecn: int) -> None:
        """``receive_datagram`` of one that came with this ECN codepoint."""
        self._ecn = ecn
        self.receive_datagram(data, addr, now)

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Keep packets that arrive before their keys; stock drops them."""
        self._moment = now
        keys = self._keys()
        super().receive_datagram(data, addr, now)
        if not all(self._keys()) and len(self._early) < MAX_EARLY_DATAGRAMS:
            self._early.append((data, addr))
        while self._keys() != keys:
            keys = self._keys()
            for datagram, source in list(self._early):
                super().receive_datagram(datagram, source, now)
        if all(keys):
            self._early.clear()
        for space in self._spaces.values():
            self._acknowledging.gaps(space, now)

    def _keys(self) -> tuple[bool, bool]:
        """Whether Handshake and 1-RTT packets can be opened."""
        if not self._cryptos:
            return False, False
        return (
            self._cryptos[tls.Epoch.HANDSHAKE].recv.is_valid() or self._handshake_complete,
            self._cryptos[tls.Epoch.ONE_RTT].recv.is_valid(),
        )

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        """Acknowledge as a browser does."""
        self.heard_at = context.time
        result = super()._payload_received(context, plain, crypto_frame_required)
        application = context.epoch is tls.Epoch.ONE_RTT
        if application:
            self._acknowledging.marked(self._ecn)
        if result[0]:
            self.eliciting_packets += application
            space = self._spaces[context.epoch]
            self._acknowledging.wants(context.epoch, space, self.round_trip, context.time)
        return result

    def _handle_ping_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Count them; stock does nothing."""
        super()._handle_ping_frame(context, frame_type, buf)
        if context.epoch is tls.Epoch.ONE_RTT and self.proven:
            self.pings += 1

    def _handle_new_connection_id_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """A proven server's frame has the routed CID: keep it for the data plane. Stock would switch to it at
        once."""
        start = buf.tell()
        sequence = buf.pull_uint_var()
        retire_prior_to = buf.pull_uint_var()
        cid = buf.pull_bytes(buf.pull_uint8())
        token = buf.pull_bytes(STATELESS_RESET_TOKEN_SIZE)
        if (
            self.proven
            and sequence == retire_prior_to == 1
            and SHORTEST_DEST_CID <= len(cid) <= CONNECTION_ID_MAX_SIZE
        ):
            self.routed = RoutedCid(cid, token, retire_sequence=0)
            return
        buf.seek(start)
        super()._handle_new_connection_id_frame(context, frame_type, buf)

    @property
    def flight_progress(self) -> int:
        """Grows with every Initial or Handshake packet that brings something new of the server's flight."""
        receivers = [self._crypto_streams[epoch].receiver for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE)]
        return sum(receiver.starting_offset() + receiver.highest_offset for receiver in receivers)

    @property
    def handshake_complete(self) -> bool:
        """Whether Finished of both ends is made (RFC 9001 §4.1.1)."""
        return self._handshake_complete

    @property
    def application_progress(self) -> int:
        """Grows with every 1-RTT packet that brings something new in CRYPTO or STREAM frames."""
        receivers = [stream.receiver for stream in self._streams.values()]
        receivers.append(self._crypto_streams[tls.Epoch.ONE_RTT].receiver)
        return sum(receiver.starting_offset() + receiver.highest_offset for receiver in receivers)

    @property
    def answer_begun(self) -> bool:
        """Whether the server has sent something on the stream of the first request."""
        stream = self._streams.get(_FIRST_REQUEST)
        return stream is not None and stream.receiver.highest_offset > 0

    @property
    def handshake_flight_length(self) -> int:
        """CRYPTO bytes of the server's Handshake packets, read so far."""
        return self._crypto_streams[tls.Epoch.HANDSHAKE].receiver.starting_offset()

    @property
    def retried(self) -> bool:
        """Whether the server answered the first hello with a Retry."""
        return bool(self._retry_count)

    @property
    def acknowledgement_pending(self) -> bool:
        """Whether an ACK for a 1-RTT packet is to be sent."""
        return self._spaces[tls.Epoch.ONE_RTT].ack_at is not None

    def hand_over(
        self,
        routed: RoutedCid,
        peer: QuicTransportParameters,
        addresses: tuple[Interface, ...],
        short_id: bytes,
    ) -> HandedOver:
        """What the data plane needs of this connection, whose server has these parameters."""
        secrets = self.application_secrets()
        return HandedOver(
            session_id=session_id(secrets.client),
            routed_cid=routed.cid,
            client_cid=b"",
            tx_secret=secrets.client,
            rx_secret=secrets.server,
            tx_hp_key=derive(secrets.client).hp,
            rx_hp_key=derive(secrets.server).hp,
            key_epoch=0,
            **limits_of(peer),
            reset_token=routed.reset_token,
            addresses=addresses,
            short_id=short_id,
            retire_sequence=routed.retire_sequence,
            next_packet_number=self.next_packet_number,
        )

    def handshake_cid(self) -> RoutedCid:
        """The server's own CID of the handshake, as a routed CID."""
        return RoutedCid(self._peer_cid.cid, self._peer_cid.stateless_reset_token or None, retire_sequence=None)
