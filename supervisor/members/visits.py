"""Visits to Dest: a process for each, started for it and killed when it has answered, or has not in time."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from qre.errors import InternalError, MachineError
from qre.ipc.messages import DestVisited, Hello, Party, Start, VisitDest, WorkerConfig
from qre.structs import Message
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.router import Router
from qre.supervisor.members.supervised import Supervised

#: Seconds until it must have dropped its privileges; until it must have answered, which takes it 30 at most.
_GREET_TIMEOUT: Final = 60.0
_VISIT_TIMEOUT: Final = 35.0
#: Seconds between the beginnings of two: whoever asks for more waits.
_PAUSE: Final = 1.0
#: Visits that may wait for the one that is under way: a reload asks for another Dest.
_MAX_WAITING: Final = 2


class Visits:
    """One visit at a time."""

    def __init__(self, router: Router, runtime: Path) -> None:
        self._member = Supervised(Party.VISIT, router, runtime, self._died, self._offered)
        self._over = asyncio.Event()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._not_before = 0.0

    async def visit(self, config: WorkerConfig, request: VisitDest) -> DestVisited:
        """What the process answers. Raises MachineError when there is no answer."""
        if self._waiting == _MAX_WAITING:
            raise MachineError("visit to Dest", "others are waiting")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, self._not_before - loop.time()))
            self._not_before = loop.time() + _PAUSE
            return await self._one(config, request)
        finally:
            self._turn.release()

    async def _one(self, config: WorkerConfig, request: VisitDest) -> DestVisited:
        member = self._member
        self._over.clear()
        member.spawn()
        try:
            async with asyncio.timeout(_GREET_TIMEOUT):
                await member.greeted.wait()
            if member.life.stage is not WorkerStage.GREETED:
                raise MachineError("visit to Dest", "its process ended", "see its messages above")
            member.life("supplied")
            await member.router.request(Party.SUPERVISOR, Start(config=config), _VISIT_TIMEOUT)
            member.life("started")
            answer = await member.router.request(Party.SUPERVISOR, request, _VISIT_TIMEOUT)
        except TimeoutError:
            raise MachineError("visit to Dest", "its process did not start") from None
        finally:
            member.kill()
            await self._over.wait()
        if not isinstance(answer, DestVisited):
            raise InternalError("visit to Dest", f"{type(answer).__name__} is no answer")
        return answer

    async def close(self) -> None:
        """End the process of a visit that is under way."""
        self._member.kill()
        if self._member.running:
            await self._over.wait()
        self._member.router.close()

    async def serve(self) -> None:
        """Take the processes' messages until cancelled."""
        await self._member.router.serve(self._greeted, {})

    async def _greeted(self, source: Party, message: Message) -> Message | None:
        """Hello: its row allows nothing else."""
        if not isinstance(message, Hello) or message.role is not source or message.pid != self._member.pid:
            raise InternalError(f"worker {source}", "Hello has the wrong role or process id")
        self._member.life("greeted")
        self._member.greeted.set()
        return None

    def _died(self, member: Supervised) -> None:
        """It ends after every visit: nothing is counted or started again. Who waits for Hello need not any more."""
        member.life("died")
        member.greeted.set()
        self._over.set()

    @staticmethod
    def _offered(party: Party, name: str, fd: int) -> None:
        os.close(fd)
