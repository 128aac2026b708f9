"""The names of aioquic that QRE overrides or reads. A new aioquic that breaks one fails here, not in the field."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from aioquic import tls
from aioquic.h3 import connection as h3
from aioquic.quic import connection as quic
from aioquic.quic import crypto, packet, packet_builder, recovery, stream
from aioquic.quic.configuration import QuicConfiguration

from qre.quic.client.client_connection import ClientConnection
from qre.quic.client.client_tls import ClientTlsContext
from qre.quic.client.first_flight import BrowserPacketBuilder, BrowserRecovery
from qre.quic.client.http3 import BrowserHttp3
from qre.quic.connection import HandshakeConnection
from qre.quic.packet_builder import LateSealingBuilder, SitePacketBuilder
from qre.quic.server.connect_ip import SiteHttp3
from qre.quic.server.server_connection import ServerConnection
from qre.quic.server.server_tls import ServerTlsContext
from qre.quic.server.shadow_connection import ShadowConnection

PINNED = "1.7.2"

#: hook -> its parameters
OVERRIDDEN = {
    quic.QuicConnection._initialize: ["self", "peer_cid"],
    quic.QuicConnection._parse_transport_parameters: ["self", "data", "from_session_ticket"],
    quic.QuicConnection._serialize_transport_parameters: ["self"],
    quic.QuicConnection._replenish_connection_ids: ["self"],
    quic.QuicConnection._push_crypto_data: ["self"],
    quic.QuicConnection._send_probe: ["self"],
    quic.QuicConnection._write_stream_frame: ["self", "builder", "space", "stream", "max_offset"],
    quic.QuicConnection._write_handshake: ["self", "builder", "epoch", "now"],
    quic.QuicConnection._write_application: ["self", "builder", "network_path", "now"],
    quic.QuicConnection._write_ack_frame: ["self", "builder", "space", "now"],
    quic.QuicConnection._write_crypto_frame: ["self", "builder", "space", "stream"],
    quic.QuicConnection._write_ping_frame: ["self", "builder", "uids", "comment"],
    quic.QuicConnection._write_handshake_done_frame: ["self", "builder"],
    quic.QuicConnection._write_new_connection_id_frame: ["self", "builder", "connection_id"],
    quic.QuicConnection._payload_received: ["self", "context", "plain", "crypto_frame_required"],
    quic.QuicConnection._handle_new_connection_id_frame: ["self", "context", "frame_type", "buf"],
    quic.QuicConnection._handle_ack_frame: ["self", "context", "frame_type", "buf"],
    quic.QuicConnection._handle_crypto_frame: ["self", "context", "frame_type", "buf"],
    quic.QuicConnection._handle_stream_frame: ["self", "context", "frame_type", "buf"],
    quic.QuicConnection._handle_ping_frame: ["self", "context", "frame_type", "buf"],
    quic.QuicConnection.receive_datagram: ["self", "data", "addr", "now"],
    quic.QuicConnection.datagrams_to_send: ["self", "now"],
    quic.QuicConnection.get_timer: ["self"],
    quic.QuicConnection.handle_timer: ["self", "now"],
    packet_builder.QuicPacketBuilder.start_packet: ["self", "packet_type", "crypto"],
    packet_builder.QuicPacketBuilder._end_packet: ["self"],
    packet_builder.QuicPacketBuilder._flush_current_datagram: ["self"],
    packet_builder.QuicPacketBuilder.start_frame: ["self", "frame_type", "capacity", "handler", "handler_args"],
    tls.Context._client_send_hello: ["self", "output_buf"],
    tls.Context._client_handle_hello: ["self", "input_buf", "output_buf"],
    tls.Context._client_handle_certificate: ["self", "input_buf"],
    tls.Context._client_handle_certificate_verify: ["self", "input_buf"],
    tls.Context._client_handle_new_session_ticket: ["self", "input_buf"],
    tls.Context._handle_reassembled_message: ["self", "message_type", "input_buf", "output_buf"],
    tls.Context._server_handle_hello: ["self", "input_buf", "initial_buf", "handshake_buf"],
    tls.Context._server_handle_finished: ["self", "input_buf", "output_buf"],
    h3.H3Connection._init_connection: ["self"],
    h3.H3Connection._check_control_frame_type: ["self", "frame_type"],
    h3.H3Connection._check_request_or_push_frame_type: ["self", "frame_type", "stream"],
    h3.H3Connection._receive_stream_data_uni: ["self", "stream", "data", "stream_ended"],
    h3.H3Connection._handle_control_frame: ["self", "frame_type", "frame_data"],
    h3.H3Connection._encode_headers: ["self", "stream_id", "headers"],
    h3.H3Connection._decode_headers: ["self", "stream_id", "frame_data"],
    recovery.QuicPacketNumberWindow.__contains__: ["self", "packet_number"],
    recovery.QuicPacketRecovery.__init__: [
        "self",
        "congestion_control_algorithm",
        "initial_rtt",
        "max_datagram_size",
        "peer_completed_address_validation",
        "send_probe",
        "logger",
        "quic_logger",
    ],
    recovery.QuicPacketRecovery.reschedule_data: ["self", "now", "speed_up_handshake"],
}

#: what is called but not overridden
CALLED = {
    quic.QuicConnection._flush_builder: ["self", "builder", "network_path", "peer_cid", "now"],
    quic.QuicConnection._write_connection_close_frame: [
        "self",
        "builder",
        "epoch",
        "error_code",
        "frame_type",
        "reason_phrase",
    ],
    quic.QuicConnection._close_begin: ["self", "is_initiator", "now"],
    quic.QuicConnection._discard_epoch: ["self", "epoch"],
    quic.QuicConnection._on_ack_delivery: ["self", "delivery", "space", "highest_acked"],
    quic.QuicConnection._on_handshake_done_delivery: ["self", "delivery"],
    quic.QuicConnection._handshake_data_stranded: ["self"],
    quic.QuicConnection._set_state: ["self", "state"],
    tls.Context._check_certificate_verify_signature: ["self", "verify"],
    tls.Context._set_peer_certificate: ["self", "certificate"],
    tls.Context._set_state: ["self", "state"],
    tls.Context._setup_traffic_protection: ["self", "direction", "epoch", "label"],
    h3.H3Connection._create_uni_stream: ["self", "stream_type", "push_id"],
    h3.H3Connection._validate_settings: ["self", "settings"],
}

#: attributes of a fresh connection
ATTRIBUTES = [
    "_ack_delay",
    "_close_at",
    "_close_event",
    "_close_pending",
    "_configuration",
    "_crypto_retransmitted",
    "_cryptos",
    "_crypto_buffers",
    "_crypto_streams",
    "_handshake_complete",
    "_handshake_confirmed",
    "_handshake_done_pending",
    "_host_cids",
    "_host_cid_seq",
    "host_cid",
    "_local_active_connection_id_limit",
    "_local_initial_source_connection_id",
    "_local_max_streams_bidi",
    "_local_max_streams_uni",
    "_local_max_stream_data_uni",
    "_loss",
    "_loss_at",
    "_max_datagram_size",
    "_network_paths",
    "_original_destination_connection_id",
    "_pacing_at",
    "_packet_number",
    "_peer_cid",
    "_peer_token",
    "_ping_pending",
    "_probe_pending",
    "_remote_ack_delay_exponent",
    "_retire_connection_ids",
    "_spaces",
    "_spin_bit",
    "_state",
    "_streams",
]


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_aioquic_is_the_version_that_the_hooks_were_made_for() -> None:
    assert version("aioquic") == PINNED


@pytest.mark.parametrize(
    ("hook", "expected"),
    [*OVERRIDDEN.items(), *CALLED.items()],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_a_hook_has_the_parameters_that_it_is_used_with(hook: object, expected: list[str]) -> None:
    assert parameters(hook) == expected


@pytest.mark.parametrize(
    "kind",
    [
        HandshakeConnection,
        ClientConnection,
        ServerConnection,
        ShadowConnection,
        ClientTlsContext,
        ServerTlsContext,
        LateSealingBuilder,
        BrowserPacketBuilder,
        BrowserRecovery,
        SitePacketBuilder,
        BrowserHttp3,
        SiteHttp3,
    ],
)
def test_every_private_name_that_is_overridden_is_one_of_aioquics_or_new(kind: type) -> None:
    """An override whose base is gone would silently do nothing: those are all listed above."""
    base = next(cls for cls in kind.__mro__ if cls.__module__.startswith("aioquic."))
    listed = {hook.__name__ for hook in (*OVERRIDDEN, *CALLED)} | {"_spin_bit"}
    for name, value in vars(kind).items():
        if hasattr(base, name) and inspect.isfunction(value) and name.startswith("_") and not name.startswith("__"):
            assert name in listed, f"{kind.__name__}.{name} overrides a hook that is not listed"


def test_a_connection_has_the_attributes_that_are_set_or_read() -> None:
    connection = quic.QuicConnection(configuration=QuicConfiguration())
    assert [name for name in ATTRIBUTES if not hasattr(connection, name)] == []
    loss = connection._loss
    for name in ("congestion_window", "bytes_in_flight", "spaces", "_rtt_min", "_rtt_initialized"):
        assert hasattr(loss, name)
    assert hasattr(loss._pacer, "packet_time")
    space = recovery.QuicPacketSpace()
    for name in (
        "ack_at",
        "ack_eliciting_in_flight",
        "largest_acked_packet",
        "largest_received_time",
        "received_packets",
    ):
        assert hasattr(space, name)
    a_stream = stream.QuicStream()
    assert hasattr(a_stream.sender, "buffer_is_empty")
    assert hasattr(a_stream.sender, "reset_pending")
    assert a_stream.receiver.starting_offset() == a_stream.receiver.highest_offset == 0


def test_a_builder_has_the_attributes_that_are_set_or_read() -> None:
    builder = packet_builder.QuicPacketBuilder(
        host_cid=b"", peer_cid=bytes(8), version=1, is_client=True, max_datagram_size=1250
    )
    for name in [
        "_buffer",
        "_buffer_capacity",
        "_datagrams",
        "_datagram_flight_bytes",
        "_datagram_init",
        "_datagram_needs_padding",
        "_flight_bytes",
        "_header_size",
        "_host_cid",
        "_packet",
        "_packet_crypto",
        "_packet_number",
        "_packet_start",
        "_packets",
        "_peer_cid",
        "_peer_token",
        "_total_bytes",
        "_version",
        "max_flight_bytes",
        "max_total_bytes",
    ]:
        assert hasattr(builder, name), name
    assert packet_builder.PACKET_NUMBER_SEND_SIZE == 2


def test_tls_has_the_attributes_that_are_set_or_read() -> None:
    context = tls.Context(is_client=True)
    for name in [
        "_cipher_suites",
        "_key_schedule_proxy",
        "_peer_certificate",
        "_peer_certificate_chain",
        "_signature_algorithms",
        "_supported_versions",
        "alpn_cb",
        "alpn_negotiated",
        "client_random",
        "handshake_extensions",
        "key_schedule",
        "legacy_session_id",
        "received_extensions",
        "state",
        "update_traffic_key_cb",
    ]:
        assert hasattr(context, name), name


def test_http3_has_the_attributes_that_are_set_or_read() -> None:
    http = h3.H3Connection(quic.QuicConnection(configuration=QuicConfiguration()))
    for name in [
        "_blocked_streams",
        "_decoder",
        "_encoder",
        "_local_control_stream_id",
        "_local_decoder_stream_id",
        "_local_encoder_stream_id",
        "_max_push_id",
        "_max_table_capacity",
        "_received_settings",
        "_sent_settings",
        "_settings_received",
    ]:
        assert hasattr(http, name), name


def test_keys_and_key_phase_are_where_the_hand_over_looks() -> None:
    pair = crypto.CryptoPair()
    assert pair.key_phase == 0
    assert pair.send.secret is None
    assert pair.recv.secret is None
    assert "stateless_reset_token" in packet.QuicTransportParameters.__dataclass_fields__


def test_the_frame_table_calls_methods_that_a_subclass_may_replace() -> None:
    seen: list[int] = []

    class Probe(quic.QuicConnection):
        def _handle_ping_frame(self, context: object, frame_type: int, buf: object) -> None:
            seen.append(frame_type)

    connection = Probe(configuration=QuicConfiguration())
    context = quic.QuicReceiveContext(tls.Epoch.ONE_RTT, b"", quic.QuicNetworkPath(("", 0)), None, 0.0, 1)
    connection._payload_received(context, b"\x01")
    assert seen == [1]


def test_stock_still_toggles_what_is_held_at_zero() -> None:
    """If stock stops doing this, the override can go."""
    assert isinstance(quic.QuicConnection(configuration=QuicConfiguration())._spin_bit, bool)
    assert isinstance(HandshakeConnection._spin_bit, property)
