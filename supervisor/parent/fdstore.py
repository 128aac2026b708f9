"""systemd's file descriptor store: the memfd of session secrets outlives a daemon that was killed (sd_notify(3)).

Only on the kernel's data plane, where sessions outlive it too: with their secrets the next daemon can change their
keys; with secrets but without the user data plane's number marks, packet numbers would repeat. A returned
descriptor (LISTEN_FDS, sd_listen_fds(3)) is checked, and never mapped here. The unit needs FileDescriptorStoreMax.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

from qre.errors import MachineError
from qre.ipc import descriptors
from qre.ipc.roles import ROLES, Expected
from qre.supervisor.parent.notify import Notifier
from qre.supervisor.parent.process_settings import MEMFD_SIZES

NAME: Final = "session_secrets"
_FIRST: Final = 3  # SD_LISTEN_FDS_START
_MAX: Final = 64
#: Of a daemon of an earlier version.
_EARLIER_SIZE: Final = 1 << 20
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def expected() -> Expected:
    """The row of ``session_secrets`` in the handshake worker's role."""
    return next(
        entry for role in ROLES.values() for entry in role.descriptors if entry.name == NAME and entry.kind == "memfd"
    )


def take_back(environment: MutableMapping[str, str]) -> int | None:
    """The memfd that systemd kept for this process; closes everything else that it passed.

    Removes the variables: they are not for hooks or workers.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit() and 0 < int(count[:4]) <= _MAX):
        return None
    given = names.split(":")
    kept: int | None = None
    for number in range(int(count[:4])):
        fd = _FIRST + number
        wanted = kept is None and number < len(given) and given[number] == NAME
        if wanted and _is_right(fd):
            os.set_inheritable(fd, False)
            kept = fd
        else:
            _close(fd)
    return kept


def _is_right(fd: int) -> bool:
    try:
        descriptors.check(fd, expected())
        return os.fstat(fd).st_size in (MEMFD_SIZES[NAME], _EARLIER_SIZE)
    except (MachineError, OSError):
        return False


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return  # fewer descriptors than announced


def keep(notifier: Notifier, fd: int) -> None:
    """Let systemd keep it, replacing an older one; does nothing without a store."""
    forget(notifier)
    notifier.tell(f"FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0", fd)


def supply(notifier: Notifier, supplies: dict[str, int], stored: int | None, *, kernel: bool) -> bool:
    """Sessions in qre.ko outlive the daemon: systemd keeps the memfd among ``supplies``, or that is replaced by
    ``stored``, which it has kept (True). Sessions of the user data plane do not, and what was stored goes."""
    if kernel:
        os.close(supplies.pop("number_marks"))
        if stored is None:
            keep(notifier, supplies[NAME])
            return False
        os.close(supplies[NAME])
        supplies[NAME] = stored
        return True
    if stored is not None:
        os.close(stored)
        forget(notifier)
    return False


def forget(notifier: Notifier) -> None:
    """The sessions have ended: remove the memfd from the store."""
    notifier.tell(f"FDSTOREREMOVE=1\nFDNAME={NAME}")
