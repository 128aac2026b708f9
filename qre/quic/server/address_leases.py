"""Remembers which addresses each short id without a section had last, whatever restarts in between.

Over the image of a file of fixed size: 2,000 records of 160 bytes, and a free record is all zero::

    short id 8 | number of addresses 1 | 8 of (version 1, address 16) | CRC-32 of these 145 bytes 4 | zeros

The caller writes what a change returns to the file. A record that does not parse, half written by a process that was
killed for example, is free: its addresses are anybody's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qre.addresses import Address
from qre.ends import MAX_CLIENTS

RECORD_LENGTH: Final = 160
CAPACITY: Final = MAX_CLIENTS
FILE_LENGTH: Final = CAPACITY * RECORD_LENGTH
MAX_ADDRESSES: Final = 8

_HEAD: Final = struct.Struct("!8sB")
_ADDRESS: Final = struct.Struct("!B16s")
_CHECKED: Final = _HEAD.size + MAX_ADDRESSES * _ADDRESS.size
_CHECKSUM: Final = struct.Struct("!I")
_FREE: Final = bytes(RECORD_LENGTH)

#: Where to write what.
Change = tuple[int, bytes]


class Leases:
    """``image`` is the file as read at the start, any length."""

    def __init__(self, image: bytes = b"") -> None:
        self._slots: dict[bytes, int] = {}
        self._had: dict[bytes, frozenset[Address]] = {}
        self._last: dict[Address, bytes] = {}
        self._free: list[int] = []
        for slot in reversed(range(CAPACITY)):
            found = _parse_untrusted(image[slot * RECORD_LENGTH : (slot + 1) * RECORD_LENGTH])
            if found is None or found[0] in self._slots:
                self._free.append(slot)
            else:
                self._slots[found[0]] = slot
                self._set(*found)

    def holder(self, address: Address) -> bytes | None:
        """The short id that had this address last."""
        return self._last.get(address)

    def had(self, short_id: bytes) -> frozenset[Address]:
        """What this short id had last."""
        return self._had.get(short_id, frozenset())

    def put(self, short_id: bytes, addresses: Iterable[Address]) -> Change | None:
        """This short id has these addresses now, and none of its earlier ones. None when nothing changes, or there is
        no room."""
        wanted = frozenset(list(addresses)[:MAX_ADDRESSES])
        if wanted == self.had(short_id) or not (short_id in self._slots or self._free):
            return None
        slot = self._slots.setdefault(short_id, -1)
        if slot < 0:
            slot = self._slots[short_id] = self._free.pop()
        self._set(short_id, wanted)
        return slot * RECORD_LENGTH, _encode(short_id, wanted)

    def keep(self, short_ids: Collection[bytes]) -> list[Change]:
        """Forget all others."""
        changes = []
        for short_id in self._slots.keys() - set(short_ids):
            self._set(short_id, frozenset())
            slot = self._slots.pop(short_id)
            self._free.append(slot)
            changes.append((slot * RECORD_LENGTH, _FREE))
        return changes

    def _set(self, short_id: bytes, addresses: frozenset[Address]) -> None:
        for address in self._had.pop(short_id, frozenset()):
            if self._last.get(address) == short_id:
                del self._last[address]
        if addresses:
            self._had[short_id] = addresses
            self._last |= dict.fromkeys(addresses, short_id)


def _encode(short_id: bytes, addresses: frozenset[Address]) -> bytes:
    packed = b"".join(_ADDRESS.pack(each.version, each.packed) for each in sorted(addresses, key=lambda a: a.packed))
    checked = (_HEAD.pack(short_id, len(addresses)) + packed).ljust(_CHECKED, b"\0")
    return (checked + _CHECKSUM.pack(zlib.crc32(checked))).ljust(RECORD_LENGTH, b"\0")


def _parse_untrusted(record: bytes) -> tuple[bytes, frozenset[Address]] | None:
    if len(record) != RECORD_LENGTH or not any(record):
        return None
    checked = record[:_CHECKED]
    short_id, count = _HEAD.unpack_from(record)
    if _CHECKSUM.unpack_from(record, _CHECKED)[0] != zlib.crc32(checked) or count > MAX_ADDRESSES:
        return None
    found: set[Address] = set()
    for at in range(count):
        version, packed = _ADDRESS.unpack_from(record, _HEAD.size + at * _ADDRESS.size)
        if version not in (4, 6):
            return None
        found.add(IPv4Address(packed[:4]) if version == 4 else IPv6Address(packed))
    return short_id, frozenset(found)
