"""Reassembles capsules (RFC 9297 §3.2) from the pieces of a stream."""

from __future__ import annotations

from collections.abc import Iterator

from qre.quic.bounds import Bound, OverBoundError
from qre.wire.capsule import read_capsule_untrusted

#: Type and length, each the longest varint (bytes).
_LONGEST_HEAD = 16


class CapsuleReader:
    """Accepts at most ``max_count`` capsules of at most ``max_length`` bytes each."""

    def __init__(self, max_length: int, max_count: int) -> None:
        self._max_length = max_length
        #: More than so much of what was received is never looked at, nor copied when a capsule is cut off.
        self._most = (max_count + 1) * (max_length + _LONGEST_HEAD)
        self._left = max_count
        self._buffer = b""  # the beginning of the next capsule

    def received(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Type and value of each capsule that is complete now; the rest of ``data`` waits for the next call.

        Raises OverBoundError for too many capsules, and UntrustedInputError for one that is too long.
        """
        self._buffer += data[: self._most - len(self._buffer)]
        while (capsule := read_capsule_untrusted(self._buffer, self._max_length)) is not None:
            if not self._left:
                raise OverBoundError(Bound.CAPSULES)
            self._left -= 1
            kind, value, length = capsule
            self._buffer = self._buffer[length:]
            yield kind, value
