"""A signal that comes while a daemon starts ends it, wherever Python happens to be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The C code of msgspec imports datetime, and takes whatever goes wrong with that for a missing module.
WHILE_AN_EXTENSION_IMPORTS = """
import os, signal, sys

fired = []

def hook(event, arguments):
    if event == "import" and arguments[0] == "_datetime" and not fired:
        fired.append(arguments)
        print("interrupted", flush=True)
        os.kill(os.getpid(), signal.{number})

from qre.cli.profile.daemon import _nothing_to_undo

signal.signal(signal.{number}, _nothing_to_undo)
sys.addaudithook(hook)
import qre.supervisor.parent.parent
print("went on")
"""
WHERE_AN_EXCEPTION_IS_LOST = """
import os, signal, sys
from qre.supervisor.parent.early_end import EarlyEnd, TerminatedError

class Collected:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})

early = EarlyEnd()
early.listen()
assert not early.wanted
one = Collected()
del one
print(early.wanted, signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
"""
WHERE_IT_IS_NOT = """
import os, signal
from qre.supervisor.parent.early_end import EarlyEnd, TerminatedError

early = EarlyEnd()
early.listen()
try:
    os.kill(os.getpid(), signal.{number})
except TerminatedError:
    print("undone", early.wanted)
"""

WHILE_A_LOOP_IS_MADE = """
import asyncio, os, signal
from qre.supervisor.parent.early_end import EarlyEnd, TerminatedError, run_in_whole_loop

kind = asyncio.selector_events.BaseSelectorEventLoop
make = kind._make_self_pipe

def interrupted(loop):
    os.kill(os.getpid(), signal.{number})
    make(loop)

kind._make_self_pipe = interrupted

async def main():
    print("went on")

early = EarlyEnd()
early.listen()
try:
    run_in_whole_loop(main)
except TerminatedError:
    print("undone", early.wanted, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def run(script: str, number: str) -> subprocess.CompletedProcess[str]:
    """Without what measures coverage: it imports before the script does."""
    measured = {"PYTHONPATH", "QRE_COVERAGE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in measured}
    command = [sys.executable, "-c", script.format(number=number)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_daemon_that_is_still_being_imported_ends(number: str) -> None:
    done = run(WHILE_AN_EXTENSION_IMPORTS, number)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_whose_exception_is_lost_is_remembered(number: str) -> None:
    done = run(WHERE_AN_EXCEPTION_IS_LOST, number)
    assert (done.stdout, done.stderr) == ("True True\n", ""), "nobody is to take it for a fault"


def test_another_exception_that_is_lost_is_printed() -> None:
    script = WHERE_AN_EXCEPTION_IS_LOST.replace("os.kill(os.getpid(), signal.{number})", "1 / 0")
    assert "ZeroDivisionError" in run(script, "SIGTERM").stderr


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_undoes_what_was_done_so_far(number: str) -> None:
    assert run(WHERE_IT_IS_NOT, number).stdout == "undone True\n"


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_waits_until_a_loop_is_made(number: str) -> None:
    done = run(WHILE_A_LOOP_IS_MADE, number)
    assert (done.stdout, done.stderr) == ("undone True set()\n", "")
    half_made = run(WHILE_A_LOOP_IS_MADE.replace("run_in_whole_loop(main)", "asyncio.run(main())"), number)
    assert "object has no attribute '_ssock'" in half_made.stderr, "what it would say"
