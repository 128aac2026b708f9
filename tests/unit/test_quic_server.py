"""The server's handshake against a fake client, in memory, under a virtual clock."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from ipaddress import ip_interface, ip_network

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.h3.events import HeadersReceived
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.causes import Cause
from qre.dest_profile import DestProfile
from qre.errors import InternalError
from qre.quic.handshake_events import Closed, HandshakeFailed
from qre.quic.server.connect_ip import AddressesRequested
from qre.quic.server.inspector import Authenticated, HelloInspector
from qre.quic.server.server_handshake import InstallNow, ServerEvent, ServerHandshake, ShownByDest
from qre.reality.cid import cid_key, is_ours, reset_token
from qre.wire.capsule import CapsuleType, RequestedAddress, encode_addresses
from qre.wire.close_reason import CloseReason, reason_of
from qre.wire.datagram import SPLIT_FIELD
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.packet import PacketType
from tests.fuzz import fuzz_handshake
from tests.support.fake_client import CLIENT, SERVER, FakeClient
from tests.support.packets import packets

NOW = 1_800_000_000
PRIVATE = bytes(range(32))
KEY = X25519PrivateKey.from_private_bytes(PRIVATE)
SHORT_ID = bytes.fromhex("0123456789abcdef")
ADDRESS = ip_interface("10.9.0.2/32")
ROUTES = (ip_network("10.9.0.0/24"),)


def dest(**changes: object) -> DestProfile:
    return DestProfile(**({"reachable": True, "checked_at": NOW} | changes))  # type: ignore[arg-type]  # a test's


class Flow:
    """A fake client and a server handshake with a wire between them that may lose datagrams."""

    def __init__(
        self,
        profile: DestProfile | None = None,
        *,
        hybrid: bool = True,
        lose: Callable[[], bool] = lambda: False,
        shown: ShownByDest | None = None,
    ) -> None:
        self.now = 1000.0
        self.lose = lose
        self.client = FakeClient(
            public_key=KEY.public_key().public_bytes_raw(), short_id=SHORT_ID, unix_time=NOW, hybrid=hybrid
        )
        flight = self.client.first_flight(self.now)
        inspector = HelloInspector(
            server_name="site.test", private_key=KEY, short_ids={SHORT_ID}, max_time_diff_ms=60_000
        )
        found = [inspector.datagram_received(data, NOW * 1000) for data in flight][-1]
        assert isinstance(found, Authenticated)
        self.authenticated = found
        self.server = ServerHandshake(
            authenticated=found,
            private_key=PRIVATE,
            dest=profile,
            routed_cid_len=20,
            peer=CLIENT,
            now=self.now,
            random=os.urandom,
            shown=shown,
        )
        self.events: list[ServerEvent] = []
        self.to_client: list[bytes] = []
        self.to_server: list[bytes] = list(flight)
        for data in flight:
            self.server.datagram_received(data, CLIENT, self.now)
        self.collect()

    def collect(self) -> None:
        while (event := self.server.next_event()) is not None:
            self.events.append(event)

    def exchange(self) -> bool:
        """What each end has to send, once; whether there was any."""
        busy = False
        for data in self.server.datagrams_to_send(self.now):
            busy = True
            self.to_client.append(data)
            if not self.lose():
                self.client.receive_datagram(data, SERVER, self.now)
        self.client.handle()
        for data, _ in self.client.datagrams_to_send(self.now):
            busy = True
            self.to_server.append(data)
            if not self.lose():
                self.server.datagram_received(data, CLIENT, self.now)
        self.collect()
        return busy

    def tick(self) -> None:
        """On to the next timer of either end."""
        timers = [at for at in (self.client.get_timer(), self.server.timer()) if at is not None]
        self.now = max(self.now, min(timers)) + 0.0001
        for end in (self.client, self.server):
            at = end.get_timer() if isinstance(end, FakeClient) else end.timer()
            if at is not None and at <= self.now:
                end.handle_timer(self.now)
        self.collect()

    def run_until(self, done: Callable[[], bool], steps: int = 400) -> None:
        for _ in range(steps):
            while self.exchange():
                if done():
                    return
            if done():
                return
            self.tick()
        raise AssertionError(f"nothing after {steps} steps: {self.events}")

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)

    def connect(self) -> None:
        """Up to the client's confirmed handshake."""
        self.run_until(lambda: self.client._handshake_confirmed and self.client.h3 is not None)

    def request(self) -> None:
        self.client.request(capsules=encode_addresses(CapsuleType.ADDRESS_REQUEST, [RequestedAddress(1, ADDRESS)]))
        self.run_until(lambda: self.has(AddressesRequested))

    def install(self) -> None:
        """Up to InstallNow."""
        self.connect()
        self.request()
        self.server.grant((ADDRESS,), ROUTES)
        self.run_until(lambda: self.has(InstallNow))


