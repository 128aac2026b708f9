"""What both ends change in aioquic's QuicConnection (1.7.2), by subclassing alone.

Every override names the hook and says why it is needed; ``tests/unit/test_quic_hooks.py`` fails when a new aioquic no
longer has one. It must never allow: a packet number at or above ``PACKET_NUMBER_BASE``, a reason phrase or a
spin bit on the wire, a datagram after ``stop()``, another exception than QreError out of a datagram.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer, size_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    END_STATES,
    QuicConnection,
    QuicConnectionAdapter,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicTransportParameters,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.recovery import QuicPacketNumberWindow, QuicPacketSpace
from aioquic.quic.stream import QuicStream

from qre.errors import PeerError, QreError, UntrustedInputError
from qre.quic.bounds import MAX_GAPS, Bound, Bounds, OverBoundError
from qre.quic.handed_over import Secrets
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.packet import PacketType, is_short, packets_untrusted

_ONE_RTT = tls.Epoch.ONE_RTT
_CRYPTO_ERROR = int(QuicErrorCode.CRYPTO_ERROR)

#: aioquic logs peers' texts without a bound; relevant facts are reported as events. This logger belongs to this
#: module alone: those of the process are not changed.
_SILENT = logging.Logger("qre.quic")
_SILENT.disabled = True


@dataclass(frozen=True)
class Ending:
    """Why a connection ends. ``reason`` is aioquic's or the peer's text: never send or trust it."""

    by_us: bool
    error_code: int
    reason: str
    by_application: bool = False

    @property
    def alert(self) -> int | None:
        """The TLS alert that it stands for (RFC 9001 §4.8)."""
        is_alert = not self.by_application and _CRYPTO_ERROR <= self.error_code < _CRYPTO_ERROR + 0x100
        return self.error_code - _CRYPTO_ERROR if is_alert else None


class _UserSpaceNumbers(QuicPacketNumberWindow):
    """Packets of the peer's data plane are dropped like duplicates: only our data plane may acknowledge them."""

    def __contains__(self, packet_number: int) -> bool:
        return packet_number >= PACKET_NUMBER_BASE or super().__contains__(packet_number)


def _is_unnamed_untrusted(parameters: bytes) -> bool:
    try:
        return pull_quic_transport_parameters(Buffer(data=parameters)).initial_source_connection_id == b""
    except ValueError:  # stock says what is wrong
        return False


