"""Whatever runs in the daemon's processes ends when it is cancelled, also together with what it waited for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("supervisor", "workers", "qre/ipc", "qre/kernel", "qre/device", "qre/visit")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_nothing_awaits_wait_for_which_may_swallow_a_cancellation(path: Path) -> None:
    """Before Python 3.12: a daemon told to end while it started went on starting. asyncio.timeout does not."""
    found = [line for line in path.read_text().splitlines() if re.search(r"asyncio\.wait_for\(", line)]
    allowed = [line for line in found if "loop.getaddrinfo(" in line]  # a thread's; nothing loops around it
    assert found == allowed
