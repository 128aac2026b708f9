"""An /etc of its own for a daemon, whose files change under way."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemons import Daemon

#: Not for copies: nothing that a test starts needs it.
_SECRET = ("shadow", "shadow-", "gshadow", "gshadow-")


def private_etc(daemon: Daemon, directory: Path) -> PrivateEtc:
    """Give a daemon that is not started yet an /etc of its own."""
    made = PrivateEtc(directory / f"etc-{daemon.profile}")
    daemon.etc = made.path
    return made


@dataclass
class PrivateEtc:
    """A copy of /etc that its daemon has in place of the machine's; without a resolver at first."""

    path: Path

    def __post_init__(self) -> None:
        shutil.copytree(
            "/etc", self.path, symlinks=True, ignore_dangling_symlinks=True, ignore=shutil.ignore_patterns(*_SECRET)
        )
        self.path.chmod(0o755)
        self.remove("resolv.conf")
        self.replace("hosts", "127.0.0.1 localhost\n")

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def replace(self, name: str, text: str) -> None:
        """As DHCP clients, NetworkManager and editors do: a new file, renamed over the old one."""
        new = self.path / f"{name}.new"
        new.write_text(text)
        new.chmod(0o644)
        os.rename(new, self.path / name)

    def link(self, name: str, target: str) -> None:
        """Point it elsewhere, at once."""
        new = self.path / f"{name}.new"
        new.symlink_to(target)
        os.rename(new, self.path / name)
