"""One worker that was taken over sends as much as it can: the supervisor stays small, and nobody else goes short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import PATIENCE
from tests.support.flooded_supervisor import FLOODS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2.0
#: Of the supervisor; it has half of that when nothing happens.
MOST_MEGABYTES = 64
#: An innocent worker is killed after 10 s without an answer.
LONGEST_HEARTBEAT = 5.0


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_fills_nothing_and_delays_nobodys_heartbeat(kind: str, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "tests.support.flooded_supervisor", kind, str(SECONDS), str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE + SECONDS)
    seen = json.loads(done.stdout)
    assert seen["megabytes"] < MOST_MEGABYTES
    assert seen["heartbeats"] > 1
    assert seen["slowest"] < LONGEST_HEARTBEAT
