"""What answers one read of Dest's socket leaves in one go.

Dest's datagrams that are read together came within some microseconds of each other. Making ours takes longer than
that: sent one by one, each as soon as it is made, they would be further apart than a site's. And strangers' wait for
each other, too: what lies between two datagrams is then the same for both.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.workers.handshake.port.flow_parts import Address


class Volley:
    """``send`` puts a datagram on the wire with an ECN mark, or several of ``segment`` bytes; in fragments, where it
    must and is not to be whole."""

    def __init__(self, send: Callable[[Address, bytes, int, int, bool], None]) -> None:
        self._send = send
        self._held: list[tuple[Address, bytes, int, int, bool]] | None = None
        self._afterwards: dict[Callable[[], None], None] = {}
        #: Whether what is said answers datagrams that Dest sent in one piece: then it leaves so.
        self.in_one_piece = False

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

    def say(self, address: Address, data: bytes, ecn: int, segment: int = 0, *, whole: bool = False) -> None:
        """Send one datagram, or several, now or with the others; always in this order."""
        if self._held is None:
            self._send(address, data, ecn, segment, whole)
        elif not (self.in_one_piece and self._joined(address, data, ecn, segment, whole)):
            self._held.append((address, data, ecn, segment, whole))

    def _joined(self, address: Address, data: bytes, ecn: int, segment: int, whole: bool) -> bool:
        """Whether it goes with the one before it: of equal lengths, but for the last."""
        if not self._held or segment:
            return False
        *others, before, its_ecn, length, its_whole = self._held[-1]
        length = length or len(before)
        if others != [address] or (its_ecn, its_whole) != (ecn, whole) or len(before) % length or len(data) > length:
            return False
        self._held[-1] = address, before + data, ecn, length, whole
        return True

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
        for datagram in held:
            self._send(*datagram)
        for work in afterwards:
            work()
