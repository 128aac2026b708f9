"""How a client that hears nothing tries another port, and how often: of both data planes (RFC 9000 §8.2, §9).

As Chromium 156: three PATH_CHALLENGEs 300 ms apart, in datagrams as long as those of its first flight.
"""

from __future__ import annotations

from collections import deque
from typing import Final

CHALLENGES: Final = 3
#: Between two of them, and behind the last (seconds).
APART: Final = 0.3
#: Trials of one session within so many seconds: each takes a socket and a connection ID.
MOST_TRIALS: Final = 4
TRIALS_WITHIN: Final = 600.0


class Trials:
    """Those of one session."""

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=MOST_TRIALS)

    def begin(self, now: float) -> bool:
        """One more at ``now``; False: there were enough of them lately."""
        if len(self._begun) == MOST_TRIALS and now < self._begun[0] + TRIALS_WITHIN:
            return False
        self._begun.append(now)
        return True
