"""What stands in the memory of processes: read as root, every mapping that can be read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)")


def found_in(pids: Iterable[int], wanted: Mapping[str, bytes]) -> list[str]:
    """Where the bytes stand: ``process: name in mapping``. A process that has ended meanwhile has no memory."""
    found: list[str] = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += _found_in(pid, wanted)
    return found


def _found_in(pid: int, wanted: Mapping[str, bytes]) -> list[str]:
    found = []
    process = Path(f"/proc/{pid}/comm").read_text().strip()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = _LINE.match(line)
        if match is None or "r" not in match[3] or match[4] in ("[vvar]", "[vsyscall]"):
            continue
        start, end = int(match[1], 16), int(match[2], 16)
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memory.seek(start)
            try:
                data = memory.read(end - start)
            except OSError:  # of a device
                continue
        found += [f"{process}: {name} in {match[4] or 'memory'}" for name, what in wanted.items() if what in data]
    return found
