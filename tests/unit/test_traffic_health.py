"""What the counters of a session say about it: sent, received, acknowledged and lost, by either data plane."""

from __future__ import annotations

import pytest

from qre.dataplane.health import SILENCE, Health, SessionHealth, TrafficHealth
from qre.dataplane.status import DeviceCounters, SessionStatus
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import Ping, encode_ack, encode_frame
from qre.workers.dataplane.inner.ecn import CE, ECT0, NOT_ECT
from qre.workers.dataplane.session.session import ALL_MARKED
from tests.support.driven import INNER, Driven


def status(*, heard: float | None, data: int = 0, number: int = 65_536, **changes: object) -> SessionStatus:
    """``heard``: seconds since the last packet."""
    fields: dict[str, object] = {
        "session_id": bytes(32),
        "connection_id": bytes(20),
        "client_connection_id": b"",
        "short_id": bytes(8),
        "state": "established",
        "key_epoch": 0,
        "tx_packet_number": number,
        "rx_packet_number": 65_536,
        "endpoint": "192.0.2.1:443",
        "allowed_ips": (),
        "age_ms": 100_000,
        "last_receive_ms": None if heard is None else round(heard * 1000),
        "rx_packets": 0,
        "rx_bytes": 0,
        "tx_packets": data,
        "tx_bytes": 0,
        "cids": (),
    }
    return SessionStatus(**(fields | changes))  # type: ignore[arg-type]  # a test's


def test_an_idle_session_is_never_silent() -> None:
    health = SessionHealth()
    for second in range(25):
        judged = health.look(status(heard=second, number=65_536 + min(second, 2)), second)
        assert (judged.health, judged.words) == (Health.IDLE, ""), "an acknowledgement or two ask for nothing"


def test_data_that_is_answered_flows() -> None:
    health = SessionHealth()
    health.look(status(heard=0.1, data=1), 1)
    for second in range(2, 30):
        assert health.look(status(heard=0.1, data=second), second).health is Health.FLOWS


def test_data_without_an_answer_is_said_with_the_time_it_lasts() -> None:
    """On a data plane that does not know what was acknowledged."""
    health = SessionHealth()
    health.look(status(heard=0.1, data=10, number=70_000), 100)
    assert health.look(status(heard=2.1, data=13, number=70_003), 102).words == "", "it may come yet"
    assert health.look(status(heard=6.9, data=14, number=70_004), 106.8).words == ""
    judged = health.look(status(heard=14.1, data=20, number=70_010), 114)
    assert (judged.health, judged.words) == (Health.SILENT, "nothing has come back for 12 s")
    assert health.look(status(heard=0.1, data=20, number=70_010), 116).health is Health.FLOWS, "it came"


def test_a_packet_or_two_that_are_lost_are_no_silence() -> None:
    health = SessionHealth()
    health.look(status(heard=0.1), 100)
    for second in range(1, 30):
        assert health.look(status(heard=second, data=2, number=65_538), 100 + second).words == ""


def test_a_data_plane_that_knows_what_was_acknowledged_is_believed() -> None:
    """Packets of the other direction may come in as ever."""
    health = SessionHealth()
    assert health.look(status(heard=0.1, data=5, unanswered_ms=0), 1).health is Health.FLOWS
    assert health.look(status(heard=0.1, data=5, unanswered_ms=0), 3).health is Health.IDLE
    assert health.look(status(heard=0.1, data=9, unanswered_ms=4900), 5).health is Health.FLOWS
    judged = health.look(status(heard=0.1, data=9, unanswered_ms=7200), 7)
    assert (judged.health, judged.words) == (Health.SILENT, "nothing has come back for 7 s")


def test_pings_of_the_session_itself_are_enough() -> None:
    health = SessionHealth()
    health.look(status(heard=0), 0)
    for second, number in ((15, 1), (16, 2), (18, 3)):
        health.look(status(heard=second, number=65_536 + number), second)
    assert health.look(status(heard=24, number=65_540), 24).health is Health.SILENT


def test_a_session_that_never_received_anything_can_be_silent() -> None:
    health = SessionHealth()
    health.look(status(heard=None, age_ms=1000), 1)
    health.look(status(heard=None, age_ms=2000, data=3, number=65_539), 2)
    assert health.look(status(heard=None, age_ms=9000, data=9, number=65_545), 9).health is Health.SILENT


