"""Commands as a user who is nobody; root's home, where a tree may lie, is closed to him."""

from __future__ import annotations

import os
from typing import Final

from tests.support.kernels import ROOT

NOBODY: Final = 65_534
#: In mounts of its own, where $1, which is closed to others, holds nothing but the tree $2; then the command.
_OPEN_WAY: Final = """exec 9<"$2"
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir -p -m 755 "$2"
mount --no-canonicalize --bind /proc/self/fd/9 "$2"
exec 9<&-
shift 2
exec "$@"
"""


def way_open(*command: str) -> list[str]:
    """``command``, whose process may become another user and go on reading this tree."""
    closed = next((folder for folder in reversed(ROOT.parents) if not folder.stat().st_mode & 0o001), None)
    if closed is None or os.geteuid():
        return list(command)
    return ["unshare", "--mount", "sh", "-euc", _OPEN_WAY, "sh", str(closed), str(ROOT), *command]


def as_nobody(*command: str) -> list[str]:
    """``command``, run by nobody, who is in no group."""
    return way_open("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command)
