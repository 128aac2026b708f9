"""Completion: what is offered after TAB, asked of the program and in the real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qre.cli import completion
from qre.cli.commands import COMMANDS, Command
from qre.cli.completion import SCRIPTS, offers
from qre.cli.main import FAILURE, main
from qre.kernel.abi import LINK_KIND
from qre.kernel.tun import ALIAS_PREFIX
from tests.support.profiles import CLIENT, SERVER, write_profile

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ROOT / "cli" / "shells"

#: What TAB does in an interactive zsh on a pseudo-terminal; every offer is printed as it is made.
ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "autoload -U compinit; compinit -D -u; source $1
compadd() { local -a found; builtin compadd -O found \"\$@\"
print -l -- '' OFFER:\${^found}; builtin compadd \"\$@\" }
offer() { zle complete-word; print DO''NE }; zle -N offer; bindkey '^I' offer; print REA''DY"
zpty -r shell seen '*READY*'
zpty -n -w shell "$2"$'\t'
zpty -r shell seen '*DONE*'
print -r -- "$seen"
zpty -d shell
"""
BASH = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qre_tool; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture
def furnished(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With two profiles, one daemon's socket, and qre-tool in the PATH."""
    profiles, runtime, programs = machine / "dev", machine / "run", machine / "bin"
    programs.mkdir()
    write_profile(profiles, "server0", SERVER)
    write_profile(profiles, "client0", CLIENT)
    (profiles / "notes.txt").touch()
    (profiles / ".hidden.conf").touch()
    (runtime / "qre7.sock").touch()
    (runtime / "qre7.workers").mkdir()
    tool = programs / "qre-tool"
    tool.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -S -m qre.cli.main "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(machine))
    return machine


def words(*line: str) -> list[str]:
    return [word for word, _ in offers(list(line))]


def in_shell(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


def bash(*line: str) -> set[str]:
    return set(in_shell("bash", "--norc", "-c", BASH, "bash", str(SHELLS / SCRIPTS["bash"]), "qre-tool", *line))


def fish(line: str) -> set[str]:
    program = 'source "$argv[1]"; complete -C "$argv[2]"'
    told = in_shell("fish", "--no-config", "-c", program, str(SHELLS / SCRIPTS["fish"]), line)
    return {offer.partition("\t")[0] for offer in told}


def zsh(line: str) -> set[str]:
    told = in_shell("zsh", "-f", "-c", ZSH, "zsh", str(SHELLS / SCRIPTS["zsh"]), line)
    return {offer.strip().removeprefix("OFFER:") for offer in told if offer.strip().startswith("OFFER:")}


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


# --- what is offered ---


def test_commands_and_global_options_come_first() -> None:
    assert words("") == list(COMMANDS)
    assert words("--dry-run", "u") == ["up", "update-session", "unregister-cid-map", "unregister-shared-socket"]
    assert words("--") == ["--json", "--dry-run", "--help"]
    assert dict(offers(["gen"])) == {name: COMMANDS[name].summary for name in ("genkey", "genshortid")}


def test_a_command_has_its_own_options_and_each_is_offered_once() -> None:
    assert words("strip", "--") == ["--show-keys", "--json", "--dry-run", "--help"]
    assert "--state-dir" not in words("daemon", "--state-dir", "/tmp", "--")
    assert words("delete", "qre0", "--d") == []
    assert words("daemon", "--state-dir", "") == words("daemon", "--state-dir=") == [":files"]
    assert words("daemon", "--run-for-ms", "") == []
    assert words("daemon", "--", "--") == []


def test_profiles_and_devices_are_those_that_are_there(furnished: Path) -> None:
    assert words("up", "") == ["client0", "server0"]
    assert words("--dry-run", "reload", "s") == ["server0"]
    assert words("daemon", "--run-for-ms", "5", "c") == ["client0"]
    assert "qre7" in words("show", "")
    assert "lo" not in words("show", "")
    assert words("up", "client0", "") == []
    (furnished / "other").mkdir()
    (furnished / "other" / "elsewhere.conf").touch()
    assert words("daemon", "--config-dir", str(furnished / "other"), "") == ["elsewhere"]


def test_clients_are_added_to_servers(furnished: Path) -> None:
    for command in ("add-client", "list-clients", "export", "rotate-key", "remove-client"):
        assert words(command, "") == ["server0"]
    assert words("strip", "") == ["client0", "server0"]


def test_standard_input_is_a_word() -> None:
    assert words("import", "-", "") == ["Profile="]
    assert words("import", "-", "--r") == ["--replace"]


def test_a_device_is_known_by_its_kind_or_its_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, uevent, alias in (
        ("lo", "INTERFACE=lo\n", ""), ("qre1", f"DEVTYPE={LINK_KIND}\n", ""), ("tun3", "", f"{ALIAS_PREFIX}home\n")
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "uevent").write_text(uevent)
        (tmp_path / name / "ifalias").write_text(alias)
    monkeypatch.setattr(completion, "_INTERFACES", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "none"))
    assert words("delete", "") == ["qre1", "tun3"]


def test_a_name_that_would_look_like_two_offers_is_left_out(
    furnished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (furnished / "dev" / "a\nb.conf").touch()
    (furnished / "dev" / "x\x1b[31m.conf").touch()
    assert main(["__complete", "up", ""]) == 0
    assert capsys.readouterr().out == "client0\tprofile\nserver0\tprofile\n"


def test_a_directory_that_cannot_be_read_offers_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path / "none"))
    assert words("up", "") == []


