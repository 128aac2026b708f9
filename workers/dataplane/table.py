"""Which session an inner packet belongs to: AllowedIPs by longest prefix, both ways.

Transmit: the session whose AllowedIPs hold the destination, the longest prefix first. Receive: a packet is delivered
only when its source would have been sent to that session. A held session does not take a prefix from an
established one. It must never deliver a packet from a source that the session may not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from qre.addresses import Network
from qre.workers.dataplane.session.session import Session
from qre.workers.dataplane.session.session_life import LifeState

#: Addresses in the lookup cache; it is cleared as a whole when full, and whenever a session comes or goes.
_CACHE = 8192
_ALL = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def table_keys(prefixes: Sequence[Network]) -> list[tuple[int, int, int]]:
    """``(address length in bytes, prefix length, network bits)`` of each; none means all addresses."""
    parsed = []
    for network in prefixes or _ALL:
        width = network.max_prefixlen
        shift = width - network.prefixlen
        parsed.append((width // 8, network.prefixlen, int(network.network_address) >> shift))
    return parsed


class AllowedIps:
    """Prefixes of every session. Addresses are given as they stand in a packet: 4 or 16 bytes."""

    def __init__(self) -> None:
        self._routes: dict[int, dict[int, dict[int, list[Session]]]] = {4: {}, 16: {}}
        self._of: dict[Session, list[tuple[int, int, int]]] = {}  # the prefixes of each session
        self._lengths: dict[int, list[int]] = {4: [], 16: []}  # prefix lengths in use, longest first
        self._cache: dict[bytes, Session | None] = {}
        self._source_cache: dict[tuple[bytes, bytes], bool] = {}

    def add(self, session: Session, prefixes: list[tuple[int, int, int]]) -> None:
        """``prefixes``: (bytes of an address, prefix length, network bits)."""
        self._of.setdefault(session, []).extend(prefixes)
        for size, length, bits in prefixes:
            self._routes[size].setdefault(length, {}).setdefault(bits, []).append(session)
        self._changed()

    def remove(self, session: Session) -> None:
        """Every prefix of ``session``."""
        for size, length, bits in self._of.pop(session, ()):
            table = self._routes[size]
            table[length][bits].remove(session)
            if not table[length][bits]:
                del table[length][bits]
            if not table[length]:
                del table[length]
        self._changed()

    def _changed(self) -> None:
        self._lengths = {size: sorted(table, reverse=True) for size, table in self._routes.items()}
        self.forget()

    def forget(self) -> None:
        """A session's state changed: clear the lookup cache."""
        self._cache.clear()
        self._source_cache.clear()

    def session_for(self, address: bytes) -> Session | None:
        """The session that a packet to ``address`` belongs to."""
        try:
            return self._cache[address]
        except KeyError:
            pass
        if len(self._cache) >= _CACHE:
            self._cache.clear()
        found = self._cache[address] = self._look_up(address)
        return found

    def _look_up(self, address: bytes) -> Session | None:
        size = len(address)
        value, width = int.from_bytes(address, "big"), 8 * size
        table = self._routes[size]
        for length in self._lengths[size]:
            sessions = table[length].get(value >> width - length)
            if sessions:
                established = [session for session in sessions if session.state is LifeState.ESTABLISHED]
                return (established or sessions)[-1]
        return None

    def permits(self, session: Session, address: bytes) -> bool:
        """Whether ``session`` may send from ``address``. The longest prefix decides; all sessions that share it
        may."""
        key = (session.session_id, address)
        try:
            return self._source_cache[key]
        except KeyError:
            pass
        if len(self._source_cache) >= _CACHE:
            self._source_cache.clear()
        size = len(address)
        value, width = int.from_bytes(address, "big"), 8 * size
        found = False
        for length in self._lengths[size]:
            sessions = self._routes[size][length].get(value >> width - length)
            if sessions:
                found = session in sessions
                break
        self._source_cache[key] = found
        return found
