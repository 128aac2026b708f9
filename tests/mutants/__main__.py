"""``make mutants``: break the program in one place after another, and see that the tests of that row notice.

Each change of ``tests.mutants.table`` is made in a copy of the tree, which a mount namespace of its own shows in the
tree's place, and the tests that the conformance table names for that row are run there until one fails. The tests
must have passed in the copy before. What a run found is kept outside the tree, by the sources, the tests and the
change, so that a run that was interrupted goes on where it was.

``QRE_MUTANTS=vm`` runs the tests of the ring vm, too: minutes each. An argument chooses rows by their words. Exits 0
when all that was tried is killed, 1 when something survived, 2 when a change does not apply or a test fails without.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import msgspec

from tests.mutants.change import Mutant, NoPlaceError, Place, Sources, sources
from tests.mutants.table import MUTANTS
from tests.support.conformance import Row, rows
from tests.support.kernels import KMOD, ROOT, cache

#: What is no part of the copy: links and caches of tools, and the environment, which is mounted into it.
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".coverage*", ".hypothesis", "build", "dist", "*.ko", "*.cmd"
)
_RINGS = ("unit", "host", "vm")
#: Whose tests a busy machine can fail: what kills there is run once more without the change. (A guest has its time.)
_REAL_TIME = ("host",)
#: Seconds for the tests of one row in a ring, and for a single test of it.
_LIMITS = {"unit": (600, 120), "host": (900, 120), "vm": (3600, 1800)}
#: Shows the copy ($2) where the tree ($1) is, to everything that is started there.
_SHOW = """
mount --bind "$1/.venv" "$2/.venv"
mount --rbind "$2" "$1"
cd "$1"
shift 2
exec "$@"
"""
_PASSED, _FAILED = 0, 1

Status = Literal["killed", "survived", "broken", "needs vm"]


class Outcome(msgspec.Struct, frozen=True):
    """``by``: the test that killed it, or what is wrong."""

    status: Status
    by: str = ""
    seconds: float = 0.0


class Copy:
    """The tree, elsewhere: what happens to the tree from now on does not matter."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory / "tree"
        self._results = directory / "results"
        self._builds = directory / "builds"
        self._changes = 0
        self._module_changed = False
        shutil.copytree(ROOT, self.tree, symlinks=True, ignore=_LEFT_OUT)
        self.tree.chmod(0o755)
        (self.tree / ".venv").mkdir()

    @contextmanager
    def changed(self, place: Place) -> Iterator[None]:
        """With one change, which is taken back."""
        path = place.path
        before = path.read_bytes()
        self._module_changed = path.is_relative_to(self.tree / KMOD.relative_to(ROOT))
        try:
            self._write(path, place.apply(before))
            yield
        finally:
            self._write(path, before)
            self._module_changed = False

    def _write(self, path: Path, text: bytes) -> None:
        """Python knows compiled files by time and size: each version gets a time of its own."""
        path.write_bytes(text)
        self._changes += 1
        moment = 1_000_000_000 + self._changes
        os.utime(path, (moment, moment))
        if path.parent.name == "bpf":
            os.utime(path)
            subprocess.run(["make", "-s", "-C", str(path.parent)], check=True)

    def run(self, tests: Sequence[str], ring: str, *, first: bool) -> Outcome:
        """Run these tests of one ring, until the ``first`` that fails."""
        whole, each = _LIMITS[ring]
        shutil.rmtree(self._results, ignore_errors=True)
        shutil.rmtree(self._builds, ignore_errors=True)
        environment = os.environ | {"QRE_REQUIRE": ring, "QRE_VM_OLDEST": "1"}
        if self._module_changed:  # a build of it is not to stay where builds are kept
            environment["XDG_CACHE_HOME"] = str(self._builds)
        command = ["unshare", "--mount", "sh", "-ec", _SHOW, "show", str(ROOT), str(self.tree)]
        command += [f"{ROOT}/.venv/bin/python", "-m", "pytest", "-q", f"--timeout={each}"]
        command += [
            "-o",
            f"cache_dir={self._results}",
            *(["-x"] if first else []),
            *(f"tests/{test}" for test in tests),
        ]
        begin = time.monotonic()
        status, printed = _bounded(command, environment, whole)
        spent = round(time.monotonic() - begin, 1)
        if status == _PASSED:
            return Outcome("survived", "", spent)
        failed = self._results / "v" / "cache" / "lastfailed"
        if status == _FAILED and failed.exists():
            names = sorted(msgspec.json.decode(failed.read_bytes(), type=dict[str, bool]))
            return Outcome("killed", ", ".join(name.removeprefix("tests/") for name in names), spent)
        if status is None:
            return Outcome("killed", f"{ring}: no end after {whole} s", spent)
        return Outcome("broken", " ".join(printed.split()[-60:]), spent)


