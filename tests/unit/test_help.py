"""Help: every command has an example that it would accept, and tells of exactly the fields that it knows."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from qre.cli.commands import COMMANDS, GROUPS, SYNONYMS, Command, Options
from qre.cli.help.examples import EXAMPLES
from qre.cli.main import FAILURE, PASSING, main

ROOT = Path(__file__).resolve().parents[2]
#: What ends a call, and may stand before the next.
PUNCTUATION = "();<>|&"


def calls(example: str) -> Iterator[list[str]]:
    """The words after `qre-tool` of every call in a line of shell."""
    lexer = shlex.shlex(example, posix=True, punctuation_chars=PUNCTUATION)
    lexer.whitespace_split = True
    words, call = list(lexer), None
    for before, word in zip(["", *words], words, strict=False):
        if set(word) <= set(PUNCTUATION):
            call = None
        elif call is not None:
            call.append(word)
        elif word == "qre-tool" and (before == "sudo" or set(before) <= set(PUNCTUATION)):
            call = []
            yield call


def every_call() -> list[list[str]]:
    """Of every example, each with the words that only come after it was handed out."""
    found = [call for examples in EXAMPLES.values() for example, _ in examples for call in list(calls(example))]
    return [call for call in found if name_of(call) in COMMANDS]


def name_of(call: list[str]) -> str:
    return next(word for word in call if not word.startswith("-"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert EXAMPLES.get(name), f"the command {name} has no example: add one to cli/help/examples.py"
    for example, _ in EXAMPLES[name]:
        made = list(calls(example))
        assert made, f"{example}: qre-tool is not called there"
        assert name in {name_of(call) for call in made}, f"an example of {name} does not call it: {example}"
    assert main(["help", name]) == 0
    shown = capsys.readouterr().out
    assert "\nExamples:\n" in shown
    assert all(example in shown and meaning in shown for example, meaning in EXAMPLES[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_offers_a_plan_where_there_is_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", name]) == 0
    options = capsys.readouterr().out.partition("\nOptions:\n")[2].partition("\nExamples:\n")[0]
    assert ("  --dry-run " in options) is COMMANDS[name].dry_run


def test_every_exit_status_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    general = capsys.readouterr().out
    assert main(["help", "--man"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    guide = " ".join((ROOT / "docs" / "user-guide.md").read_text().split())
    assert f"{FAILURE} failure, {PASSING} the end of a daemon" in general
    assert f"{PASSING} is the end of a daemon" in page and f"{PASSING} is that of a daemon" in guide
    assert "fBNO_COLOR" in page and "fBQRE_LOG" in page


def test_no_example_is_of_a_command_that_does_not_exist() -> None:
    assert set(EXAMPLES) <= set(COMMANDS)


@pytest.mark.parametrize("call", every_call(), ids=" ".join)
def test_an_example_has_the_words_that_its_command_takes(call: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line itself judges the command, its options and the number of arguments."""
    taken: list[list[str]] = []

    def accept(arguments: list[str], options: Options) -> int:
        taken.append(arguments)
        return 0

    module = ModuleType("tests_accepting_command")
    module.__dict__["accept"] = accept
    monkeypatch.setitem(sys.modules, "tests_accepting_command", module)
    name = name_of(call)
    told = COMMANDS[name]
    accepting = Command(
        "tests_accepting_command:accept", told.arguments, "", options=told.options, dry_run=told.dry_run
    )
    monkeypatch.setitem(COMMANDS, name, accepting)
    assert main(call) == 0
    assert len(taken) == 1


@pytest.mark.parametrize("call", [call for call in every_call() if COMMANDS[name_of(call)].fields()], ids=" ".join)
def test_an_example_has_the_fields_that_its_command_wants(
    call: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command itself judges the fields: of one that does not exist, it complains, and of nothing else.

    It names all that it knows then, which are those that help tells of.
    """
    monkeypatch.chdir(tmp_path)
    for directory in ("QRE_CONFIG_DIR", "QRE_STATE_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.setenv(directory, str(tmp_path))
    assert main([*call, "Zzzzzzzz=1"]) == FAILURE
    complaint = capsys.readouterr().err
    known = complaint.partition("the fields are ")[2].strip().split(", ")
    assert complaint.startswith("qre-tool: field 'Zzzzzzzz' : there is no such field; the fields are "), complaint
    assert complaint.count("\n") == 1, complaint
    told = COMMANDS[name_of(call)].fields()
    if name_of(call) == "set":  # a server's or a client's
        assert set(known) <= set(told)
    else:
        assert set(known) == set(told), f"help {name_of(call)} and the command do not know the same fields"


def test_the_fields_of_a_command_are_those_that_its_usage_and_text_name() -> None:
    command = Command(
        "",
        "FILE… A=PATH|B=FD [Key=Value]…",
        "",
        text="Fields: [CidLen=17..20] and [On=true|false], either; C is not=one, On=again. QRE_X=y is none.",
    )
    assert command.fields() == {"A": "PATH", "B": "FD", "CidLen": "17..20", "On": "true|false"}


def test_the_manual_page_is_about_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "--man", "show"]) == FAILURE
    assert "help --man : the manual page is about all commands" in capsys.readouterr().err


def test_help_needs_nothing_but_the_tables() -> None:
    for words in (["help", "daemon"], ["help", "--man"], ["__complete", "install-session", "qre0", ""]):
        program = (
            f"import sys; sys.path.append({str(ROOT)!r}); from qre.cli.main import main; status = main({words!r});"
            "print(*sys.modules, file=sys.stderr); sys.exit(status)"
        )
        done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
        loaded = set(done.stderr.split())
        assert done.stdout
        assert not loaded & {"aioquic", "pyroute2", "zmq", "bcc", "asyncio", "msgspec", "json", "re", "pathlib"}
        assert len(loaded) < 80


def test_help_begins_with_what_a_user_does_first_and_ends_with_the_laboratory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["help"]) == 0
    shown = capsys.readouterr().out
    headings = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[:-1] == list(GROUPS)
    assert headings[0] == "First steps"
    assert headings[-2].startswith("Laboratory")
    assert max(map(len, shown.splitlines())) <= 100
    assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("word", SYNONYMS)
def test_what_other_programs_call_a_command_leads_to_it(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word not in COMMANDS
    assert SYNONYMS[word].partition(" ")[0] in COMMANDS
    assert main([word, "qre0"]) == FAILURE
    told = f"qre-tool: command '{word}' : there is no such command; write `qre-tool {SYNONYMS[word]}`\n"
    assert capsys.readouterr().err.replace(f"command {word} ", f"command '{word}' ") == told
    assert main(["help", word]) == FAILURE
    assert f"see `qre-tool help {SYNONYMS[word].partition(' ')[0]}`" in capsys.readouterr().err
