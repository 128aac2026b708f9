"""Linux capabilities: their numbers, and which ones this process lacks, checked before anything is changed."""

from __future__ import annotations

import os

from qre.errors import MachineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: <linux/capability.h>, those that QRE knows of.
NUMBERS = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_MODULE": 16,
    "CAP_BPF": 39,
}


def missing_capabilities(names: Iterable[str], held: str = "CapEff") -> list[str]:
    """Those of ``names`` that are missing from this process's effective set, or from another set in /proc/PID/status
    (CapBnd: missing for every program that it starts)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        there = next((int(line.split()[1], 16) for line in file if line.startswith(f"{held}:")), 0)
    return [name for name in names if not there >> NUMBERS[name] & 1]


def require_capabilities(what: str, names: Iterable[str]) -> None:
    """Raise MachineError unless this process has them all."""
    missing = missing_capabilities(names)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        remedy = "run it as root"
        if os.geteuid() == 0:
            remedy = "run it as root that has it: this container or unit withholds it"
        raise MachineError(what, f"it needs {', '.join(missing)}, which {verb} missing", remedy)