def test_fields_come_after_the_arguments_and_each_is_offered_once() -> None:
    assert words("create-cid-map", "") == ["BpfMapPath="]
    assert words("install-session", "qre0", "UnderlayL") == [
        "UnderlayLocalIPv4=",
        "UnderlayLocalPort=",
        "UnderlayLocalIPv6=",
    ]
    assert words("install-session", "qre0", "TxKey=00", "tx-hp-key=00", "Tx") == ["TxIv="]
    assert words("create-cid-map", "BpfMapPath=") == words("create-cid-map", "bpf-map-path=/sys") == [":files"]
    assert words("init", "Endpoint=a:443", "Endpoint=") == []
    assert words("watch", "qre0", "") == words("watch", "")[-2:] == ["Interval=", "Count="]


def test_words_of_the_usage_are_offered_as_they_are() -> None:
    assert words("set", "qre0", "") == ["role"]
    assert words("set", "qre0", "role", "") == ["server", "client"]
    assert words("completion", "") == list(SCRIPTS)
    assert words("session-plan", "") == words("showconf", "") == [":files"]
    assert words("help", "gen") == ["genkey", "genshortid"]


def test_a_new_command_needs_its_line_in_the_table_only(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "SCENARIO SERVER-CONFIG… BpfElf=PATH [InstallSession=true|false]"
    monkeypatch.setitem(COMMANDS, "new", Command("", arguments, "something new", text="Fields: [RunForMs=MS]"))
    assert words("ne") == ["new"]
    assert words("new", "v") == ["valid-client"]
    assert words("new", "random-udp", "") == [":files", "BpfElf=", "InstallSession=", "RunForMs="]
    assert words("new", "random-udp", "a", "b", "c", "Run") == [":files", "RunForMs="]
    assert words("new", "random-udp", "a", "InstallSession=") == ["InstallSession=true", "InstallSession=false"]
    assert words("new", "random-udp", "a", "install-session=t") == ["install-session=true"]


def test_nonsense_offers_nothing() -> None:
    for line in (["nosuch", ""], ["nosuch", "--x", "a=b", "c="], ["", ""], ["show", "", "", ""], ["=", "="]):
        assert all(word in ("--json", "--dry-run", "--help") for word in words(*line))


def test_an_answer_is_fast(furnished: Path) -> None:
    """Half of the tries are allowed to meet a busy machine."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        assert subprocess.run(["qre-tool", "__complete", "up", ""], check=True, capture_output=True).stdout
        times.append(time.perf_counter() - started)
    assert sorted(times)[0] < 0.1


# --- the shells ---


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == (ROOT / "packaging" / "completion" / SCRIPTS[shell]).read_text()


def test_an_unknown_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == FAILURE
    assert (
        capsys.readouterr().err == "qre-tool: completion : 'tcsh' is not one of bash, zsh, fish; name one of them\n"
    )


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])], ids=list(SCRIPTS)
)
def test_the_shell_can_read_its_script(shell: str, check: list[str]) -> None:
    needs(shell)
    assert in_shell(shell, *check, str(SHELLS / SCRIPTS[shell])) == []


def test_bash_offers_commands_fields_profiles_and_files(furnished: Path) -> None:
    assert bash("sho") == {"show", "showconf", "show-cid-map"}
    assert bash("up", "") == {"client0", "server0"}
    assert bash("daemon", "client0", "--server") == {"--server-underlay"}
    assert bash("install-session", "qre0", "TxH") == {"TxHpKey="}
    (furnished / "one file").touch()
    assert bash("showconf", f"{furnished}/o") == {f"{furnished}/one file"}


def test_bash_has_cut_the_words_at_equals_signs_and_colons(furnished: Path) -> None:
    """Only what stands behind the last cut is replaced, so only that may be offered."""
    (furnished / "qre.o").touch()
    assert bash("init", "Endpoint", "=", "vpn.example.net", ":", "443", "De") == {"Dest="}
    assert bash("create-cid-map", "BpfMapPath", "=", f"{furnished}/q") == {f"{furnished}/qre.o"}
    assert bash("create-cid-map", "BpfMapPath", "=") >= {"README.md"}
    assert bash("daemon", "--bpf-elf", "=", f"{furnished}/q") == {f"{furnished}/qre.o"}


def test_fish_offers_commands_fields_profiles_and_files(furnished: Path) -> None:
    needs("fish")
    (furnished / "qre.o").touch()
    assert fish("qre-tool sho") == {"show", "showconf", "show-cid-map"}
    assert fish("qre-tool up ") == {"client0", "server0"}
    assert fish("qre-tool install-session qre0 TxH") == {"TxHpKey="}
    assert fish(f"qre-tool create-cid-map BpfMapPath={furnished}/q") == {f"BpfMapPath={furnished}/qre.o"}
    assert fish(f"qre-tool showconf {furnished}/q") == {f"{furnished}/qre.o"}


def test_zsh_offers_commands_fields_profiles_and_files(furnished: Path) -> None:
    needs("zsh")
    (furnished / "qre.o").touch()
    assert zsh("qre-tool sho") == {"show", "showconf", "show-cid-map"}
    assert zsh("qre-tool up ") == {"client0", "server0"}
    assert zsh("qre-tool install-session qre0 TxH") == {"TxHpKey="}
    assert "qre.o" in zsh(f"qre-tool create-cid-map BpfMapPath={furnished}/q")
