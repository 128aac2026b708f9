"""One guest a kernel for the whole ring, with qre.ko's build at hand. The newer kernel runs what bears ``both``."""

from __future__ import annotations

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
        guest.check(
            f"""
            printf 'MODULE=%s\\nTOOLS=%s\\nGUEST=%s\\nQRE=%s\\nexport MODULE TOOLS GUEST QRE\\n' \\
                {directory}/qre.ko {compiled} {GUEST} {ROOT}/.venv/bin/qre-tool >/tmp/environment
            modprobe -a veth udp_tunnel ip6_udp_tunnel aesni_intel gcm dummy
            insmod {directory}/qre.ko
            """
        )
        yield guest
