"""Dispatch and failures: one line, exit status 2, never a traceback."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qre.cli.commands import COMMANDS, Command, Options
from qre.cli.main import error_line, main
from qre.errors import MachineError, PassingError, UserError
from tests.support.daemons import PATIENCE, wait_for

TOOL = str(Path(sys.executable).parent / "qre-tool")
#: What scripts know them by.
PASSING, FAILURE, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Options]]:
    """A command `probe` that remembers how it was called."""
    calls: list[tuple[list[str], Options]] = []

    def probe(arguments: list[str], options: Options) -> int:
        calls.append((arguments, options))
        return 0

    def fail(arguments: list[str], options: Options) -> int:
        kinds: dict[str, BaseException] = {
            "user": UserError("profile x", "no", "mend it"),
            "machine": MachineError("CAP_BPF", "missing"),
            "passing": PassingError("daemon x", "its supervisor was killed"),
            "os": PermissionError(13, "Permission denied", "/a\nb"),
            "bare-os": OSError(28, "No space left on device"),
            "import": ModuleNotFoundError("No module named 'zmq'", name="zmq"),
            "import-debian": ModuleNotFoundError("No module named 'bcc'", name="bcc"),
            "bug": ValueError("surprise"),
            "interrupt": KeyboardInterrupt(),
            "pipe": BrokenPipeError(32, "Broken pipe"),
        }
        raise kinds[arguments[0]]

    module = ModuleType("tests_probe_command")
    module.__dict__.update(probe=probe, fail=fail)
    monkeypatch.setitem(sys.modules, "tests_probe_command", module)
    options = {"--loud": "a flag", "--size NUMBER": "a value"}
    monkeypatch.setitem(
        COMMANDS, "probe", Command("tests_probe_command:probe", "FIRST [SECOND]", "try", options=options)
    )
    monkeypatch.setitem(
        COMMANDS, "fields", Command("tests_probe_command:probe", "FILE Key=Value [Other=Value]…", "try")
    )
    monkeypatch.setitem(COMMANDS, "fail", Command("tests_probe_command:fail", "KIND", "fail", dry_run=True))
    return calls


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == FAILURE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("qre-tool: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("qre-tool: ").rstrip("\n")


def test_global_options_stand_before_or_after_the_command(command: list[tuple[list[str], Options]]) -> None:
    assert main(["--json", "probe", "a", "--loud", "--size", "-5", "b"]) == 0
    assert main(["probe", "--size=6", "a", "--json"]) == 0
    (first, options), (second, others) = command
    assert first == ["a", "--size", "-5", "b"]
    assert (options.json, options.dry_run, options.flags) == (True, False, {"--loud"})
    assert (second, others.json, others.flags) == (["--size=6", "a"], True, set())


def test_two_dashes_end_the_options(command: list[tuple[list[str], Options]]) -> None:
    assert main(["fields", "--", "--json"]) == 0
    assert command[0][0] == ["--json"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "command : none is given; run `qre-tool help`"),
        (["shwo"], "command shwo : there is no such command; did you mean show?"),
        (["zzzzzzzz"], "command zzzzzzzz : there is no such command; see `qre-tool help`"),
        ([""], "command '' : there is no such command; see `qre-tool help`"),
        (["--jsn", "show"], "option --jsn : there is no such option; did you mean --json?"),
        (["probe", "a", "--lod"], "option --lod : probe has no such option; did you mean --loud?"),
        (["probe", "a", "--loud=1"], "option --loud=1 : probe has no such option; did you mean --loud?"),
        (["probe", "a", "--size"], "option --size : its value is missing; see `qre-tool help probe`"),
        (["probe"], "probe : FIRST is missing; write `qre-tool probe FIRST [SECOND]`"),
        (
            ["probe", "a", "b", "c"],
            "probe : 3 arguments are given, and it takes 2; write `qre-tool probe FIRST [SECOND]`",
        ),
        (["version", "x"], "version : 1 arguments are given, and it takes none; write `qre-tool version`"),
        (["fields"], "fields : FILE is missing; write `qre-tool fields FILE Key=Value [Other=Value]…`"),
        (["--dry-run", "probe", "a"], "option --dry-run : probe has no plan to print; leave the option out"),
        (["help", "daemn"], "command daemn : there is no such command; did you mean daemon?"),
    ],
)
def test_a_wrong_call_is_answered_with_the_right_one(
    words: list[str], told: str, command: list[tuple[list[str], Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *words) == told
    assert command == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("user", "profile x : no; mend it"),
        ("machine", "CAP_BPF : missing"),
        ("os", "/a\\nb : Permission denied; check its path, owner and mode, or run qre-tool as root"),
        (
            "bare-os",
            "system call : No space left on device; check its path, owner and mode, or run qre-tool as root",
        ),
        (
            "import",
            "zmq : cannot be loaded: No module named 'zmq'; install QRE with what it depends on (`make setup`)",
        ),
        ("import-debian", "bcc : cannot be loaded: No module named 'bcc'; apt install python3-bpfcc"),
        ("bug", "internal error : ValueError: surprise; run it again with QRE_DEBUG=1 and report what it prints"),
        ("pipe", "system call : Broken pipe; check its path, owner and mode, or run qre-tool as root"),
    ],
)
def test_every_failure_is_one_line(
    kind: str, told: str, command: list[tuple[list[str], Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "fail", kind) == told


def test_what_may_pass_by_itself_has_a_status_of_its_own(
    command: list[tuple[list[str], Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fail", "passing"]) == PASSING
    assert capsys.readouterr().err == "qre-tool: daemon x : its supervisor was killed\n"


def test_the_traceback_is_there_for_who_asks(
    command: list[tuple[list[str], Options]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QRE_DEBUG", "1")
    with pytest.raises(ValueError, match="surprise"):
        main(["fail", "bug"])


def test_an_interrupt_ends_it_quietly(
    command: list[tuple[list[str], Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fail", "interrupt"]) == INTERRUPTED
    assert capsys.readouterr().err == ""


def test_ctrl_c_while_it_waits_ends_it_quietly() -> None:
    waiting = subprocess.Popen(
        [TOOL, "pubkey"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for("a read of its input", lambda: "pipe" in Path(f"/proc/{waiting.pid}/wchan").read_text())
    waiting.send_signal(signal.SIGINT)
    said = waiting.communicate(timeout=PATIENCE)
    assert (waiting.returncode, said) == (INTERRUPTED, (b"", b""))


def test_an_error_line_has_no_control_characters() -> None:
    assert error_line(UserError("a\x1b[31m", "b\nc", "d\u202e")) == "qre-tool: a\\x1b[31m : b\\nc; d\\u202e"


def test_every_command_has_a_module_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    general = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in general
        assert main(["help", name]) == 0
        text = capsys.readouterr().out
        assert f"Usage: qre-tool {name}" in text
        assert all(option in text for option in command.options)
        assert main([name, "--help"]) == main(["-h", name]) == 0
        assert capsys.readouterr().out == text * 2


def test_help_alone_is_the_general_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["help"]) == 0
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :]


def test_the_daemons_help_has_all_of_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["daemon", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("config-dir", "global-config", "state-dir", "bpf-elf", "pin-dir", "server-underlay"):
        assert f"--{option} " in out
    assert "--client-underlay" in out
    assert "--run-for-ms" in out


def test_output_that_cannot_be_written_is_a_failure() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([TOOL, "help"], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == FAILURE
    assert done.stderr == "qre-tool: standard output : No space left on device; give it somewhere to write\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_failure_to_talk_about(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    # Not `help`: it starts isolated from the variable.
    words = ["check"] if unbuffered else ["help"]
    done = subprocess.run([TOOL, *words], stdout=writer, stderr=subprocess.PIPE, check=False, env=env)
    os.close(writer)
    assert (done.returncode, done.stderr) == (NOBODY_READS, b"")


def test_a_terminal_of_another_encoding_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["help", "init"]) == 0
    assert b"\\u2026" in stream.buffer.getvalue()