def _bounded(command: Sequence[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """Status, None when it had to be killed, and what it printed. Nothing that it started outlives it or us."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return status, output.read().decode(errors="replace")


class Proof:
    """Runs mutants and remembers what came of it."""

    def __init__(self, copy: Copy, kept: Path, *, vm: bool) -> None:
        self._copy = copy
        self._kept = kept
        self._rings = _RINGS if vm else _RINGS[:2]
        self._tests = copy.tree / "tests"
        self._program = self._digest(sources(copy.tree))
        self._shared = self._digest(_shared(self._tests))

    def _remembered(self, tests: Sequence[str], mutant: Mutant | None) -> Path:
        """Where it is written what these tests say of a change; of the program as it is, where there is none."""
        files = sorted({self._tests / test.partition("::")[0] for test in tests})
        key = (self._program, self._shared, self._digest(files), list(tests), mutant and asdict(mutant))
        return self._kept / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.json"

    def _digest(self, paths: Sequence[Path]) -> str:
        digest = hashlib.sha256()
        for path in paths:
            name = str(path.relative_to(self._copy.tree)).encode()
            digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def failing(self, named: Sequence[Row]) -> set[str]:
        """Tests of these rows that fail as the program is. What passes is remembered."""
        failing: set[str] = set()
        for ring in self._rings:
            tests = sorted({test for row in named for test in of_ring(row, ring)})
            tests = [test for test in tests if not self._remembered([test], None).exists()]
            if not tests:
                continue
            print(f"{len(tests)} tests of the ring {ring}, as it is", file=sys.stderr, flush=True)
            found = self._copy.run(tests, ring, first=False)
            if found.status == "broken":
                raise SystemExit(f"the ring {ring} does not run in the copy:\n{found.by}")
            failed = {name.partition("[")[0] for name in found.by.split(", ")} & set(tests)
            if failed:  # once more, alone
                again = self._copy.run(sorted(failed), ring, first=False)
                failed &= {name.partition("[")[0] for name in again.by.split(", ")}
            failing |= failed
            for test in set(tests) - failed:
                _keep(self._remembered([test], None), found)
        return failing

    def kill(self, row: Row, mutant: Mutant, place: Place) -> Outcome:
        """What the first ring says whose tests notice."""
        for ring in self._rings:
            if tests := of_ring(row, ring):
                found = self._ask(f"{row.statement}: {mutant.clause}", tests, ring, mutant, place)
                if found.status != "survived":
                    return found
        return Outcome("survived") if self._rings == _RINGS or not of_ring(row, "vm") else Outcome("needs vm")

    def _ask(self, name: str, tests: Sequence[str], ring: str, mutant: Mutant, place: Place) -> Outcome:
        written = self._remembered(tests, mutant)
        if written.exists():
            return msgspec.json.decode(written.read_bytes(), type=Outcome)
        print(f"  {ring}: {name}", file=sys.stderr, flush=True)
        with self._copy.changed(place):
            found = self._copy.run(tests, ring, first=True)
        if found.status == "killed" and ring in _REAL_TIME and "::" in found.by:
            control = self._copy.run([found.by], ring, first=True)  # or was it the machine that was too busy?
            if control.status != "survived":
                return Outcome("broken", f"fails without a change, too, just now: {found.by}")
        if found.status != "broken":
            _keep(written, found)
        return found


def _keep(path: Path, outcome: Outcome) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(outcome))
    fresh.rename(path)


def of_ring(row: Row, ring: str) -> list[str]:
    """The row's tests of one ring."""
    return [test for test in row.tests if test.startswith(f"{ring}/")]


def _shared(tests: Path) -> list[Path]:
    """What tests have in common: an outcome depends on it."""
    found = [*tests.rglob("conftest.py"), *(tests / "data").rglob("*.json"), *(tests / "vm" / "guest").iterdir()]
    found += [path for path in (tests / "support").rglob("*") if path.suffix in {".py", ".c", ".h"}]
    return sorted(path for path in found if path.is_file())


@contextmanager
def _alone() -> Iterator[Path]:
    """A directory for a copy, outside the tree: one run at a time, and nothing is left of one that was killed."""
    kept = cache() / "mutants"
    kept.mkdir(exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in kept.glob("copy-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix="copy-", dir=kept) as name:
            Path(name).chmod(0o755)
            yield Path(name)


def _words(mutant: Mutant) -> str:
    """The change in one line of a Markdown table."""
    old, new = (" ".join(text.split()).replace("|", "\\|") for text in (mutant.old, mutant.new))
    return f"{mutant.symbol}: `{old}` → {f'`{new}`' if new else 'gone'}"


def main(arguments: list[str]) -> int:
    """Print the table as it grows; the sum at the end."""
    os.nice(10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    counts: dict[str, int] = {}
    print("| row | clause | change | |\n|---|---|---|---|")
    chosen = [row for row in rows() if not arguments or any(word in row.statement for word in arguments)]
    with _alone() as directory:
        copy = Copy(directory)
        program = Sources(copy.tree)
        proof = Proof(copy, directory.parent, vm=os.environ.get("QRE_MUTANTS") == "vm")
        failing = proof.failing(chosen)
        for row in chosen:
            for mutant in MUTANTS.get(row.statement, ()):
                found = _try(proof, program, row, mutant, failing)
                counts[found.status] = counts.get(found.status, 0) + 1
                by = f"killed by {found.by}" if found.status == "killed" else f"**{found.status}** {found.by}".strip()
                print(f"| {row.statement} | {mutant.clause} | {_words(mutant)} | {by} |", flush=True)
    print(f"\n{sum(counts.values())} changes: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    return 2 if counts.get("broken") else 1 if counts.get("survived") else 0


def _try(proof: Proof, program: Sources, row: Row, mutant: Mutant, failing: set[str]) -> Outcome:
    if broken := failing & set(row.tests):
        return Outcome("broken", f"fails without a change: {', '.join(sorted(broken))}")
    try:
        return proof.kill(row, mutant, program.place(mutant))
    except NoPlaceError as error:
        return Outcome("broken", str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