def test_the_whole_way_to_a_session() -> None:
    flow = Flow()
    flow.connect()
    assert flow.client.tls.proven is True
    flow.request()
    assert flow.events == [AddressesRequested((ADDRESS,))]
    flow.server.grant((ADDRESS,), ROUTES)
    flow.run_until(lambda: flow.has(InstallNow))
    assert flow.client.status == b"200"
    answer = next(event for event in flow.client.h3_events if isinstance(event, HeadersReceived))
    assert SPLIT_FIELD not in answer.headers, "this client has not offered to split packets"
    assert flow.client.body
    state = flow.server.hand_over_state()
    pair = flow.client._cryptos[tls.Epoch.ONE_RTT]
    assert (state.tx_secret, state.rx_secret) == (pair.recv.secret, pair.send.secret)
    assert state.addresses == (ADDRESS,)
    assert state.short_id == SHORT_ID
    assert state.client_cid == flow.client.host_cid
    assert state.peer_idle_ms == 30_000
    assert state.next_cid_sequence == 1
    assert flow.client._peer_cid.cid == state.routed_cid
    assert is_ours(cid_key(PRIVATE), state.routed_cid)


@pytest.mark.parametrize("hybrid", [True, False])
def test_the_server_takes_the_hybrid_group_when_it_is_offered(hybrid: bool) -> None:
    flow = Flow(hybrid=hybrid)
    flow.connect()
    assert flow.client.tls.proven is True


def test_the_group_is_dests() -> None:
    flow = Flow(dest(group="x25519"))
    flow.connect()
    assert not hasattr(flow.client.tls, "_peer_hybrid")
    assert len(flow.to_client[0]) == 1200
    assert sum(len(data) >= 1200 for data in flow.to_client) == 1


def test_the_last_frame_waits_for_the_session() -> None:
    flow = Flow()
    flow.install()
    sent = len(flow.to_client)
    flow.now += 0.01
    for _ in range(5):
        flow.exchange()
    assert len(flow.to_client) == sent
    flow.server.session_installed()
    assert flow.server.datagrams_to_send(flow.now)


def test_a_dest_with_another_cid_length_gets_the_routed_cid_in_the_last_frame() -> None:
    flow = Flow(dest(scid_length=4))
    flow.install()
    state = flow.server.hand_over_state()
    assert len(flow.server.handshake_cid) == 4
    assert state.next_cid_sequence == 2
    assert flow.client._peer_cid.cid == flow.server.handshake_cid
    assert flow.client._peer_cid_available == []
    flow.server.session_installed()
    flow.run_until(lambda: flow.client._peer_cid.cid == state.routed_cid)
    assert flow.client._peer_cid.sequence_number == 1
    assert flow.client._peer_cid.stateless_reset_token == reset_token(cid_key(PRIVATE), state.routed_cid)


@pytest.mark.parametrize("length", [4, 8, 20])
def test_the_last_frame_is_sent_until_confirmed_then_nothing_ever(length: int) -> None:
    flow = Flow(dest(scid_length=length))
    flow.install()
    flow.server.session_installed()
    flow.lose = lambda: True
    sent = 0
    for _ in range(4):
        sent += len(flow.server.datagrams_to_send(flow.now))
        at = flow.server.timer()
        assert at is not None
        flow.now = at + 0.0001
        flow.server.handle_timer(flow.now)
    assert sent >= 4
    flow.server.confirmed(flow.now)
    assert flow.server.timer() is None
    for data in flow.to_server:
        flow.server.datagram_received(data, CLIENT, flow.now)
    flow.server.handle_timer(flow.now + 100)
    assert flow.server.datagrams_to_send(flow.now + 100) == []
    assert flow.server.next_event() == Closed()
    assert flow.server.next_event() is None


@pytest.mark.parametrize("length", [4, 20])
@pytest.mark.parametrize("seed", range(12))
def test_loss_delays_it_and_no_packet_number_is_used_twice(length: int, seed: int) -> None:
    rng = random.Random(seed)
    flow = Flow(dest(scid_length=length), lose=lambda: rng.random() < 0.25)
    flow.install()
    state = flow.server.hand_over_state()
    flow.server.session_installed()
    if length == 4:
        flow.run_until(lambda: flow.client._peer_cid.cid == state.routed_cid)
    assert 0 < flow.server.hand_over_state().next_packet_number < 200
    assert len(set(flow.to_client)) == len(flow.to_client)


