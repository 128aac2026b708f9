"""What a command takes back: newest first, all of it, and which error is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qre.cli.undo import Undo
from qre.errors import MachineError, UserError


def failing(name: str, done: list[str]) -> Callable[[], None]:
    def deed() -> None:
        done.append(name)
        raise MachineError(name, "it is stuck")

    return deed


def test_everything_is_undone_newest_first() -> None:
    done: list[str] = []
    with Undo() as undo:
        for name in ("one", "two", "three"):
            undo.add(lambda name=name: done.append(name))  # type: ignore[misc]
    assert done == ["three", "two", "one"]


def test_what_is_kept_stays() -> None:
    undone: list[str] = []
    with Undo() as undo:
        undo.add(lambda: undone.append("one"))
        undo.keep()
    assert undone == []


def test_a_failure_half_way_is_the_error_and_what_cannot_be_undone_is_told_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[str] = []
    with pytest.raises(UserError, match="half-way"), Undo() as undo:
        undo.add(lambda: done.append("one"))
        undo.add(failing("two", done))
        raise UserError("half-way")
    assert done == ["two", "one"]
    assert capsys.readouterr().err == "qre-tool: two : it is stuck\n"


def test_at_the_end_the_first_that_cannot_be_undone_is_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    with pytest.raises(MachineError, match="two"), Undo() as undo:
        undo.add(failing("one", done))
        undo.add(failing("two", done))
    assert done == ["two", "one"]
    assert capsys.readouterr().err == "qre-tool: one : it is stuck\n"
