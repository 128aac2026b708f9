"""Runs rings of tests under coverage and says at the end what ran: ``python -m tests.run unit host``.

Exits 0 only when every test of the rings passed and the coverage of what ran is high enough. A ring that cannot run
on this machine is reported as skipped with the reason; ``QRE_REQUIRE=unit,host`` makes that a failure. Processes that
tests start are measured too, each by ``tests/support/coverage_site``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import CoverageException

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_COVERAGE = 90


def collect(directory: Path) -> None:
    """Turn what processes wrote into data files that ``coverage combine`` takes. A killed one wrote nothing."""
    for number, path in enumerate(sorted(directory.iterdir())):
        written = path.read_bytes()
        if not written:
            continue
        try:
            CoverageData(basename=str(ROOT / f".coverage.process.{number}")).loads(written)
        except CoverageException as error:
            print(f"coverage of process {path.name} is lost: {error}", file=sys.stderr)


def main(rings: list[str]) -> int:
    """Run ``rings`` in one pytest process; the exit status is the worst of tests and coverage."""
    for stale in ROOT.glob(".coverage*"):
        stale.unlink()
    coverage = [sys.executable, "-m", "coverage"]
    with tempfile.TemporaryDirectory(prefix="qre-coverage-") as name:
        Path(name).chmod(0o700)
        site = str(ROOT / "tests" / "support" / "coverage_site")
        environment = os.environ | {"COVERAGE_FILE": str(ROOT / ".coverage")}
        measured = environment | {"QRE_COVERAGE_DIR": name, "PYTHONPATH": site}
        paths = [f"tests/{ring}" for ring in rings]
        status = subprocess.call([sys.executable, "-m", "pytest", "--durations=10", *paths], cwd=ROOT, env=measured)
        collect(Path(name))
    subprocess.call([*coverage, "combine", "-q"], cwd=ROOT, env=environment)
    if {"unit", "host"} <= set(rings):
        report = ["report", "--skip-covered", "--sort=cover", f"--fail-under={MINIMUM_COVERAGE}"]
        status = subprocess.call([*coverage, *report], cwd=ROOT, env=environment) or status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["unit", "host"]))
