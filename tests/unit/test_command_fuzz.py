"""No call of qre-tool, and no file, makes a traceback or hangs: a short run of the fuzzer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.ordinary_user import way_open

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_fuzzing_run_finds_nothing() -> None:
    """In a process of its own: it becomes another user."""
    command = way_open(sys.executable, "-m", "tests.fuzz.fuzz_commands", "1500", "20261123")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
