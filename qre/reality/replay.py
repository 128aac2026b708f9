"""Remembers every accepted ClientHello, so that none is accepted twice, whatever restarts in between.

Over the image of a file of fixed size: 65,536 records of 24 bytes, a mark of the short id (3) ‖ unix time in seconds
(5, big-endian) ‖ the first 16 bytes of SHA-256(random). A free record is all zero. The caller writes what ``accept``
returns to the file *before* the flow becomes ours. When all records are taken by hellos that could still be replayed,
nothing more is accepted: forgetting one would let it in again. Half of them are shared out among the short ids: no
client can take them all.
"""

from __future__ import annotations

import enum
import hashlib
import heapq
from array import array
from collections import Counter
from typing import Final

RECORD_LENGTH: Final = 24
HASH_LENGTH: Final = 16
CAPACITY: Final = 65_536
FILE_LENGTH: Final = CAPACITY * RECORD_LENGTH
_OWNER_LENGTH: Final = 3
_TIME_LENGTH: Final = 5
#: How long hellos are remembered when their time is not checked (seconds).
WINDOW_WITHOUT_TIME_CHECK: Final = 24 * 3600


class NotRecorded(enum.Enum):
    """Why a hello is not accepted. The value says it in words."""

    REPEATED = "a ClientHello was repeated"
    FULL = "the replay filter is full"
    SHARE = "a client has used up its share of the replay filter"


def random_hash(random: bytes) -> bytes:
    """The 16 bytes that are remembered of a hello."""
    return hashlib.sha256(random).digest()[:HASH_LENGTH]


def replay_window(max_time_diff_ms: int) -> int:
    """Seconds for which a hello has to be remembered: twice the allowed difference, as long as it is acceptable."""
    if not max_time_diff_ms:
        return WINDOW_WITHOUT_TIME_CHECK
    return -(-2 * max_time_diff_ms // 1000) + 1


class ReplayFilter:
    """``image`` is the file as read at the start, any length; ``capacity`` is smaller only in tests.

    ``owners``: among how many short ids one half is shared out; the other half is everybody's.
    """

    def __init__(self, image: bytes, window: int, capacity: int = CAPACITY, *, owners: int = 1) -> None:
        self._window = window
        self.owners = owners
        self._capacity = capacity
        self._slots: dict[bytes, int] = {}
        #: Slots without a record, the next one last; and (time, slot) of the others, of which the oldest is replaced.
        self._free = array("I")
        self._by_age: list[tuple[int, int]] = []
        #: (time, mark of the owner) of the hellos that could still be replayed, and how many each owner has.
        self._live: list[tuple[int, bytes]] = []
        self._held: Counter[bytes] = Counter()
        for slot in reversed(range(capacity)):
            record = image[slot * RECORD_LENGTH : (slot + 1) * RECORD_LENGTH].ljust(RECORD_LENGTH, b"\x00")
            if any(record):
                owner, time = record[:_OWNER_LENGTH], int.from_bytes(record[_OWNER_LENGTH:-HASH_LENGTH], "big")
                self._slots[record[-HASH_LENGTH:]] = slot
                self._live.append((time, owner))
                self._held[owner] += 1
                self._by_age.append((time, slot))
            else:
                self._free.append(slot)
        heapq.heapify(self._by_age)
        heapq.heapify(self._live)
        self._hashes = {slot: digest for digest, slot in self._slots.items()}

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slots

    @property
    def window(self) -> int:
        """Seconds for which an accepted hello is remembered."""
        return self._window

    @window.setter
    def window(self, seconds: int) -> None:
        """A reload may change it. Hellos that were already overwritten are not remembered again."""
        self._window = seconds

    def accept(self, digest: bytes, short_id: bytes, unix_time: int) -> tuple[int, bytes] | NotRecorded:
        """(offset in the file, record to write there) for a new hello of this client."""
        self._expire(unix_time)
        if digest in self._slots:
            return NotRecorded.REPEATED
        if not self._free and unix_time - self._by_age[0][0] <= self._window:
            return NotRecorded.FULL
        owner = hashlib.sha256(short_id).digest()[:_OWNER_LENGTH]
        common = self._capacity // 2
        if self.owners > 1 and len(self._live) >= common and self._held[owner] >= common // self.owners:
            return NotRecorded.SHARE
        unix_time = max(unix_time, 0)
        if self._free:
            slot = self._free.pop()
            heapq.heappush(self._by_age, (unix_time, slot))
        else:
            _, slot = heapq.heapreplace(self._by_age, (unix_time, self._by_age[0][1]))
        heapq.heappush(self._live, (unix_time, owner))
        self._held[owner] += 1
        forgotten = self._hashes.pop(slot, None)
        if forgotten is not None:
            del self._slots[forgotten]
        self._hashes[slot] = digest
        self._slots[digest] = slot
        return slot * RECORD_LENGTH, owner + unix_time.to_bytes(_TIME_LENGTH, "big") + digest

    def _expire(self, unix_time: int) -> None:
        """What no replay can use any more counts for nobody's share."""
        while self._live and unix_time - self._live[0][0] > self._window:
            _, owner = heapq.heappop(self._live)
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
