"""A listening AF_UNIX socket that only its owner may reach: mode 0600 from the moment it exists."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from qre.errors import MachineError


def bind_private(kind: socket.SocketKind, path: Path, what: str) -> socket.socket:
    """A bound socket, not listening yet; a leftover of a dead process is replaced. Raises MachineError about
    ``what``.

    Changes the umask of the whole process for a moment: do not call it while another thread creates files.
    """
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, kind)
    before = os.umask(0o177)
    try:
        made.bind(str(path))
    except OSError as error:
        made.close()
        raise MachineError(f"{what} {path}", os.strerror(error.errno or 0)) from error
    finally:
        os.umask(before)
    return made
