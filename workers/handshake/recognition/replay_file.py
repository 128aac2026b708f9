"""The replay file, as this process is handed it."""

from __future__ import annotations

import os

from qre.errors import MachineError
from qre.ipc.messages import WorkerConfig
from qre.reality.replay import FILE_LENGTH, ReplayFilter, replay_window


def read_replay_file(fd: int, config: WorkerConfig, owners: int) -> ReplayFilter:
    """What is remembered in it, shared out among so many short ids. Raises MachineError."""
    try:
        image = os.pread(fd, FILE_LENGTH, 0)
    except OSError as error:
        raise MachineError("replay file", error.strerror or "cannot be read") from error
    return ReplayFilter(image, replay_window(config.max_time_diff_ms), owners=owners)
