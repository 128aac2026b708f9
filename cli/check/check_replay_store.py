"""What ``check`` examines of a replay store: whether it lets this server in, and how soon it answers."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from qre.cli.check.findings import Finding, Findings, YesNo
from qre.config.model import ReplayStore
from qre.errors import MachineError, QreError
from qre.reality.hello_store import StoreConnection
from qre.supervisor.store_connection import connect_store

_NAME: Final = "replay store"
_PATIENCE: Final = 2.0


def replay_store(store: ReplayStore) -> Findings:
    """As the daemon connects; asks nothing that changes anything."""
    try:
        took = asyncio.run(_greeting(store))
    except QreError as error:
        remedy = "see to it that it runs, that this machine reaches it, and to the password"
        yield Finding(_NAME, YesNo.NO, f"{store.place}: {error.why}", remedy)
        return
    yield Finding(_NAME, YesNo.YES, f"{store.place} answers in {took * 1000:.1f} ms")


async def _greeting(store: ReplayStore) -> float:
    """How long an answer takes (seconds). Raises QreError."""
    _, made = await connect_store(store.place)
    with made:
        state = StoreConnection("", user=store.user, password=store.password, database=store.database)
        loop, began = asyncio.get_running_loop(), time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE):
                await loop.sock_sendall(made, state.greeting)
                while not state.greeted:
                    data = await loop.sock_recv(made, 4096)
                    if not data:
                        raise MachineError(_NAME, "it has closed the connection")
                    state.received_untrusted(data)
        except OSError as error:  # a TimeoutError too, without a number
            raise MachineError(_NAME, os.strerror(error.errno) if error.errno else "no answer") from None
        return time.monotonic() - began
