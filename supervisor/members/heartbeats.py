"""Finds workers that hang: each is asked now and then, and killed when it does not answer in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from qre.errors import MachineError
from qre.ipc.messages import Done, Heartbeat, Party
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.supervised import Members, Supervised

_INTERVAL: Final = 2.0
_TIMEOUT: Final = 10.0


async def watch(members: Members, all_alive: Callable[[], None], log: logging.Logger) -> None:
    """Ask all, again and again, until cancelled. ``all_alive`` is called each time that all have answered."""
    while True:
        await asyncio.sleep(_INTERVAL)
        if all(await asyncio.gather(*(_is_alive(member, log) for member in members.values()))):
            all_alive()


async def _is_alive(member: Supervised, log: logging.Logger) -> bool:
    if member.life.stage is not WorkerStage.READY:
        return False
    pid = member.pid
    try:
        answer = await member.router.request(Party.SUPERVISOR, Heartbeat(), _TIMEOUT)
    except MachineError:
        if member.pid == pid and member.life.stage is WorkerStage.READY:
            log.error("worker %s hangs; it is killed", member.party)
            member.kill()
        return False
    return isinstance(answer, Done)