def test_a_refused_client_hears_why_in_the_status() -> None:
    flow = Flow()
    flow.connect()
    flow.request()
    flow.server.refuse(Cause.ADDRESS_NOT_ITS)
    flow.run_until(lambda: flow.client.status is not None)
    assert flow.client.status == b"421"
    assert not flow.has(InstallNow)


@pytest.mark.parametrize(
    "headers",
    [
        {b":method": b"GET", b":scheme": b"https", b":authority": b"site.test", b":path": b"/"},
        {
            b":method": b"CONNECT",
            b":protocol": b"connect-udp",
            b":scheme": b"https",
            b":authority": b"site.test",
            b":path": b"/.well-known/masque/ip/*/*/",
        },
        {
            b":method": b"CONNECT",
            b":protocol": b"connect-ip",
            b":scheme": b"https",
            b":authority": b"elsewhere.test",
            b":path": b"/.well-known/masque/ip/*/*/",
        },
    ],
)
def test_any_other_request_is_answered_as_a_plain_site_would(headers: dict[bytes, bytes]) -> None:
    flow = Flow()
    flow.connect()
    flow.client.request(headers=headers, end_stream=headers[b":method"] == b"GET")
    flow.run_until(lambda: flow.client.status is not None)
    assert flow.client.status == b"404"
    assert flow.events == []


def test_the_flight_has_the_length_of_dests() -> None:
    flow = Flow(dest(handshake_flight_length=3000, scid_length=4))
    flow.connect()
    assert flow.client._crypto_streams[tls.Epoch.HANDSHAKE].receiver._buffer_start == 3000
    assert len(flow.client.tls.certificate_lengths) == 2
    assert flow.client.tls.proven is True


def test_the_first_flight_has_caddys_sizes() -> None:
    """Caddy's, as measured: Initial with the ACK and hello[0:1159]; the rest with the Handshake flight; 43, 31."""
    # Chromium's CID is 8 bytes shorter than the fake's, so its Handshake flight may have 1094.
    flow = Flow(dest(handshake_flight_length=1060, scid_length=4, flight_datagram_lengths=(1200, 1200, 43, 31)))
    sent = flow.server.datagrams_to_send(flow.now)
    assert [len(data) for data in sent] == [1200, 1200, 43, 31]
    for data in sent[:2]:
        within = sum(len(packet.data) for packet in packets(data, 0) if packet.kind is not PacketType.ONE_RTT)
        assert within == 1200, "no byte outside a packet"


def test_a_flow_that_dest_began_to_answer_is_taken_over() -> None:
    flow = Flow(shown=ShownByDest(b"dest", 3))
    flow.connect()
    assert flow.client._peer_cid.cid == b"dest"
    assert flow.client.tls.proven is True
    flow.request()
    flow.server.grant((ADDRESS,), ROUTES)
    flow.run_until(lambda: flow.has(InstallNow))
    assert flow.server.hand_over_state().next_cid_sequence == 2


def test_numbers_of_the_data_plane_are_never_reached() -> None:
    flow = Flow()
    flow.connect()
    flow.server._connection._packet_number = PACKET_NUMBER_BASE - 1
    for ping in range(5):
        flow.server._connection.send_ping(ping)
        assert len(flow.server.datagrams_to_send(flow.now)) <= 1
    flow.collect()
    assert any(isinstance(event, HandshakeFailed) for event in flow.events)
    assert flow.server._connection.next_packet_number <= PACKET_NUMBER_BASE


def test_a_closing_server_says_why_in_a_reserved_code_and_no_text() -> None:
    flow = Flow()
    flow.connect()
    flow.server.close(CloseReason.STOPPED)
    flow.run_until(lambda: flow.client.terminated is not None)
    assert flow.client.terminated is not None
    terminated = flow.client.terminated
    assert (reason_of(terminated.error_code), terminated.reason_phrase) == (CloseReason.STOPPED, "")
    assert flow.events == [Closed()]


def test_a_client_that_breaks_the_protocol_hears_no_reason() -> None:
    flow = Flow()
    flow.connect()
    assert flow.client.h3 is not None
    flow.client.send_stream_data(flow.client.h3._local_control_stream_id, b"\x04\x00")  # SETTINGS again
    flow.run_until(lambda: flow.client.terminated is not None)
    assert flow.client.terminated is not None
    assert flow.client.terminated.reason_phrase == ""
    assert flow.has(HandshakeFailed)


