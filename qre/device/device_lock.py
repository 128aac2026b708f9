"""One process at a time changes a device: a lock file ``RuntimeDir/<device>.lock``, held with flock(2).

The file names its holder (process id and purpose) and is removed with the lock. ``up``, ``down`` and ``reload`` hold
it while they work, a daemon as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qre.config.model import GlobalConfig
from qre.errors import MachineError, UserError

_ATTEMPTS = 20


def lock_path(config: GlobalConfig, device: str) -> Path:
    """The file to lock while ``device`` is being changed, in RuntimeDir."""
    return config.runtime_dir / f"{device}.lock"


def port_name(ip: str, port: int) -> str:
    """The name of a server's port in RuntimeDir, in place of a device's; it includes the network namespace."""
    return f"{ip}_{port}_{os.stat('/proc/self/ns/net').st_ino}"


def is_free(config: GlobalConfig, device: str) -> bool:
    """Whether no process holds the lock; changes nothing."""
    try:
        descriptor = os.open(lock_path(config, device), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def hold_device(config: GlobalConfig, device: str, purpose: str) -> Iterator[None]:
    """Hold the device for ``purpose`` (``up``, ``down``, ``reload``, ``daemon``); UserError names the holder."""
    path = lock_path(config, device)
    try:
        if not config.runtime_dir.is_dir():
            config.runtime_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            config.runtime_dir.chmod(0o711)  # whatever the umask is: workers of other users pass through
        descriptor = _acquire(path, device)
    except OSError as error:
        raise MachineError(f"lock {path}", error.strerror or str(error), "see RuntimeDir, and run as root") from error
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {purpose}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked: the next one notices, and makes its own
        os.close(descriptor)


def _acquire(path: Path, device: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace")
            os.close(descriptor)
            raise _busy(device, holder) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our open and our lock
    raise UserError(f"device {device}", "other commands keep changing it", "try again")


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _busy(device: str, holder: str) -> UserError:
    match = re.fullmatch(r"(\d+) ([a-z]+)\n?", holder)
    pid, purpose = match.groups() if match else ("unknown", "another command")
    if purpose == "daemon":
        remedy = f"stop the daemon first: `systemctl stop qred@…`, or kill {pid}"
        return UserError(f"device {device}", f"a daemon holds it (process {pid})", remedy)
    return UserError(f"device {device}", f"`{purpose}` is changing it (process {pid})", "wait for it")
