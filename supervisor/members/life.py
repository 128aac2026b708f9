"""The life of one worker, as a table: stage and event give the next stage. No I/O, no clock inside.

    ABSENT ──spawned──► SPAWNED ──greeted──► GREETED ──supplied──► STARTING ──started──► READY
       ▲                   │                    │                      │                   │
       └──── backoff ──── DEAD ◄──── died, from anywhere ──────────────┴───────────────────┤
                           ▲                                                               │
                           └───────────────────────── died ──── STOPPING ◄──── stopping ───┘

A worker that dies is started again after a pause that doubles with each death in the last minute; too many deaths in
that minute end the daemon. A worker that was told to stop is not started again.
"""

from __future__ import annotations

import enum
from typing import Final

from qre.errors import InternalError


class WorkerStage(enum.Enum):
    ABSENT = "absent"
    SPAWNED = "spawned"
    GREETED = "greeted"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DEAD = "dead"


_NEXT: Final[dict[str, dict[WorkerStage, WorkerStage]]] = {
    "spawned": {WorkerStage.ABSENT: WorkerStage.SPAWNED, WorkerStage.DEAD: WorkerStage.SPAWNED},
    "greeted": {WorkerStage.SPAWNED: WorkerStage.GREETED},
    "supplied": {WorkerStage.GREETED: WorkerStage.STARTING},
    "started": {WorkerStage.STARTING: WorkerStage.READY},
    "stopping": {
        stage: WorkerStage.STOPPING for stage in WorkerStage if stage not in (WorkerStage.ABSENT, WorkerStage.DEAD)
    },
    "died": {stage: WorkerStage.DEAD for stage in WorkerStage if stage is not WorkerStage.ABSENT},
}

DEATH_WINDOW: Final = 60.0
MAX_DEATHS: Final = 8
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0


class Life:
    """One worker's stage, and its deaths in the last minute."""

    def __init__(self) -> None:
        self.stage = WorkerStage.ABSENT
        self.restarts = 0
        self._deaths: list[float] = []

    def __call__(self, happening: str) -> None:
        """Enter the next stage. Raises InternalError for an event that cannot happen in this one."""
        following = _NEXT[happening].get(self.stage)
        if following is None:
            raise InternalError("worker life cycle", f"{happening} while {self.stage.value}")
        self.stage = following

    def died(self, now: float) -> float | None:
        """Record a death; seconds to wait before the next start, or None when there were too many."""
        self("died")
        self.restarts += 1
        self._deaths = [at for at in self._deaths if now - at < DEATH_WINDOW]
        self._deaths.append(now)
        if len(self._deaths) > MAX_DEATHS:
            return None
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (len(self._deaths) - 1))