def test_a_silent_client_is_forgotten() -> None:
    flow = Flow()
    flow.lose = lambda: True
    for _ in range(200):
        flow.exchange()
        if flow.has(Closed):
            break
        flow.tick()
    assert [type(event) for event in flow.events] == [HandshakeFailed, Closed]
    assert sum(map(len, flow.to_client)) <= 3 * sum(map(len, flow.to_server)), "no amplification"


def test_another_hello_than_the_authenticated_one_is_not_answered() -> None:
    flow = Flow()
    other = FakeClient(public_key=KEY.public_key().public_bytes_raw(), short_id=SHORT_ID, unix_time=NOW)
    server = ServerHandshake(
        authenticated=flow.authenticated,
        private_key=PRIVATE,
        dest=None,
        routed_cid_len=20,
        peer=CLIENT,
        now=0.0,
        random=os.urandom,
    )
    for data in other.first_flight(0.0):
        server.datagram_received(data, CLIENT, 0.0)
    sent = server.datagrams_to_send(0.0)
    assert all(len(data) < 100 for data in sent)


def test_datagrams_from_another_address_are_ignored() -> None:
    flow = Flow()
    before = flow.server.timer()
    flow.server.datagram_received(flow.to_server[0], ("198.51.100.9", 1), flow.now + 1)
    assert flow.server.timer() == before


def test_a_ticket_comes_after_the_handshake() -> None:
    tickets: list[object] = []
    flow = Flow(dest(session_ticket_lengths=(200, 300)))
    flow.client._session_ticket_handler = tickets.append
    flow.client.tls.new_session_ticket_cb = flow.client._handle_session_ticket
    flow.connect()
    flow.exchange()
    assert len(tickets) == 2


def test_transport_parameters_are_in_quic_gos_order() -> None:
    flow = Flow()
    flow.connect()
    data = next(body for kind, body in flow.client.tls.received_extensions if kind == 0x39)
    buf = Buffer(data=data)
    order = []
    while not buf.eof():
        order.append(buf.pull_uint_var())
        buf.pull_bytes(buf.pull_uint_var())
    assert order[0] % 31 == 27
    assert order[1:] == [5, 6, 7, 4, 8, 9, 1, 3, 0xB, 2, 0, 0xE, 0xF, 0x20]


def test_packets_of_the_data_plane_are_not_acknowledged_by_user_space() -> None:
    flow = Flow()
    flow.install()
    flow.server.session_installed()
    flow.client._packet_number = PACKET_NUMBER_BASE
    flow.client._spaces[tls.Epoch.ONE_RTT].ack_at = None
    flow.client.send_ping(1)
    ((data, _),) = flow.client.datagrams_to_send(flow.now)
    flow.server.datagrams_to_send(flow.now)
    flow.server.datagram_received(data, CLIENT, flow.now)
    space = flow.server._connection._spaces[tls.Epoch.ONE_RTT]
    assert space.largest_received_packet < PACKET_NUMBER_BASE
    assert space.ack_at is None


@pytest.mark.parametrize("seed", range(8))
def test_the_only_ping_in_1_rtt_is_the_last_frame(seed: int) -> None:
    rng = random.Random(seed)
    flow = Flow(lose=lambda: rng.random() < 0.3)
    pings = 0
    original = flow.client._handle_ping_frame

    def count(context: object, frame_type: int, buf: object) -> None:
        nonlocal pings
        pings += context.epoch is tls.Epoch.ONE_RTT  # type: ignore[attr-defined]  # aioquic's context
        original(context, frame_type, buf)  # type: ignore[arg-type]  # the same

    name = "_QuicConnection__frame_handlers"
    flow.client.__dict__[name][1] = (count, flow.client.__dict__[name][1][1])
    flow.install()
    assert pings == 0
    flow.server.session_installed()
    flow.run_until(lambda: pings > 0)


@pytest.mark.parametrize("order", [(51, 43), (43, 51), (51,), (99, 43, 51)])
def test_server_hellos_extensions_are_in_dests_order(order: tuple[int, ...]) -> None:
    flow = Flow(dest(server_hello_extensions=order))
    seen: list[bytes] = []
    original = flow.client.tls._client_handle_hello

    def look(input_buf: Buffer, output_buf: Buffer) -> None:
        seen.append(input_buf.data_slice(0, input_buf.capacity))
        original(input_buf, output_buf)

    flow.client.tls._client_handle_hello = look
    flow.connect()
    hello = seen[0]
    first = int.from_bytes(hello[44:46], "big")
    assert first == (order[0] if set(order) >= {43, 51} and order[0] in (43, 51) else 43)
    assert flow.client.tls.proven