class HandshakeConnection(QuicConnection):
    """A connection that lives until it is handed over: one peer address, no migration, silent after ``stop()``.

    A subclass says with ``_new_builder`` how its packets look.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        bounds: Bounds,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._logger = QuicConnectionAdapter(_SILENT, {"id": ""})
        self._loss._logger = self._logger
        self._stopped = False
        self._bounds = bounds
        self._packets_received = 0
        self._initials_received = 0  # after the hello
        #: How many of them were not read.
        self.initials_left_out = 0
        self._crypto_received = 0  # bytes of CRYPTO frames after the hellos
        self.peer_parameters: QuicTransportParameters | None = None
        self._peer_is_unnamed = False
        #: Bytes of the ACK frames of all 1-RTT packets so far.
        self.acknowledgement_bytes = 0

    @property
    def proven(self) -> bool:
        """Whether the handshake is complete, and the peer a server of ours."""
        return False

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._spaces[_ONE_RTT].received_packets = _UserSpaceNumbers()

    # --- spin bit: stock toggles it, in the clear; browsers and sites leave it 0 ---

    @property
    def _spin_bit(self) -> bool:
        return False

    @_spin_bit.setter
    def _spin_bit(self, value: bool) -> None:
        """Always 0: writes are ignored."""

    # --- what comes in ---

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Stock assumes one length for all our connection IDs, and lets some exceptions escape."""
        if self._stopped:
            return
        if is_short(data):
            self._choose_cid_length(data)
        elif self._cryptos and self._hello_is_read():
            data = self._less_initials(data)
        self._guarded(lambda: super(HandshakeConnection, self).receive_datagram(data, addr, now))

    def _less_initials(self, data: bytes) -> bytes:
        """Whoever sees a hello can make Initials without end (RFC 9001 §5.2): what an end sends beside them is read,
        and of them a number."""
        kept, before = [], self.initials_left_out
        try:
            for header in packets_untrusted(data, short_cid_length=0):
                self._initials_received += header.type is PacketType.INITIAL
                if header.type is PacketType.INITIAL and self._initials_received > self._bounds.initials:
                    self.initials_left_out += 1
                else:
                    kept.append(data[header.start : header.end])
        except UntrustedInputError:
            return b""
        return data if self.initials_left_out == before else b"".join(kept)

    def _choose_cid_length(self, data: bytes) -> None:
        """Short headers do not contain the length of their CID: find the one of ours that they begin with."""
        for connection_id in self._host_cids:
            if data.startswith(connection_id.cid, 1):
                self._configuration.connection_id_length = len(connection_id.cid)
                return

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except QreError:
            raise
        except Exception as error:  # a peer's bytes caused it, so it must end here
            raise PeerError("QUIC", f"{type(error).__name__} while reading a datagram") from error

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        """Stock answers packets without end."""
        self._packets_received += context.epoch is not tls.Epoch.INITIAL  # those: see ``_less_initials``
        if self._packets_received > self._bounds.packets:
            raise OverBoundError(Bound.PACKETS)
        return super()._payload_received(context, plain, crypto_frame_required)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Initials say nothing once the hello is read."""
        if context.epoch is tls.Epoch.INITIAL and self._hello_is_read():
            buf.pull_uint_var()
            buf.pull_bytes(buf.pull_uint_var())
            return
        before = buf.tell()
        super()._handle_crypto_frame(context, frame_type, buf)
        self._crypto_received += buf.tell() - before
        if self._crypto_received > self._bounds.crypto:
            raise OverBoundError(Bound.CRYPTO)
        self._check_gaps(self._crypto_streams[context.epoch])
        if self._peer_is_unnamed and self._handshake_complete and not self.proven:  # RFC 9000 §7.3
            raise QuicConnectionError(
                error_code=QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                frame_type=QuicFrameType.CRYPTO,
                reason_phrase="initial_source_connection_id does not match",
            )

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Stock does not tell how long they are."""
        before = buf.tell() - size_uint_var(frame_type)
        super()._handle_ack_frame(context, frame_type, buf)
        self.acknowledgement_bytes += (buf.tell() - before) * (context.epoch is _ONE_RTT)

    def _hello_is_read(self) -> bool:
        """Whether TLS has the peer's whole hello."""
        return self._cryptos[tls.Epoch.HANDSHAKE].send.is_valid()

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Stock bounds what is outstanding and nothing else."""
        at = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(at)
        super()._handle_stream_frame(context, frame_type, buf)
        if self._local_max_data.used > self._bounds.streams:
            raise OverBoundError(Bound.STREAMS)
        self._check_gaps(self._streams.get(stream_id))

    @staticmethod
    def _check_gaps(stream: QuicStream | None) -> None:
        if stream is not None and len(stream.receiver._ranges) > MAX_GAPS:
            raise OverBoundError(Bound.GAPS)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        """Keep the parameters that the data plane needs; stock does not.

        A QRE server makes its flight before it knows its connection ID: initial_source_connection_id is empty. What
        binds the ID are the Handshake packets: they are sealed with it, and none with another is taken (RFC 9000
        §7.2)."""
        known = self._remote_initial_source_connection_id
        if known and not from_session_ticket and _is_unnamed_untrusted(data):
            self._peer_is_unnamed = True
            self._remote_initial_source_connection_id = b""
        try:
            super()._parse_transport_parameters(data, from_session_ticket)
        finally:
            self._remote_initial_source_connection_id = known
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        self.peer_parameters = parameters
        if parameters.ack_delay_exponent is not None:
            self._remote_ack_delay_exponent = parameters.ack_delay_exponent

    def _replenish_connection_ids(self) -> None:
        """Issue none, where stock issues eight: a client's are empty, a server issues the routed one later."""

    # --- what goes out ---

    def _new_builder(self) -> QuicPacketBuilder:
        """Stock's is a global of its module, so ``datagrams_to_send`` below asks here."""
        raise NotImplementedError

    def send(self, now: float) -> list[bytes]:
        """``datagrams_to_send`` without addresses, for the only peer."""
        return [datagram for datagram, _ in self.datagrams_to_send(now)]

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """As stock, with our builder, before any datagram came, and without probes of other paths."""
        if self._stopped or not self._network_paths or self._state in END_STATES:
            return []
        path = self._network_paths[0]
        builder = self._new_builder()
        if self._close_pending:
            self._write_close(builder, now)
        else:
            self._write_packets(builder, path, now)
        return self._flush_builder(builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now)

    def _write_packets(self, builder: QuicPacketBuilder, path: QuicNetworkPath, now: float) -> None:
        self._pacing_at = None
        builder.max_flight_bytes = self._loss.congestion_window - self._loss.bytes_in_flight
        if self._probe_pending or self._handshake_data_stranded():  # RFC 9002 §7: probes may exceed the window
            builder.max_flight_bytes = max(builder.max_flight_bytes, self._max_datagram_size)
        if not path.is_validated:
            builder.max_total_bytes = path.bytes_received * 3 - path.bytes_sent
        try:
            if not self._handshake_confirmed:
                self._write_handshake(builder, tls.Epoch.INITIAL, now)
                self._write_handshake(builder, tls.Epoch.HANDSHAKE, now)
            self._write_application(builder, path, now)
        except QuicPacketBuilderStop:
            pass  # what did not fit goes with the next datagrams

    def _write_close(self, builder: QuicPacketBuilder, now: float) -> None:
        """CONNECTION_CLOSE in every packet type that the peer may be able to open (RFC 9000 §10.2.3).

        Without the reason, which names stock aioquic; it stays in the event.
        """
        assert self._close_event is not None
        try:
            for epoch, packet_type in self._kinds_of_close():
                if self._cryptos[epoch].send.is_valid():
                    builder.start_packet(packet_type, self._cryptos[epoch])
                    self._write_connection_close_frame(
                        builder=builder,
                        epoch=epoch,
                        error_code=self._close_event.error_code,
                        frame_type=self._close_event.frame_type,
                        reason_phrase="",
                    )
        except QuicPacketBuilderStop:
            pass  # no room for the last of them: the peer has the others
        self._close_pending = False
        self._close_begin(is_initiator=True, now=now)

    def _kinds_of_close(self) -> list[tuple[tls.Epoch, QuicPacketType]]:
        kinds = [(_ONE_RTT, QuicPacketType.ONE_RTT)]
        if not self._handshake_confirmed:
            kinds[:0] = [
                (tls.Epoch.INITIAL, QuicPacketType.INITIAL),
                (tls.Epoch.HANDSHAKE, QuicPacketType.HANDSHAKE),
            ]
        return kinds

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        """ACK delays of Initial and Handshake packets are 0 (RFC 9000 §13.2.1), and readable in Initials."""
        if not space.is_application_data:
            space.largest_received_time = now
        super()._write_ack_frame(builder, space, now)

    def _write_crypto_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> bool:
        """CRYPTO with lengths in their shortest form: stock always takes two bytes."""
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

    # --- timers: stock compares with times that are not there before the first datagram and after the end ---

    def get_timer(self) -> float | None:
        """aioquic's timer (seconds, monotonic); None after ``stop()``."""
        return None if self._close_at is None else super().get_timer()

    def handle_timer(self, now: float) -> None:
        """As aioquic's, of a timer that is worked out anew: what has come meanwhile may have moved it. Does nothing
        after ``stop()``."""
        if self._close_at is not None:
            self.get_timer()
            self._guarded(lambda: super(HandshakeConnection, self).handle_timer(now))

    # --- what the hand-over asks ---

    @property
    def handshake_confirmed(self) -> bool:
        """RFC 9001 §4.1.2."""
        return self._handshake_confirmed

    def everything_acknowledged(self) -> bool:
        """Whether the handshake is confirmed and none of our data waits to be sent or acknowledged."""
        if not self._handshake_confirmed or self._close_pending or self._state is not QuicConnectionState.CONNECTED:
            return False
        senders = [stream.sender for stream in self._streams.values()]
        senders.append(self._crypto_streams[_ONE_RTT].sender)
        return (
            not self._data_in_flight()
            and not self._handshake_done_pending
            and not self._probe_pending
            and not self._ping_pending
            and not self._retire_connection_ids
            and not any(len(sender._pending) or sender._pending_eof or sender.reset_pending for sender in senders)
        )

    def _data_in_flight(self) -> bool:
        """Whether a 1-RTT packet with something to say is neither acknowledged nor lost."""
        return bool(self._spaces[_ONE_RTT].ack_eliciting_in_flight)

    def application_secrets(self) -> Secrets:
        """The secrets of the current key epoch."""
        pair = self._cryptos[_ONE_RTT]
        assert pair.send.secret is not None and pair.recv.secret is not None
        if self._is_client:
            return Secrets(client=pair.send.secret, server=pair.recv.secret)
        return Secrets(client=pair.recv.secret, server=pair.send.secret)

    @property
    def key_phase(self) -> int:
        """The key phase bit of 1-RTT packets sent now, 0 or 1 (RFC 9001 §6)."""
        return self._cryptos[_ONE_RTT].key_phase

    @property
    def next_packet_number(self) -> int:
        """aioquic counts all packet number spaces together."""
        return self._packet_number

    @property
    def peer_cid(self) -> bytes:
        """The destination connection ID of packets sent now."""
        return self._peer_cid.cid

    @property
    def ended(self) -> bool:
        """Whether the connection is closing, draining or terminated."""
        return self._state in END_STATES or self._close_pending

    @property
    def ending(self) -> Ending | None:
        """Why it ended or wants to send CONNECTION_CLOSE; None before."""
        if self._close_event is None:
            return None
        event = self._close_event
        by_us = self._state is not QuicConnectionState.DRAINING
        return Ending(by_us, event.error_code, event.reason_phrase, by_application=event.frame_type is None)

    @property
    def round_trip(self) -> float:
        """The shortest round trip so far, in seconds; 0 before there was one."""
        return self._loss._rtt_min if self._loss._rtt_initialized else 0.0

    def stop(self) -> None:
        """Never send again, not even a CLOSE, and forget the keys."""
        if self._stopped:
            return
        self._stopped = True
        self._set_state(QuicConnectionState.TERMINATED)
        for epoch in self._spaces:
            self._discard_epoch(epoch)
        self._close_at = self._loss_at = self._pacing_at = None
