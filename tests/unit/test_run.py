"""Who gets a second run: a few tests in real time that failed, each named with its reason at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.run import Ring, tell_unsteady

#: Fails at its first run with two lines, and never again.
ONCE = """
from pathlib import Path

def test_once():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("the peer was late\\nby a second")
"""
ALWAYS = "def test_always():\n    assert 1 == 2\n"
FINE = "def test_fine():\n    pass\n"


def ring(tmp_path: Path, name: str, text: str, processes: int = 1) -> Ring:
    """A ring with one file of tests."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests" / name).mkdir(parents=True)
    (tmp_path / "tests" / name / "__init__.py").touch()
    (tmp_path / "tests" / name / "test_it.py").write_text(text)
    return Ring(name, dict(os.environ), tmp_path, processes)


def test_a_test_in_real_time_is_run_once_more_and_named_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = ring(tmp_path, "host", ONCE + FINE)
    status = made.run()
    assert status == 1
    capfd.readouterr()
    assert made.once_more(status) == 0
    again = capfd.readouterr().out
    assert "1 passed" in again
    tell_unsteady(made.unsteady)
    assert capfd.readouterr().out.splitlines()[-3:] == [
        "UNSTEADY: 1 test failed, and passed when run again. Mend the cause:",
        "  tests/host/test_it.py::test_once",
        "    AssertionError: the peer was late",
    ]


def test_one_that_fails_again_fails_the_run_and_is_not_called_unsteady(tmp_path: Path) -> None:
    made = ring(tmp_path, "vm", ONCE + ALWAYS)
    assert made.once_more(made.run()) == 1
    assert list(made.unsteady) == ["tests/vm/test_it.py::test_once"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unit", ONCE),
        ("host", ONCE + "\n".join(f"def test_{n}():\n    assert False\n" for n in range(5))),
    ],
    ids=["unit", "too-many"],
)
def test_what_is_no_accident_has_no_second_run(
    tmp_path: Path, name: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = ring(tmp_path, name, text)
    status = made.run()
    capfd.readouterr()
    assert made.once_more(status) == status == 1
    assert capfd.readouterr().out == "" and made.unsteady == {}


def test_when_all_is_well_nothing_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = ring(tmp_path, "host", FINE)
    assert made.once_more(made.run()) == 0
    capfd.readouterr()
    tell_unsteady(made.unsteady)
    assert capfd.readouterr().out == ""


def test_a_test_that_one_of_several_processes_ran_gets_its_second_run_too(tmp_path: Path) -> None:
    grouped = ONCE.replace("def test_once", "import pytest\n\n@pytest.mark.xdist_group('6.1-0')\ndef test_once")
    made = ring(tmp_path, "host", grouped + FINE, processes=2)
    status = made.run()
    assert (status, made.once_more(status)) == (1, 0)
    assert made.unsteady == {"tests/host/test_it.py::test_once": "AssertionError: the peer was late"}
