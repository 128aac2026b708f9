"""A Debian with systemd as its first process, in systemd-nspawn: ``booted``, and ``Container.run`` runs shell in it.

Its Debian is made by debootstrap once, from the packages that QRE's user needs (or none of them), and kept outside
the tree; a container writes to a layer of its own, which goes with it, as do all of its processes. A directory of
this machine is at /opt/qre, read-only: this tree with its Python environment, as if it had been set up there. The
machine's own systemd is not asked, and need not run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.daemons import PATIENCE, wait_for
from tests.support.kernels import ROOT, cache, one_at_a_time
from tests.support.namespaces import Namespace, run
from tests.support.unstable import archive

#: Where a container has this tree.
TREE = Path("/opt/qre")
_PACKAGES = ROOT / "packaging" / "debian-packages.txt"
#: What docs/tasks.md has one type besides QRE's own commands.
_TYPED = ("iputils-ping", "nftables", "procps", "python3-nftables")
_PROGRAMS = ("debootstrap", "systemd-nspawn", "unshare")
_BOOT_TIMEOUT = 300.0
#: What debootstrap cannot install: it takes /etc/resolv.conf over, with which the rest was fetched.
_LATER = """
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y --no-install-recommends install systemd-resolved
"""

#: Boots the container at $1 (its Debian: $2), of the name $3, with the options behind. It has a cgroup tree of its
#: own, version 2 alone as systemd-nspawn wants it, and leaves nothing in /run.
BOOT = """
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd && mount -t tmpfs -o mode=755 tmpfs /run/systemd
root=$1/root name=$3
shift 3
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network  # a machine's administrator may set net.ipv4.ip_forward
exec systemd-nspawn --boot --quiet --register=no --keep-unit --console=pipe --directory="$root" --machine="$name" "$@"
"""


def why_not() -> str:
    """The reason why no container can be booted on this machine; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} is missing: make test-container installs it"
    if _cgroups() is None:
        return "cgroup2 is not mounted"
    return ""


def _cgroups() -> Path | None:
    """Where version 2 of the control groups is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)


def _packages() -> list[str]:
    """What QRE needs to run, and systemd."""
    lines = (line.split(maxsplit=2) for line in _PACKAGES.read_text().splitlines() if not line.startswith("#"))
    return ["systemd-sysv", *_TYPED, *(name for name, need, *_ in lines if need == "runtime:")]


def image(fetched: Sequence[str] = ()) -> Path:
    """The container's Debian, of the same release as this machine; made if it is not there yet. With ``fetched``
    it is a minimal one, in which apt can install those packages without a network."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)[
        "VERSION_CODENAME"
    ]
    packages = ",".join(["systemd-sysv"] if fetched else _packages())
    digest = hashlib.sha256(f"{release} {packages} {' '.join(fetched) or _LATER}".encode()).hexdigest()[:16]
    system = cache() / f"container-{digest}"
    with one_at_a_time("container-lock"):
        if not system.exists():
            with tempfile.TemporaryDirectory(dir=cache(), prefix="bootstrapping-") as name:
                made = Path(name) / "system"
                command = ("debootstrap", "--variant=minbase", f"--include={packages}", release, str(made))
                run(*command, archive(), timeout=1200)
                if not fetched:
                    run("chroot", str(made), "/bin/sh", "-ec", _LATER, timeout=600)
                shutil.rmtree(made / "var/cache/apt")
                if fetched:
                    run("chroot", str(made), "apt-get", "update", timeout=300)
                    run("chroot", str(made), "apt-get", "install", "--yes", "--download-only", *fetched, timeout=600)
                made.rename(system)
    return system


class Container:
    """One that was booted; ``booted`` makes it."""

    def __init__(self, name: str, cgroup: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self._cgroup, self._process, self._log = name, cgroup, process, log

    @property
    def init(self) -> int:
        """Its systemd's pid on this machine; 0 while there is none."""
        try:
            return int((self._cgroup / "payload/init.scope/cgroup.procs").read_text().split()[0])
        except (OSError, IndexError):
            return 0

    def processes(self) -> list[int]:
        """Every process of it, as this machine numbers them."""
        found = [path.read_text().split() for path in (self._cgroup / "payload").rglob("cgroup.procs")]
        return [int(word) for words in found for word in words]

    def run(self, script: str, *, stdin: str = "", timeout: float = PATIENCE) -> tuple[int, str]:
        """Run ``script`` in it; its status, and what it printed and complained of."""
        entered = ("nsenter", "--all", "--target", str(self.init), "--", "/usr/bin/env", "-i", "-C", str(TREE))
        settings = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
        done = subprocess.run(
            [*entered, *settings, "/bin/sh", "-ec", script],
            input=stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace").strip()

    def check(self, script: str, *, stdin: str = "", timeout: float = PATIENCE) -> str:
        """The same, of a script that must succeed; what it printed."""
        status, said = self.run(script, stdin=stdin, timeout=timeout)
        assert status == 0, f"{self.name}: status {status} of: {script}\n{said}"
        return said

    def wait_booted(self) -> None:
        def up() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} did not boot: {self._log.read_text(errors='replace')[-3000:]}")
            return bool(self.init) and self.run("systemctl is-system-running")[1] in ("running", "degraded")

        wait_for(f"{self.name} to boot", up, _BOOT_TIMEOUT, interval=0.2)

    def power_off(self) -> None:
        """In order, within a bounded time; then by force."""
        if self._process.poll() is None and self.init:
            self.run("systemctl poweroff --no-block || true")
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)  # all its processes go with it
            self._process.wait()


@contextmanager
def booted(
    namespace: Namespace, name: str, *options: str, with_bpf: bool, system: Path | None = None, tree: Path = ROOT
) -> Iterator[Container]:
    """A container in the network of ``namespace``, which may administer it; ``options`` are systemd-nspawn's.
    A server needs BPF. ``system``: its Debian; ``tree``: what it has at /opt/qre."""
    cgroups = _cgroups()
    assert cgroups is not None
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qre-container-")))
        for part in ("root", "upper", "work", "bpf"):
            (directory / part).mkdir()
        given = [
            f"--network-namespace-path=/run/netns/{namespace.name}",
            "--capability=CAP_NET_ADMIN",
            f"--bind-ro={tree}:{TREE}",
            *options,
        ]
        if with_bpf:
            run("mount", "-t", "bpf", "bpf", str(directory / "bpf"))
            stack.callback(run, "umount", str(directory / "bpf"))
            given += ["--capability=CAP_BPF", "--system-call-filter=bpf", f"--bind={directory}/bpf:/sys/fs/bpf"]
        cgroup = cgroups / f"qre-{name}-{secrets.token_hex(4)}"
        cgroup.mkdir()
        stack.callback(_remove, cgroup)
        enter = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'
        apart = (
            "unshare",
            "--mount",
            "--cgroup",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation=private",
        )
        boot = ("sh", "-ec", BOOT, "sh", str(directory), str(system or image()), name, *given)
        log = directory / "console"
        with log.open("wb") as console:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "sh", "-ec", enter, "sh", str(cgroup), *apart, *boot],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        made = Container(name, cgroup, process, log)
        stack.callback(made.power_off)
        made.wait_booted()
        yield made


def _remove(cgroup: Path) -> None:
    """Its groups, the innermost first, as soon as their last process is gone."""

    def gone() -> bool:
        try:
            for path in sorted(cgroup.rglob("*/"), key=lambda path: -len(path.parts)):
                path.rmdir()
            cgroup.rmdir()
        except OSError:
            return False
        return True

    wait_for(f"the processes of {cgroup.name} to end", gone)
