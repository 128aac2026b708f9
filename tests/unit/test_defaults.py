"""Defaults of the commands' fields: one table, which help, the manual page and docs/ repeat and commands obey."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qre.cli.commands import COMMANDS
from qre.cli.defaults import DEFAULTS, IDLE_TIMEOUT, INIT, WATCH_INTERVAL, Default, defaults_of
from qre.cli.help.help import command_help
from qre.cli.help.man_page import man_page
from qre.cli.main import main
from qre.cli.port.port_fields import (
    parse_check_fields,
    parse_client_fields,
    parse_daemon_fields,
    parse_demo_fields,
    parse_loader_fields,
)
from qre.cli.profile.init import make_pair
from qre.cli.session.session_ends import LOOPBACK, PATH, session_ends
from qre.cli.show.watch import _read as read_watch
from qre.config.model import GlobalConfig
from qre.config.profile import load_profile_file
from qre.config.values import parse_duration
from qre.ends import DEFAULT_MTU, LIKE_DEST
from tests.support.conformance import ROOT, rows

DOCUMENT = ROOT / "docs" / "defaults.md"


def optional_fields(name: str) -> set[str]:
    """Those of a command that stand in brackets."""
    command = COMMANDS[name]
    bracketed = re.findall(r"\[[^\]]*\]", f"{command.arguments} {command.text}")
    return {field for field in command.fields() if any(re.search(rf"\b{field}=", text) for text in bracketed)}


def default_of(command: str, field: str) -> str:
    (row,) = (row for row in defaults_of(command) if field in row.fields)
    return row.text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_that_may_be_left_out_has_one_default_and_no_other_field_has(name: str) -> None:
    given = [field for row in defaults_of(name) for field in row.fields]
    assert len(given) == len(set(given))
    assert set(given) == optional_fields(name)


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: f"{row.fields[0]} of {row.commands[0]}")
def test_help_and_the_manual_page_tell_of_it(row: Default) -> None:
    page = man_page().replace("\\-", "-").replace("\\(aq", "'").replace("\\&", "")
    for command in row.commands:
        told = command_help(command).partition("When a field is not given:\n")[2]
        assert re.search(rf"^  {re.escape(', '.join(row.fields))}\s+{re.escape(row.text)}$", told, re.MULTILINE)
        section = page.partition(f".SS {command}\n")[2].partition(".SS ")[0]
        assert f"\\fB{', '.join(row.fields)}\\fR\n{row.text}\n" in section


def test_the_document_has_the_table() -> None:
    table = [
        f"| {', '.join(row.fields)} | {', '.join(f'`{command}`' for command in row.commands)} | {row.text} |"
        for row in DEFAULTS
    ]
    written = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "`" in line]
    assert written == table


def test_every_default_of_the_reference_has_a_row_in_the_conformance_table() -> None:
    statements = [row.statement for row in rows()]
    for field in ("PinDir", "RegisterCidMap", "RoutedCidLen", "ServerUnderlay", "ClientUnderlay", "InstallSession"):
        assert any(field in statement and statement.endswith("unless given") for statement in statements), field
    for field in ("NextRxKey", "NextRxHpKey", "NextRxIv"):
        assert any(f"`{field}`" in statement and "left out" in statement for statement in statements), field
    assert any("defaults.md" in row.differs for row in rows())


# --- and the commands obey it: a default that is given is what it is when it is not given ---


@pytest.mark.parametrize("field", [*INIT, "MTU", "PersistentKeepalive", "RealityMaxTimeDiff"])
def test_of_init(field: str) -> None:
    fields = INIT | {"Endpoint": "192.0.2.1:443", "Dest": "site.example:443"}
    pair = make_pair(fields, bytes(32), bytes(8), bytes(5))
    assert make_pair(fields | {field: default_of("init", field)}, bytes(32), bytes(8), bytes(5)) == pair


def test_of_init_where_it_follows_from_another_field() -> None:
    for endpoint, listen in (("192.0.2.1:443", "192.0.2.1:443"), ("vpn.example:4433", "0.0.0.0:4433")):
        fields = INIT | {"Endpoint": endpoint, "Dest": "site.example:443"}
        server, client = make_pair(fields, bytes(32), bytes(8), bytes(5))
        assert server.server is not None and client.client is not None
        assert str(server.server.listen) == listen
        assert server.server.server_name == client.client.server_name == "site.example"
        assert server.allowed_ips == client.allowed_ips == ()


def test_of_watch() -> None:
    assert read_watch([]) == read_watch([f"Interval={WATCH_INTERVAL}"])
    assert read_watch([])[2] == 0, "no end"


FRONT = ("BpfElf=x.o",)
LISTEN = ("Listen=192.0.2.1:443",)
LOADERS = {
    "shared-port-loader": lambda *fields: parse_loader_fields((*FRONT, *LISTEN, "UserspaceBind=true", *fields)),
    "shared-port-loader-check": lambda *fields: parse_check_fields(
        (*FRONT, *LISTEN, f"ConnectionId={'22' * 20}", *fields)
    ),
    "shared-port-session-demo": lambda *fields: parse_demo_fields((*FRONT, *fields)),
    "shared-port-handshake-daemon": lambda *fields: parse_daemon_fields((*FRONT, *fields)),
}


@pytest.mark.parametrize("command", LOADERS)
def test_of_what_loads_the_program(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))
    parse = LOADERS[command]
    for field in ("PinDir", "RegisterCidMap"):
        assert parse(f"{field}={default_of(command, field)}") == parse()
    assert GlobalConfig.routed_cid_len == LIKE_DEST
    assert default_of(command, "RoutedCidLen").endswith("where that is dest, 20")
    assert parse("RoutedCidLen=20") == parse()


def test_of_the_client() -> None:
    default = default_of("shared-port-handshake-client", "InstallSession")
    assert parse_client_fields([f"InstallSession={default}"]) == parse_client_fields([])


@pytest.mark.parametrize(
    ("command", "stand_ins"), [("session-plan", LOOPBACK), ("session-demo", LOOPBACK), ("session-capture", PATH)]
)
def test_of_both_ends(
    command: str,
    stand_ins: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path))
    for number, endpoint in enumerate(("192.0.2.7:443", "vpn.example:443")):
        names = f"ServerProfile=s{number}", f"ClientProfile=c{number}"
        assert main(["init", f"Endpoint={endpoint}", "Dest=site.example:443", *names]) == 0
        server, client = (load_profile_file(tmp_path / f"{side}{number}.conf") for side in "sc")
        ends = session_ends(server, client, {}, stand_ins)  # type: ignore[arg-type]
        told = default_of(command, "ServerUnderlay")
        stand_in = re.search(r"or (\S+) with its port", told)
        assert stand_in is not None
        assert str(ends[0]) == (endpoint if number == 0 else f"{stand_in[1]}:443")
        assert str(ends[1]) == default_of(command, "ClientUnderlay")


def test_of_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path))
    assert main(["init", "Endpoint=192.0.2.1:443", "Dest=site.example:443"]) == 0
    files = [str(tmp_path / name) for name in ("server0.conf", "client0.conf", "made")]
    for fields in ((), (f"KeyLog={default_of('session-capture', 'KeyLog')}",)):
        assert main(["session-capture", "random-udp", *files, *fields]) == 0
        assert not (tmp_path / "made.keys").exists()


def test_values_that_live_elsewhere_are_the_same() -> None:
    assert default_of("init", "MTU") == str(DEFAULT_MTU)
    source = (ROOT / "kmod" / "netlink.c").read_text()
    milliseconds = parse_duration(IDLE_TIMEOUT, 1, 1 << 40)
    assert re.search(rf"QRE_A_IDLE_MS\][^;]*\b{milliseconds}\b", source), "IdleTimeout is qre.ko's"
