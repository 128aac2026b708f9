"""Tasks that belong together, with one policy for a failure, which the owner of the group sets.

A bare ``asyncio.create_task`` may be collected while it runs, and its failure goes unnoticed; ``asyncio.TaskGroup``
would cancel its neighbours, and needs a block that lasts as long as they do. Product code makes tasks here alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Tasks:
    """``failed`` is called in the loop with the exception of a task; a cancellation is not a failure."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._running: dict[asyncio.Task[None], int] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def weight(self) -> int:
        """Of all that run."""
        return sum(self._running.values())

    def spawn(self, work: Coroutine[Any, Any, None], name: str = "task", weight: int = 0) -> None:
        """Begin ``work``. ``cancel`` selects tasks by ``name``; ``weight`` is what it holds meanwhile, in its owner's
        measure."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running[task] = weight
        task.add_done_callback(self._done)

    def cancel(self, *, only: str = "", spare: str = "") -> None:
        """Cancel all tasks but the caller's, or only those of one name, or all except those of one name."""
        for task in self._running.copy():
            name = task.get_name()
            if task is not asyncio.current_task() and (not only or name == only) and (not spare or name != spare):
                task.cancel()

    async def end(self) -> None:
        """Cancel all, and wait until they are over."""
        self.cancel()
        others = [task for task in self._running if task is not asyncio.current_task()]
        await asyncio.gather(*others, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)
