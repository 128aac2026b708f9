"""One guest a kernel for the whole ring, with qre.ko's build at hand. The newer kernel runs what bears ``both``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from tests.support.kernels import GUEST, ROOT, Kernel, build, guest_programs, kernels
from tests.support.vm import Vm, booted


@pytest.fixture(scope="session", params=kernels(), ids=lambda kernel: kernel.series)
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A guest with the module loaded, two namespaces ``a`` (10.9.0.1) and ``b`` (10.9.0.2), and ``$TOOLS``."""
    kernel: Kernel = request.param
    directory, _ = build(kernel)
    compiled = guest_programs()
    with booted(kernel) as guest:
        environment = {
            "MODULE": f"{directory}/qre.ko",
            "TOOLS": compiled,
            "GUEST": GUEST,
            "CHECKOUT": ROOT,
            "QRE": f"{ROOT}/.venv/bin/qre-tool",
        }
        lines = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in environment.items())
        guest.check(
            f"""
            cat >/tmp/environment <<'END'\n{lines}\nEND
            modprobe -a veth udp_tunnel ip6_udp_tunnel aesni_intel gcm dummy
            insmod {directory}/qre.ko
            """
        )
        yield guest
