"""Runs rings of tests under coverage and says at the end what ran: ``python -m tests.run unit host vm``.

Exits 0 only when every test of the rings passed and the coverage of what ran is high enough. A ring that cannot run
on this machine is reported as skipped with the reason; ``QRE_REQUIRE=unit,host,vm`` makes that a failure. Processes
that tests start are measured too, each by ``tests/support/coverage_site``.

The ring vm runs beside the others. It and the ring host run in real time, and a busy machine can make a test of them
too late. Those that failed are run once more by themselves; one that fails again fails the run, and one that does not
is named at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import CoverageException
from pytest import ExitCode

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_COVERAGE = 90
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


class Rings:
    """Rings that run in one pytest: some now, or some beside them at the lowest priority."""

    def __init__(self, rings: list[str], environment: dict[str, str]) -> None:
        self._paths = [f"tests/{ring}" for ring in rings]
        self._environment = environment
        self._cache = ROOT / ".pytest_cache" / "-".join(rings)

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "pytest", "--durations=10", "-o", f"cache_dir={self._cache}"]

    def run(self) -> int:
        """pytest's exit status."""
        return subprocess.call([*self._command(), "--cache-clear", *self._paths], cwd=ROOT, env=self._environment)

    @contextmanager
    def beside(self) -> Iterator[Callable[[], int]]:
        """Begin now, with what is left of the processors. What is yielded prints it all and returns the status."""
        command = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            "nice",
            "-n",
            "19",
            *self._command(),
            "--cache-clear",
            *self._paths,
        ]
        with tempfile.TemporaryFile() as printed:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed
            )

            def finish() -> int:
                print(f"\nbeside them: {' '.join(self._paths)}\n", flush=True)
                shown = 0
                while True:
                    ended = process.poll()
                    more = os.pread(printed.fileno(), 1 << 16, shown)
                    shown += len(more)
                    os.write(1, more)
                    if not more and ended is not None:
                        return ended
                    if not more:
                        time.sleep(1)

            try:
                yield finish
            finally:
                process.terminate()
                process.wait()

    def forgive(self, status: int) -> int:
        """The status; 0 too when the few that failed pass when they are run again, with the machine to themselves."""
        written = self._cache / "v" / "cache" / "lastfailed"
        failed = (
            sorted(json.loads(written.read_bytes())) if status == ExitCode.TESTS_FAILED and written.exists() else []
        )
        if not failed or len(failed) > _MOST_AGAIN or not all(name.startswith(_REAL_TIME) for name in failed):
            return status
        print(f"\nrun again, because they failed and run in real time: {', '.join(failed)}\n", flush=True)
        status = subprocess.call([*self._command(), *failed], cwd=ROOT, env=self._environment)
        if not status:
            print(f"\nFAILED ONCE, and passed when run again: {', '.join(failed)}\n", flush=True)
        return status


def run_tests(rings: list[str], environment: dict[str, str]) -> int:
    """The worst status. A guest of the ring vm needs little of the processors for most of its time: it has what the
    others leave, who do not notice it."""
    guests = Rings(["vm"], environment)
    others = Rings([ring for ring in rings if ring != "vm"], environment)
    if rings == ["vm"]:
        return guests.forgive(guests.run())
    if "vm" not in rings:
        return others.forgive(others.run())
    with guests.beside() as finish:
        statuses = others.run(), finish()
    return max(others.forgive(statuses[0]), guests.forgive(statuses[1]))


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
        status = run_tests(rings, measured)
        collect(Path(name))
    subprocess.call([*coverage, "combine", "-q"], cwd=ROOT, env=environment)
    if {"unit", "host"} <= set(rings):
        report = ["report", "--skip-covered", "--sort=cover", f"--fail-under={MINIMUM_COVERAGE}"]
        status = subprocess.call([*coverage, *report], cwd=ROOT, env=environment) or status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["unit", "host", "vm"]))
