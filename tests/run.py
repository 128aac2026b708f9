"""Runs rings of tests under coverage and says at the end what ran: ``python -m tests.run unit host vm``.

Exits 0 only when every test of the rings passed and the coverage of what ran is high enough. A ring that cannot run
on this machine is reported as skipped with the reason; ``QRE_REQUIRE=unit,host,vm`` makes that a failure. Processes
that tests start are measured too, each by ``tests/support/coverage_site``.

The rings host and vm run in real time, and a busy machine can make a test of them too late. Those that failed are run
once more by themselves; one that fails again fails the run, and one that does not is named at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import CoverageException
from pytest import ExitCode

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_COVERAGE = 90
#: Where pytest writes which tests failed.
_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
_REAL_TIME = ("tests/host/", "tests/vm/")
#: More failures than this are no accident.
_MOST_AGAIN = 5


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


def run_tests(paths: list[str], environment: dict[str, str]) -> int:
    """pytest's exit status; 0 too when the few that failed pass when they are run again."""
    pytest = [sys.executable, "-m", "pytest", "--durations=10"]
    status = subprocess.call([*pytest, "--cache-clear", *paths], cwd=ROOT, env=environment)
    failed = sorted(json.loads(_FAILED.read_bytes())) if status == ExitCode.TESTS_FAILED and _FAILED.exists() else []
    if not failed or len(failed) > _MOST_AGAIN or not all(name.startswith(_REAL_TIME) for name in failed):
        return status
    print(f"\nrun again, because they failed and run in real time: {', '.join(failed)}\n", flush=True)
    status = subprocess.call([*pytest, *failed], cwd=ROOT, env=environment)
    if not status:
        print(f"\nFAILED ONCE, and passed when run again: {', '.join(failed)}\n", flush=True)
    return status


def main(rings: list[str]) -> int:
    """Run ``rings``; the exit status is the worst of tests and coverage."""
    for stale in ROOT.glob(".coverage*"):
        stale.unlink()
    coverage = [sys.executable, "-m", "coverage"]
    with tempfile.TemporaryDirectory(prefix="qre-coverage-") as name:
        Path(name).chmod(0o700)
        site = str(ROOT / "tests" / "support" / "coverage_site")
        environment = os.environ | {"COVERAGE_FILE": str(ROOT / ".coverage")}
        measured = environment | {"QRE_COVERAGE_DIR": name, "PYTHONPATH": site}
        paths = [f"tests/{ring}" for ring in rings]
        status = run_tests(paths, measured)
        collect(Path(name))
    subprocess.call([*coverage, "combine", "-q"], cwd=ROOT, env=environment)
    if {"unit", "host"} <= set(rings):
        report = ["report", "--skip-covered", "--sort=cover", f"--fail-under={MINIMUM_COVERAGE}"]
        status = subprocess.call([*coverage, *report], cwd=ROOT, env=environment) or status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["unit", "host", "vm"]))
