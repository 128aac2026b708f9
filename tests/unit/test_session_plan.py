"""session-plan: what it prints of two configurations, and how it refuses two that do not fit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qre.cli.main import main
from qre.cli.session.session_ends import only_listen
from qre.cli.session.session_fields import parse_session_fields
from qre.config.profile import load_profile_file
from qre.errors import UserError
from tests.support.daemons import PATIENCE

#: Every kind of pair that ``init`` can write.
PAIRS = {
    "listens on every address": ("Endpoint=vpn.example.net:443",),
    "listens on one address": ("Endpoint=192.0.2.1:443",),
    "listens on every address of both versions": ("Endpoint=vpn.example.net:443", "Listen=[::]:443"),
    "listens elsewhere": ("Endpoint=vpn.example.net:443", "Listen=198.51.100.1:8443"),
    "two families and several addresses": (
        "Endpoint=192.0.2.1:443",
        "ServerAddress=10.77.0.1/24,fd77::1/64",
        "ClientAddress=10.77.0.2/32,10.77.0.3/24,fd77::2/64",
        "MTU=1280",
    ),
    "routes everything": ("Endpoint=vpn.example.net:443", "AllowedIPs=0.0.0.0/0,::/0", "PersistentKeepalive=25"),
    "routes as much as a session can": (
        "Endpoint=192.0.2.1:443",
        "AllowedIPs=" + ",".join(f"10.78.{number}.0/24" for number in range(256)),
    ),
}


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, str], dict[str, str]]:
    assert main(["session-plan", *words]) == 0
    commands = [shlex.split(line, comments=True) for line in capsys.readouterr().out.splitlines()]
    server, client = (command for command in commands if command)
    assert server[:3] == ["qre-tool", "install-session", "server0"]
    assert client[:3] == ["qre-tool", "install-session", "client0"]
    fields = [dict(word.split("=", 1) for word in command[3:]) for command in (server, client)]
    return fields[0], fields[1]


def test_both_ends_of_a_plan_fit_together(profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    server, client = plan(capsys, *map(str, profiles))
    for tx, rx in (("TxKey", "RxKey"), ("TxIv", "RxIv"), ("TxHpKey", "RxHpKey"), ("NextTxKey", "NextRxKey")):
        assert server[tx] == client[rx]
        assert server[rx] == client[tx]
    assert server["SessionId"] == client["SessionId"]
    assert len(server["SessionId"]) == 64
    assert server["ConnectionId"] == client["ConnectionId"]
    assert len(server["ConnectionId"]) == 40
    assert server["NextRxHpKey"] == server["RxHpKey"]
    assert (server["KeyEpoch"], server["PacketNumber"]) == ("0", "65536")
    assert server["ClientConnectionId"] == ""
    lengths = {name: len(server[name]) for name in ("TxKey", "RxKey", "TxHpKey", "RxHpKey", "TxIv", "RxIv")}
    assert lengths == {"TxKey": 32, "RxKey": 32, "TxHpKey": 32, "RxHpKey": 32, "TxIv": 24, "RxIv": 24}


@pytest.mark.parametrize("words", [["session-plan"], ["session-capture", "valid"], ["session-capture", "wrong-sni"]])
def test_neither_a_plan_nor_a_capture_loads_what_speaks_to_the_kernel(
    profiles: tuple[Path, Path], tmp_path: Path, words: list[str]
) -> None:
    command = [*words, *map(str, profiles), *([str(tmp_path / "made.pcap")] if words[0] == "session-capture" else [])]
    code = (
        "import sys; from qre.cli.main import main\n"
        f"assert main({command!r}) == 0\n"
        "loaded = set(sys.modules)\n"
        "from importlib.util import find_spec\n"
        "for kind in ('qre.kernel.socket', 'qre.device.kernel_module', 'bcc', 'pyroute2'):\n"
        "    print(kind, bool(find_spec(kind)), kind in loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert [line.split()[1:] for line in done.stdout.splitlines()[-4:]] == [["True", "False"]] * 4


def test_a_plan_differs_at_each_run(profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (plan(capsys, *map(str, profiles))[0] for _ in range(2))
    for name in ("SessionId", "ConnectionId", "TxKey", "RxKey", "TxIv", "TxHpKey"):
        assert one[name] != other[name]


def test_underlay_addresses_are_those_that_were_given_or_listen(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, client = plan(
        capsys, *map(str, profiles), "ServerUnderlay=198.51.100.1:4433", "client-underlay=198.51.100.2:5555"
    )
    assert (server["UnderlayLocalIPv4"], server["UnderlayLocalPort"]) == ("198.51.100.1", "4433")
    assert (server["UnderlayPeerIPv4"], server["UnderlayPeerPort"]) == ("198.51.100.2", "5555")
    assert (client["UnderlayLocalIPv4"], client["UnderlayPeerPort"]) == ("198.51.100.2", "4433")
    server, client = plan(capsys, *map(str, profiles))
    assert (server["UnderlayLocalIPv4"], server["UnderlayLocalPort"]) == ("192.0.2.1", "443")
    assert (client["UnderlayLocalIPv4"], client["UnderlayLocalPort"]) == ("127.0.0.1", "50443")


def test_of_several_addresses_a_plan_has_the_first_of_ipv4(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = profiles[0]
    path.write_text(path.read_text().replace("192.0.2.1:443", "[2001:db8::1]:443, 192.0.2.3:443, 192.0.2.1:443"))
    server, client = plan(capsys, *map(str, profiles))
    assert (server["UnderlayLocalIPv4"], server["UnderlayLocalPort"]) == ("192.0.2.3", "443")
    assert client["UnderlayPeerIPv4"] == "192.0.2.3"


def test_a_command_that_takes_one_address_refuses_several(profiles: tuple[Path, Path]) -> None:
    server = load_profile_file(profiles[0])
    assert str(only_listen(server)) == "192.0.2.1:443"
    profiles[0].write_text(profiles[0].read_text().replace("192.0.2.1:443", "192.0.2.1:443, 192.0.2.3:443"))
    with pytest.raises(UserError, match=r"Listen 192\.0\.2\.1:443, 192\.0\.2\.3:443: this command takes one"):
        only_listen(load_profile_file(profiles[0]))


def test_a_plan_has_what_the_servers_section_gives_the_client(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (short_id,) = (
        line.partition("= ")[2] for line in profiles[1].read_text().splitlines() if line.startswith("RealityShortId ")
    )
    text = profiles[0].read_text().partition("[Client ")[0]
    section = f"\n[Client a]\nShortId = {short_id}\nAllowedIPs = 192.168.7.0/24\nAddress = "
    profiles[0].write_text(f"{text}{section}10.77.0.2\n")
    server, _client = plan(capsys, *map(str, profiles))
    assert server["AllowedIPs"] == "10.77.0.2/32,192.168.7.0/24"
    profiles[0].write_text(f"{text}{section}10.77.0.3\n")
    assert main(["session-plan", *map(str, profiles)]) == 2
    assert "grants none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("RealityShortId", "0123456789abcdef"), "does not recognise"),
        (("ServerName", "other.example"), "does not recognise"),
        (("RealityPublicKey", "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), "does not recognise"),
        (("Address", "10.99.0.2/24"), "grants none"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_in_one_line(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    key, value = change
    lines = profiles[1].read_text().splitlines()
    lines = [f"{key} = {value}" if line.split("=")[0].strip() == key else line for line in lines]
    profiles[1].write_text("\n".join(lines) + "\n")
    assert main(["session-plan", *map(str, profiles)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message in output.err


def test_the_order_of_the_files_and_half_an_underlay_are_named(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, client = map(str, profiles)
    assert main(["session-plan", client, server]) == 2
    assert "not a server profile" in capsys.readouterr().err
    assert main(["session-plan", server, server]) == 2
    assert "not a client profile" in capsys.readouterr().err
    assert main(["session-plan", server, client, "ServerUnderlay=192.0.2.9:1"]) == 2
    assert "go together" in capsys.readouterr().err


def made(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *pair: str
) -> tuple[str, str]:
    """The files of a server and its client that ``init`` writes with these fields."""
    monkeypatch.setenv("QRE_CONFIG_DIR", str(directory))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(directory / "none"))
    assert main(["init", "Dest=site.example:443", *pair]) == 0
    capsys.readouterr()
    return str(directory / "server0.conf"), str(directory / "client0.conf")


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_what_is_printed_is_what_install_session_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pair: tuple[str, ...]
) -> None:
    for fields in plan(capsys, *made(tmp_path, monkeypatch, capsys, *pair)):
        parse_session_fields("install-session", [f"{name}={value}" for name, value in fields.items()])
        assert "0.0.0.0" not in (fields["UnderlayLocalIPv4"], fields["UnderlayPeerIPv4"])


def test_a_server_over_ipv6_gets_a_plan_of_ipv6_when_both_addresses_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = made(tmp_path, monkeypatch, capsys, "Endpoint=[2001:db8::1]:443")
    ends = [("UnderlayLocalIPv6", "UnderlayPeerIPv6"), ("UnderlayPeerIPv6", "UnderlayLocalIPv6")]
    planned = plan(capsys, *files, "ServerUnderlay=[2001:db8::1]:443", "ClientUnderlay=[2001:db8::2]:50443")
    for fields, (server, client) in zip(planned, ends, strict=True):
        assert (fields[server], fields[client]) == ("2001:db8::1", "2001:db8::2")
        parse_session_fields("install-session", [f"{name}={value}" for name, value in fields.items()])
    assert main(["session-plan", *files, "ServerUnderlay=[2001:db8::1]:443", "ClientUnderlay=192.0.2.9:1"]) == 2
    assert "192.0.2.9:1 is of another version of IP than [2001:db8::1]:443" in capsys.readouterr().err


def test_a_server_over_ipv6_is_refused_with_what_makes_it_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = made(tmp_path, monkeypatch, capsys, "Endpoint=[2001:db8::1]:443")
    assert main(["session-plan", *files]) == 2
    refused, _, remedy = capsys.readouterr().err.strip().partition("; give ")
    assert refused == "qre-tool: Listen [2001:db8::1]:443 : addresses for tests are of IPv4 alone"
    for fields in plan(capsys, *files, *remedy.split()):
        parse_session_fields("install-session", [f"{name}={value}" for name, value in fields.items()])


@pytest.mark.parametrize("command", ["session-plan", "session-demo", "session-capture"])
def test_an_underlay_that_no_packet_can_come_from_is_refused_by_its_name(
    profiles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    files = [str(path) for path in profiles]
    words = [command, *(["valid-client", *files, str(tmp_path / "p")] if command == "session-capture" else files)]
    for wrong in ("0.0.0.0:443", "224.0.0.1:443", "255.255.255.255:443"):
        for name, other in (("ServerUnderlay", "ClientUnderlay"), ("ClientUnderlay", "ServerUnderlay")):
            assert main([*words, f"{name}={wrong}", f"{other}=192.0.2.9:1"]) == 2
            printed = capsys.readouterr()
            assert printed.out == "" and printed.err.startswith(f"qre-tool: field {name} : "), printed