@pytest.mark.parametrize(("lost", "told"), [(0, False), (9, False), (13, False), (14, True), (38, True), (60, True)])
def test_a_path_that_loses_a_quarter_is_said(lost: int, told: bool) -> None:
    health = SessionHealth()
    for second in range(12):
        part = second / 11
        judged = health.look(
            status(
                heard=0.01,
                data=second,
                unanswered_ms=0,
                tx_acknowledged=round(40 * part),
                tx_lost=round(lost * part),
            ),
            second,
        )
    assert bool(judged.words) is told
    assert judged.health is (Health.LOSSY if told else Health.FLOWS)


def test_a_path_at_its_smallest_that_loses_most_may_carry_even_less() -> None:
    health = SessionHealth()
    for second in (0, 12):
        judged = health.look(
            status(heard=0.01, unanswered_ms=0, tx_acknowledged=2 * second, tx_lost=second, path_mtu=1228), second
        )
    assert judged.words == "12 of the last 36 packets were lost; the path may carry less than 1228 bytes"


def test_the_words_of_a_device() -> None:
    for role, said in ((Role.CLIENT, "for 6 s"), (Role.SERVER, "for 6 s (1 of 2)")):
        traffic = TrafficHealth(role)
        for now, heard in ((0.0, 0.0), (1.0, 1.0), (1.0 + SILENCE + 1, 1.0 + SILENCE + 1)):
            ill = status(heard=heard, data=round(now), number=65_536 + 4 * round(now))
            well = status(heard=0, data=round(now), session_id=bytes([1] * 32))
            traffic.look([ill, well] if role is Role.SERVER else [ill], None, now)
        assert traffic.words == f"nothing has come back {said}"
        traffic.look([], None, 20.0)
        assert traffic.words == "" and not traffic.judgements


def test_packets_that_are_dropped_because_all_are_marked_are_said_on_any_data_plane() -> None:
    traffic = TrafficHealth(Role.CLIENT)
    traffic.look([], DeviceCounters(drops={"congestion": 3}), 0)
    assert traffic.words == ""
    traffic.look([], DeviceCounters(drops={"congestion": 8}, rx_packets=1), 2)
    assert "5 packets arrived marked as congested (ECN CE)" in traffic.words
    traffic.look([], DeviceCounters(drops={"congestion": 8}, rx_packets=100), 4)
    assert traffic.words == ""


def test_the_user_data_plane_counts_what_is_acknowledged_and_what_is_lost() -> None:
    driven = Driven(Role.CLIENT)
    recovery = driven.session.recovery
    before = recovery.packets_acknowledged, recovery.packets_lost
    first = driven.session.packets.next_number
    for _ in range(10):
        driven.session.seal_datagrams([b"\x31\x00" + INNER], driven.now)
    driven.says(encode_ack([(first + 8, first + 9), (first + 4, first + 5)], 0))
    assert recovery.packets_acknowledged - before[0] >= 4
    assert recovery.packets_lost - before[1] >= 6
    lost = recovery.packets_lost
    driven.says(encode_ack([(first + 8, first + 9), (first + 4, first + 5)], 0))
    assert recovery.packets_lost == lost, "the same again"


def test_the_user_data_plane_knows_how_long_it_has_had_no_answer() -> None:
    driven = Driven(Role.CLIENT)
    session = driven.session
    driven.acknowledge()
    session.seal_datagrams([DATAGRAM_HEAD + INNER] * 2, driven.now)
    driven.ends.now += 20
    assert session.unanswered_ms(driven.now) == 0, "two may be lost"
    session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
    assert session.unanswered_ms(driven.now) == 20_000
    driven.says(encode_frame(Ping()))
    assert session.unanswered_ms(driven.now) == 20_000, "that is no answer"
    driven.acknowledge()
    assert session.unanswered_ms(driven.now) == 0


@pytest.mark.parametrize("role", Role)
def test_a_mark_of_congestion_counts_where_the_peer_marks_its_packets(role: Role) -> None:
    driven = Driven(role)
    session = driven.session
    assert [session.ecn_of(mark) for mark in (NOT_ECT, ECT0, CE)] == [NOT_ECT, ECT0, NOT_ECT]
    packet = driven.peer.packets.seal([encode_frame(Ping())])
    session.open_datagrams(packet, session.peer, ECT0, driven.now)
    assert session.ecn_of(CE) == (CE if role is Role.CLIENT else NOT_ECT), "a client never marks"
    for _ in range(ALL_MARKED):
        packet = driven.peer.packets.seal([encode_frame(Ping())])
        session.open_datagrams(packet, session.peer, CE, driven.now)
    assert session.ecn_of(CE) == NOT_ECT, "whatever marks them all, it is no congestion"
    packet = driven.peer.packets.seal([encode_frame(Ping())])
    session.open_datagrams(packet, session.peer, ECT0, driven.now)
    assert session.ecn_of(CE) == (CE if role is Role.CLIENT else NOT_ECT)
