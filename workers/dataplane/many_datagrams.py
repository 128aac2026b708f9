"""Many datagrams of a connected socket with one system call, each a packet of its own (sendmmsg(2)).

Python's socket module has no such call.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Final

MOST: Final = 64
_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.POINTER(_IoVec)),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class ManyDatagrams:
    """Of one thread."""

    def __init__(self) -> None:
        parts = (_IoVec * MOST)()
        self._messages = (_Message * MOST)()
        for message, part in zip(self._messages, parts, strict=True):
            message.header.parts = ctypes.pointer(part)
            message.header.part_count = 1
        self._parts = [parts[number] for number in range(MOST)]

    def send(self, fd: int, datagrams: Sequence[bytes]) -> int:
        """Send the first ``MOST`` of them at most; how many have left. Raises OSError when the first one cannot."""
        count = 0
        for part, datagram in zip(self._parts, datagrams, strict=False):
            part.base = datagram
            part.length = len(datagram)
            count += 1
        sent: int = _libc.sendmmsg(fd, self._messages, count, 0)
        if sent < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return sent
