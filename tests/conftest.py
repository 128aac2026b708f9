"""Rings of tests: a ring that cannot run here is skipped with the reason, or fails when QRE_REQUIRE names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    required = {ring.strip() for ring in os.environ.get("QRE_REQUIRE", "").split(",")}
    reason = why_not_host()
    if not reason:
        return
    for item in items:
        if not item.path.is_relative_to(TESTS / "host"):
            continue
        if "host" in required:
            raise pytest.UsageError(f"the host ring is required, but cannot run here: {reason}")
        item.add_marker(pytest.mark.skip(reason=f"host ring: {reason}"))
