"""Opens the files of session tickets and of their keys, for this boot of the machine alone.

A file begins with a mark of the boot. What another boot has left is overwritten before a worker gets the descriptor.
The kernel's boot_id is not to be seen where a unit hides /proc/sys: then QRE_BOOT_ID names the boot (``%b`` of
systemd). Where neither is, the files of every start are of a boot of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qre.device.state import BOOT_MARK_LENGTH
from qre.errors import MachineError
from qre.supervisor.parent.preconditions import open_regular

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_VARIABLE: Final = "QRE_BOOT_ID"
_LONGEST: Final = 128


def boot_mark(environ: Mapping[str, str] = os.environ, path: Path = _BOOT_ID) -> bytes:
    """The mark of this boot; a random one where nobody names it."""
    named = environ.get(_VARIABLE, "")
    if not named:
        with contextlib.suppress(OSError), path.open("rb") as file:
            named = file.read(_LONGEST).decode("ascii", "replace")
    name = "".join(named.split()).replace("-", "").lower()
    if not name:
        return os.urandom(BOOT_MARK_LENGTH)
    return hashlib.sha256(b"qre boot" + name.encode()).digest()[:BOOT_MARK_LENGTH]


def open_tickets(path: Path, length: int) -> int:
    """The file with a mark and ``length`` bytes behind it, mode 0600. Raises MachineError."""
    fd = open_regular(path, os.O_RDWR | os.O_CREAT, "see StateDir")
    mark, whole = boot_mark(), BOOT_MARK_LENGTH + length
    try:
        os.fchmod(fd, 0o600)
        if not hmac.compare_digest(os.pread(fd, BOOT_MARK_LENGTH, 0), mark):
            size = os.fstat(fd).st_size
            os.pwrite(fd, bytes(max(min(size, 2 * whole), whole)), 0)
            os.ftruncate(fd, whole)
            os.pwrite(fd, mark, 0)
            os.fdatasync(fd)
    except OSError as error:
        os.close(fd)
        raise MachineError(str(path), os.strerror(error.errno or 0), "see StateDir") from error
    return fd
