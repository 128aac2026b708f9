"""Runs rings of tests under coverage and says at the end what ran: ``python -m tests.run unit host``.

Exits 0 only when every test of the rings passed and the coverage of what ran is high enough. A ring that cannot run
on this machine is reported as skipped with the reason; ``QRE_REQUIRE=unit,host`` makes that a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_COVERAGE = 90


def main(rings: list[str]) -> int:
    """Run ``rings`` in one pytest process; the exit status is the worst of tests and coverage."""
    for stale in ROOT.glob(".coverage*"):
        stale.unlink()
    environment = os.environ | {"COVERAGE_FILE": str(ROOT / ".coverage"), "QRE_COVERAGE": "1"}
    coverage = [sys.executable, "-m", "coverage"]
    paths = [f"tests/{ring}" for ring in rings]
    status = subprocess.call([*coverage, "run", "-m", "pytest", "--durations=10", *paths], cwd=ROOT, env=environment)
    subprocess.call([*coverage, "combine", "-q"], cwd=ROOT, env=environment)
    if {"unit", "host"} <= set(rings):
        low = subprocess.call(
            [*coverage, "report", "--skip-covered", "--sort=cover", f"--fail-under={MINIMUM_COVERAGE}"],
            cwd=ROOT,
            env=environment,
        )
        status = status or low
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["unit", "host"]))
