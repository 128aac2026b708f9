"""Checks before a daemon changes anything: capabilities, lengths of paths, kinds of files.

Each failure is one error that names the thing and the remedy.
"""

from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path
from typing import Final

from qre.causes import Cause
from qre.config.model import GlobalConfig, Profile
from qre.ends import Role
from qre.errors import MachineError, UserError
from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from qre.kernel.capabilities import require_capabilities
from qre.supervisor.members.router import endpoint

#: To start workers as other users, to confine and end them, and the one that a worker is granted.
CAPABILITIES: Final = ("CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_ADMIN")
SERVER_CAPABILITIES: Final = (*CAPABILITIES, "CAP_BPF")
#: sockaddr_un holds this many bytes of a path, and a zero.
_SOCKET_PATH: Final = 107
_MAX_ELF: Final = 1 << 20
_ELF_REMEDY: Final = "run make, or set BpfElf"


def check_able(profile: Profile, config: GlobalConfig) -> None:
    """Raise QreError unless the daemon can do its work."""
    server = profile.role is Role.SERVER
    require_capabilities(f"daemon {profile.name}", SERVER_CAPABILITIES if server else CAPABILITIES)
    if server and importlib.util.find_spec("bcc") is None:
        raise MachineError("bcc", "it is not installed, and a server needs it", "apt install python3-bpfcc")
    if missing := unmapped_ids():
        raise MachineError.of(f"daemon {profile.name}", Cause.IDS_MISSING, missing)
    longest = max(
        len(os.fsencode(endpoint(config.runtime_dir / f"{profile.device}.workers", party).removeprefix("ipc://")))
        for party in Party
    )
    if longest > _SOCKET_PATH:
        raise UserError(
            f"RuntimeDir {config.runtime_dir}",
            f"it is {longest - _SOCKET_PATH} bytes too long for socket paths",
            "choose a shorter one",
        )


def unmapped_ids() -> str:
    """Which ids of workers this user namespace does not have, in words; empty when it has them all."""
    for name, place in (("uid_map", 0), ("gid_map", 1)):
        entries = [tuple(map(int, line.split())) for line in Path("/proc/self", name).read_text().splitlines()]
        wanted = sorted(role.ids()[place] for role in ROLES.values())
        missing = [each for each in wanted if not any(first <= each < first + count for first, _, count in entries)]
        if missing and sum(count for _, _, count in entries) == 1:
            return "it has one id only"
        if missing:
            return f"it has no {name.removesuffix('_map')} {', '.join(map(str, missing))}"
    return ""


def check_passable(directory: Path) -> None:
    """Raise UserError unless the workers' users can traverse to ``directory``, which exists."""
    resolved = directory.resolve()
    for each in (*reversed(resolved.parents), resolved):
        if not each.stat().st_mode & stat.S_IXOTH:
            raise UserError(
                f"RuntimeDir {directory}", f"the workers' users cannot traverse {each}", f"chmod o+x {each}"
            )


def open_regular(path: Path, flags: int, remedy: str) -> int:
    """Open a regular file, never a device, a pipe or a link; does not block. Raises MachineError."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise MachineError(str(path), os.strerror(error.errno or 0), remedy) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise MachineError(str(path), "not a regular file", remedy)
    return fd


def open_elf(path: Path) -> int:
    """Open the compiled BPF program after a check of its size and magic; the loader reports libbpf's errors."""
    fd = open_regular(path, os.O_RDONLY, _ELF_REMEDY)
    if os.pread(fd, 4, 0) != b"\x7fELF" or os.fstat(fd).st_size > _MAX_ELF:
        os.close(fd)
        raise MachineError(str(path), "not an ELF file of at most 1 MiB", _ELF_REMEDY)
    return fd