def test_a_server_that_gives_up_says_nothing_more() -> None:
    flow = Flow()
    flow.install()
    flow.server.session_installed()
    flow.server.abandon()
    flow.collect()
    assert flow.server.datagrams_to_send(flow.now) == []
    assert flow.events[-1] == Closed()


def test_answers_that_nobody_asked_for_are_defects() -> None:
    flow = Flow()
    for act in (
        lambda: flow.server.grant((ADDRESS,), ROUTES),
        lambda: flow.server.refuse(Cause.ADDRESS_TAKEN),
        flow.server.session_installed,
    ):
        with pytest.raises(InternalError):
            act()
    with pytest.raises(InternalError):
        flow.server.hand_over_state()
    flow.connect()
    with pytest.raises(InternalError):
        flow.server.grant((ADDRESS,), ROUTES)
    flow.request()
    flow.server.grant((ADDRESS,), ROUTES)
    with pytest.raises(InternalError):
        flow.server.grant((ADDRESS,), ROUTES)


def test_a_key_update_before_the_hand_over_ends_it() -> None:
    flow = Flow()
    flow.connect()
    flow.client.request_key_update()
    flow.request()
    flow.server.grant((ADDRESS,), ROUTES)
    flow.run_until(lambda: flow.has(HandshakeFailed))
    assert not flow.has(InstallNow)


def test_too_many_requests_end_it() -> None:
    flow = Flow()
    flow.connect()
    for _ in range(70):
        flow.client.request(
            headers={b":method": b"GET", b":scheme": b"https", b":authority": b"a", b":path": b"/"}, end_stream=True
        )
    flow.run_until(lambda: flow.has(Closed))
    assert flow.has(HandshakeFailed)


@pytest.mark.parametrize(
    "capsules",
    [b"\x02\x44\x00" * 3, b"\x02\x9f\xff\xff\xff", b"\x02\x03\x01\x05\x00", b"\x02\x07\x01\x04\x0a\x00\x00\x01\x40"],
)
def test_a_broken_request_for_addresses_ends_it(capsules: bytes) -> None:
    flow = Flow()
    flow.connect()
    flow.client.request(capsules=capsules + bytes(1100))
    flow.run_until(lambda: flow.has(Closed))
    assert [type(event) for event in flow.events] == [HandshakeFailed, Closed]


def test_unknown_capsules_before_the_request_are_skipped() -> None:
    flow = Flow()
    flow.connect()
    wanted = encode_addresses(CapsuleType.ADDRESS_REQUEST, [RequestedAddress(1, ADDRESS)])
    flow.client.request(capsules=b"\x21\x03abc" + b"\x00\x02hi" + wanted)
    flow.run_until(lambda: flow.has(AddressesRequested))
    (asked,) = (event for event in flow.events if isinstance(event, AddressesRequested))
    assert asked.addresses == (ADDRESS,)


def test_any_datagram_on_a_live_handshake_is_survived() -> None:
    rng = random.Random(1)
    flow = Flow()
    flow.connect()
    for _ in range(300):
        flow.server.datagram_received(rng.randbytes(rng.randrange(1, 1400)), CLIENT, flow.now)
        mutated = bytearray(rng.choice(flow.to_server))
        mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        flow.server.datagram_received(bytes(mutated), CLIENT, flow.now)
    flow.request()
    flow.server.grant((ADDRESS,), ROUTES)
    flow.run_until(lambda: flow.has(InstallNow))
    assert not flow.has(HandshakeFailed)


def test_a_client_that_resets_its_request_ends_the_handshake() -> None:
    flow = Flow()
    flow.connect()
    flow.request()
    flow.client.stop_stream(0, 0x10C)
    flow.run_until(lambda: flow.server._connection._streams[0].sender.reset_pending)
    flow.server.grant((ADDRESS,), ROUTES)
    flow.collect()
    assert [type(event) for event in flow.events] == [AddressesRequested, HandshakeFailed, Closed]
    flow.server.grant((ADDRESS,), ROUTES)
    flow.server.session_installed()


def test_a_short_fuzzing_run_finds_nothing() -> None:
    assert fuzz_handshake.main(1.0, seed=7) == 0
