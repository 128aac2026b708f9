"""Both ends in memory over bad paths: they agree on the session, and no packet number is used twice under one key."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_interface

import pytest

from qre.dest_profile import DestProfile
from qre.quic.handed_over import HandedOver
from qre.quic.handshake_events import Closed, Granted, HandOverReady, HandshakeFailed, Proven
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.packet import PacketType
from tests.support.packets import open_one_rtt, packets
from tests.support.pair import SHORT_ID, Pair, Path

SHORT_CIDS = DestProfile(reachable=True, checked_at=1, scid_length=4)


def states(pair: Pair) -> tuple[HandedOver, HandedOver]:
    assert pair.client_state is not None
    assert pair.server_state is not None
    return pair.client_state, pair.server_state


def assert_agreed(pair: Pair) -> None:
    client, server = states(pair)
    assert client.session_id == server.session_id
    assert client.routed_cid == server.routed_cid
    assert len(client.routed_cid) == 20
    assert client.client_cid == server.client_cid == b""
    assert (client.tx_secret, client.rx_secret) == (server.rx_secret, server.tx_secret)
    assert (client.tx_hp_key, client.rx_hp_key) == (server.rx_hp_key, server.tx_hp_key)
    assert client.key_epoch == server.key_epoch == 0
    assert client.addresses == server.addresses
    assert client.short_id == server.short_id == SHORT_ID
    assert client.reset_token is not None
    assert len(client.reset_token) == 16


def assert_no_number_twice(pair: Pair) -> None:
    """Every 1-RTT packet of both ends, opened with the session's keys: one number, one content."""
    client, _ = states(pair)
    for by_client, secret in ((True, client.tx_secret), (False, client.rx_secret)):
        seen: dict[int, bytes] = {}
        for sender, datagram in pair.sent:
            if sender is not by_client:
                continue
            cid_length = 0
            if by_client:
                cid_length = len(pair.server.handshake_cid) if pair.server is not None else 0
            for packet in packets(datagram, cid_length):
                if packet.kind is PacketType.ONE_RTT:
                    number = open_one_rtt(packet, secret).number
                    assert number < PACKET_NUMBER_BASE
                    assert seen.setdefault(number, packet.data) == packet.data, f"number {number} twice"
        assert seen
        assert max(seen) < (client.next_packet_number if by_client else PACKET_NUMBER_BASE)


@pytest.mark.parametrize("dest", [None, SHORT_CIDS], ids=["routed handshake CID", "NEW_CONNECTION_ID"])
def test_a_handshake_on_a_good_path_takes_four_round_trips_and_a_bit(dest: DestProfile | None) -> None:
    pair = Pair(dest=dest).run()
    assert_agreed(pair)
    assert_no_number_twice(pair)
    assert [type(event) for event in pair.client_events] == [Proven, Granted, HandOverReady]
    client, server = states(pair)
    assert client.addresses == (ip_interface("10.0.0.2/32"), ip_interface("fd00::2/128"))
    assert pair.now - 1000 < 0.2
    assert client.retire_sequence == (None if dest is None else 0)
    assert server.next_cid_sequence == (1 if dest is None else 2)
    assert client.peer_idle_ms == server.peer_idle_ms == 30_000
    assert (client.peer_max_ack_delay_ms, server.peer_max_ack_delay_ms) == (26, 25)
    assert (client.peer_max_udp_payload, server.peer_max_udp_payload) == (1472, 1472)


def test_two_hundred_hand_overs_at_up_to_30_percent_loss() -> None:
    ends: Counter[str] = Counter()
    for seed in range(200):
        path = Path(loss=(seed % 7) * 0.05, duplicate=0.1, reorder=0.2, delay=0.005 + 0.01 * (seed % 3))
        pair = Pair(seed=seed, path=path, dest=SHORT_CIDS if seed % 2 else None).run(limit=40)
        if pair.complete:
            assert_agreed(pair)
            assert_no_number_twice(pair)
            ends["complete"] += 1
        else:
            # Out of time at worst: the owner tries again.
            reasons = {event.reason for event in pair.client_events if isinstance(event, HandshakeFailed)}
            assert reasons <= {"no answer in time", "the server did not finish the handshake in time"}, (
                seed,
                reasons,
            )
            assert isinstance(pair.client_events[-1], Closed), seed
            ends["given up"] += 1
            assert path.loss >= 0.1, seed  # as a browser: five datagrams in four seconds
    assert ends["complete"] >= 180


def test_sessions_differ_at_each_run() -> None:
    pairs = [Pair(seed=1).run() for _ in range(3)]
    assert len({states(pair)[0].session_id for pair in pairs}) == 3
    assert len({states(pair)[0].tx_secret for pair in pairs}) == 3


def test_the_client_is_silent_after_the_hand_over() -> None:
    pair = Pair().run()
    assert pair.complete
    assert pair.client.timer() is None
    assert pair.client.datagrams_to_send(pair.now + 100) == []
    pair.client.datagram_received(bytes(50), ("192.0.2.1", 443), pair.now)
    pair.client.handle_timer(pair.now + 100)
    assert pair.client.next_event() is None


def test_no_datagram_of_the_client_is_larger_than_a_browsers() -> None:
    pair = Pair().run()
    assert max(len(datagram) for by_client, datagram in pair.sent if by_client) == 1250


def test_the_client_keeps_the_handshake_cid_and_a_spin_bit_of_zero() -> None:
    pair = Pair(dest=SHORT_CIDS).run()
    assert pair.server is not None
    shorts = [(by_client, datagram) for by_client, datagram in pair.sent if not datagram[0] & 0x80]
    assert shorts
    for by_client, datagram in shorts:
        assert not datagram[0] & 0x20
        if by_client:
            assert datagram.startswith(pair.server.handshake_cid, 1)
