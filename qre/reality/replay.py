"""Remembers every accepted ClientHello, so that none is accepted twice, whatever restarts in between.

Over the image of a file of fixed size: 65,536 records of 24 bytes, unix time in seconds (8, big-endian) ‖ the first
16 bytes of SHA-256(random). A free record is all zero. The caller writes what ``accept`` returns to the file
*before* the flow becomes ours. When all records are taken by hellos that could still be replayed, nothing more is
accepted: forgetting one would let it in again.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import Final

RECORD_LENGTH: Final = 24
HASH_LENGTH: Final = 16
CAPACITY: Final = 65_536
FILE_LENGTH: Final = CAPACITY * RECORD_LENGTH
#: How long hellos are remembered when their time is not checked (seconds).
WINDOW_WITHOUT_TIME_CHECK: Final = 24 * 3600


def random_hash(random: bytes) -> bytes:
    """The 16 bytes that are remembered of a hello."""
    return hashlib.sha256(random).digest()[:HASH_LENGTH]


def replay_window(max_time_diff_ms: int) -> int:
    """Seconds for which a hello has to be remembered: twice the allowed difference, as long as it is acceptable."""
    if not max_time_diff_ms:
        return WINDOW_WITHOUT_TIME_CHECK
    return -(-2 * max_time_diff_ms // 1000) + 1


class ReplayFilter:
    """``image`` is the file as read at the start, any length; ``capacity`` is smaller only in tests."""

    def __init__(self, image: bytes, window: int, capacity: int = CAPACITY) -> None:
        self._window = window
        self._slots: dict[bytes, int] = {}
        #: (time, slot) of every slot; free ones have time -1, so they come first. The oldest is replaced.
        self._by_age: list[tuple[int, int]] = []
        for slot in range(capacity):
            record = image[slot * RECORD_LENGTH : (slot + 1) * RECORD_LENGTH].ljust(RECORD_LENGTH, b"\x00")
            if any(record):
                time = int.from_bytes(record[:8], "big")
                self._slots[record[8:]] = slot
            else:
                time = -1
            self._by_age.append((time, slot))
        heapq.heapify(self._by_age)
        self._hashes = {slot: digest for digest, slot in self._slots.items()}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def window(self) -> int:
        """Seconds for which an accepted hello is remembered."""
        return self._window

    @window.setter
    def window(self, seconds: int) -> None:
        """A reload may change it. Hellos that were already overwritten are not remembered again."""
        self._window = seconds

    def accept(self, digest: bytes, unix_time: int) -> tuple[int, bytes] | None:
        """(offset in the file, record to write there) for a new hello; None: it is known, or there is no room."""
        if digest in self._slots:
            return None
        oldest, slot = self._by_age[0]
        if oldest >= 0 and unix_time - oldest <= self._window:
            return None
        unix_time = max(unix_time, 0)
        heapq.heapreplace(self._by_age, (unix_time, slot))
        forgotten = self._hashes.pop(slot, None)
        if forgotten is not None:
            del self._slots[forgotten]
        self._hashes[slot] = digest
        self._slots[digest] = slot
        return slot * RECORD_LENGTH, unix_time.to_bytes(8, "big") + digest
