"""The number marks: what survives a killed process, and what is refused because of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from qre.dataplane.protocol import PACKET_NUMBER_BLOCK, Refusal, SessionRefusedError
from qre.errors import MachineError
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.session import marks as module
from qre.workers.dataplane.session.marks import SIZE, SLOTS, NumberMarks
from tests.support.dataplane import marks_memfd

ID, KEY, OTHER_KEY = bytes(32), bytes(16), bytes(15) + b"\1"


@pytest.fixture
def fd() -> Iterator[int]:
    made = marks_memfd()
    yield made
    os.close(made)


def test_a_new_session_begins_where_it_was_told(fd: int) -> None:
    mark = NumberMarks(fd).claim(ID, 0, KEY, 70_000)
    assert (mark.send_mark, mark.receive_mark, mark.key_epoch) == (70_000, PACKET_NUMBER_BASE, 0)


def test_numbers_are_reserved_in_whole_blocks(fd: int) -> None:
    mark = NumberMarks(fd).claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    assert mark.reserve(PACKET_NUMBER_BASE + 1) == PACKET_NUMBER_BASE + PACKET_NUMBER_BLOCK
    assert mark.reserve(PACKET_NUMBER_BASE + 2) == PACKET_NUMBER_BASE + PACKET_NUMBER_BLOCK
    assert (
        mark.reserve(PACKET_NUMBER_BASE + 3 * PACKET_NUMBER_BLOCK + 1) == PACKET_NUMBER_BASE + 4 * PACKET_NUMBER_BLOCK
    )


def test_the_next_process_sends_from_beyond_and_refuses_what_was_received(fd: int) -> None:
    mark = NumberMarks(fd).claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    reserved = mark.reserve(PACKET_NUMBER_BASE + 10)
    mark.received(123_456)
    mark.received(100_000)
    again = NumberMarks(fd).claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    assert again.send_mark == reserved
    assert again.receive_mark == 123_457


def test_a_key_epoch_behind_is_refused_and_told(fd: int) -> None:
    mark = NumberMarks(fd).claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    mark.advance(1, OTHER_KEY, mark.reserve(PACKET_NUMBER_BASE + 1))
    with pytest.raises(SessionRefusedError) as caught:
        NumberMarks(fd).claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    assert caught.value.key_epoch == 1
    again = NumberMarks(fd).claim(ID, 1, OTHER_KEY, PACKET_NUMBER_BASE)
    assert again.phase_first == PACKET_NUMBER_BASE + PACKET_NUMBER_BLOCK


def test_other_keys_under_a_remembered_epoch_are_refused(fd: int) -> None:
    NumberMarks(fd).claim(ID, 3, KEY, PACKET_NUMBER_BASE)
    with pytest.raises(SessionRefusedError, match="other keys"):
        NumberMarks(fd).claim(ID, 3, OTHER_KEY, PACKET_NUMBER_BASE)


def test_a_key_is_never_started_afresh(fd: int) -> None:
    marks = NumberMarks(fd)
    marks.claim(ID, 0, KEY, PACKET_NUMBER_BASE).release()
    for same in (marks, NumberMarks(fd)):
        with pytest.raises(SessionRefusedError, match="used before"):
            same.claim(ID, 0, KEY, PACKET_NUMBER_BASE)
        with pytest.raises(SessionRefusedError, match="used before"):
            same.claim(bytes(31) + b"\1", 0, KEY, PACKET_NUMBER_BASE)
    mark = marks.claim(ID, 0, OTHER_KEY, PACKET_NUMBER_BASE)
    with pytest.raises(SessionRefusedError):
        mark.advance(1, KEY, PACKET_NUMBER_BASE)


def test_a_process_killed_before_a_key_was_remembered_can_go_on(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = NumberMarks(fd)
    mark = marks.claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    with monkeypatch.context() as patched:
        patched.setattr(marks, "remember", lambda digest: None)
        mark.advance(1, OTHER_KEY, PACKET_NUMBER_BASE + 5)
    again = NumberMarks(fd)
    assert again.claim(ID, 1, OTHER_KEY, PACKET_NUMBER_BASE).key_epoch == 1
    with pytest.raises(SessionRefusedError):
        again.claim(bytes(31) + b"\1", 0, OTHER_KEY, PACKET_NUMBER_BASE)


def test_every_store_alone_leaves_a_state_that_never_repeats_a_number(fd: int) -> None:
    """The process dies after each single word it wrote: the next one must not send below a used number."""

    class DiesAfter:
        def __init__(self, words: memoryview, stores: int) -> None:
            self.words, self.left = words, stores

        def __getitem__(self, at: int | slice) -> int | memoryview:
            return self.words[at]

        def __setitem__(self, at: int, value: int) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.words[at] = value

    for stores in range(40):
        memfd = marks_memfd()
        try:
            marks = NumberMarks(memfd)
            used: dict[bytes, int] = {}
            marks.words = DiesAfter(marks.words, stores)  # type: ignore[assignment]  # a memory that ends
            try:
                mark = marks.claim(ID, 0, KEY, PACKET_NUMBER_BASE)
                mark.reserve(PACKET_NUMBER_BASE + 1)
                used[KEY] = PACKET_NUMBER_BASE
                mark.advance(1, OTHER_KEY, PACKET_NUMBER_BASE + 1)
                used[OTHER_KEY] = PACKET_NUMBER_BASE + 1
                mark.release()
            except KeyboardInterrupt:
                pass
            for epoch, key in ((0, KEY), (1, OTHER_KEY)):
                try:
                    again = NumberMarks(memfd).claim(ID, epoch, key, PACKET_NUMBER_BASE)
                except SessionRefusedError:
                    continue
                assert again.send_mark > used.get(key, -1)
        finally:
            os.close(memfd)


def test_a_slot_is_used_again_only_when_its_session_is_gone(fd: int) -> None:
    marks = NumberMarks(fd)
    live = [marks.claim(n.to_bytes(32, "big"), 0, n.to_bytes(16, "big"), PACKET_NUMBER_BASE) for n in range(SLOTS)]
    with pytest.raises(SessionRefusedError, match="no room"):
        marks.claim(b"\xff" * 32, 0, b"\xff" * 16, PACKET_NUMBER_BASE)
    live[7].release()
    marks.claim(b"\xff" * 32, 0, b"\xff" * 16, PACKET_NUMBER_BASE)
    assert live[8].send_mark == PACKET_NUMBER_BASE


def test_sessions_that_nobody_took_over_make_room_but_their_keys_stay_known(fd: int) -> None:
    before = NumberMarks(fd)
    for n in range(SLOTS):
        before.claim(n.to_bytes(32, "big"), 0, n.to_bytes(16, "big"), PACKET_NUMBER_BASE)
    marks = NumberMarks(fd)
    marks.claim(b"\xff" * 32, 0, b"\xff" * 16, PACKET_NUMBER_BASE)
    refused = 0
    for n in range(SLOTS):
        try:
            mark = marks.claim(n.to_bytes(32, "big"), 0, n.to_bytes(16, "big"), PACKET_NUMBER_BASE)
            mark.reserve(PACKET_NUMBER_BASE + 1)
        except SessionRefusedError:
            refused += 1
    assert refused == 1


def test_the_memory_of_keys_is_bounded_and_forgets_the_oldest(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_ENTRIES", 8)
    marks = NumberMarks(fd)
    for n in range(12):
        marks.claim(ID, 0, n.to_bytes(16, "big"), PACKET_NUMBER_BASE).release()
    for same in (marks, NumberMarks(fd)):
        for n in range(4, 12):
            with pytest.raises(SessionRefusedError):
                same.claim(ID, 0, n.to_bytes(16, "big"), PACKET_NUMBER_BASE)


def numbered(n: int) -> tuple[bytes, bytes]:
    """A session id and a key."""
    return n.to_bytes(32, "big"), n.to_bytes(16, "big")


def test_the_key_of_a_session_that_lives_is_never_forgotten(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_ENTRIES", 8)
    marks = NumberMarks(fd)
    live = {n: marks.claim(*_claim(n), PACKET_NUMBER_BASE) for n in (1, 2)}
    live[2].advance(1, numbered(200)[1], PACKET_NUMBER_BASE + 1)
    for n in range(3, 60):
        marks.claim(*_claim(n), PACKET_NUMBER_BASE).release()
    for same in (marks, NumberMarks(fd)):
        for key in (1, 200, *range(54, 60)):
            with pytest.raises(SessionRefusedError, match="used before"):
                same.claim(bytes(31) + b"\xfe", 0, numbered(key)[1], PACKET_NUMBER_BASE)
    live[1].release()
    for n in range(60, 80):
        marks.claim(*_claim(n), PACKET_NUMBER_BASE).release()
    marks.claim(bytes(31) + b"\xfe", 0, numbered(1)[1], PACKET_NUMBER_BASE)


def _claim(n: int) -> tuple[bytes, int, bytes]:
    session_id, key = numbered(n)
    return session_id, 0, key


def test_a_memory_full_of_keys_in_use_takes_no_other_and_changes_nothing(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RING_ENTRIES", 4)
    marks = NumberMarks(fd)
    live = [marks.claim(*_claim(n), PACKET_NUMBER_BASE) for n in range(4)]
    for _ in range(2):
        with pytest.raises(SessionRefusedError, match="no room") as caught:
            marks.claim(*_claim(9), PACKET_NUMBER_BASE)
        assert caught.value.refusal is Refusal.NO_ROOM
        with pytest.raises(SessionRefusedError, match="no room"):
            live[0].advance(1, OTHER_KEY[::-1], PACKET_NUMBER_BASE)
    assert [mark.key_epoch for mark in live] == [0] * 4
    again = NumberMarks(fd)
    for n in range(4):
        assert again.claim(*_claim(n), PACKET_NUMBER_BASE).send_mark == PACKET_NUMBER_BASE
    live[2].release()
    marks.claim(*_claim(9), PACKET_NUMBER_BASE)
    for n in (0, 1, 3, 9):
        assert marks.was_used(module._hash_of_key(numbered(n)[1]))


def test_a_key_that_only_a_killed_session_shows_is_known(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died between the record and the ring, and another session's installation comes first."""
    marks = NumberMarks(fd)
    mark = marks.claim(ID, 0, KEY, PACKET_NUMBER_BASE)
    with monkeypatch.context() as patched:
        patched.setattr(marks, "remember", lambda digest: None)
        mark.advance(1, OTHER_KEY, PACKET_NUMBER_BASE + 5)
    with pytest.raises(SessionRefusedError, match="used before"):
        NumberMarks(fd).claim(bytes(31) + b"\1", 0, OTHER_KEY, PACKET_NUMBER_BASE)


def test_no_session_id_and_no_key_lies_in_the_memory(fd: int) -> None:
    session_id, key = os.urandom(32), os.urandom(16)
    NumberMarks(fd).claim(session_id, 0, key, PACKET_NUMBER_BASE)
    content = os.pread(fd, SIZE, 0)
    assert session_id not in content
    assert key not in content


def test_a_descriptor_of_something_else_is_refused() -> None:
    for content in (b"", b"x" * SIZE):
        fd = os.memfd_create("other", os.MFD_CLOEXEC)
        os.write(fd, content)
        with pytest.raises(MachineError):
            NumberMarks(fd)
        os.close(fd)
