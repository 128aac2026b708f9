"""Rings of tests: a ring that cannot run here is skipped with the reason, or fails when QRE_REQUIRE names it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import container
from tests.support.kernels import installed

TESTS = Path(__file__).resolve().parent
#: A property is one on a busy machine, too: nothing depends on how long an example takes.
settings.register_profile("qre", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qre")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has put us into the background. What tests start is to hear Ctrl-C all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # We run under nohup. What tests start is to hear a SIGHUP that is meant for it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command that is run in this process decides what signals do to it: no longer than its test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def why_not_host() -> str:
    """The reason why the host ring cannot run on this machine; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    capabilities = next(
        int(line.split()[1], 16)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff")
    )
    for name, number in (("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)):
        if not capabilities >> number & 1:
            return f"{name} is missing"
    return ""


def why_not_vm() -> str:
    """The reason why the ring vm cannot run on this machine; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is missing"
    if not installed():
        return "no Debian kernel with its headers: make setup-vm"
    return ""


def why_not_packages() -> str:
    """The reason why QRE's Debian packages cannot be built here; empty when they can."""
    absent = [name for name in ("dpkg-buildpackage", "dh_dkms", "lintian") if shutil.which(name) is None]
    return f"{', '.join(absent)} is missing: make test-packages installs it" if absent else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    required = {ring.strip() for ring in os.environ.get("QRE_REQUIRE", "").split(",")}
    for ring, reason in (
        ("host", why_not_host()),
        ("vm", why_not_vm()),
        ("container", container.why_not()),
        ("packages", container.why_not() or why_not_packages()),
    ):
        held = [item for item in items if item.path.is_relative_to(TESTS / ring)]
        if not reason or not held:
            continue
        if ring in required:
            raise pytest.UsageError(f"the {ring} ring is required, but cannot run here: {reason}")
        for item in held:
            item.add_marker(pytest.mark.skip(reason=f"{ring} ring: {reason}"))
