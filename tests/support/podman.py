"""podman with a store of its own, on a machine that has no service manager and no cgroups to give away.

crun wants a cgroup tree of version 2 alone, so each call sees one, in a mount namespace of its own. A container gets
no cgroup, and the network namespace that a test names.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.kernels import cache, one_at_a_time
from tests.support.namespaces import Namespace, run
from tests.support.unstable import archive

BASE = "docker.io/library/debian:bookworm-slim"
_APART = (
    'umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec podman --cgroup-manager=cgroupfs "$@"'
)


def why_not() -> str:
    """The reason why images cannot be run on this machine; empty when they can."""
    absent = [name for name in ("podman", "crun", "debootstrap") if shutil.which(name) is None]
    return f"{', '.join(absent)} is missing: make test-packages installs it" if absent else ""


def _base() -> Path:
    """The files of a bare Debian, as the image that Containerfile begins with has them; made once."""
    made = cache() / "image-bookworm"
    with one_at_a_time("container-lock"):
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=cache(), prefix="bootstrapping-") as name:
                fresh = Path(name) / "system"
                run("debootstrap", "--variant=minbase", "bookworm", str(fresh), archive(), timeout=1200)
                fresh.rename(made)
    return made


class Podman:
    """``made`` makes it."""

    def __init__(self, directory: Path) -> None:
        (directory / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\nrunroot = "{directory}/run"\ngraphroot = "{directory}/graph"\n'
        )
        self._environment = os.environ | {"CONTAINERS_STORAGE_CONF": str(directory / "storage.conf")}
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
        #: podman's own limits are above those of this machine.
        self._limits = ("--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=1000:1000")

    def __call__(self, *words: str, timeout: float = 120.0) -> str:
        """``podman WORDS``, which must succeed; what it printed."""
        command = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", _APART, "sh", *words)
        done = subprocess.run(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"podman {' '.join(words)}: status {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def bootstrap(self) -> None:
        """Have the image that Containerfile begins with, without a registry."""
        tar = subprocess.Popen(["tar", "-C", _base(), "-c", "."], stdout=subprocess.PIPE)
        command = ("podman", "import", "--quiet", "-", BASE)
        subprocess.run(command, env=self._environment, stdin=tar.stdout, check=True, capture_output=True, timeout=300)
        assert tar.wait() == 0

    def start(self, namespace: Namespace, name: str, *words: str) -> None:
        """``podman run -d``, in the network of ``namespace``."""
        network = f"ns:/run/netns/{namespace.name}"
        self("run", "-d", "--name", name, "--cgroups=disabled", *self._limits, "--network", network, *words)


@contextmanager
def podman() -> Iterator[Podman]:
    """One whose containers, volumes and images are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="qre-test-podman-") as name:
        made = Podman(Path(name))
        try:
            yield made
        finally:
            made("rm", "--force", "--all")
            made("volume", "rm", "--force", "--all")
