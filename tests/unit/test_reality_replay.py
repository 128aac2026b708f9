"""The replay filter, and routed connection IDs."""

from __future__ import annotations

import os
import random as randomness

import pytest

from qre.reality.cid import MAX_LENGTH, MIN_LENGTH, cid_key, is_ours, reset_token, routed_cid
from qre.reality.replay import (
    FILE_LENGTH,
    HASH_LENGTH,
    RECORD_LENGTH,
    NotRecorded,
    ReplayFilter,
    random_hash,
    replay_window,
)

NOW = 1_700_000_000
ONE, OTHER = bytes(8), bytes(7) + b"\x01"


class File:
    """The record file, as its owner keeps it."""

    def __init__(self, capacity: int) -> None:
        self.image = bytearray()
        self.capacity = capacity

    def load(self, window: int = 120) -> ReplayFilter:
        return ReplayFilter(bytes(self.image), window, self.capacity)

    def write(self, accepted: tuple[int, bytes] | NotRecorded) -> bool:
        if isinstance(accepted, NotRecorded):
            return False
        offset, record = accepted
        if len(self.image) < offset + len(record):
            self.image.extend(bytes(offset + len(record) - len(self.image)))
        self.image[offset : offset + len(record)] = record
        return True


def test_a_hello_is_accepted_once() -> None:
    memory = ReplayFilter(b"", 120, 16)
    digest = random_hash(os.urandom(32))
    assert len(digest) == HASH_LENGTH
    assert isinstance(memory.accept(digest, ONE, NOW), tuple)
    assert memory.accept(digest, ONE, NOW) is NotRecorded.REPEATED
    assert memory.accept(digest, OTHER, NOW + 119) is NotRecorded.REPEATED


def test_a_filter_that_was_read_from_the_file_still_knows_it() -> None:
    file = File(16)
    digests = [os.urandom(16) for _ in range(16)]
    memory = file.load()
    for digest in digests:
        assert file.write(memory.accept(digest, ONE, NOW))
    assert len(file.image) == 16 * RECORD_LENGTH
    again = file.load()
    assert len(again) == 16
    assert all(again.accept(digest, ONE, NOW + 1) is NotRecorded.REPEATED for digest in digests)


def test_a_full_filter_accepts_nothing_until_the_oldest_is_of_no_use_to_a_replay() -> None:
    memory = ReplayFilter(b"", 120, 4, owners=1)
    for second in range(4):
        assert isinstance(memory.accept(os.urandom(16), bytes([second]), NOW + second), tuple)
    assert memory.accept(os.urandom(16), ONE, NOW + 4) is NotRecorded.FULL
    assert memory.accept(os.urandom(16), ONE, NOW + 120) is NotRecorded.FULL
    assert isinstance(memory.accept(os.urandom(16), ONE, NOW + 121), tuple)
    assert memory.accept(os.urandom(16), ONE, NOW + 121) is NotRecorded.FULL
    assert len(memory) == 4


def test_whatever_comes_in_whatever_order_no_hello_is_accepted_twice_within_the_window() -> None:
    chance = randomness.Random(1)
    file = File(32)
    memory = file.load()
    accepted: dict[bytes, int] = {}
    now = NOW
    for _ in range(5000):
        now += chance.choice((0, 0, 1, 3))
        digest = chance.randbytes(1) * 16
        if file.write(memory.accept(digest, ONE, now)):
            assert now - accepted.get(digest, -1000) > 120
            accepted[digest] = now
        if chance.random() < 0.01:
            memory = file.load()


