"""What answers one read of Dest's socket leaves in one go.

Dest's datagrams that are read together came within some microseconds of each other. Making ours takes longer than
that: sent one by one, each as soon as it is made, they would be further apart than a site's. And strangers' wait for
each other, too: what lies between two datagrams is then the same for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qre.workers.handshake.port.flow_parts import Address

#: What the kernel cuts into datagrams by itself: how many, and how many bytes of them.
_MOST_SEGMENTS: Final = 64
_MOST_BYTES: Final = 65_000


@dataclass(slots=True)
class _Held:
    """Datagrams that leave by one call: all of ``segment`` bytes but the last, or one if that is 0."""

    address: Address
    parts: list[bytes]
    ecn: int
    segment: int
    whole: bool
    room: int  # bytes

    def takes(self, data: bytes, address: Address, ecn: int, *, whole: bool) -> bool:
        """Whether one more was added."""
        length, count = len(self.parts[0]), len(self.parts)
        full = count == _MOST_SEGMENTS or len(self.parts[-1]) < length or (count == 1 and self.segment)
        fits = 0 < len(data) <= min(length, self.room)
        if full or not fits or (self.address, self.ecn, self.whole) != (address, ecn, whole):
            return False
        self.parts.append(data)
        self.segment, self.room = length, self.room - len(data)
        return True


class Volley:
    """``send`` puts a datagram on the wire with an ECN mark, or several of ``segment`` bytes; in fragments, where it
    must and is not to be whole."""

    def __init__(self, send: Callable[[Address, bytes, int, int, bool], None]) -> None:
        self._send = send
        self._held: list[_Held] | None = None
        self._afterwards: dict[Callable[[], None], None] = {}
        #: Where in ``_held`` begins what answers datagrams that Dest sent in one piece; None: it does not.
        self._piece: int | None = None

    def together(self) -> Volley:
        """A context: what is said meanwhile leaves at the end."""
        return self

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, *_: object) -> None:
        try:
            if self._held or self._afterwards:
                self.let_out()
        finally:
            self._held = None

    @contextlib.contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """A context inside ``together``: what is said answers datagrams that Dest sent in one piece, and leaves so as
        far as lengths and marks allow."""
        self._piece = len(self._held or ())
        try:
            yield
        finally:
            self._piece = None

    def say(self, address: Address, data: bytes, ecn: int, segment: int = 0, *, whole: bool = False) -> None:
        """Send one datagram, or several, now or with the others; always in this order."""
        held = self._held
        if held is None:
            self._send(address, data, ecn, segment, whole)
            return
        joins = self._piece is not None and len(held) > self._piece and not segment
        if not (joins and held[-1].takes(data, address, ecn, whole=whole)):
            held.append(_Held(address, [data], ecn, segment, whole, _MOST_BYTES - len(data)))

    def then(self, work: Callable[[], None]) -> None:
        """Do ``work`` when everything said so far is on the wire, once for all that ask for the same."""
        if self._held is None:
            work()
        else:
            self._afterwards[work] = None

    def let_out(self) -> None:
        """Send what is held."""
        held, afterwards = self._held or [], list(self._afterwards)
        self._held = None if self._held is None else []
        self._afterwards.clear()
        self._piece = None if self._piece is None else 0
        for each in held:
            self._send(each.address, b"".join(each.parts), each.ecn, each.segment, each.whole)
        for work in afterwards:
            work()
