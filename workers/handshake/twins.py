"""Two machines with one profile: each new session ends the other's, again and again. Sans-IO, time as an argument.

A client that has moved replaces its session once, and is welcome. When the sessions of one short id replace each
other again and again in a short time, from two addresses or very often from one, there are two machines: *twins*.
From then on the machine that is connected keeps its session while that lives, and whoever else comes with this short
id is turned away and told why. It is forgotten when nobody has been turned away for some time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

#: Within so many seconds so many replacements make twins, from several addresses or from one: a client that is
#: killed and started again has one address.
_WINDOW: Final = 25.0
_FROM_SEVERAL: Final = 3
_FROM_ONE: Final = 5
#: Seconds without any conflict.
_MEMORY: Final = 300.0


@dataclass
class _Conflict:
    """Of one short id: when sessions were replaced, and the addresses of both."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=_FROM_ONE))
    addresses: dict[str, None] = field(default_factory=dict)  # the latest last
    twins: bool = False
    last: float = 0.0


class Twins:
    """Conflicts by short id; there are no more of them than short ids."""

    def __init__(self) -> None:
        self._conflicts: dict[bytes, _Conflict] = {}

    def replaced(self, short_id: bytes, old: str, new: str, now: float) -> bool:
        """A session from address ``old`` was replaced by one from ``new``. True: these are twins."""
        known = self._known(short_id, now)
        if known is None:
            known = self._conflicts[short_id] = _Conflict()
        while known.times and now - known.times[0] > _WINDOW:
            known.times.popleft()
        if not known.times and not known.twins:
            known.addresses.clear()
        known.last = now
        known.times.append(now)
        for address in (old, new):
            known.addresses.pop(address, None)
            known.addresses[address] = None
        while len(known.addresses) > 2:
            del known.addresses[next(iter(known.addresses))]
        enough = _FROM_SEVERAL if len(known.addresses) > 1 else _FROM_ONE
        known.twins = known.twins or len(known.times) >= enough
        return known.twins

    def turn_away(self, short_id: bytes, connected: str, coming: str, now: float) -> bool:
        """Whether a newcomer from address ``coming`` is turned away for the session that is ``connected``. The
        machine that has the session may replace it."""
        known = self._known(short_id, now)
        if known is None or not known.twins or (connected == coming and len(known.addresses) > 1):
            return False
        known.last = now
        return True

    def addresses(self, short_id: bytes) -> tuple[str, ...]:
        """Where the twins were seen."""
        known = self._conflicts.get(short_id)
        return tuple(known.addresses) if known is not None else ()

    def known(self, now: float) -> list[bytes]:
        """The short ids of all twins."""
        return [short_id for short_id in list(self._conflicts) if (c := self._known(short_id, now)) and c.twins]

    def keep(self, short_ids: frozenset[bytes]) -> None:
        """Forget all others: a reload has removed them."""
        self._conflicts = {short_id: known for short_id, known in self._conflicts.items() if short_id in short_ids}

    def _known(self, short_id: bytes, now: float) -> _Conflict | None:
        known = self._conflicts.get(short_id)
        if known is not None and now - known.last > _MEMORY:
            del self._conflicts[short_id]
            return None
        return known
