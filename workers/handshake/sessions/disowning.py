"""Which packets to our connection IDs are answered with a stateless reset: those of which nobody here knows the
session. Not more than a bounded number, and none that another daemon at the same port may know."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from qre.workers.handshake.port.admission import TokenBucket
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.routed_cids import RoutedCids

#: Stateless resets per second.
_RESETS: Final = 200.0
#: How long the daemons that had joined the previous front may take to join this one (seconds).
_OTHERS_COME: Final = 15.0


class Disowning:
    """``shared``: whether other daemons have joined the port; ``followed``: whether some may come, because we have
    taken the place of their front."""

    def __init__(self, cids: RoutedCids, sessions: Sessions, shared: Callable[[], bool], *, followed: bool) -> None:
        self._cids = cids
        self._sessions = sessions
        self._shared = shared
        self._others_until = time.monotonic() + (_OTHERS_COME if followed else 0.0)
        self._resets = TokenBucket(_RESETS, _RESETS)

    def answer(self, cid: bytes, length: int) -> bytes | None:
        """The answer to a packet of ``length`` bytes for ``cid``, if there is to be one."""
        now = time.monotonic()
        if not self._sessions.compared or self._sessions.has_connection_id(cid):
            return None  # it lives, or the data plane's sessions are not known yet
        if self._shared() or now < self._others_until or not self._resets.take(now):
            return None
        return self._cids.reset(cid, length)
