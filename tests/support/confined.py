"""Run a program inside a systemd unit's limits, without systemd: ``python -m tests.support.confined UNIT COMMAND``.

Read from the unit and enforced as systemd does: CapabilityBoundingSet, NoNewPrivileges, MemoryDenyWriteExecute,
SystemCallFilter (groups as ``systemd-analyze`` expands them), RestrictAddressFamilies, UMask. File system and device
limits are not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import capng
import seccomp

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 24, 38, 65


def settings(unit: Path, key: str) -> list[str]:
    """Every value of ``key``, in order."""
    lines = (line.partition("=") for line in unit.read_text().splitlines() if not line.startswith("#"))
    return [value.strip() for name, _, value in lines if name == key]


def expand(words: list[str]) -> set[str]:
    """System call names, groups replaced by their members."""
    names: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            names.add(word)
            continue
        said = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
        members = [line.strip() for line in said.stdout.splitlines()[1:]]
        names |= expand([member for member in members if member and not member.startswith("#")])
    return names


def allowed_calls(unit: Path) -> set[str]:
    """What SystemCallFilter= lets through: systemd adds its group @default by itself."""
    allowed = expand(["@default"])
    for value in settings(unit, "SystemCallFilter"):
        if value.startswith("~"):
            allowed -= expand(value[1:].split())
        else:
            allowed |= expand(value.split())
    return allowed


def confine(unit: Path) -> None:
    """Put this process into the unit's limits."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = {
        word.removeprefix("CAP_").lower()
        for value in settings(unit, "CapabilityBoundingSet")
        for word in value.split()
    }
    for number in range(capng.CAP_LAST_CAP + 1):
        if capng.capng_capability_to_name(number) not in kept:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # one that the kernel does not know is not there
    if settings(unit, "MemoryDenyWriteExecute") == ["yes"]:
        libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0)  # kernels before 6.3 lack it
    if settings(unit, "NoNewPrivileges") == ["yes"] and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    os.umask(int(settings(unit, "UMask")[0], 8))
    calls = allowed_calls(unit)
    families = {
        getattr(socket, name) for value in settings(unit, "RestrictAddressFamilies") for name in value.split()
    }
    system = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    for name in calls - {"socket"}:
        if seccomp.resolve_syscall(seccomp.Arch(), name) != -1:
            system.add_rule(seccomp.ALLOW, name)
    for family in families:
        system.add_rule(seccomp.ALLOW, "socket", seccomp.Arg(0, seccomp.EQ, family))
    system.load()


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
