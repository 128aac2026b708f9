"""Keeps the BPF map of routed connection IDs in step with the live sessions, through the bpf_loader worker.

The handshake worker does it for the user data plane, the netlink worker where qre.ko cannot write the map itself.

``wanted`` is authoritative. Changes are sent one by one; after a failure (the loader is being restarted) and at the
start the whole set is sent until it is accepted. Only a server handshake waits for it: its last frame must not leave
before the client's next packets reach the data plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from qre.errors import MachineError, QreError
from qre.ipc.messages import CidAdopt, CidRelease, CidSync, Party
from qre.structs import Message

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
#: Consecutive failures before one is logged.
_QUIET_FAILURES: Final = 6

Request = Callable[[Party, Message], Awaitable[Message]]


class Steering:
    """``request`` asks another worker; ``complain`` takes a line for the log."""

    def __init__(self, request: Request, complain: Callable[[str], None]) -> None:
        self._request = request
        self._complain = complain
        self._wanted: frozenset[bytes] = frozenset()
        self._known: set[bytes] | None = None  # None: not known, everything has to be sent
        self._changed = asyncio.Event()
        self._changed.set()
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}

    def want(self, connection_ids: frozenset[bytes]) -> None:
        """Set the live connection IDs to exactly these."""
        if connection_ids == self._wanted:
            return
        self._wanted = connection_ids
        self._changed.set()

    async def adopted(self, connection_id: bytes, timeout: float) -> None:
        """Wait until packets with this connection ID go to slot 1. Raises MachineError when that takes too long."""
        if self._known is not None and connection_id in self._known:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(connection_id, []).append(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise MachineError("connection ID", "the BPF loader did not take it in time") from None
        finally:
            waiting = self._waiting[connection_id]
            waiting.remove(future)
            if not waiting:
                del self._waiting[connection_id]

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._bring_in_step()
                failures = 0
            except QreError as error:
                self._known = None
                failures += 1
                if failures >= _QUIET_FAILURES:
                    self._complain(f"connection IDs are not steered: {error}")
                self._changed.set()
                await asyncio.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 10)))

    async def _bring_in_step(self) -> None:
        if self._known is None:
            wanted = self._wanted
            await self._request(Party.BPF_LOADER, CidSync(connection_ids=tuple(sorted(wanted))))
            self._known = set(wanted)
            self._tell()
        while self._known != self._wanted:
            for connection_id in self._wanted - self._known:
                await self._request(Party.BPF_LOADER, CidAdopt(connection_id=connection_id))
                self._known.add(connection_id)
                self._tell()
            for connection_id in self._known - self._wanted:
                await self._request(Party.BPF_LOADER, CidRelease(connection_id=connection_id))
                self._known.discard(connection_id)

    def _tell(self) -> None:
        for connection_id, futures in self._waiting.items():
            if self._known is not None and connection_id in self._known:
                for future in futures:
                    if not future.done():
                        future.set_result(None)
