"""Every process below the daemon's parent: found, killed, waited for. They die with their parents; this makes
sure."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans(wanted: bool) -> None:
    """Become (or stop being) the subreaper: orphaned descendants are re-parented to this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _descendants(pid: int) -> list[int]:
    """Every process below ``pid``, from /proc."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for entry in Path(f"/proc/{pid}/task").iterdir():
            for word in (entry / "children").read_text().split():
                found += [int(word), *_descendants(int(word))]
    return found


def kill_descendants(pid: int) -> None:
    """SIGKILL to every descendant of ``pid``, not to ``pid`` itself."""
    for child in _descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def reap_all() -> None:
    """Kill and wait for every process that is still below us. They die with their parents; this makes sure."""
    kill_descendants(os.getpid())
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
