"""qre-dkms in a minimal Debian: the module is built for a kernel whose headers are there, and for one that comes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import qre
from tests.packages.conftest import APT, Packages
from tests.support.container import TREE, Container, booted, image
from tests.support.kernels import Kernel, installed
from tests.support.lab import Lab

#: What dkms and the kernels' packages need besides.
NEEDS = ("dkms", "gcc-12", "initramfs-tools", "pahole")

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def machine(packages: Packages, tmp_path: Path) -> Iterator[Container]:
    """One that can install dkms, and has the headers of each kernel as packages."""
    tmp_path.chmod(0o755)
    shutil.copy(packages.of_now["qre-dkms"], tmp_path)
    for kernel in installed():
        fetch_headers(kernel, tmp_path / kernel.series)
    with Lab() as lab, booted(lab.client, "kernels", with_bpf=False, system=image(NEEDS), tree=tmp_path) as made:
        yield made


def fetch_headers(kernel: Kernel, into: Path) -> None:
    """The packages of a kernel's headers that are a kernel's own, and the kernel where they need it."""
    into.mkdir(mode=0o755)
    without = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    call = ["apt-cache", "depends", "--recurse", *without, f"linux-headers-{kernel.release}"]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    wanted = set(re.findall(r"^linux-(?:headers|kbuild|compiler)-\S*$", said, re.MULTILINE))
    wanted |= {f"linux-image-{kernel.release}"} & set(said.splitlines())
    subprocess.run(["apt-get", "download", *wanted], cwd=into, capture_output=True, check=True)


def install(machine: Container, what: str) -> None:
    machine.check(f"{APT} {what} >/tmp/apt.log 2>&1 || {{ tail -n 40 /tmp/apt.log; exit 1; }}", timeout=600)


def status(machine: Container) -> set[tuple[str, str]]:
    """(kernel, what dkms says of the module there)."""
    said = machine.check("dkms status")
    return set(re.findall(rf"^qre/{re.escape(qre.__version__)}, (\S+), x86_64: (\w+)", said, re.MULTILINE))


def test_it_is_built_for_the_kernels_that_are_there_and_for_one_that_is_added_and_goes_with_the_package(
    machine: Container,
) -> None:
    first, *others = installed()
    install(machine, f"--no-install-recommends dkms {TREE}/{first.series}/*.deb")
    install(machine, f"{TREE}/qre-dkms_*.deb")
    assert status(machine) == {(first.release, "installed")}
    there = [first.release]
    for kernel in others:
        install(machine, f"--no-install-recommends {TREE}/{kernel.series}/*.deb")
        there.append(kernel.release)
        assert status(machine) == {(release, "installed") for release in there}
    for release in there:
        magic = machine.check(f"modinfo --field vermagic /lib/modules/{release}/updates/dkms/qre.ko*")
        assert magic.startswith(f"{release} ")
    machine.check("apt-get purge --yes qre-dkms >/tmp/apt.log 2>&1", timeout=300)
    assert status(machine) == set()
    assert machine.check("find /lib/modules /var/lib/dkms /usr/src -name 'qre*'") == ""
