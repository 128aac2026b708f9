"""The connection IDs that a peer gives the kernel module (``kmod/peercids.c``): RFC 9000 sections 5.1 and 19.15."""

from __future__ import annotations

from random import Random

import pytest

from qre.wire.frames import NewConnectionId, RetireConnectionId, encode_frame, frames_untrusted
from tests.support.issued_cids import cid, issued, token
from tests.support.kmod.codec import HeldCids, KernelCodec

CID_LIMIT_ERROR, PROTOCOL_VIOLATION = 0x09, 0x0A
MOST, MOST_OWED = 8, 16


def frame(sequence: int, prior: int = 0, size: int = 20) -> bytes:
    return encode_frame(issued(sequence, prior, size))


@pytest.fixture
def fresh(codec: KernelCodec) -> KernelCodec:
    """One is used: number 1, with its token."""
    codec.peer_cids("new", 1, cid(1), token(1))
    return codec


def sequences(held: HeldCids, state: str) -> list[int]:
    return sorted(one.sequence for one in held.held if one.state == state)


def test_one_that_is_issued_is_spare_until_it_is_taken(fresh: KernelCodec) -> None:
    held = fresh.peer_cids("issued", frame(2))
    assert held.result == 0 and sequences(held, "used") == [1] and sequences(held, "spare") == [2]
    held = fresh.peer_cids("take", 20)
    (taken,) = [one for one in held.held if one.place == held.result]
    assert (taken.sequence, taken.cid, taken.token) == (2, cid(2), token(2))
    assert fresh.peer_cids("take", 20).result == -1


def test_a_repeat_changes_nothing_and_a_contradiction_is_an_error(fresh: KernelCodec) -> None:
    fresh.peer_cids("issued", frame(2))
    before = fresh.peer_cids("issued", frame(2))
    assert before.result == 0 and sequences(before, "spare") == [2]
    assert fresh.peer_cids("issued", frame(1)).result == 0, "the first one, once more"
    for wrong in (
        NewConnectionId(2, 0, cid(3), token(2)),
        NewConnectionId(2, 0, cid(2), token(3)),
        NewConnectionId(3, 0, cid(2), token(2)),
        NewConnectionId(1, 0, cid(1), token(2)),
    ):
        assert fresh.peer_cids("issued", encode_frame(wrong)).result == PROTOCOL_VIOLATION


def test_the_first_ones_token_is_learnt_when_it_was_not_known(codec: KernelCodec) -> None:
    assert codec.peer_cids("new", 1, cid(1), b"").held[0].token == b""
    assert codec.peer_cids("issued", frame(1)).held[0].token == token(1)


def test_retire_prior_to_gives_back_what_is_spare_and_asks_for_what_is_used(fresh: KernelCodec) -> None:
    fresh.peer_cids("issued", frame(2))
    fresh.peer_cids("issued", frame(3))
    held = fresh.peer_cids("issued", frame(4, prior=4))
    assert held.result == 0 and sequences(held, "spare") == [4] and sequences(held, "used") == [1]
    assert held.owed == [2, 3]
    assert fresh.peer_cids("wanted", 0).result == 1
    taken = fresh.peer_cids("take", 20).result
    held = fresh.peer_cids("retire", 0)
    assert held.result == 1 and held.owed == [2, 3, 1]
    assert fresh.peer_cids("wanted", taken).result == 0


def test_one_that_comes_too_late_is_given_back_at_once_and_once(fresh: KernelCodec) -> None:
    fresh.peer_cids("issued", frame(9, prior=9))
    for _ in range(3):
        held = fresh.peer_cids("issued", frame(5))
        assert held.result == 0 and held.owed == [5]


def test_more_than_there_is_room_for_is_an_error(fresh: KernelCodec) -> None:
    for sequence in range(2, MOST + 1):
        assert fresh.peer_cids("issued", frame(sequence)).result == 0
    assert fresh.peer_cids("issued", frame(MOST + 1)).result == CID_LIMIT_ERROR
    assert fresh.peer_cids("issued", frame(MOST + 2, prior=MOST + 2)).result == 0, "they were given back before"


def test_who_makes_us_owe_too_many_is_in_error(fresh: KernelCodec) -> None:
    fresh.peer_cids("issued", frame(100, prior=100))
    results = [fresh.peer_cids("issued", frame(sequence)).result for sequence in range(2, 30)]
    assert results == [0] * MOST_OWED + [CID_LIMIT_ERROR] * (28 - MOST_OWED)


def test_what_is_owed_is_paid_in_whole_frames_as_there_is_room(fresh: KernelCodec) -> None:
    fresh.peer_cids("issued", frame(100_000, prior=100_000))
    owed = [2, 70, 20_000, 99_999]
    for sequence in owed:
        fresh.peer_cids("issued", frame(sequence))
    paid = []
    for room in (1, 2, 4, 4, 100):
        held = fresh.peer_cids("pay", room)
        paid += (
            [one.sequence for one in frames_untrusted(held.paid) if isinstance(one, RetireConnectionId)]
            if held.paid
            else []
        )
        assert len(held.paid) <= room
    assert paid == owed and held.owed == []


def test_one_of_the_same_length_is_taken_first_and_the_oldest_of_them(fresh: KernelCodec) -> None:
    for sequence, size in ((2, 8), (4, 20), (3, 20)):
        fresh.peer_cids("issued", frame(sequence, size=size))
    order = []
    while (held := fresh.peer_cids("take", 20)).result >= 0:
        order += [one.sequence for one in held.held if one.place == held.result]
    assert order == [3, 4, 2]


def test_whatever_comes_there_are_never_too_many_and_none_is_owed_and_held(codec: KernelCodec) -> None:
    for seed in range(30):
        dice = Random(seed)
        codec.peer_cids("new", 0, cid(0), b"")
        used = [0]
        for _ in range(200):
            match dice.randrange(5):
                case 0:
                    taken = codec.peer_cids("take", 20).result
                    used += [taken] if taken >= 0 else []
                case 1 if len(used) > 1:
                    codec.peer_cids("retire", used.pop(0))
                case 2:
                    codec.peer_cids("pay", dice.randrange(30))
                case _:
                    sequence = dice.randrange(200)
                    codec.peer_cids("issued", frame(sequence, prior=dice.randrange(sequence + 1) // 2))
            held = codec.peer_cids("wanted", used[0])
            assert len(held.held) <= MOST and len(held.owed) <= MOST_OWED
            numbers = [one.sequence for one in held.held]
            assert len(set(numbers)) == len(numbers) and not set(numbers) & set(held.owed)
            assert [one.place for one in held.held if one.state == "used"] == sorted(used)
