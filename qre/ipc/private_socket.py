"""A listening AF_UNIX socket that only its owner may reach, or whom its directory lets in: its mode is right from the
moment it exists."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qre.errors import MachineError

#: What is left is mode 0600.
OWNER_ONLY: Final = 0o177
#: What is left is mode 0666: only the directory decides who reaches it.
WHOEVER_ENTERS: Final = 0o111


@contextmanager
def masked(umask: int) -> Iterator[None]:
    """Create files with this umask.

    It is the whole process's: do not use it while another thread creates files.
    """
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def bind_private(kind: socket.SocketKind, path: Path, what: str, umask: int = OWNER_ONLY) -> socket.socket:
    """A bound socket, not listening yet; a leftover of a dead process is replaced. Raises MachineError about
    ``what``. See ``masked``."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, kind)
    try:
        with masked(umask):
            made.bind(str(path))
    except OSError as error:
        made.close()
        raise MachineError(f"{what} {path}", os.strerror(error.errno or 0)) from error
    return made
