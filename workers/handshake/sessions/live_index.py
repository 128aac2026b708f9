"""The live sessions by what they are asked for: id, connection ID, short id, and when the next one is due. Sans-IO.

Of thousands, no look-up or timer goes through all. What a session's place depends on is an attribute of ``Live``,
which tells of each change: nothing has to remember to.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_state import Live

_NEVER = float("inf")
#: So many dues that are none any more may wait for their time, and as many again as there are sessions.
_STALE = 64


class LiveIndex:
    """``confirmed``: how many are. ``routed``: the connection IDs of those that may be steered to the data plane. One
    that a second session brings stays the first one's."""

    def __init__(self) -> None:
        self.confirmed = 0
        self.routed: set[bytes] = set()
        self._all: dict[bytes, Live] = {}
        self._by_cid: dict[bytes, Live] = {}
        self._cids: dict[bytes, tuple[bytes, ...]] = {}  # those under which each session stands there
        self._by_short_id: dict[bytes, dict[bytes, Live]] = {}
        self._dues: list[tuple[float, bytes]] = []  # a heap; what is not a session's due any more is skipped
        self._noted: dict[bytes, float] = {}  # the due of each session that stands there

    def __iter__(self) -> Iterator[Live]:
        """In the order in which they began; a copy, so that they may end meanwhile."""
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def get(self, session_id: bytes) -> Live | None:
        """That session; None when it does not live."""
        return self._all.get(session_id)

    def add(self, live: Live) -> Live:
        """A new one, which is given back."""
        self._all[live.record.session_id] = live
        self._enter(live)
        live.watched_by = self
        self.due_changed(live)
        return live

    def remove(self, live: Live) -> None:
        """It has ended."""
        live.watched_by = None
        del self._all[live.record.session_id]
        self._leave(live, live.record)
        self._noted.pop(live.record.session_id, None)
        self._tidy()

    def of_cid(self, connection_id: bytes) -> Live | None:
        """That which has this routed connection ID."""
        return self._by_cid.get(connection_id)

    def of_short_id(self, short_id: bytes) -> list[Live]:
        """Those of one client."""
        return list(self._by_short_id.get(short_id, {}).values())

    def record_changed(self, live: Live, before: SessionRecord) -> None:
        """``live`` has another record; ids of session and client never change."""
        self._leave(live, before)
        self._enter(live)

    def due_changed(self, live: Live) -> None:
        """``live`` may be due at another time."""
        session_id, due = live.record.session_id, live.due
        if due < self._noted.get(session_id, _NEVER):
            self._noted[session_id] = due
            heappush(self._dues, (due, session_id))
            self._tidy()

    def soonest(self) -> float | None:
        """When the next one is due; None when none is."""
        while self._dues:
            at, session_id = self._dues[0]
            live = self._all.get(session_id)
            if live is not None and at == live.due:
                return at
            heappop(self._dues)
            if self._noted.get(session_id) == at:
                del self._noted[session_id]
                if live is not None:  # it is due later
                    self.due_changed(live)
        return None

    def due_by(self, now: float) -> list[Live]:
        """Those whose time has come, each once; they are expected to change it."""
        found: dict[bytes, Live] = {}
        while (at := self.soonest()) is not None and at <= now:
            _, session_id = heappop(self._dues)
            self._noted.pop(session_id, None)
            found[session_id] = self._all[session_id]
        return list(found.values())

    def _tidy(self) -> None:
        """Forget the dues that are none any more once they are most: a later one may wait for a day."""
        if len(self._dues) > _STALE + 2 * len(self._noted):
            self._dues = [(at, session_id) for session_id, at in self._noted.items()]
            heapify(self._dues)

    def _enter(self, live: Live) -> None:
        record = live.record
        self.confirmed += record.confirmed
        self._cids[record.session_id] = live.connection_ids()
        for connection_id in self._cids[record.session_id]:
            if self._by_cid.setdefault(connection_id, live) is live and live.routed:
                self.routed.add(connection_id)
        self._by_short_id.setdefault(record.short_id, {})[record.session_id] = live

    def _leave(self, live: Live, record: SessionRecord) -> None:
        self.confirmed -= record.confirmed
        for connection_id in self._cids.pop(record.session_id):
            if self._by_cid.get(connection_id) is live:
                del self._by_cid[connection_id]
                self.routed.discard(connection_id)
        ours = self._by_short_id[record.short_id]
        del ours[record.session_id]
        if not ours:
            del self._by_short_id[record.short_id]
