"""The list of changes that tests must notice fits the program and the conformance table; how a change is found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.mutants import commands, ports, profiles, sessions
from tests.mutants.__main__ import Copy
from tests.mutants.change import Mutant, NoPlaceError, Sources
from tests.mutants.table import MUTANTS, WITHOUT
from tests.support.conformance import ROOT, rows

STATEMENTS = [row.statement for row in rows()]


@cache
def program() -> Sources:
    return Sources()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_row_has_changes_that_its_tests_must_notice_or_says_why_not(statement: str) -> None:
    assert (statement in MUTANTS) != (statement in WITHOUT)
    clauses = [mutant.clause for mutant in MUTANTS.get(statement, ())]
    assert len(set(clauses)) == len(clauses)


def test_no_change_is_of_a_row_that_is_gone() -> None:
    assert set(MUTANTS) | set(WITHOUT) == set(STATEMENTS)
    assert len(MUTANTS) == sum(len(module.MUTANTS) for module in (commands, ports, profiles, sessions))


@pytest.mark.parametrize("statement", MUTANTS)
def test_every_change_fits_exactly_one_place(statement: str) -> None:
    for mutant in MUTANTS[statement]:
        assert program().place(mutant).path.is_relative_to(ROOT)


# --- how a change is found ---

PYTHON = """
SLOTS = 2
LIMITS = (
    17,
    20,
)

class Maps:
    def attach(self, fd):
        # a comment, and a line that is wrapped
        return self.check(
            fd, "ä"
        ) and not fd

    async def end(self):
        await self.stop()
        self.fd = None

def attach(fd):
    return not fd
"""
C = """
#define SLOT 1
static const u8 sizes[] = {1, 2};

/* calls(it) */
static int calls(struct it *it,
         int n)
{
    if (it->a ||
        n)
        return check(n);
    return 0;
}

int check(int n)
{
    return n;
}
"""


def change(directory: Path, mutant: Mutant, files: Mapping[str, str] | None = None) -> str:
    """The file that was changed, with the change."""
    for name, text in (files or {"one.py": PYTHON, "two.c": C, "a@.service": "ExecReload=x\n"}).items():
        (directory / name).write_text(text)
    place = Sources(directory).place(mutant)
    return place.apply(place.path.read_bytes()).decode()


@pytest.mark.parametrize(
    ("mutant", "made"),
    [
        (Mutant("", "SLOTS", "2", "3"), "\nSLOTS = (3)\n"),
        (Mutant("", "LIMITS", "(17, 20)", "(16, 20)"), "LIMITS = ((16, 20))\n"),
        (Mutant("", "Maps.attach", "self.check(fd, 'ä')", "True"), "return (True) and not fd"),
        (Mutant("", "Maps.attach", "not fd", "fd"), ") and (fd)\n"),
        (Mutant("", "attach", "not fd", "fd"), "    return (fd)\n"),
        (
            Mutant("", "Maps.end", "self.fd = None", "self.fd = 1\nself.n = 2"),
            "    self.fd = 1\n        self.n = 2\n",
        ),
        (Mutant("", "Maps.end", "await self.stop()"), "def end(self):\n        pass\n"),
        (Mutant("", "SLOT", "1", "0"), "#define SLOT 0\n"),
        (Mutant("", "sizes", "2", "4"), "sizes[] = {1, 4};"),
        (Mutant("", "calls", "it->a || n", "n"), "    if (n)\n"),
        (Mutant("", "check", "return n;", "return 1;"), "    return 1;\n}\n"),
        (Mutant("", "a@.service", "ExecReload=x", "ExecReload=y"), "ExecReload=y\n"),
    ],
)
def test_a_change_is_found_by_the_name_of_what_it_is_in(tmp_path: Path, mutant: Mutant, made: str) -> None:
    assert made in change(tmp_path, mutant)


@pytest.mark.parametrize(
    ("mutant", "why"),
    [
        (Mutant("", "Maps.detach", "not fd", "fd"), "no such symbol"),
        (Mutant("", "attach", "not it", "fd"), "what it replaces is not in it"),
        (Mutant("", "Maps", "self", "None"), "places fit"),
        (Mutant("", "attach", "not fd", "not fd"), "it changes nothing"),
        (Mutant("", "attach", "not fd", "not"), "it makes no Python"),
        (Mutant("", "calls", "nothing;", ""), "what it replaces is not in it"),
    ],
)
def test_a_change_that_fits_nowhere_or_twice_is_an_error(tmp_path: Path, mutant: Mutant, why: str) -> None:
    with pytest.raises(NoPlaceError, match=why):
        change(tmp_path, mutant)


def test_a_name_in_two_files_is_told_apart_by_what_is_in_it(tmp_path: Path) -> None:
    files = {"one.py": "def main():\n    return 1\n", "two.py": "def main():\n    return 2\n"}
    assert change(tmp_path, Mutant("", "main", "2", "3"), files) == "def main():\n    return (3)\n"
    with pytest.raises(NoPlaceError, match="2 places fit"):
        change(tmp_path, Mutant("", "main", "2", "3"), {"three.py": "def main():\n    return 2\n"})


def test_a_change_is_made_in_a_copy_and_taken_back(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    place = Sources(copy.tree).place(Mutant("", "FAILURE", "2", "1"))
    before, original = place.path.read_bytes(), ROOT / place.path.relative_to(copy.tree)
    with copy.changed(place):
        assert place.path.read_bytes() == place.apply(before) != before
        assert original.read_bytes() == before
    assert place.path.read_bytes() == before
