"""One worker as the supervisor sees it: its process, its descriptor channel, its router, its stage of life."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from qre.errors import MachineError
from qre.ipc import sandbox
from qre.ipc.channel import Channel
from qre.ipc.journal import is_read_by_the_journal
from qre.ipc.messages import Descriptor, Party
from qre.ipc.roles import ROLES
from qre.ipc.worker import run_worker
from qre.supervisor.members.life import Life, WorkerStage
from qre.supervisor.members.process import FreshProcess
from qre.supervisor.members.router import Router, endpoint
from qre.supervisor.members.worker_lines import WorkerLines

#: (party, name, descriptor): a worker handed up a descriptor, which the receiver closes.
Offered = Callable[[Party, str, int], None]


class Supervised:
    """Starts, watches and ends one worker."""

    def __init__(
        self, party: Party, router: Router, runtime: Path, died: Callable[[Supervised], None], offered: Offered
    ) -> None:
        self.party = party
        self.router = router
        self.life = Life()
        router.stage = lambda: self.life.stage
        self.greeted = asyncio.Event()
        self.pid = 0
        self._log = logging.getLogger("qre.supervisor")
        self._endpoint = endpoint(runtime, party)
        self._died = died
        self._offered = offered
        self._process: FreshProcess | None = None
        self._lines: WorkerLines | None = None
        self._pidfd = -1
        self._condemned = False
        self._channel: Channel[Descriptor] | None = None

    def spawn(self) -> None:
        """Start a fresh process; it sends Hello when it has dropped its privileges."""
        ours, theirs = Channel.pair()
        self.greeted = asyncio.Event()
        self.router.abandon("the worker was restarted")
        lines = WorkerLines(self.party) if is_read_by_the_journal() else None
        says = lines.theirs if lines is not None else None
        args = (self.party, theirs, self._endpoint, says)
        process = FreshProcess(target=run_worker, args=args, name=f"qre-{self.party}")
        try:
            with sandbox.starting(ROLES[self.party]):
                process.start()
        except OSError as error:
            ours.close()
            if lines is not None:
                lines.close()
            raise MachineError(f"worker {self.party}", f"cannot start it: {error.strerror}") from error
        finally:
            theirs.close()
            if says is not None:
                says.close()
        self.life("spawned")
        self._process, self.pid = process, process.pid or 0
        self._lines = lines
        self._condemned = False
        self._channel = Channel(ours, Descriptor)
        self._pidfd = os.pidfd_open(self.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._exited)
        loop.add_reader(self._channel.fileno(), self.take_offers)

    def hand(self, name: str, fd: int, number: int = 0) -> None:
        """Send it a descriptor; the caller keeps its own. Raises MachineError."""
        if self._channel is None:
            raise MachineError(f"worker {self.party}", "it is not running")
        self._channel.send(Descriptor(name=name, number=number), [fd])

    def hand_socket(self, name: str, made: socket.socket, number: int = 0) -> None:
        """Send it a socket and close ours."""
        try:
            self.hand(name, made.fileno(), number)
        finally:
            made.close()

    def kill(self) -> None:
        """SIGKILL to the worker, if it still runs; does not wait for it."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def take_offers(self) -> None:
        """Take everything that it has handed up so far; kill it for a descriptor that its role does not offer.

        Also called before the worker counts as ready: its last descriptors may be unread behind its answer.
        """
        if self._channel is not None:
            self._channel.drain(
                self._take, closed=self._no_more_offers, malformed=lambda error: self._close_for(str(error))
            )

    def _take(self, described: Descriptor, fds: list[int]) -> None:
        if self._condemned:
            return
        offered = described.name in ROLES[self.party].offers and self.life.stage is WorkerStage.STARTING
        if len(fds) == 1 and offered:
            self._offered(self.party, described.name, fds.pop())
        else:
            self._close_for(f"it handed up {described.name!r} while {self.life.stage.value}")

    def _no_more_offers(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())

    def _close_for(self, reason: str) -> None:
        self._log.error("worker %s is killed: %s", self.party, reason)
        self._condemned = True
        self.kill()

    def _exited(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._channel is not None:
            loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        if self._process is not None:
            self._process.join()
            self._process.close()
            self._process = None
        self.router.abandon("the worker died")
        self.pid = 0
        self._died(self)

    @property
    def running(self) -> bool:
        """Whether a process was started and has not been reaped."""
        return self._process is not None


class Members(dict[Party, Supervised]):
    """All workers of one daemon, in the order in which they start. Waits for conditions on them without polling."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def changed(self) -> None:
        """A worker's stage, process or descriptors changed: evaluate the conditions again."""
        self._news.set()

    async def until(self, fact: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``fact`` holds, tested after each change; False when it does not within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not fact():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return fact()
        return True

    def complete_pids(self) -> list[int]:
        """Process ids of all workers, while all are ready; otherwise empty."""
        ready = all(member.life.stage is WorkerStage.READY for member in self.values())
        return [member.pid for member in self.values()] if ready else []
