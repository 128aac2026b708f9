"""Sessions of the user data plane in memory: two ends, a clock that the test turns, a network that it owns."""

from __future__ import annotations

import gc
import random
import weakref

import pytest

from qre.dataplane.protocol import (
    CONFIRM_TIMEOUT,
    FrameFate,
    FrameReceived,
    KeyPhaseChanged,
    KeyPhaseConfirmed,
    LossReason,
    Refusal,
    RekeyDue,
    SessionConfirmed,
    SessionLost,
    SessionRefusedError,
    SessionSilent,
    SessionUpdate,
    Stray,
)
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import encode_ack
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.loss.silence import SHORTEST_SILENCE
from qre.workers.dataplane.session import packets as packets_module
from qre.workers.dataplane.session.session import STRAYS_PER_SECOND, Session
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import CLIENT_ADDRESS, Ends, keys_of, update_of

INNER = bytes.fromhex("45000054000040004001") + bytes(74)
C, S = Role.CLIENT, Role.SERVER
ELSEWHERE = ("198.51.100.7", 5555)


def refusal(session: Session, update: SessionUpdate, now: float) -> Refusal | None:
    """Why the update is refused; None: it is not."""
    try:
        session.update(update, now)
    except SessionRefusedError as error:
        return error.refusal
    return None


def lost(ends: Ends, role: Role) -> list[LossReason]:
    return [event.reason for event in ends.said(role, SessionLost)]


def test_the_clients_first_packet_confirms_both_ends_once() -> None:
    ends = Ends()
    ends.run(1)
    assert [len(ends.said(role, SessionConfirmed)) for role in (C, S)] == [1, 1]


def test_a_held_server_sends_nothing_and_counts_what_it_drops() -> None:
    ends = Ends()
    ends.fate = lambda role, datagram: []
    ends.transmit(S, INNER, INNER)
    assert not [role for role, _ in ends.sent if role is S]
    assert ends.drops[S]["held"] == 2


def test_a_ping_follows_where_the_first_packet_is_lost() -> None:
    ends = Ends()
    ends.fate = lambda role, datagram: []
    ends.run(0.1)
    assert not ends.server.confirmed
    ends.fate = lambda role, datagram: [ends.delay]
    ends.run(3)
    assert ends.client.confirmed
    assert ends.server.confirmed


def test_an_unconfirmed_session_of_a_server_is_given_up_after_ten_seconds() -> None:
    ends = Ends()
    ends.fate = lambda role, datagram: []
    ends.run(CONFIRM_TIMEOUT + 0.1)
    assert (lost(ends, C), lost(ends, S)) == ([], [LossReason.UNCONFIRMED])
    ends.run(4)
    assert lost(ends, C) == [LossReason.UNANSWERED], "its PING has had no answer for as long as a browser waits"


def test_datagrams_pass_both_ways_in_order(ends: Ends) -> None:
    up, down = [INNER + bytes([n]) for n in range(100)], [INNER + bytes([n, n]) for n in range(100)]
    ends.transmit(C, *up)
    ends.transmit(S, *down)
    ends.run(1)
    assert ends.delivered == {S: up, C: down}


def test_a_packet_that_comes_twice_is_delivered_once(ends: Ends) -> None:
    ends.fate = lambda role, datagram: [0.01, 0.02]
    ends.transmit(C, *[INNER] * 10)
    ends.run(1)
    assert len(ends.delivered[S]) == 10
    assert ends.drops[S]["replayed"] >= 10


@pytest.mark.parametrize("length", [1472, 1473, 60_000])
def test_a_packet_that_is_larger_than_any_of_ours_is_not_opened(ends: Ends, length: int) -> None:
    """Its frames would not fit the message that takes them to the handshake worker, whom that would end."""
    stream = b"\x08\x00"
    sealed = ends.client.packets.seal([stream + bytes(length - 41 - len(stream))])[0]
    assert len(sealed) == length
    assert ends.receive(S, sealed) == []
    passed = [event.frames for event in ends.said(S, FrameReceived)]
    assert [len(frames) for frames in passed] == ([1431] if length == 1472 else [])
    assert ends.drops[S]["malformed"] == (length > 1472)


