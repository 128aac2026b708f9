"""Capsules (RFC 9297 §3.2) out of a stream that brings them in pieces."""

from __future__ import annotations

from collections.abc import Iterator

from qre.quic.bounds import Bound, OverBoundError
from qre.wire.capsule import read_capsule_untrusted


class CapsuleReader:
    """Takes capsules of at most ``max_length`` bytes, and ``max_count`` of them."""

    def __init__(self, max_length: int, max_count: int) -> None:
        self._max_length = max_length
        self._left = max_count
        self._buffer = b""  # the beginning of the next one

    def received(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Type and value of each capsule that is complete now. Whoever stops early loses the rest of ``data``.

        Raises OverBoundError, and UntrustedInputError for one that is too long.
        """
        self._buffer += data
        while (capsule := read_capsule_untrusted(self._buffer, self._max_length)) is not None:
            if not self._left:
                raise OverBoundError(Bound.CAPSULES)
            self._left -= 1
            kind, value, length = capsule
            self._buffer = self._buffer[length:]
            yield kind, value
