"""What each client has transferred, and when it was last heard, across its sessions: for ``show`` and `list-clients`.

A session's counters end with it, and a client makes a new session whenever it moves or reconnects. Here what its
sessions carried is added up by short id, from the data plane's account of them, which is looked at every few seconds:
what a session carried after the last look before its end is missing. Kept by the supervisor, since the daemon's
start. Sans-IO: ``now`` is unix time in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from qre.dataplane.status import SessionStatus
from qre.profile_secrets import ListedClient
from qre.structs import plain

#: Twice as many as a server can have; beyond, the one that was silent for longest is forgotten.
MOST: Final = 2048
COUNTERS: Final = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")


class Account:
    """One short id. ``last_seen`` is unix time; None: never."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys(COUNTERS, 0)
        self.last_seen: float | None = None
        self.endpoint = ""
        self.connected = False

    def describe(self) -> dict[str, Any]:
        """For JSON: whether it is connected, from where, when it was last heard (unix time), what it transferred."""
        return {
            "connected": self.connected,
            "endpoint": self.endpoint or None,
            "last_seen": int(self.last_seen) if self.last_seen is not None else None,
            **self.totals,
        }


class ClientAccounts:
    """All short ids of a server that have had a session."""

    def __init__(self) -> None:
        self._accounts: dict[bytes, Account] = {}
        self._counted: dict[bytes, Mapping[str, int]] = {}  # session -> its counters when it was last looked at

    def look(self, sessions: Iterable[SessionStatus], now: float) -> None:
        """Add what the sessions have carried since the last look."""
        for account in self._accounts.values():
            account.connected = False
        counted: dict[bytes, Mapping[str, int]] = {}
        for session in sessions:
            if session.state == "held":  # it is not confirmed: nobody is there yet
                continue
            account = self._accounts.setdefault(session.short_id, Account())
            before = self._counted.get(session.session_id, {})
            counted[session.session_id] = fresh = {name: getattr(session, name) for name in COUNTERS}
            for name, value in fresh.items():
                account.totals[name] += max(0, value - before.get(name, 0))
            age = session.last_receive_ms if session.last_receive_ms is not None else session.age_ms
            seen = now - age / 1000
            if account.last_seen is None or seen >= account.last_seen:
                account.last_seen, account.endpoint = seen, session.endpoint
            account.connected = account.connected or session.state == "established"
        self._counted = counted
        self._forget()

    def _forget(self) -> None:
        if len(self._accounts) > MOST:
            by_age = sorted(self._accounts, key=lambda each: self._accounts[each].last_seen or 0.0)
            for short_id in by_age[: len(self._accounts) - MOST]:
                del self._accounts[short_id]

    def describe(self, clients: Iterable[ListedClient]) -> list[dict[str, Any]]:
        """Every client with its account, by name; those without a name last, and only those with a short id."""
        found = sorted(clients, key=lambda one: (one.name is None, one.name or one.short_id.hex()))
        return [
            plain(one)
            | ({"short_id": None} if one.name is not None else {})
            | self._accounts.get(one.short_id, Account()).describe()
            for one in found
        ]
