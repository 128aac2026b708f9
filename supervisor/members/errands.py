"""Errands: a visit to Dest, a name to look up. A process for each, started for it and killed when it has answered."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from qre.errors import InternalError, MachineError
from qre.ipc.messages import DestVisited, Hello, NameResolved, Party, ResolveName, Start, VisitDest, WorkerConfig
from qre.structs import Message
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.router import Router
from qre.supervisor.members.supervised import Supervised

#: Seconds until it must have dropped its privileges; until it must have answered, which takes it 30 at most.
_GREET_TIMEOUT: Final = 60.0
_ERRAND_TIMEOUT: Final = 35.0
#: Seconds between the beginnings of two: whoever asks for more waits.
_PAUSE: Final = 1.0
#: Errands that may wait for the one that is under way: a reload asks for another Dest.
_MAX_WAITING: Final = 2
#: What each process is asked, and what it answers.
ERRANDS: Final[dict[Party, type[Message]]] = {Party.VISIT: VisitDest, Party.RESOLVER: ResolveName}
_ANSWERS: Final[dict[Party, type[Message]]] = {Party.VISIT: DestVisited, Party.RESOLVER: NameResolved}


class Errands:
    """Of one kind; one at a time."""

    def __init__(self, router: Router, runtime: Path) -> None:
        self._what = f"worker {router.party}"
        self._member = Supervised(router.party, router, runtime, self._died, self._offered)
        self._over = asyncio.Event()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._not_before = 0.0

    async def run(self, config: WorkerConfig, request: Message) -> Message:
        """What the process answers. Raises MachineError when there is no answer."""
        if self._waiting == _MAX_WAITING:
            raise MachineError(self._what, "others are waiting")
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

    async def _one(self, config: WorkerConfig, request: Message) -> Message:
        member = self._member
        self._over.clear()
        member.spawn()
        try:
            async with asyncio.timeout(_GREET_TIMEOUT):
                await member.greeted.wait()
            if member.life.stage is not WorkerStage.GREETED:
                raise MachineError(self._what, "its process ended", "see its messages above")
            member.life("supplied")
            await member.router.request(Party.SUPERVISOR, Start(config=config), _ERRAND_TIMEOUT)
            member.life("started")
            answer = await member.router.request(Party.SUPERVISOR, request, _ERRAND_TIMEOUT)
        except TimeoutError:
            raise MachineError(self._what, "its process did not start") from None
        finally:
            member.kill()
            await self._over.wait()
        if not isinstance(answer, _ANSWERS[member.party]):
            raise InternalError(self._what, f"{type(answer).__name__} is no answer")
        return answer

    async def close(self) -> None:
        """End the process of an errand that is under way."""
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
        """It ends after every errand: nothing is counted or started again. Who waits for Hello need not any more."""
        member.life("died")
        member.greeted.set()
        self._over.set()

    @staticmethod
    def _offered(party: Party, name: str, fd: int) -> None:
        os.close(fd)
