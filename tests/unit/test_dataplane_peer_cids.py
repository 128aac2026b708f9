"""The connection IDs that a peer gives the user data plane: RFC 9000 sections 5.1 and 19.15, and as qre.ko has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qre.wire.frames import NewConnectionId, RetireConnectionId, encode_frame, frames_untrusted
from qre.workers.dataplane.session.peer_cids import MAX_HELD, MAX_OWED, PeerCid, PeerCids
from tests.support.issued_cids import cid, token
from tests.support.issued_cids import issued as frame
from tests.support.kmod.codec import HeldCids, KernelCodec

CID_LIMIT_ERROR, PROTOCOL_VIOLATION = 0x09, 0x0A
PING = b"\x01"


@pytest.fixture
def first() -> PeerCid:
    return PeerCid(cid(1), 1, token(1), used=True)


@pytest.fixture
def cids(first: PeerCid) -> PeerCids:
    return PeerCids(first)


def sequences(cids: PeerCids, *, used: bool) -> list[int]:
    return sorted(one.sequence for one in cids.held if one.used is used)


def test_one_that_is_issued_is_spare_until_it_is_taken(cids: PeerCids) -> None:
    assert cids.issued(frame(2)) == 0
    assert sequences(cids, used=False) == [2] and sequences(cids, used=True) == [1]
    taken = cids.take(20)
    assert taken is not None
    assert (taken.sequence, taken.cid, taken.token) == (2, cid(2), token(2))
    assert cids.take(20) is None


def test_a_repeat_changes_nothing_and_a_contradiction_is_an_error(cids: PeerCids) -> None:
    assert [cids.issued(frame(n)) for n in (2, 2, 1)] == [0, 0, 0]
    assert sequences(cids, used=False) == [2]
    for wrong in (
        NewConnectionId(2, 0, cid(3), token(2)),
        NewConnectionId(2, 0, cid(2), token(3)),
        NewConnectionId(3, 0, cid(2), token(2)),
        NewConnectionId(1, 0, cid(1), token(2)),
    ):
        assert cids.issued(wrong) == PROTOCOL_VIOLATION


def test_the_first_ones_token_is_learnt_when_it_was_not_known() -> None:
    only = PeerCid(cid(0), 0, None, used=True)
    assert PeerCids(only).issued(frame(0)) == 0
    assert only.token == token(0)


def test_retire_prior_to_gives_back_what_is_spare_and_asks_for_what_is_used(cids: PeerCids, first: PeerCid) -> None:
    for issued in (frame(2), frame(3), frame(4, prior=4)):
        assert cids.issued(issued) == 0
    assert sequences(cids, used=False) == [4] and sequences(cids, used=True) == [1]
    assert cids.owed == [2, 3]
    assert cids.wanted_back(first)
    taken = cids.take(20)
    assert taken is not None and not cids.wanted_back(taken)
    assert cids.retire(first) and cids.owed == [2, 3, 1]


def test_one_that_comes_too_late_is_given_back_at_once_and_once(cids: PeerCids) -> None:
    cids.issued(frame(9, prior=9))
    for _ in range(3):
        assert cids.issued(frame(5)) == 0
        assert cids.owed == [5]


def test_more_than_there_is_room_for_is_an_error(cids: PeerCids) -> None:
    assert [cids.issued(frame(n)) for n in range(2, MAX_HELD + 1)] == [0] * (MAX_HELD - 1)
    assert cids.issued(frame(MAX_HELD + 1)) == CID_LIMIT_ERROR
    assert cids.issued(frame(MAX_HELD + 2, prior=MAX_HELD + 2)) == 0, "they were given back before"


def test_who_makes_us_owe_too_many_is_in_error(cids: PeerCids) -> None:
    cids.issued(frame(100, prior=100))
    results = [cids.issued(frame(n)) for n in range(2, 30)]
    assert results == [0] * MAX_OWED + [CID_LIMIT_ERROR] * (28 - MAX_OWED)


def test_what_is_owed_is_paid_in_whole_frames_as_there_is_room(cids: PeerCids) -> None:
    cids.issued(frame(100_000, prior=100_000))
    owed = [2, 70, 20_000, 99_999]
    for sequence in owed:
        cids.issued(frame(sequence))
    parts = [cids.pay(room) for room in (1, 2, 4, 4, 100)]
    assert [len(part) for part in parts] == [0, 2, 3, 0, 10]
    paid = [one for one in frames_untrusted(b"".join(parts)) if isinstance(one, RetireConnectionId)]
    assert [one.sequence for one in paid] == owed and cids.owed == []


def test_one_of_the_same_length_is_taken_first_and_the_oldest_of_them(cids: PeerCids) -> None:
    for sequence, size in ((2, 8), (4, 20), (3, 20)):
        cids.issued(frame(sequence, size=size))
    order = []
    while (taken := cids.take(20)) is not None:
        order.append(taken.sequence)
    assert order == [3, 4, 2]


# --- beside the kernel's ---


class Both:
    """One step after another is done to both; ``used`` are those in use: ours, and the kernel's place."""

    def __init__(self, codec: KernelCodec) -> None:
        self.codec = codec
        first = PeerCid(cid(0), 0, None, used=True)
        self.ours = PeerCids(first)
        self.used = [(first, 0)]
        self.compare(codec.peer_cids("new", 0, cid(0), b""))

    def compare(self, theirs: HeldCids) -> None:
        ours = sorted((one.sequence, one.cid, one.token or b"", one.used) for one in self.ours.held)
        assert ours == sorted((one.sequence, one.cid, one.token, one.state == "used") for one in theirs.held)
        assert sorted(self.ours.owed) == sorted(theirs.owed)

    def issued(self, sequence: int, prior: int, changed: int) -> bool:
        """False: both say that it is an error."""
        frame = NewConnectionId(sequence, min(prior, sequence), cid(sequence + changed), token(sequence))
        error = self.ours.issued(frame)
        theirs = self.codec.peer_cids("issued", encode_frame(frame))
        assert error == theirs.result
        if not error:
            self.compare(theirs)
        return not error

    def take(self, size: int) -> None:
        taken, theirs = self.ours.take(size), self.codec.peer_cids("take", size)
        assert (taken is None) == (theirs.result < 0)
        if taken is not None:
            assert taken.sequence == next(one.sequence for one in theirs.held if one.place == theirs.result)
            self.used.append((taken, theirs.result))
        self.compare(theirs)

    def retire(self, which: int) -> bool:
        if len(self.used) == 1:
            return True
        one, place = self.used.pop(which % len(self.used))
        assert self.ours.wanted_back(one) == bool(self.codec.peer_cids("wanted", place).result)
        room, theirs = self.ours.retire(one), self.codec.peer_cids("retire", place)
        assert room == bool(theirs.result)
        if room:
            self.compare(theirs)
        return room

    def pay(self) -> None:
        paid, theirs = self.ours.pay(200), self.codec.peer_cids("pay", 200)
        assert sorted(map(str, frames_untrusted(PING + paid))) == sorted(
            map(str, frames_untrusted(PING + theirs.paid))
        )
        self.compare(theirs)


sequence_numbers = st.integers(0, 40) | st.sampled_from([63, 64, 16_383, 16_384])
steps: st.SearchStrategy[Callable[[Both], bool | None]] = st.one_of(
    st.tuples(sequence_numbers, st.just(0) | sequence_numbers, st.sampled_from([0] * 9 + [1])).map(
        lambda values: lambda both: both.issued(*values)
    ),
    st.sampled_from([8, 20]).map(lambda size: lambda both: both.take(size)),
    st.integers(0, 7).map(lambda which: lambda both: both.retire(which)),
    st.just(lambda both: both.pay()),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=60))
def test_whatever_comes_it_is_as_the_kernel_module_has_it(
    codec: KernelCodec, todo: list[Callable[[Both], bool | None]]
) -> None:
    both = Both(codec)
    for step in todo:
        if step(both) is False:
            break  # the session is over
        assert len(both.ours.held) <= MAX_HELD and len(both.ours.owed) <= MAX_OWED
        numbers = [one.sequence for one in both.ours.held]
        assert len(set(numbers)) == len(numbers) and not set(numbers) & set(both.ours.owed)
