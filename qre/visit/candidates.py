"""The addresses of one name, in the order in which they are tried: all of them, one at a time.

RFC 8305 opens connections to several addresses at once, 250 ms apart. Chromium does so with TCP alone: over QUIC
never more than one handshake of a visit is on the wire, and two at once would be seen. Instead an address that says
nothing is left soon while there is another one, as by a browser whose tab is closed. What has answered is tried first
from then on, and what has failed last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qre.causes import Cause
from qre.visit.dest import Resolved

#: How long an address may say nothing while there is another one to try (seconds).
PATIENCE: Final = 2.0
#: What another address of the same name need not share.
ELSEWHERE: Final = frozenset(
    {
        Cause.NO_ANSWER,
        Cause.NO_ROUTE,
        Cause.HOST_UNREACHABLE,
        Cause.PORT_CLOSED,
        Cause.FILTERED_HERE,
        Cause.PROHIBITED,
        Cause.BLACKHOLE,
        Cause.NETWORK,
        Cause.TOO_BIG,
        Cause.VERSION_MISSING,
    }
)


class Candidates:
    """Remembers which address to begin with."""

    def __init__(self) -> None:
        self._first: Resolved | None = None

    def order(self, found: Sequence[Resolved]) -> list[Resolved]:
        """``found``, in the resolver's order, from the remembered one on; the ones before it come last."""
        at = found.index(self._first) if self._first in found else 0
        return [*found[at:], *found[:at]]

    def answered(self, address: Resolved) -> None:
        """Begin with this one."""
        self._first = address

    def failed(self, address: Resolved, found: Sequence[Resolved]) -> None:
        """Begin with the one behind this one."""
        if address in found:
            self._first = found[(found.index(address) + 1) % len(found)]
