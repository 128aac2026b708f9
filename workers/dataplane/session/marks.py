"""Packet number marks that outlive the process: the reason why no (key, packet number) pair is used twice.

RFC 9000 §12.3, RFC 9001 §6.6. A memfd of one MiB is mapped shared; the supervisor holds it and hands it to the next
data plane process when this one dies. For every session it has the send mark (numbers below it may have been
used; reserved in blocks *before* use), the highest number received (written *before* delivery), and the key epoch. A
ring of hashes of transmit keys ensures that no key is used anew; the hash of a key in use never leaves the ring. It
must never hold a key or a session id.

Layout, in native 64-bit words::

    word 0        magic and version
    word 1        hashes ever appended to the ring, one that was kept counted again
    word 16 …     SLOTS slots of 16 words
        0         0: free, 1: used (written last)
        1-4       SHA-256 of the session id
        5         send mark: numbers below it may have been used
        6         receive mark: numbers below it are refused
        7         which of the two records is valid (0, 1)
        8-11      record 0: key epoch, hash of the transmit key (2 words), first number sent under it
        12-15     record 1
    then          ring of 16-byte hashes of transmit keys

Torn writes: one word is stored by one machine instruction, and a killed process stops between instructions. A
longer record is written to an unused place and made valid by one word.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct

from qre.dataplane.protocol import PACKET_NUMBER_BLOCK, Refusal, SessionRefusedError
from qre.errors import MachineError
from qre.wire.number import PACKET_NUMBER_BASE

SIZE = 1 << 20
SLOTS = 2048
MAGIC = int.from_bytes(b"qremark1", "little")
_FIRST_SLOT = 16
_SLOT_WORDS = 16
_RING = _FIRST_SLOT + SLOTS * _SLOT_WORDS
RING_ENTRIES = (SIZE // 8 - _RING) // 2

_STATE, _ID, _SEND, _RECEIVE, _SELECT, _RECORD = 0, 1, 5, 6, 7, 8
_WORDS4 = struct.Struct("=4Q")
_WORDS2 = struct.Struct("=2Q")


def _hash_of_id(session_id: bytes) -> bytes:
    return hashlib.sha256(b"qre session id" + session_id).digest()


def _hash_of_key(key: bytes) -> bytes:
    return hashlib.sha256(b"qre transmit key" + key).digest()[:16]


class Mark:
    """The slot of one session. Every store is finished when its method returns."""

    __slots__ = ("_at", "_marks")

    def __init__(self, marks: NumberMarks, at: int) -> None:
        self._marks = marks
        self._at = at

    @property
    def send_mark(self) -> int:
        """The first number that was certainly not used yet."""
        return self._marks.words[self._at + _SEND]

    @property
    def receive_mark(self) -> int:
        """Numbers below this one are refused after a restart."""
        return self._marks.words[self._at + _RECEIVE]

    @property
    def key_epoch(self) -> int:
        """The stored key epoch."""
        return self._marks.words[self._record()]

    @property
    def phase_first(self) -> int:
        """The first number sent (or skipped) under the current transmit key."""
        return self._marks.words[self._record() + 3]

    def _record(self) -> int:
        return self._at + _RECORD + 4 * (self._marks.words[self._at + _SELECT] & 1)

    def key_hash(self) -> bytes:
        """The 16-byte hash of the stored transmit key."""
        at = self._record() + 1
        return _WORDS2.pack(self._marks.words[at], self._marks.words[at + 1])

    def reserve(self, up_to: int) -> int:
        """Reserve whole blocks until every number below ``up_to`` may be used; the new send mark."""
        words, at = self._marks.words, self._at + _SEND
        mark = words[at]
        if mark < up_to:
            mark += -(-(up_to - mark) // PACKET_NUMBER_BLOCK) * PACKET_NUMBER_BLOCK
            words[at] = mark
        return mark

    def received(self, highest: int) -> None:
        """Numbers up to ``highest`` will be refused after a restart. Call it before anything is delivered."""
        words, at = self._marks.words, self._at + _RECEIVE
        if words[at] <= highest:
            words[at] = highest + 1

    def advance(self, key_epoch: int, tx_key: bytes, first_number: int) -> None:
        """``tx_key`` of ``key_epoch`` will be used from ``first_number`` on. Call it before the first use."""
        digest = _hash_of_key(tx_key)
        if self._marks.was_used(digest):
            raise SessionRefusedError(Refusal.KEY_USED, "this transmit key was used before")
        self._marks.make_room()
        self._write_record(key_epoch, digest, first_number)
        self._marks.remember(digest)

    def _write_record(self, key_epoch: int, digest: bytes, first_number: int) -> None:
        words = self._marks.words
        select = (words[self._at + _SELECT] & 1) ^ 1
        at = self._at + _RECORD + 4 * select
        words[at] = key_epoch
        words[at + 1], words[at + 2] = _WORDS2.unpack(digest)
        words[at + 3] = first_number
        words[self._at + _SELECT] = select
        self._marks.in_use[self._at] = digest

    def release(self) -> None:
        """The session has ended: free its slot. Its keys stay in the ring."""
        self._marks.free(self._at)


class NumberMarks:
    """The mapped memfd. Exactly one process uses it at a time."""

    def __init__(self, fd: int) -> None:
        """Map ``fd`` (it may be closed afterwards). Raises MachineError when it is not a memfd of marks."""
        try:
            if os.fstat(fd).st_size != SIZE:
                raise MachineError("number marks", f"the descriptor is not {SIZE} bytes long")
            self._map = mmap.mmap(fd, SIZE)
        except OSError as error:
            raise MachineError("number marks", str(error)) from error
        self.words = memoryview(self._map).cast("Q")
        if self.words[0] not in {0, MAGIC}:
            self.close()
            raise MachineError("number marks", "the descriptor holds other data")
        self.words[0] = MAGIC
        self._slots: dict[bytes, int] = {}  # hash of id -> first word
        self._free: list[int] = []
        self._live: set[int] = set()  # slots that a session of this process uses
        #: First word of each slot that is used -> hash of its transmit key.
        self.in_use: dict[int, bytes] = {}
        for at in range(_FIRST_SLOT + (SLOTS - 1) * _SLOT_WORDS, _FIRST_SLOT - 1, -_SLOT_WORDS):
            if self.words[at + _STATE]:
                self._slots[_WORDS4.pack(*self.words[at + _ID : at + _ID + 4])] = at
                self.in_use[at] = Mark(self, at).key_hash()
            else:
                self._free.append(at)
        count = min(self.words[1], RING_ENTRIES)
        self._used = {_WORDS2.pack(*self.words[_RING + 2 * i : _RING + 2 * i + 2]) for i in range(count)}

    def close(self) -> None:
        """Unmap the memfd; its contents stay with whoever holds a descriptor."""
        self.words.release()
        self._map.close()

    def was_used(self, digest: bytes) -> bool:
        """Whether the transmit key with this 16-byte hash belongs to a slot or stands in the ring."""
        return digest in self._used or digest in self.in_use.values()

    def make_room(self) -> None:
        """Make room for the next hash: from a full ring remove the oldest one that no session uses. Raises
        SessionRefusedError when there is none; only the order has changed then."""
        words = self.words
        if words[1] < RING_ENTRIES:
            return
        in_use = set(self.in_use.values())
        for _ in range(RING_ENTRIES):
            count = words[1]
            if self._hash_at(count) not in in_use:
                return
            words[1] = count + 1  # it stays, as the newest one
        raise SessionRefusedError(Refusal.NO_ROOM, "no room for another transmit key")

    def _hash_at(self, count: int) -> bytes:
        at = _RING + 2 * (count % RING_ENTRIES)
        return _WORDS2.pack(self.words[at], self.words[at + 1])

    def remember(self, digest: bytes) -> None:
        """Append to the ring, after ``make_room``."""
        if digest in self._used:
            return
        words = self.words
        count = words[1]
        if count >= RING_ENTRIES:
            self._used.discard(self._hash_at(count))
        at = _RING + 2 * (count % RING_ENTRIES)
        words[at], words[at + 1] = _WORDS2.unpack(digest)
        words[1] = count + 1
        self._used.add(digest)

    @property
    def awaited(self) -> bool:
        """Whether a session of an earlier process has not been installed again yet."""
        return len(self._slots) > len(self._live)

    def claim(
        self, session_id: bytes, key_epoch: int, tx_key: bytes, first_number: int, next_tx_key: bytes | None = None
    ) -> Mark:
        """The slot of this session for its installation: a remembered one, or a new one.

        After it, sending may begin at ``max(first_number, mark.send_mark)``. Raises SessionRefusedError when that
        would repeat numbers under a key, and when the remembered key epoch is newer; nothing has changed then.
        """
        identity, digest = _hash_of_id(session_id), _hash_of_key(tx_key)
        at = self._slots.get(identity)
        if at is not None:
            if at in self._live:
                raise SessionRefusedError(Refusal.INSTALLED, "the session is installed already")
            if Mark(self, at).key_epoch > key_epoch:
                raise SessionRefusedError(Refusal.EPOCH_BEHIND, "key epoch behind", Mark(self, at).key_epoch)
        if next_tx_key is not None and (next_tx_key == tx_key or self.was_used(_hash_of_key(next_tx_key))):
            raise SessionRefusedError(Refusal.KEY_USED, "the next transmit key was used before")
        if digest not in self._used:
            self.make_room()
        if at is not None:
            mark = Mark(self, at)
            self._continue(mark, key_epoch, digest, first_number)
        else:
            if self.was_used(digest):
                raise SessionRefusedError(Refusal.KEY_USED, "this transmit key was used before")
            at = self._new_slot(identity, key_epoch, digest, max(first_number, PACKET_NUMBER_BASE))
            mark = Mark(self, at)
        self.remember(digest)
        self._live.add(at)
        return mark

    def _continue(self, mark: Mark, key_epoch: int, digest: bytes, first_number: int) -> None:
        if mark.key_epoch == key_epoch and mark.key_hash() != digest:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other keys than those of this key epoch")
        if mark.key_hash() != digest:
            if self.was_used(digest):
                raise SessionRefusedError(Refusal.KEY_USED, "this transmit key was used before")
            mark._write_record(key_epoch, digest, max(first_number, mark.send_mark))

    def _new_slot(self, identity: bytes, key_epoch: int, digest: bytes, first_number: int) -> int:
        if not self._free:
            self._evict()
        at = self._free.pop()
        words = self.words
        words[at + _ID], words[at + _ID + 1], words[at + _ID + 2], words[at + _ID + 3] = _WORDS4.unpack(identity)
        words[at + _SEND] = first_number
        words[at + _RECEIVE] = PACKET_NUMBER_BASE
        Mark(self, at)._write_record(key_epoch, digest, first_number)
        words[at + _STATE] = 1
        self._slots[identity] = at
        return at

    def _evict(self) -> None:
        """Free the slot of a session that was not installed since this process began; its keys stay in the ring."""
        for at in self._slots.values():
            if at not in self._live:
                self.free(at)
                return
        raise SessionRefusedError(Refusal.NO_ROOM, "no room for another session")

    def free(self, at: int) -> None:
        """Give up the slot whose first word is ``at``; the hash of its key stays in the ring."""
        words = self.words
        identity = _WORDS4.pack(*words[at + _ID : at + _ID + 4])
        words[at + _STATE] = 0
        self._slots.pop(identity, None)
        self.in_use.pop(at, None)
        self._live.discard(at)
        self._free.append(at)
