"""One guest a kernel for the whole ring, with qre.ko's build at hand. The newer kernel runs what bears ``both``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernels import Kernel, build, cache, kernels
from tests.support.vm import Vm, booted

COMPILER = ("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
GUEST = Path(__file__).resolve().parent / "guest"


def tools() -> Path:
    """The C programs that poke the kernel, compiled."""
    directory = cache() / "guest"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for source in GUEST.glob("*.c"):
        subprocess.run(
            [*COMPILER, "-I", str(GUEST.parents[2] / "kmod"), "-o", str(directory / source.stem), str(source)],
            check=True,
        )
    return directory


@pytest.fixture(scope="session", params=kernels(), ids=lambda kernel: kernel.series)
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A guest with the module loaded, two namespaces ``a`` (10.9.0.1) and ``b`` (10.9.0.2), and ``$TOOLS``."""
    kernel: Kernel = request.param
    directory, _ = build(kernel)
    compiled = tools()
    with booted(kernel) as guest:
        guest.check(
            f"""
            printf 'MODULE=%s\\nTOOLS=%s\\nGUEST=%s\\nQRE=%s\\nexport MODULE TOOLS GUEST QRE\\n' \\
                {directory}/qre.ko {compiled} {GUEST} {GUEST.parents[2]}/.venv/bin/qre-tool >/tmp/environment
            modprobe -a veth udp_tunnel ip6_udp_tunnel aesni_intel gcm dummy
            insmod {directory}/qre.ko
            """
        )
        yield guest