def test_a_single_changed_bit_makes_a_packet_vanish_without_a_trace(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    packet = ends.sent[-1][1]
    before = ends.server.packets.received.highest
    for bit in range(0, 8 * len(packet), 7):
        broken = bytearray(packet)
        broken[bit // 8] ^= 1 << bit % 8
        if not 8 <= bit < 168:  # the connection id is the table's business
            assert ends.receive(S, bytes(broken)) == []
    assert ends.server.packets.received.highest == before
    assert ends.server.state is LifeState.ESTABLISHED
    assert ends.receive(S, packet) == [INNER]


def test_packets_below_the_base_are_opened_and_then_ignored() -> None:
    ends = Ends()
    ends._flying.clear()
    ends.client.packets.next_number = PACKET_NUMBER_BASE - 3
    ends.transmit(C, INNER)
    ends.run(0.05)
    assert ends.drops[S]["below-base"] == 1
    assert not ends.server.confirmed


def test_an_idle_client_pings_at_half_time_and_lives(ends: Ends) -> None:
    ends.sent.clear()
    ends.run(100)
    assert lost(ends, C) == lost(ends, S) == []
    assert 5 <= sum(role is C for role, _ in ends.sent) <= 14  # a PING every 15 s, and no flood


def test_persistent_keepalive_shortens_the_interval() -> None:
    ends = Ends(keepalive_ms=2000)
    ends.establish()
    ends.sent.clear()
    ends.run(20)
    assert sum(role is C for role, _ in ends.sent) >= 9


def test_both_ends_notice_a_dead_network_a_client_by_its_ping_and_a_server_after_the_idle_time(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.run(20)
    assert lost(ends, C) == [], "its PING went out after 15 s"
    ends.run(9)
    assert lost(ends, C) == [LossReason.UNANSWERED]
    assert lost(ends, S) == []
    ends.run(31)
    assert lost(ends, C) == [LossReason.UNANSWERED]
    assert lost(ends, S) == [LossReason.IDLE]
    assert ends.client.state is ends.server.state is LifeState.ENDED


def test_a_client_notices_a_dead_peer_in_three_probe_timeouts_and_that_it_lives_again(ends: Ends) -> None:
    alive = ends.fate
    ends.fate = lambda role, datagram: []
    ends.run(5)
    assert not ends.said(C, SessionSilent), "nothing was sent that would be answered"
    ends.transmit(C, INNER)
    began = ends.now
    ends.run(SHORTEST_SILENCE - 0.1)
    assert not ends.said(C, SessionSilent)
    while not ends.said(C, SessionSilent) and ends.now < began + 4:
        ends.run(0.05)
    assert [event.silent for event in ends.said(C, SessionSilent)] == [True]
    assert ends.now - began < 3
    assert not ends.said(S, SessionSilent)
    ends.fate = alive
    ends.run(5)
    assert [event.silent for event in ends.said(C, SessionSilent)] == [True, False]


def test_a_peer_that_answers_is_never_silent(ends: Ends) -> None:
    for _ in range(400):
        ends.transmit(C, INNER)
        ends.run(0.03)
    assert not ends.said(C, SessionSilent)


def test_a_strangers_packet_to_the_sessions_connection_id_is_passed_on_within_a_budget(ends: Ends) -> None:
    """A site may give a stranger the connection ID of a session; the peer's own garbage is nobody's."""
    server = ends.server
    packet = bytes([0x41]) + server.install.connection_id + bytes(range(60))
    server.open_datagrams([packet, packet], ELSEWHERE, 1, ends.now)
    ends.take(S)
    strays = ends.said(S, Stray)
    assert [(each.ip, each.port, each.ecn, each.data) for each in strays] == [(*ELSEWHERE, 1, packet)] * 2
    server.open_datagrams([packet], CLIENT_ADDRESS, 1, ends.now)
    server.open_datagrams([packet[:-1].ljust(2000, b"x")], ELSEWHERE, 0, ends.now)
    ends.take(S)
    assert len(ends.said(S, Stray)) == 2
    server.open_datagrams([packet] * 2 * STRAYS_PER_SECOND, ELSEWHERE, 0, ends.now)
    ends.take(S)
    assert len(ends.said(S, Stray)) == STRAYS_PER_SECOND
    assert ends.drops[S]["stray"] == STRAYS_PER_SECOND + 3
    server.open_datagrams([packet], ELSEWHERE, 0, ends.now + 1.1)
    ends.take(S)
    assert len(ends.said(S, Stray)) == STRAYS_PER_SECOND + 1
    ends.run(1)
    ends.transmit(C, INNER)
    assert not lost(ends, S)


def test_what_a_key_opens_is_no_strangers(ends: Ends) -> None:
    """An observer repeats a tunnel's packet from elsewhere: Dest, which has no such connection, must not get it."""
    ends.establish()
    (packet,) = ends.client.seal_datagrams([DATAGRAM_HEAD + INNER], ends.now)
    ends.server.open_datagrams([packet], CLIENT_ADDRESS, 0, ends.now)
    ends.server.open_datagrams([packet], ELSEWHERE, 0, ends.now)
    ends.take(S)
    assert not ends.said(S, Stray) and ends.drops[S]["replayed"] == 1
    strange = bytes([0x41]) + ends.server.install.connection_id + bytes(range(60))
    (moved,) = ends.client.seal_datagrams([DATAGRAM_HEAD + INNER], ends.now)
    ends.server.open_datagrams([strange, moved, packet], ELSEWHERE, 0, ends.now)
    ends.take(S)
    assert [each.data for each in ends.said(S, Stray)] == [strange], "whatever else has come with it"


def test_close_tells_the_peer_and_stays_for_three_pto(ends: Ends) -> None:
    ends.client.close(ends.now, tell=True)
    ends.take(C)
    assert ends.client.deadline() > ends.now
    ends.run(0.05)
    assert lost(ends, S) == [LossReason.CLOSED]
    assert ends.said(S, SessionLost)[0].error_code == 0x100
    ends.run(5)
    assert ends.client.state is LifeState.ENDED
    assert lost(ends, C) == []


def test_a_lost_close_is_repeated_with_the_very_same_bytes_when_the_peer_goes_on(ends: Ends) -> None:
    ends.fate = lambda role, datagram: [] if role is C else [0.01]
    ends.client.close(ends.now, tell=True)
    ends.take(C)
    ends.sent.clear()
    for _ in range(9):
        ends.transmit(S, INNER)
    ends.run(0.02)
    again = [packet for role, packet in ends.sent if role is C]
    assert len(again) == 4  # the 1st, 2nd, 4th and 8th are answered
    assert len(set(again)) == 1


def test_a_stateless_reset_ends_the_session_and_noise_does_not() -> None:
    token = bytes(range(16))
    ends = Ends(reset_token=token)
    ends.establish()
    ends.receive(C, b"\x41" + bytes(40))
    ends.receive(C, b"\x41" + bytes(24) + token[:-1] + b"\0")
    assert lost(ends, C) == []
    ends.receive(C, b"\x41" + bytes(24) + token)
    assert lost(ends, C) == [LossReason.RESET]


def test_a_client_hears_only_its_servers_address(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(S, INNER)
    assert ends.client.open_datagrams([ends.sent[-1][1]], ELSEWHERE, 0, ends.now) == []
    assert ends.drops[C]["wrong-address"] == 1


def test_frames_of_the_handshake_worker_are_passed_up_whole(ends: Ends) -> None:
    retire, stream = b"\x19\x00", b"\x0a\x00\x03abc"
    ends.client.send_frames(7, retire + stream, ends.now)
    ends.take(C)
    ends.run(1)
    assert [event.frames for event in ends.said(S, FrameReceived)] == [retire + stream]
    assert [(event.id, event.acknowledged) for event in ends.said(C, FrameFate)] == [(7, True)]


def test_lost_frames_are_sent_again_until_they_arrive(ends: Ends) -> None:
    dice = random.Random(3)
    ends.fate = lambda role, datagram: [0.01] if dice.random() < 0.7 else []
    for n in range(20):
        ends.client.send_frames(n, b"\x10" + bytes([n]), ends.now)
        ends.take(C)
    ends.run(25)
    assert {event.frames[1] for event in ends.said(S, FrameReceived) for _ in event.frames} >= set(range(20))
    assert {event.id for event in ends.said(C, FrameFate) if event.acknowledged} == set(range(20))


def test_frames_that_never_arrive_are_reported_lost_or_the_session_is() -> None:
    """A server goes on; a client's session ends with its frames."""
    ends = Ends(idle_timeout_ms=10_000_000)
    ends.establish()
    ends.fate = lambda role, datagram: []
    for role in (C, S):
        ends.sessions[role].send_frames(1, b"\x1e" if role is S else b"\x19\x00", ends.now)
        ends.take(role)
    ends.run(900)
    assert [(event.id, event.acknowledged) for event in ends.said(S, FrameFate)] == [(1, False)]
    assert lost(ends, C) == [LossReason.UNANSWERED] and not lost(ends, S)


def test_everything_is_acknowledged_within_max_ack_delay(ends: Ends) -> None:
    ends.transmit(C, INNER)
    number = ends.client.packets.next_number - 1
    ends.run(0.01)
    ends.sent.clear()
    ends.run(0.025)
    assert [role for role, _ in ends.sent] == [S]
    ends.run(0.1)
    assert ends.client.recovery.largest_acked >= number


def test_a_gap_is_acknowledged_at_once(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER, INNER, INNER)
    first, _, third = [packet for role, packet in ends.sent if role is C][-3:]
    ends.sent.clear()
    ends.receive(S, first)
    assert not ends.sent
    ends.receive(S, third)
    assert [role for role, _ in ends.sent] == [S]


def test_an_acknowledgement_rides_on_traffic(ends: Ends) -> None:
    ends.transmit(C, INNER)
    ends.run(0.011)
    ends.sent.clear()
    ends.transmit(S, INNER)
    ends.run(0.1)
    assert ends.client.recovery.largest_acked == ends.client.packets.next_number - 1 or len(ends.sent) <= 2
    assert next(role for role, _ in ends.sent) is S


def test_an_acknowledgement_of_what_was_never_sent_ends_the_session(ends: Ends) -> None:
    beyond = ends.server.packets.next_number
    ends.send(C, ends.client.packets.seal([encode_ack([(beyond, beyond)], 0)]))
    ends.run(0.05)
    assert lost(ends, S) == [LossReason.PROTOCOL]
    assert lost(ends, C) == [LossReason.CLOSED]


@pytest.mark.parametrize("payload", [b"\x31\x7f", b"\x21", b"\x02", b"\x18\x01\x00\x00", b"\x40\x01"])
def test_frames_that_do_not_parse_end_the_session_with_an_error(ends: Ends, payload: bytes) -> None:
    ends.send(C, ends.client.packets.seal([payload]))
    ends.run(0.05)
    assert lost(ends, S) == [LossReason.PROTOCOL]
    assert ends.said(C, SessionLost)[0].error_code == 0x07


def test_reserved_bits_end_the_session(ends: Ends) -> None:
    ends.client.phases.tx.first_byte |= 0x08
    ends.send(C, ends.client.packets.seal([b"\x01"]))
    ends.run(0.05)
    assert ends.said(S, SessionLost)[0].error_code == 0x0A


def test_a_datagram_of_another_context_is_dropped_and_counted(ends: Ends) -> None:
    ends.send(C, ends.client.packets.seal([b"\x30\x00\x02abc", b"\x31\x03\x01\x00x"]))
    ends.run(0.02)
    assert ends.delivered[S] == []
    assert ends.drops[S]["unknown-context"] == 2


# --- key phases ---


def test_an_update_is_refused_before_the_current_phase_was_acknowledged() -> None:
    ends = Ends()
    assert refusal(ends.client, update_of(ends.client.install, 1), ends.now) is Refusal.NOT_CONFIRMED
    ends.establish()
    ends.client.update(update_of(ends.client.install, 1), ends.now)


def test_the_peer_follows_an_update_and_both_say_so(ends: Ends) -> None:
    ends.client.update(update_of(ends.client.install, 1), ends.now)
    ends.take(C)
    ends.transmit(C, INNER)
    ends.run(1)
    assert ends.delivered[S] == [INNER]
    assert [event.key_epoch for event in ends.said(S, KeyPhaseChanged)] == [1]
    assert [event.key_epoch for event in ends.said(C, KeyPhaseConfirmed)] == [0, 1]
    assert ends.server.phases.epoch == ends.client.phases.epoch == 1
    ends.transmit(S, INNER)
    ends.run(1)
    assert ends.delivered[C] == [INNER]


def test_both_ends_updating_at_once_meet_in_one_epoch(ends: Ends) -> None:
    assert refusal(ends.server, update_of(ends.server.install, 1), ends.now) is Refusal.NOT_CONFIRMED
    ends.take(S)
    ends.run(1)
    assert ends.said(S, KeyPhaseConfirmed)
    for role in (C, S):
        ends.sessions[role].update(update_of(ends.sessions[role].install, 1), ends.now)
        ends.take(role)
        ends.transmit(role, INNER)
    ends.run(1)
    assert ends.server.phases.epoch == ends.client.phases.epoch == 1
    assert ends.delivered == {C: [INNER], S: [INNER]}


def test_packets_of_the_old_phase_that_come_late_are_still_read(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    late = ends.sent[-1][1]
    ends.client.update(update_of(ends.client.install, 1), ends.now)
    ends.take(C)
    ends.transmit(C, INNER)
    assert ends.receive(S, ends.sent[-1][1]) == [INNER]
    assert ends.receive(S, late) == [INNER]


def test_old_keys_are_gone_after_a_while(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    late = ends.sent[-1][1]
    ends.client.update(update_of(ends.client.install, 1), ends.now)
    ends.take(C)
    ends.transmit(C, INNER)
    ends.receive(S, ends.sent[-1][1])
    ends.run(0.5)
    assert ends.receive(S, late) == []


def test_without_next_keys_a_packet_of_the_new_phase_is_dropped_unacknowledged() -> None:
    ends = Ends(next_keys=None)
    ends.establish()
    ends.client.update(update_of(ends.client.install, 1), ends.now)
    ends.take(C)
    ends.transmit(C, INNER)
    ends.run(0.2)
    assert ends.delivered[S] == []
    ends.server.update(update_of(ends.server.install, 0, next_keys=keys_of(S, 1)), ends.now)
    ends.transmit(C, INNER)
    ends.run(0.2)
    assert ends.delivered[S] == [INNER]


def test_update_with_wrong_keys_or_epochs_changes_nothing(ends: Ends) -> None:
    install = ends.client.install
    assert refusal(ends.client, update_of(install, 0, keys=keys_of(C, 5)), ends.now) is Refusal.OTHER_KEYS
    assert refusal(ends.client, update_of(install, 1, keys=keys_of(C, 5)), ends.now) is Refusal.OTHER_KEYS
    assert refusal(ends.client, update_of(install, 2), ends.now) is Refusal.OTHER
    ends.client.update(update_of(install, 0), ends.now)
    assert ends.client.phases.epoch == 0


def test_an_acknowledgement_under_older_keys_than_the_packet_is_a_key_update_error(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.client.update(update_of(ends.client.install, 1), ends.now)
    ends.take(C)
    newest = ends.client.packets.next_number - 1
    packet = ends.server.packets.seal([encode_ack([(newest, newest)], 0)])[0]
    ends.receive(C, packet)
    assert ends.said(C, SessionLost)[0].error_code == 0x0E


def test_new_keys_are_asked_for_once_an_epoch() -> None:
    ends = Ends(rekey_after_packets=100)
    ends.establish()
    for _ in range(5):
        ends.transmit(C, *[INNER] * 50)
        ends.run(0.1)
    assert [event.key_epoch for event in ends.said(C, RekeyDue)] == [0]


def test_the_hard_packet_limit_ends_the_session_before_it_is_passed(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets_module, "HARD_PACKET_LIMIT", ends.client.packets.used + 2)
    ends.transmit(C, INNER, INNER)
    ends.transmit(C, INNER)
    ends.run(0.1)
    assert len(ends.delivered[S]) == 2
    assert lost(ends, C) == [LossReason.LIMIT]


def test_too_many_forgeries_end_the_session(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets_module, "INTEGRITY_LIMIT", 5)
    for n in range(5):
        ends.receive(S, b"\x40" + bytes(59) + bytes([n]))
    assert lost(ends, S) == [LossReason.LIMIT]


@pytest.mark.parametrize(("seed", "wanted"), [(1, 500), (2, 2500)])
def test_thousands_of_rekeys_in_a_row_keep_both_ends_in_step_over_a_bad_network(seed: int, wanted: int) -> None:
    dice = random.Random(seed)
    ends = Ends(rekey_after_packets=2)
    ends.fate = lambda role, datagram: (
        [] if dice.random() < 0.05 else [dice.uniform(0.002, 0.012) for _ in range(1 + (dice.random() < 0.02))]
    )
    for _ in range(400_000):
        role = dice.choice((C, S))
        ends.transmit(role, INNER)
        ends.run(0.02)
        for side, session in ends.sessions.items():
            epoch = session.phases.epoch
            if session.phases.next_keys is None:
                session.update(update_of(session.install, epoch), ends.now)
            if any(event.key_epoch == epoch for event in ends.said(side, RekeyDue)) and dice.random() < 0.5:
                refused = refusal(session, update_of(session.install, epoch + 1), ends.now)
                assert refused in {None, Refusal.NOT_CONFIRMED}
                ends.take(side)
            ends.events[side] = ends.events[side][-20:]
        if ends.client.phases.epoch >= wanted:
            break
        ends.sent.clear()
    assert ends.client.phases.epoch >= wanted
    assert abs(ends.client.phases.epoch - ends.server.phases.epoch) <= 1
    ends.fate = lambda role, datagram: [0.01]
    ends.run(1)
    for deliveries in ends.delivered.values():
        deliveries.clear()
    ends.transmit(C, INNER)
    ends.transmit(S, INNER)
    ends.run(1)
    assert ends.delivered == {C: [INNER], S: [INNER]}


def test_marked_packets_are_counted_in_acknowledgements(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    ends.server.open_datagrams([ends.sent[-1][1]], CLIENT_ADDRESS, 3, ends.now)
    (ack, *_), *_ = ends.server.outbox
    plaintext, *_ = ends.client.packets.open([ack], 0).others[0]
    assert plaintext[0] == 0x03
    assert plaintext.endswith(b"\0\0\1")


def test_a_session_that_is_forgotten_is_gone_at_once_with_its_keys() -> None:
    """Not only when the interpreter looks for circles."""
    gc.disable()
    try:
        ends = Ends()
        gone = [weakref.ref(session) for session in ends.sessions.values()]
        ends.sessions.clear()
        assert [session() for session in gone] == [None, None]
    finally:
        gc.enable()
