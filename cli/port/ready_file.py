"""The ready file of a command in the foreground: it exists exactly while the command is ready.

It names the process, so a file that a killed command left is recognised and replaced; any other file is not.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Final

from qre.device.state import write_atomically
from qre.errors import MachineError, UserError

_KIND: Final = "qre-tool ready file"
_MAX_SIZE: Final = 4096


def check_ready_file(path: Path) -> None:
    """Remove the file of a dead command; UserError for any other file. Call it before any work."""
    what = f"ReadyFile {path}"
    if not path.parent.is_dir():
        raise UserError(what, "its directory does not exist", "create it")
    if not os.path.lexists(path):
        return
    pid = _writer(path)
    if pid is None:
        raise UserError(what, "it exists and was not written by qre-tool", "remove it, or choose another path")
    if os.path.exists(f"/proc/{pid}"):
        raise UserError(what, f"process {pid} wrote it and runs", "end it, or choose another path")
    path.unlink(missing_ok=True)


def write_ready_file(path: Path, told: dict[str, object]) -> None:
    """Write ``told`` and our process id as JSON, atomically."""
    text = json.dumps({"kind": _KIND, "pid": os.getpid(), **told}, indent=2, sort_keys=True) + "\n"
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise MachineError(f"ReadyFile {path}", error.strerror or str(error), "choose another path") from error


def remove_ready_file(path: Path) -> None:
    """No error when it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"ReadyFile {path}", error.strerror or str(error), "remove it by hand") from error


def _writer(path: Path) -> int | None:
    """The process that wrote it; None when it is not a ready file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        told = json.loads(os.read(fd, _MAX_SIZE))
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(fd)
    if not isinstance(told, dict) or told.get("kind") != _KIND or not isinstance(told.get("pid"), int):
        return None
    return int(told["pid"])
