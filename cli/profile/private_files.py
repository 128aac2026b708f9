"""Files that hold a secret: written with mode 0600 from their first moment, whole or not at all."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager

from qre.errors import MachineError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Random digits of the name of a file that is being written.
_BESIDE_DIGITS = 16


def write_all(texts: Mapping[str, str]) -> None:
    """Create every file with mode 0600, or none; an existing file is never overwritten."""
    temporary: list[str] = []
    made: list[str] = []
    path = next(iter(texts))
    try:
        for path, text in texts.items():
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            temporary.append(write_beside(path, text.encode()))
        for path, source in zip(texts, temporary, strict=True):
            os.link(source, path)  # unlike a rename, a link fails when the name exists
            made.append(path)
    except BaseException as error:
        for path_made in made:
            os.unlink(path_made)
        if isinstance(error, FileExistsError):
            remedy = "choose another profile name, or move the old one away"
            raise UserError(path, "it exists already, and nothing was written", remedy) from None
        if isinstance(error, OSError):
            why = f"cannot be written: {error.strerror or error}"
            raise MachineError(path, why, "check the directory, or name another with QRE_CONFIG_DIR") from None
        raise
    finally:
        for source in temporary:
            os.unlink(source)
    sync_directory(path)


def write_beside(path: str, data: bytes) -> str:
    """Write a synced file with mode 0600 in the same directory; its path."""
    directory, name = os.path.split(path)
    beside = os.path.join(directory, f".{name}.{os.urandom(_BESIDE_DIGITS // 2).hex()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(beside)
        raise
    return beside


def sync_directory(path: str) -> None:
    """The names in the directory of ``path`` survive a power failure."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace_file(path: str, data: bytes, like: os.stat_result | None = None) -> None:
    """Replace a file, atomically, by one of mode 0600; the old one is there when it fails. ``like``: whose owner it
    gets. The caller holds the lock."""
    try:
        beside = write_beside(path, data)
        try:
            if like is not None and like.st_uid != os.geteuid():
                os.chown(beside, like.st_uid, like.st_gid)
            os.rename(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
        sync_directory(path)
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise MachineError(path, why, "see that you may write the directory, and that the disk has room") from None


@contextmanager
def locked(path: str) -> Iterator[None]:
    """One change of files in the directory of ``path`` at a time. What a change of ``path`` that was killed left
    beside it, ``.NAME.`` and 16 hex digits, is removed."""
    directory, name = os.path.split(path)
    try:
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(directory, error.strerror or str(error), "check the directory and its owner") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for entry in os.listdir(descriptor):
            digits = entry.removeprefix(f".{name}.")
            if digits != entry and len(digits) == _BESIDE_DIGITS and set(digits) <= set("0123456789abcdef"):
                os.unlink(entry, dir_fd=descriptor)
        yield
    finally:
        os.close(descriptor)
