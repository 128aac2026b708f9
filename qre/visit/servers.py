"""A client's servers, any of which carries its tunnel: in which order they are tried. Sans-IO.

In the listed order, or at random, once for each start. A server that is silent is tried last. With the listed order
the client goes back to a server before the one that it has, when that answers again.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from qre.addresses import host_port
from qre.causes import Cause
from qre.ends import EndpointOrder
from qre.visit.candidates import ELSEWHERE, Candidates
from qre.visit.dest import Resolved, numeric


@dataclass(eq=False)
class KnownServer:
    """Where it is, what admits the client there, and what was learnt of its name."""

    host: str
    port: int
    public_key: bytes = field(repr=False)
    short_id: bytes = field(repr=False)
    candidates: Candidates = field(default_factory=Candidates)
    #: as the name was last looked up
    addresses: tuple[Resolved, ...] = ()
    #: Whether there was no route to an IPv4 address of it: a translator may have one.
    unroutable: bool = False

    def __str__(self) -> str:
        return host_port(self.host, self.port)

    def answered(self, address: Resolved) -> None:
        """Begin with this address next time."""
        self.candidates.answered(address)
        self.unroutable &= address[0] != socket.AF_INET

    def failed(self, tried: Sequence[Resolved], found: Sequence[Resolved], cause: Cause | None) -> None:
        """``tried`` in vain, the last of them with this cause: begin with the one behind the first of them, or behind
        the last where the cause is no matter of the address."""
        self.candidates.failed(tried[0] if cause in ELSEWHERE else tried[-1], found)
        self.unroutable |= cause is Cause.NO_ROUTE and tried[-1][0] == socket.AF_INET


class Servers:
    """All of them; there is at least one."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._order = EndpointOrder.LISTED
        self._all: list[KnownServer] = []

    def use(self, servers: Sequence[KnownServer], order: EndpointOrder) -> None:
        """Those of a new configuration. What is known of the same places is kept."""
        known = {(each.host, each.port): each for each in self._all}
        for each in servers:
            if (before := known.get((each.host, each.port))) is not None:
                each.candidates, each.addresses = before.candidates, before.addresses
                each.unroutable = before.unroutable
        self._all, self._order = list(servers), order
        if order is EndpointOrder.RANDOM:
            self._random.shuffle(self._all)

    def was_at(self, ip: str, port: int) -> None:
        """An earlier process's session goes there: it is where the name was last, if only one server can be meant."""
        address = numeric(ip, port)
        meant = [each for each in self._all if each.port == port and numeric(each.host, port) is None]
        if address is not None and len(meant) == 1 and not meant[0].addresses:
            meant[0].addresses = (address,)

    @property
    def first(self) -> KnownServer:
        """The one to begin with."""
        return self._all[0]

    def after(self, silent: KnownServer | None) -> list[KnownServer]:
        """In the order in which they are tried; ``silent`` last, after those behind it and those before it."""
        at = next((at + 1 for at, each in enumerate(self._all) if _same(each, silent)), 0)
        return [*self._all[at:], *self._all[:at]]

    def now(self, one: KnownServer | None) -> KnownServer:
        """The same place as it is configured now; the first one where it no longer is."""
        return next((each for each in self._all if _same(each, one)), self.first)

    def before(self, current: KnownServer | None) -> list[KnownServer]:
        """Those to which the client goes back; none when it is unknown what it has."""
        if self._order is EndpointOrder.RANDOM:
            return []
        at = next((at for at, each in enumerate(self._all) if _same(each, current)), 0)
        return self._all[:at]


def _same(one: KnownServer, other: KnownServer | None) -> bool:
    return other is not None and (one.host, one.port) == (other.host, other.port)
