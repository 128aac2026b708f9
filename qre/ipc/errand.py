"""What workers have in common that are started for one request and end: nothing to prepare, keep or hand over."""

from __future__ import annotations

from qre.ipc.messages import Done
from qre.ipc.worker import WorkerContext
from qre.structs import Message


class ErrandWorker:
    """The part of ``qre.ipc.worker.Worker`` that needs nothing done; ``handle`` is the errand."""

    async def start(self, context: WorkerContext) -> None:
        """There is nothing to prepare."""

    async def reload(self) -> None:
        """It ends before a reload could concern it."""

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """None is ever handed to it: its row has none, so this is not called."""

    async def status(self) -> Message:
        """It has none."""
        return Done()

    async def stop(self) -> None:
        """There is nothing to end in order."""
