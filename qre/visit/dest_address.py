"""Dest's addresses while a server runs: resolved again and again, and the one in use.

A name that cannot be refreshed keeps its addresses, those of an earlier process too. The address in use stays as long
as the name has it; the prober (``probe``) says which one answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from qre.errors import MachineError
from qre.visit.candidates import Candidates
from qre.visit.dest import Lookup, Resolved, look_up, numeric, resolve

#: getaddrinfo tells no time to live; sites move within minutes at the earliest.
REFRESH: Final = 60.0
RETRY: Final = 4.0


class DestAddress:
    """Dest's current address, or None as long as there is none. ``failed`` is called with each error, ``moved``
    whenever another address may be in use; ``before`` is where the name was last."""

    def __init__(
        self,
        host: str,
        port: int,
        failed: Callable[[str], None],
        lookup: Lookup = look_up,
        moved: Callable[[], None] = lambda: None,
        before: tuple[Resolved, ...] = (),
    ) -> None:
        self._host = host
        self._port = port
        self._failed = failed
        self._lookup = lookup
        self._moved = moved
        known = numeric(host, port)
        self._found: tuple[Resolved, ...] = before if known is None else (known,)
        self._order = Candidates()

    @property
    def current(self) -> Resolved | None:
        """The address in use; None while the name is not resolved."""
        return next(iter(self.candidates()), None)

    def of_family(self, family: int) -> Resolved | None:
        """The same of one family, if there is one; otherwise the one in use."""
        return next((each for each in self.candidates() if each[0] == family), self.current)

    def candidates(self) -> list[Resolved]:
        """Every address, the one in use first."""
        return self._order.order(self._found)

    def answered(self, address: Resolved) -> None:
        """Use this one from now on."""
        self._order.answered(address)
        self._moved()

    @property
    def host_port(self) -> tuple[str, int]:
        """(host name or address, port) as configured."""
        return self._host, self._port

    async def first(self) -> None:
        """Resolve once, within a short time."""
        await self._refresh()

    async def keep_fresh(self) -> None:
        """Resolve again and again, until cancelled."""
        while numeric(self._host, self._port) is None:
            await asyncio.sleep(REFRESH if await self._refresh() else RETRY)

    async def _refresh(self) -> bool:
        try:
            current, self._found = self.current, await resolve(self._host, self._port, lookup=self._lookup)
            if current in self._found:
                self._order.answered(current)
            self._moved()
        except MachineError as error:
            self._failed(str(error))
            return False
        return True
