"""A listening AF_UNIX socket that its owner alone may reach: mode 0600 from the moment that it exists."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from qre.errors import MachineError


def bind_private(kind: socket.SocketKind, path: Path, what: str) -> socket.socket:
    """Bound, not listening yet; what a dead process left there is replaced. Raises MachineError about ``what``.

    The umask is the whole process's: not to be called while another thread makes files.
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