def test_half_of_the_filter_is_shared_out_and_nobody_takes_the_share_of_others() -> None:
    file = File(40)

    def load() -> ReplayFilter:
        return ReplayFilter(bytes(file.image), 120, 40, owners=4)

    memory = load()
    for _ in range(20):
        assert file.write(memory.accept(os.urandom(16), ONE, NOW)), "half is everybody's"
    assert memory.accept(os.urandom(16), ONE, NOW) is NotRecorded.SHARE
    memory = load()
    assert memory.accept(os.urandom(16), ONE, NOW) is NotRecorded.SHARE, "after a restart, too"
    for _ in range(5):
        assert file.write(memory.accept(os.urandom(16), OTHER, NOW + 1)), "a quarter of the other half"
    assert memory.accept(os.urandom(16), OTHER, NOW + 1) is NotRecorded.SHARE
    memory.owners = 2
    assert file.write(memory.accept(os.urandom(16), OTHER, NOW + 1)), "fewer have more"
    assert file.write(memory.accept(os.urandom(16), ONE, NOW + 121)), (
        "what is of no use to a replay counts for nobody"
    )


def test_records_of_the_format_before_are_known() -> None:
    digest = os.urandom(16)
    memory = ReplayFilter(NOW.to_bytes(8, "big") + digest, 120, 16)
    assert memory.accept(digest, ONE, NOW) is NotRecorded.REPEATED
    assert isinstance(memory.accept(os.urandom(16), ONE, NOW), tuple)


def test_a_clock_that_is_set_back_lets_nothing_in_again() -> None:
    memory = ReplayFilter(b"", 120, 4)
    digest = os.urandom(16)
    assert isinstance(memory.accept(digest, ONE, NOW), tuple)
    assert memory.accept(digest, ONE, NOW - 100_000) is NotRecorded.REPEATED


def test_a_torn_or_foreign_file_is_read_without_an_error() -> None:
    for length in (1, RECORD_LENGTH - 1, RECORD_LENGTH * 3 + 5, 4096):
        image = bytearray(b"\x01" + os.urandom(length - 1))  # a record of zeros is a free place
        image[3::RECORD_LENGTH] = b"\xff" * len(image[3::RECORD_LENGTH])  # what is older than a hello may be replaced
        memory = ReplayFilter(bytes(image), 120, 64)
        assert len(memory) == min(-(-length // RECORD_LENGTH), 64), "what is there counts as known"
        full = len(memory) == 64
        assert (memory.accept(os.urandom(16), ONE, NOW) is NotRecorded.FULL) is full


def test_the_file_of_the_real_size_is_one_and_a_half_megabytes() -> None:
    assert FILE_LENGTH == 65_536 * 24
    memory = ReplayFilter(b"", 120)
    assert isinstance(memory.accept(os.urandom(16), ONE, NOW), tuple)


def test_a_hello_is_remembered_for_twice_the_allowed_difference() -> None:
    assert replay_window(60_000) >= 120
    assert replay_window(1) >= 1
    assert replay_window(0) == 24 * 3600
    memory = ReplayFilter(b"", 10, 2)
    memory.window = 20
    assert memory.window == 20


@pytest.mark.parametrize("length", range(MIN_LENGTH, MAX_LENGTH + 1))
def test_a_routed_cid_is_recognised_by_the_key_that_made_it(length: int) -> None:
    key = cid_key(os.urandom(32))
    cid = routed_cid(key, os.urandom, length)
    assert len(cid) == length
    assert is_ours(key, cid)
    assert not is_ours(cid_key(os.urandom(32)), cid)
    for position in range(length):
        changed = bytearray(cid)
        changed[position] ^= 1
        assert not is_ours(key, bytes(changed))


def test_other_connection_ids_are_not_ours() -> None:
    key = cid_key(bytes(32))
    for length in range(22):
        assert not is_ours(key, os.urandom(length))


def test_a_routed_cid_has_17_to_20_bytes() -> None:
    for length in (0, 16, 21):
        with pytest.raises(ValueError, match="17 to 20"):
            routed_cid(bytes(32), os.urandom, length)


def test_two_routed_cids_and_their_reset_tokens_differ() -> None:
    key = cid_key(bytes(32))
    one, other = routed_cid(key, os.urandom), routed_cid(key, os.urandom)
    assert one != other
    assert len(reset_token(key, one)) == 16
    assert reset_token(key, one) == reset_token(key, one) != reset_token(key, other)
