"""The packages of this tree and of a later version of it, and two minimal machines on which they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import qre
from tests.container.conftest import Ends, configured
from tests.support.container import TREE, Container, booted, image
from tests.support.kernels import ROOT
from tests.support.namespaces import Namespace
from tests.support.tunnel import Tunnel

#: What a build takes of the tree.
PARTS = ("bpf", "cli", "docs", "kmod", "packaging", "qre", "supervisor", "workers")
LATER = f"{qre.__version__}+later"
#: What apt is asked for: the package's own needs, and bcc's for a server.
NEEDS = ("ca-certificates", "python3", "python3-cap-ng", "python3-seccomp", "python3-nftables")
BCC = "python3-bpfcc"
APT = "DEBIAN_FRONTEND=noninteractive apt-get install --yes"
#: What a machine has: files but those of apt, dpkg and logs; users; what systemd knows.
EVERYTHING = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /opt/qre \
    -o -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path '/etc/*-' \
    \) -prune -o -print | sort
sort /etc/passwd /etc/group
systemctl list-unit-files --no-legend; systemctl list-units --all --no-legend 'qre*' 'sys-*qre*'
ls -A /sys/fs/bpf /run/qre 2>&1 || true
"""


def build(out: Path, tree: Path = ROOT) -> dict[str, Path]:
    """Name -> package of ``tree``, in ``out``."""
    subprocess.run([tree / "packaging/build-deb.sh", out], check=True, capture_output=True)
    return {path.name.partition("_")[0]: path for path in out.glob("*.deb")}


@dataclass
class Packages:
    """The packages in ``directory``, and in ``later`` those of the next version."""

    directory: Path
    of_now: dict[str, Path]
    of_later: dict[str, Path]


@pytest.fixture(scope="package")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    directory, tree = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("tree")
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "*.o", "*.ko")
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=ignored)
    for path in (*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "LICENSE"):
        shutil.copy(path, tree)
    version = tree / "qre/__init__.py"
    version.write_text(version.read_text().replace(f'"{qre.__version__}"', f'"{LATER}"'))
    return Packages(directory, build(directory), build(directory / "later", tree))


def all_of(container: Container, namespace: Namespace) -> list[str]:
    """What a machine has, and of its network what outlives a process: rules, routes, nftables."""
    network = [namespace.run(*words) for words in (
        ("ip", "-4", "rule"), ("ip", "-6", "rule"), ("ip", "-4", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"), ("nft", "list", "ruleset"),
    )]  # fmt: skip
    return [*container.check(EVERYTHING).splitlines(), *"\n".join(network).splitlines()]


@dataclass
class Installed(Ends):
    """Both machines, and what was seen of the client's while it was installed."""

    packages: Packages
    #: what the client's machine had before: QRE's needs, and nothing of QRE
    before: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: what was added to the client's machine
    mebibytes: int = 0


def used(container: Container) -> int:
    """What the machine's files take, in MiB."""
    return int(re.split(r"\s", container.check("du -xsm --exclude=/opt/qre --exclude=/var/cache /"))[0])


def timed(container: Container, what: str) -> float:
    """The seconds that apt takes to install ``what``."""
    said = container.check(
        f"start=$(date +%s%N); {APT} {what} >/tmp/apt.log 2>&1 || {{ cat /tmp/apt.log; exit 1; }};"
        f" echo $(($(date +%s%N) - start))",
        timeout=600,
    )
    return int(said) / 1e9


@pytest.fixture(scope="package")
def ends(packages: Packages) -> Iterator[Installed]:
    """The client's machine has no bpffs."""
    system = image((*NEEDS, BCC))
    now = f"{TREE}/{packages.of_now['qre'].name}"
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        server, client = (
            stack.enter_context(
                booted(namespace, name, with_bpf=name == "server0", system=system, tree=packages.directory)
            )
            for name, namespace in (("server0", tunnel.lab.server), ("client0", tunnel.lab.client))
        )
        timed(server, f"{now} {BCC}")
        empty = used(client)
        seconds = timed(client, " ".join(NEEDS))
        before = all_of(client, tunnel.lab.client)
        seconds += timed(client, now)
        size = used(client) - empty
        machines = [
            configured(container, name, tunnel.profile(name).read_text(), tunnel.site.authority.read_text())
            for container, name in ((server, "server0"), (client, "client0"))
        ]
        yield Installed(tunnel, *machines, packages, before, seconds, size)
