"""Every command, called wrongly in every way: exit 2, a line for each thing that is wrong, nothing changed.

A new command needs its line in ``CALLS`` (``tests/support/calls``).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.cli.commands import COMMANDS
from qre.cli.main import main
from qre.config.keys import snake_case
from tests.support.calls import CALLS

#: Of fields that take almost any text.
BAD = {
    "BpfElf": "/nonexistent/elf", "PinDir": "/nonexistent/directory", "ReadyFile": "/nonexistent/ready",
    "BpfMapPath": "/proc/map", "Device": "a/b", "ServerProfile": "../outside", "ClientProfile": ".hidden",
    "File": "/nonexistent/directory/file",
}  # fmt: skip
#: Looked at behind qre.ko and the BPF file system, which are not everywhere: the rings host and vm try them.
NEED_THE_MACHINE = {
    ("shared-port-loader", "BpfElf"), ("shared-port-loader-check", "BpfElf"), ("shared-port-session-demo", "BpfElf"),
    ("shared-port-session-demo", "PinDir"), ("shared-port-session-demo", "ReadyFile"),
}  # fmt: skip
#: Right without an argument, too.
NEED_NOTHING = ("help", "show", "check", "watch", "metrics")
#: What the calls of the table would make: devices, and the ends of the names of pins.
DEVICES = ("server0", "client0", "qre9")
LABELS = (*DEVICES, "127-0-0-1-4443")
#: What is wrong with these is only seen after the capabilities.
PATHS = ("BpfElf", "PinDir", "ReadyFile", "BpfMapPath")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of our own with a pair of profiles, and nothing of this machine's configuration."""
    for name, value in {
        "QRE_CONFIG_DIR": tmp_path, "QRE_GLOBAL_CONFIG": tmp_path / "none", "QRE_STATE_DIR": tmp_path / "state",
        "RUNTIME_DIRECTORY": tmp_path / "run", "QRE_DATAPLANE": "user", "QRE_MODULE_LOAD": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "Endpoint=203.0.113.5:443", "Dest=203.0.113.9:443", "ServerName=site.example"]) == 0
    yield tmp_path


def state(directory: Path) -> list[object]:
    """What a command could have changed: on this machine others make devices, pins and sockets, too."""
    files = sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_mode) for path in directory.rglob("*"))
    addresses = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    links = [line for line in addresses.splitlines() if line.split()[1] in DEVICES]
    pins = sorted(os.listdir("/sys/fs/bpf")) if os.access("/sys/fs/bpf", os.R_OK) else []
    pins = [name for name in pins if name.endswith(LABELS)]
    descriptors = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that this loop reads by
            descriptors.append(os.readlink(descriptor))
    return [files, links, pins, sorted(name for name in descriptors if name.startswith("socket:"))]


def assert_refused(directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], *named: str) -> None:
    before = state(directory)
    capsys.readouterr()
    assert main(words) == 2, words
    printed = capsys.readouterr()
    assert printed.out == "" and all(line.startswith("qre-tool: ") for line in printed.err.splitlines()), printed
    assert any(name in printed.err for name in named), (words, printed.err)
    assert state(directory) == before


def valid(name: str) -> list[str]:
    return [name, *(CALLS[name] or [])]


def cases_of_fields() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for field in command.fields():
            if (name, field) not in NEED_THE_MACHINE:
                yield name, field


def test_every_command_is_in_the_table() -> None:
    assert set(CALLS) == set(COMMANDS), "add a call that would be right to CALLS"


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call and name not in NEED_NOTHING])
def test_no_argument(directory: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert_refused(directory, capsys, [name], "missing", "is given", "wants")


@pytest.mark.parametrize("name", CALLS)
def test_one_too_many(directory: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert_refused(directory, capsys, [*valid(name), "one-too-many"], "one-too-many", "are given")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option(directory: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert_refused(directory, capsys, [*valid(name), "--colour"], "--colour")
    assert_refused(directory, capsys, [*valid(name), "--jsn"], "--json")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.fields()])
def test_an_unknown_field_and_a_repeated_one(directory: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert_refused(directory, capsys, [*valid(name), "Colour=red"], "'Colour'")
    given = [word for word in valid(name) if "=" in word]
    field = given[0].partition("=")[0] if given else next(iter(COMMANDS[name].fields()))
    again = [f"{snake_case(field)}=1"] if given else [f"{field}=1", f"{snake_case(field)}=1"]
    assert_refused(directory, capsys, [*valid(name), *again], "given twice")


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["set", "qre0", "role", "server", "MTU=1380"], ["Address", "Listen", "Dest", "ServerName"]),
        (["shared-port-loader-check", "PinDir=/tmp"], ["BpfElf", "Listen", "ConnectionId"]),
        (
            ["install-session", "qre0", "KeyEpoch=0", "PacketNumber=0", f"SessionId={'00' * 32}"],
            ["ConnectionId", "TxKey", "RxKey", "TxHpKey", "RxHpKey", "TxIv", "RxIv"],
        ),
    ],
)
def test_each_missing_field_has_a_line(
    capsys: pytest.CaptureFixture[str], words: list[str], missing: list[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    told = f"it is missing; see `qre-tool help {words[0]}`"
    assert printed.err.splitlines() == [f"qre-tool: field {name} : {told}" for name in missing]
    assert printed.out == ""


@pytest.mark.parametrize(("name", "field"), list(cases_of_fields()))
def test_a_bad_value(directory: Path, capsys: pytest.CaptureFixture[str], name: str, field: str) -> None:
    if field in PATHS and os.geteuid():
        pytest.skip("only root is told what is wrong with a path")
    kept = [word for word in valid(name) if word.partition("=")[0] != field]
    both = {"BpfMapFd": "BpfMapPath", "UserspaceSocketFd": "UserspaceBind"}.get(field)
    kept = [word for word in kept if word.partition("=")[0] != both]
    value = BAD.get(field, "!?")
    pair = {"ServerUnderlay": "ClientUnderlay=192.0.2.9:1", "ClientUnderlay": "ServerUnderlay=192.0.2.9:1"}.get(field)
    bad = [*kept, f"{field}={value}", *([pair] if pair else [])]
    if field.startswith("Underlay"):
        bad += [word for word in _UNDERLAY if not word.startswith(f"{field}=")]
    assert_refused(directory, capsys, bad, field, value, "directory /proc ")


@pytest.mark.parametrize("option", COMMANDS["daemon"].options)
def test_a_bad_value_of_an_option(directory: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    """With --dry-run: what is wrong is found before anything would be done."""
    name = option.partition(" ")[0]
    wrong = ["", "0", "-1", "1.5", str(1 << 64), "99999999999999999999999"] if name == "--run-for-ms" else [""]
    if name.endswith("-underlay"):
        wrong += ["192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "site.example:443"]
    for value in wrong:
        assert_refused(directory, capsys, ["--dry-run", "daemon", "server0", f"{name}={value}"], name)
    assert_refused(directory, capsys, ["--dry-run", "daemon", "server0", name], name)


_UNDERLAY = (
    "UnderlayLocalIPv4=192.0.2.1", "UnderlayLocalPort=443", "UnderlayPeerIPv4=192.0.2.2", "UnderlayPeerPort=5555",
)  # fmt: skip
