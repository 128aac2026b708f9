"""Paths of the user data plane, as a peer with the session's keys sees them: validation, migration, connection IDs.

RFC 9000 sections 5.1, 8.2 and 9; tests/vm/test_migration.py asks the same of qre.ko.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from qre.dataplane.protocol import FrameReceived, LossReason, PeerMoved
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import PathChallenge, RetireConnectionId, encode_ack, frames_untrusted
from qre.workers.dataplane.session.recovery import INITIAL_RTT, MAX_CONTROLS
from qre.workers.dataplane.session.sending import OutgoingPacket
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import CLIENT_ADDRESS, ROUTED_CID, SERVER_ADDRESS, Ends
from tests.support.driven import (
    CHALLENGE,
    ELSEWHERE,
    FIRST,
    FURTHER,
    INNER,
    PING,
    RESPONSE,
    SECOND,
    THIRD,
    Driven,
    issued,
    to,
)

C, S = Role.CLIENT, Role.SERVER


def retired(driven: Driven, sent: list[OutgoingPacket]) -> list[int]:
    return [
        frame.sequence
        for one in sent
        for frame in frames_untrusted(driven.frames(one))
        if isinstance(frame, RetireConnectionId)
    ]


# --- validation ---


def test_a_challenge_is_answered_where_it_came_from_within_what_it_brought() -> None:
    """Before anything is known of that address, and when another one is being validated."""
    driven = Driven()
    (large,) = driven.says(CHALLENGE, ELSEWHERE, 1200)
    assert large.to == ELSEWHERE and len(large.packet) == 1200
    assert driven.frames(large).rstrip(b"\0") == RESPONSE, "a probe is no move"
    (small,) = driven.says(CHALLENGE, FURTHER)
    assert small.to == FURTHER and 0 < len(small.packet) <= 3 * (1 + 20 + 4 + 9 + 16)
    assert driven.frames(small).rstrip(b"\0") == RESPONSE
    assert not [sent for sent in driven.wait(3) if sent.to != CLIENT_ADDRESS]
    assert driven.session.peer == CLIENT_ADDRESS and not driven.ends.said(S, PeerMoved)


def test_many_challenges_in_one_batch_get_no_more_than_three_times_what_they_brought() -> None:
    driven = Driven()
    driven.says(PING, FURTHER)
    packets = driven.peer.packets.seal([CHALLENGE] * 20)
    for source in (ELSEWHERE, FURTHER):
        driven.session.open_datagrams(packets, source, 0, driven.now)
        sent = to(driven.takes(), source)
        assert sum(map(len, sent)) <= 3 * sum(map(len, packets))
        packets = driven.peer.packets.seal([CHALLENGE] * 20)


def test_a_peer_that_moves_is_challenged_at_both_addresses_and_moves_when_it_answers() -> None:
    driven = Driven()
    sent = driven.says(PING, ELSEWHERE)
    (there,), (here,) = to(sent, ELSEWHERE), to(sent, CLIENT_ADDRESS)
    assert len(there) <= 3 * (1 + 20 + 4 + 1 + 16) and len(here) == 1200
    challenges = [driven.frames(one)[:9] for one in sent]
    assert {challenge[0] for challenge in challenges} == {0x1A} and len(set(challenges)) == 2
    driven.says(b"\x1b" + driven_data(challenges, sent, CLIENT_ADDRESS))
    assert driven.session.peer == CLIENT_ADDRESS, "the old address still answers: that is no move"
    driven.says(b"\x1b" + driven_data(challenges, sent, ELSEWHERE))
    assert driven.session.peer == ELSEWHERE, "the answer may take another path"
    (moved,) = driven.ends.said(S, PeerMoved)
    assert (str(moved.underlay.peer_ip), moved.underlay.peer_port) == ELSEWHERE
    assert driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)


def driven_data(challenges: list[bytes], sent: list[OutgoingPacket], address: tuple[str, int]) -> bytes:
    return next(frame[1:] for frame, one in zip(challenges, sent, strict=True) if one.to == address)


def test_the_address_in_use_is_challenged_once_a_pto_at_most_and_not_for_ever() -> None:
    driven = Driven()
    pto = driven.session.recovery.pto
    at: list[float] = []
    for n in range(300):
        driven.ends.now += pto / 20
        sent = driven.says(PING, (f"203.0.113.{n % 250}", 1 + n % 3))  # copies from everywhere
        at += [driven.now] * len(to(sent, CLIENT_ADDRESS))
    assert at and min(later - earlier for earlier, later in pairwise(at)) >= pto * 0.999
    driven = Driven()
    sent = driven.says(PING, ELSEWHERE, 1200) + driven.wait(5)
    challenges = [one for one in sent if driven.frames(one)[:1] == b"\x1a"]
    assert 2 <= len(to(challenges, CLIENT_ADDRESS)) <= 4
    assert sum(map(len, to(challenges, ELSEWHERE))) <= 3600


def test_on_a_fast_path_each_address_is_challenged_four_times() -> None:
    driven = Driven()
    driven.session.recovery.smoothed, driven.session.recovery.variation = 0.004, 0.001
    sent = [one for _ in range(4) for one in driven.says(PING, ELSEWHERE, 1200)] + driven.wait(3, 0.002)
    challenges = [one for one in sent if driven.frames(one)[:1] == b"\x1a"]
    assert [len(to(challenges, address)) for address in (ELSEWHERE, CLIENT_ADDRESS)] == [4, 4]


def test_an_address_in_use_that_answered_is_challenged_no_more() -> None:
    driven = Driven()
    sent = driven.says(PING, ELSEWHERE, 1200)
    (here,) = [driven.frames(one)[:9] for one in sent if one.to == CLIENT_ADDRESS]
    driven.says(b"\x1b" + here[1:] + PING)
    assert not [one for one in driven.wait(3) if one.to == CLIENT_ADDRESS and driven.frames(one)[:1] == b"\x1a"]


@pytest.mark.parametrize("role", Role)
def test_a_challenge_is_answered_with_more_than_a_probe(role: Role) -> None:
    """So that a server whose packets somebody copied from elsewhere knows where its client is."""
    driven = Driven(role)
    (answer,) = driven.says(CHALLENGE, size=1200)
    assert len(answer.packet) == (1250 if role is C else 1200), "a browser's padding goes to its full length"
    assert driven.frames(answer).rstrip(b"\0") == RESPONSE + PING


def test_what_is_padded_is_padded_to_what_the_peer_takes() -> None:
    driven = Driven(max_datagram_payload=700)
    (answer,) = driven.says(CHALLENGE)
    assert len(answer.packet) == 700
    sent = driven.says(PING + CHALLENGE, ELSEWHERE, 600)
    assert [len(one.packet) for one in sent] == [700, 700]


def test_another_host_is_another_path_and_another_port_is_not() -> None:
    driven = Driven()
    driven.session.recovery.smoothed = 0.02
    for source, known in (((CLIENT_ADDRESS[0], 9), True), (ELSEWHERE, False)):
        sent = driven.says(PING, source, 1200)
        challenge = next(driven.frames(one) for one in sent if one.to == source)
        driven.says(b"\x1b" + challenge[1:9], source)
        assert driven.session.peer == source
        assert (driven.session.recovery.smoothed != INITIAL_RTT) is known


def test_what_left_for_the_old_host_tells_nothing_of_the_way_to_the_new_one() -> None:
    driven = Driven()
    assert driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
    before = driven.session.packets.next_number - 1
    sent = driven.says(PING, ELSEWHERE, 1200)
    challenge = next(driven.frames(one) for one in sent if one.to == ELSEWHERE)
    driven.says(b"\x1b" + challenge[1:9], ELSEWHERE)
    driven.ends.now += 1
    assert driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
    driven.says(encode_ack([(before, before)], 0), ELSEWHERE)
    assert driven.session.recovery.smoothed == INITIAL_RTT
    driven.ends.now += 0.25
    driven.says(encode_ack([(before, driven.session.packets.next_number - 1)], 0), ELSEWHERE)
    assert driven.session.recovery.smoothed == pytest.approx(0.25)


def moved(ends: Ends, *inner: bytes) -> list[OutgoingPacket]:
    """The client sends from elsewhere; what the server answers, and where to."""
    sealed = ends.client.seal_datagrams([DATAGRAM_HEAD + packet for packet in inner], ends.now)
    ends.server.open_datagrams(sealed, ELSEWHERE, 0, ends.now)
    answer = list(ends.server.outbox)
    ends.take(S)
    return answer


def test_a_peer_that_moved_is_asked_first_and_followed_when_it_answers(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    answer = moved(ends, INNER + bytes(1000))
    assert [to for _, to, *_ in answer] == [ELSEWHERE, CLIENT_ADDRESS]
    assert [len(packet) for packet, *_ in answer] == [1200, 1200]
    assert ends.server.peer == CLIENT_ADDRESS
    ends.client.open_datagrams([answer[0][0]], SERVER_ADDRESS, 0, ends.now)
    (response, *_), *_ = ends.client.outbox
    assert len(response) == 1250
    ends.server.open_datagrams([response], ELSEWHERE, 0, ends.now)
    assert ends.server.peer == ELSEWHERE
    places = [str(event.underlay.peer_ip) for event in ends.server.events if isinstance(event, PeerMoved)]
    assert places == [ELSEWHERE[0]]


def test_never_more_than_three_times_what_came_is_sent_to_an_unproven_address(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    sealed = ends.client.seal_datagrams([DATAGRAM_HEAD + INNER[:30]], ends.now)
    ends.server.open_datagrams(sealed, ELSEWHERE, 0, ends.now)
    sent = sum(len(packet) for packet, to, *_ in ends.server.outbox if to == ELSEWHERE)
    ends.server.outbox.clear()
    for _ in range(200):
        ends.now += 0.05
        ends.server.handle_timer(ends.now)
        sent += sum(len(packet) for packet, to, *_ in ends.server.outbox if to == ELSEWHERE)
        ends.server.outbox.clear()
    assert 0 < sent <= 3 * len(sealed[0])


def test_a_replayed_or_delayed_packet_from_elsewhere_moves_nobody(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    old = ends.sent[-1][1]
    ends.transmit(C, INNER)
    ends.receive(S, ends.sent[-1][1])
    ends.server.open_datagrams([old], ELSEWHERE, 0, ends.now)
    assert not [to for _, to, *_ in ends.server.outbox if to == ELSEWHERE]
    ends.server.open_datagrams([old], ELSEWHERE, 0, ends.now)
    assert not [to for _, to, *_ in ends.server.outbox if to == ELSEWHERE]


def test_a_wrong_path_response_moves_nobody(ends: Ends) -> None:
    ends.fate = lambda role, datagram: []
    moved(ends, INNER)
    ends.server.open_datagrams(ends.client.packets.seal([b"\x1b" + bytes(8)]), ELSEWHERE, 0, ends.now)
    assert ends.server.peer == CLIENT_ADDRESS


# --- connection IDs ---


def test_a_path_has_a_connection_id_of_its_own() -> None:
    driven = Driven(client_connection_id=FIRST)
    assert driven.says(issued(1, 0, SECOND)) == []
    assert not driven.ends.said(S, FrameReceived), "it is no matter of the handshake worker's"
    sent = driven.says(PING, ELSEWHERE, 1200)
    (there,), (here,) = to(sent, ELSEWHERE), to(sent, CLIENT_ADDRESS)
    assert there[1:9] == SECOND and here[1:9] == FIRST
    challenge = next(driven.frames(one) for one in sent if one.to == ELSEWHERE)
    sent = driven.says(b"\x1b" + challenge[1:9], ELSEWHERE)
    assert retired(driven, sent) == [0]
    data = driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
    assert {packet[1:9] for packet, *_ in sent} | {packet[1:9] for packet in data} == {SECOND}
    assert {one.to for one in sent} == {ELSEWHERE}
    again = driven.wait(2)
    assert retired(driven, again) and set(retired(driven, again)) == {0}, "until it is acknowledged"
    driven.acknowledge()
    assert not retired(driven, driven.wait(5))


def test_without_a_spare_one_it_goes_on_with_what_it_has() -> None:
    driven = Driven(client_connection_id=FIRST)
    sent = driven.says(PING, ELSEWHERE, 1200)
    challenge = next(driven.frames(one) for one in sent if one.to == ELSEWHERE)
    sent += driven.says(b"\x1b" + challenge[1:9], ELSEWHERE)
    assert driven.session.peer == ELSEWHERE
    assert {packet[1:9] for packet, *_ in sent} == {FIRST} and not driven.session.paths.cids.owed


def test_one_that_was_seen_at_an_address_that_did_not_answer_is_used_nowhere_else() -> None:
    driven = Driven(client_connection_id=FIRST)
    driven.says(issued(1, 0, SECOND) + issued(2, 0, THIRD))
    assert to(driven.says(PING, ELSEWHERE, 1200), ELSEWHERE)[0][1:9] == SECOND
    assert 1 in retired(driven, driven.wait(3))
    assert to(driven.says(PING, FURTHER, 1200), FURTHER)[0][1:9] == THIRD
    assert driven.session.paths.used.cid == FIRST


def test_a_connection_id_that_the_peer_wants_back_is_used_no_more() -> None:
    driven = Driven(C, cid_sequence=1)
    other = bytes([0x0B] * 20)
    assert {packet[1:21] for packet, *_ in driven.says(CHALLENGE)} == {ROUTED_CID}
    sent = driven.says(issued(2, 2, other))
    data = driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
    assert {packet[1:21] for packet, *_ in sent} | {packet[1:21] for packet in data} == {other}
    assert retired(driven, sent) == [1]


def test_a_candidate_changes_its_own_when_the_peer_wants_that_back() -> None:
    driven = Driven(client_connection_id=FIRST)
    driven.says(issued(1, 0, SECOND))
    sent = driven.says(PING, ELSEWHERE, 1200)
    assert to(sent, ELSEWHERE)[0][1:9] == SECOND
    sent = driven.says(issued(2, 2, THIRD) + issued(3, 0, bytes([0xC4] * 8)))
    assert sorted(retired(driven, sent)) == [0, 1]
    candidate = driven.session.paths.candidate
    assert candidate is not None
    assert {driven.session.paths.used.cid, candidate.cid.cid} == {THIRD, bytes([0xC4] * 8)}


def test_a_candidate_without_a_connection_id_of_its_own_shares_the_next_one_too() -> None:
    driven = Driven(client_connection_id=FIRST)
    driven.says(PING, ELSEWHERE, 1200)
    driven.says(issued(1, 1, SECOND))
    candidate = driven.session.paths.candidate
    assert candidate is not None and candidate.cid is driven.session.paths.used
    assert driven.session.paths.used.cid == SECOND


def test_the_packets_of_a_longer_connection_id_stay_within_the_path() -> None:
    driven = Driven(client_connection_id=FIRST)
    before = driven.session.max_inner
    driven.says(issued(1, 1, bytes([0xC5] * 20)))
    assert driven.session.max_inner == before - 12


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (issued(1, 0, FIRST), 0x0A),
        (issued(0, 0, SECOND), 0x0A),
        (b"".join(issued(n, 0, bytes([n] * 8)) for n in range(1, 9)), 0x09),
    ],
    ids=["two numbers", "two of one number", "too many"],
)
def test_who_breaks_the_rules_of_connection_ids_is_told_the_error(frames: bytes, error: int) -> None:
    driven = Driven(client_connection_id=FIRST)
    (close, *_) = [one for one in driven.says(frames) if driven.frames(one)[:1] == b"\x1c"]
    assert driven.frames(close)[1] == error
    assert driven.lost() == [(LossReason.PROTOCOL, error)] and driven.session.state is LifeState.CLOSING


def test_who_makes_us_owe_too_many_is_told_the_error() -> None:
    driven = Driven(client_connection_id=FIRST)
    late = [issued(n, 0, bytes([n, 0] * 4)) for n in range(1, 200)]
    sent = driven.says(issued(250, 250, SECOND))
    while driven.session.state is LifeState.ESTABLISHED:
        sent += driven.says(late.pop())
    assert len(retired(driven, sent[:-1])) == MAX_CONTROLS
    assert driven.lost() == [(LossReason.PROTOCOL, 0x09)]


def test_what_is_owed_waits_for_room_among_the_frames_in_flight() -> None:
    driven = Driven(client_connection_id=FIRST, idle_timeout_ms=600_000)
    for n in range(MAX_CONTROLS):
        driven.session.send_frames(n, b"\x10\x01", driven.now)
    driven.takes()
    sent = driven.says(issued(1, 1, SECOND))
    assert retired(driven, sent) == [] and driven.session.paths.cids.owed == [0]
    driven.acknowledge()
    assert retired(driven, driven.wait(1))[:1] == [0] and not driven.session.paths.cids.owed


class Watched(Driven):
    """Whoever does what it likes, and the rules for what comes back."""

    def __init__(self, dice: Random) -> None:
        super().__init__(client_connection_id=cid_of(0), idle_timeout_ms=10**9)
        self.dice = dice
        self.brought: Counter[tuple[str, int]] = Counter()
        self.sent: Counter[tuple[str, int]] = Counter()
        self.valid = {CLIENT_ADDRESS}
        self.given_back: set[int] = set()
        self.challenges: list[bytes] = []
        self.issued = 0

    def act(self) -> None:
        source = self.dice.choice([CLIENT_ADDRESS, ELSEWHERE, FURTHER, (ELSEWHERE[0], 1)])
        frames = self.dice.choice([PING, PING, CHALLENGE, PING + CHALLENGE, bytes(1)])
        if self.dice.random() < 0.2 and self.issued - len(self.given_back) < 4:
            self.issued += 1
            prior = self.dice.choice([0, 0, 0, max(self.issued - 3, 0)])
            frames += issued(self.issued, prior, cid_of(self.issued))
        if self.challenges and self.dice.random() < 0.5:
            frames += b"\x1b" + self.challenges.pop(self.dice.randrange(len(self.challenges)))
        size = self.dice.choice([0, 0, 300, 1200])
        packet_size = max(size, len(frames) + self.peer.packet_overhead)
        self.brought[source] += packet_size
        sent = self.says(frames, source, size)
        self.check(sent)
        if self.dice.random() < 0.3:
            self.acknowledge()
        self.check(self.wait(self.dice.choice([0.0, 0.05, 0.5])))

    def check(self, sent: list[OutgoingPacket]) -> None:
        self.valid.add(self.session.peer)
        for one in sent:
            self.sent[one.to] += len(one.packet)
            if one.to not in self.valid:
                assert len(one.packet) <= 1200
                assert self.sent[one.to] <= 3 * self.brought[one.to]
            for frame in frames_untrusted(self.frames(one)):
                if isinstance(frame, PathChallenge):
                    self.challenges = [*self.challenges, frame.data][-6:]
                elif isinstance(frame, RetireConnectionId):
                    assert one.packet[1:9] != cid_of(frame.sequence), "in the packet that gives it back"
                    self.given_back.add(frame.sequence)
            assert one.packet[1:9] not in {cid_of(sequence) for sequence in self.given_back}


def cid_of(sequence: int) -> bytes:
    return sequence.to_bytes(2, "big") * 4


def test_whatever_a_peer_does_it_never_gets_more_than_it_may_and_what_is_given_back_is_not_used() -> None:
    moves = returned = 0
    for seed in range(25):
        watched = Watched(Random(seed))
        for _ in range(150):
            watched.act()
            assert watched.session.state is LifeState.ESTABLISHED, watched.lost()
        moves += len(watched.ends.said(S, PeerMoved))
        returned += len(watched.given_back)
    assert moves > 100 and returned > 100
