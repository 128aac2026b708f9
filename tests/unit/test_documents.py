"""What the documents have one type: each command exists and takes what is given to it; links lead somewhere; every
block is tried by a test, or says why not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS
from tests.support.conformance import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^(<!--[^\n]*-->)\n)?^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Of commands: the comment before each, and its lines."""
    return BLOCK.findall(page.read_text())


def calls(page: Path) -> list[list[str]]:
    """Every call of qre-tool in them, without what the shell does with it."""
    found = []
    for _, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line, comments=True) if "qre-tool" in line and "(" not in line and "'" not in line else []
            )
            for at, word in enumerate(words):
                if word == "qre-tool":
                    rest = words[at + 1 :]
                    end = next(
                        (n for n, each in enumerate(rest) if each in ("|", ">", "&&", ";", "&", "<")), len(rest)
                    )
                    found.append(rest[:end])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_names_a_command_and_fields_that_exist(page: Path) -> None:
    wrong = []
    for words in calls(page):
        name = next((word for word in words if not word.startswith("-")), "")
        command = COMMANDS.get(name)
        if command is None:
            wrong.append(f"{words}: no command")
            continue
        fields = {field.lower() for field in command.fields()}
        given = [word.partition("=")[0] for word in words if re.match(r"[A-Z]\w*=", word)]
        wrong += [f"{words}: no field {field}" for field in given if field.lower() not in fields]
        options = {option.partition(" ")[0].partition("=")[0] for option in (*command.options, *GLOBAL_OPTIONS)}
        wrong += [f"{words}: no option {word}" for word in words if word.startswith("--") and word not in options]
    assert wrong == []


def test_every_block_of_the_tasks_says_where_and_is_tried_or_says_why_not() -> None:
    page = ROOT / "docs" / "tasks.md"
    found = blocks(page)
    assert len(found) == page.read_text().count("```sh")
    for comment, text in found:
        reason = re.fullmatch(r"<!-- not tried: (.{20,}) -->", comment)
        assert reason or text.startswith(("# on the server\n", "# on the client\n")), text


#: Pages that a test runs whole.
TRIED = {
    "tasks.md": "tests/container/test_tasks.py::test_what_the_page_has_one_type_works",
    "sessions-by-hand.md": "tests/vm/test_sessions_by_hand.py::test_the_life_that_the_guide_tells_of",
}


def is_a_test(name: str) -> bool:
    """Whether there is a test of this name, as pytest gives names."""
    file, _, function = name.partition("::")
    path = ROOT / file
    return path.is_file() and f"\ndef {function}(" in path.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_is_tried_or_says_why_not(page: Path) -> None:
    found = blocks(page)
    assert len(found) == page.read_text().count("```sh")
    whole = TRIED.get(page.name)
    assert whole is None or is_a_test(whole)
    for comment, text in found:
        tried = re.fullmatch(r"<!-- tried by (\S+) -->", comment)
        reason = re.fullmatch(r"<!-- not tried: (.{20,}) -->", comment)
        assert reason or (tried and is_a_test(tried[1])) or (whole and not comment), f"{comment}\n{text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_documents_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
