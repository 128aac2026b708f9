"""Runs rings of tests and says at the end what failed and what was covered: ``python -m tests.run unit host vm``.

Exits 0 only when every test of the rings passed and the coverage of what ran is high enough. A ring that cannot run
on this machine is reported as skipped with the reason; ``QRE_REQUIRE=unit,host,vm`` makes that a failure. Coverage is
measured when the rings unit and host both run, in the processes that tests start, too, each by
``tests/support/coverage_site``.

Rings run one after the other, each in as many processes as a small machine with two processors has work for: in the
ring host one of three waits for something that takes its time.

Tests of the rings host and vm run in real time, and a busy machine can make one too late: a few that failed are run
once more by themselves. One that fails again fails the run; one that passes is unsteady, and the last lines name it
with the reason of its failure: it is to be mended. A test of the ring unit has no such excuse and no second run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import CoverageException
from pytest import ExitCode

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_COVERAGE = 90
_REAL_TIME = ("tests/host/", "tests/vm/")
#: More failures of a run than this are no accident.
_MOST_AGAIN = 5
#: Of each ring, 1 of anything else.
_PROCESSES = {"unit": 2, "host": 3, "vm": 2}
#: What xdist adds to the name of a test that belongs to a group.
_GROUP = re.compile(r"@[^]@]*$")


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


class Ring:
    """One ring, or some of its tests, in one pytest. ``processes``: how many share the tests among them."""

    def __init__(self, ring: str, environment: dict[str, str], root: Path = ROOT, processes: int = 1) -> None:
        self._root = root
        self._path = f"tests/{ring}"
        #: A guest of the ring vm is not started for every test: those that share one stay together.
        self._shared = ["-n", str(processes), "--dist", "loadgroup"] if processes > 1 else []
        self._environment = environment
        self._cache = root / ".pytest_cache" / ring.replace("/", ".")
        self._report = self._cache.with_suffix(".xml")
        #: The tests that failed and then passed, and why they failed.
        self.unsteady: dict[str, str] = {}

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "pytest", "--durations=10", "-o", f"cache_dir={self._cache}"]

    def run(self) -> int:
        """pytest's exit status."""
        whole = [*self._command(), "--cache-clear", f"--junitxml={self._report}", *self._shared, self._path]
        return subprocess.call(whole, cwd=self._root, env=self._environment)

    def once_more(self, status: int) -> int:
        """Run again, with the machine to themselves, the few tests in real time that failed; the status then."""
        failed = self._failed() if status == ExitCode.TESTS_FAILED else []
        if not failed or len(failed) > _MOST_AGAIN or not all(name.startswith(_REAL_TIME) for name in failed):
            return status
        reasons = _reasons(self._report)
        print(f"\nrun again, because they failed and run in real time: {', '.join(failed)}\n", flush=True)
        status = subprocess.call([*self._command(), *failed], cwd=self._root, env=self._environment)
        still = set(self._failed()) if status else set()
        self.unsteady = {name: reasons.get(name, "see above") for name in failed if name not in still}
        return status

    def _failed(self) -> list[str]:
        """What pytest wrote down as failed at its last run."""
        written = self._cache / "v" / "cache" / "lastfailed"
        return sorted(_GROUP.sub("", name) for name in json.loads(written.read_bytes())) if written.exists() else []


def _reasons(report: Path) -> dict[str, str]:
    """The first line of why each test failed, by its node's name."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        why = case.find("failure")
        if why is None:
            why = case.find("error")
        if why is not None:
            file = case.get("classname", "").replace(".", "/")
            name = _GROUP.sub("", case.get("name", ""))
            found[f"{file}.py::{name}"] = (why.get("message") or "").partition("\n")[0]
    return found


def run_tests(rings: list[str], environment: dict[str, str]) -> tuple[int, dict[str, str]]:
    """The worst status, and what was unsteady."""
    statuses, unsteady = [], {}
    for name in rings:
        print(f"\nring {name}\n", flush=True)
        ring = Ring(name, environment, processes=_PROCESSES.get(name, 1))
        statuses.append(ring.once_more(ring.run()))
        unsteady |= ring.unsteady
    return max(statuses), unsteady


def tell_unsteady(unsteady: dict[str, str]) -> None:
    """The last lines: nobody shall overlook them."""
    if not unsteady:
        return
    count = "1 test" if len(unsteady) == 1 else f"{len(unsteady)} tests"
    print(f"\nUNSTEADY: {count} failed, and passed when run again. Mend the cause:")
    for name, why in sorted(unsteady.items()):
        print(f"  {name}\n    {why}")
    sys.stdout.flush()


def main(rings: list[str]) -> int:
    """Run ``rings``; the exit status is the worst of tests and coverage."""
    covers = {"unit", "host"} <= set(rings)  # one of them alone says little of coverage, and is faster without
    status, unsteady = measured(rings) if covers else run_tests(rings, dict(os.environ))
    tell_unsteady(unsteady)
    return status


def measured(rings: list[str]) -> tuple[int, dict[str, str]]:
    """As ``run_tests``, and a failure too when less than MINIMUM_COVERAGE was covered."""
    for stale in ROOT.glob(".coverage*"):
        stale.unlink()
    coverage = [sys.executable, "-m", "coverage"]
    environment = os.environ | {"COVERAGE_FILE": str(ROOT / ".coverage")}
    with tempfile.TemporaryDirectory(prefix="qre-coverage-") as name:
        Path(name).chmod(0o700)
        site = str(ROOT / "tests" / "support" / "coverage_site")
        status, unsteady = run_tests(rings, environment | {"QRE_COVERAGE_DIR": name, "PYTHONPATH": site})
        collect(Path(name))
    subprocess.call([*coverage, "combine", "-q"], cwd=ROOT, env=environment)
    report = ["report", "--skip-covered", "--sort=cover", f"--fail-under={MINIMUM_COVERAGE}"]
    return subprocess.call([*coverage, *report], cwd=ROOT, env=environment) or status, unsteady


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["unit", "host", "vm"]))
