"""strip, showconf, genkey, pubkey, genshortid, version and init, as a user runs them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import stat
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from qre.cli.main import main
from qre.config.profile import load_profile_file
from tests.support.profiles import CLIENT, PRIVATE_KEY, PUBLIC_KEY, SERVER, write_profile

ROOT = Path(__file__).resolve().parents[2]
INIT = ["init", "Endpoint=10.9.0.1:443", "Dest=www.example.org:443"]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith("QRE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path / "dev"))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "qre.conf"))
    (tmp_path / "dev").mkdir(mode=0o700)
    return tmp_path / "dev"


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(list(words))
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_strip_and_showconf_print_the_same_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_profile(directory, "qre0", SERVER)
    out = output(capsys, "strip", "qre0")
    assert json.loads(out)["reality_private_key"] == "(hidden)"
    assert output(capsys, "showconf", str(path)) == out


def test_profiles_are_in_etc_unless_a_variable_says_otherwise(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complaint(capsys, "strip", "no-such-profile")[0].startswith(f"qre-tool: {directory}/no-such-profile.conf ")
    monkeypatch.delenv("QRE_CONFIG_DIR")
    said = complaint(capsys, "strip", "no-such-profile")[0]
    assert said.startswith("qre-tool: /etc/qre/dev/no-such-profile.conf ")


def test_json_changes_nothing_of_what_has_no_other_form(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_profile(directory, "qre0", SERVER))
    for words in (["strip", "qre0"], ["showconf", path], ["version"], ["help"], ["help", "daemon"]):
        plain = output(capsys, *words)
        assert plain == output(capsys, "--json", *words) == output(capsys, *words, "--json")


def test_secrets_are_printed_when_they_are_asked_for(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(directory, "qre0", SERVER)
    assert PRIVATE_KEY in output(capsys, "strip", "--show-keys", "qre0")
    monkeypatch.setenv("QRE_HIDE_KEYS", "never")
    assert PRIVATE_KEY in output(capsys, "strip", "qre0")


def test_showconf_prints_a_global_file_without_the_environment(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory.parent / "qre.conf"
    path.write_text("RekeyInterval = 2s\n")
    monkeypatch.setenv("QRE_STATE_DIR", "/elsewhere")
    values = json.loads(output(capsys, "showconf", str(path)))
    assert (values["kind"], values["rekey_interval"], values["state_dir"]) == ("global", 2000, "/var/lib/qre")


def test_strip_shows_all_errors_of_a_profile(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_profile(directory, "qre0", SERVER + "MTU = x\nListn = 1\n")
    assert complaint(capsys, "strip", "qre0") == [
        f"qre-tool: {path}:7: MTU : 'x' is not a number from 576 to 1428; write MTU = 1380",
        f"qre-tool: {path}:8: Listn : unknown key; did you mean Listen?",
    ]


def test_strip_reads_the_global_file_too(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(directory, "qre0", SERVER)
    (directory.parent / "qre.conf").write_text("StateDir = x\n")
    assert "qre.conf:1: StateDir : 'x' is not an absolute path" in complaint(capsys, "strip", "qre0")[0]


def test_genkey_makes_clamped_keys_that_pubkey_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {output(capsys, "genkey") for _ in range(4)}
    assert len(keys) == 4
    for key in keys:
        raw = base64.b64decode(key)
        assert (len(raw), raw[0] & 7, raw[31] & 0xC0) == (32, 0, 0x40)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PRIVATE_KEY.encode() + b"\n")))
    assert output(capsys, "pubkey") == PUBLIC_KEY + "\n"


@pytest.mark.parametrize("data", [b"", b"xyz\n", PRIVATE_KEY.encode() * 2, b"\xff" * 44, b"A" * 5000])
def test_pubkey_refuses_what_is_no_key_without_repeating_it(
    data: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    (line,) = complaint(capsys, "pubkey")
    assert line.startswith("qre-tool: standard input : this is not ")
    assert PRIVATE_KEY[4:20] not in line
    monkeypatch.setattr(sys, "stdin", None)
    assert "it is closed" in complaint(capsys, "pubkey")[0]


def into(path: Path, mode: int, *words: str, **env: str) -> tuple[int, str]:
    """Exit status and complaints of a call whose output goes into a file of this mode."""
    path.write_text("")
    path.chmod(mode)
    tool = [sys.executable, "-m", "qre.cli.main", *words]
    with path.open("w") as file:
        done = subprocess.run(
            tool, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True, check=False, env=os.environ | env
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["genkey"], ["genshortid"], ["strip", "client0"]])
def test_a_warning_tells_that_others_can_read_the_file(directory: Path, words: list[str]) -> None:
    write_profile(directory, "client0", CLIENT)
    path = directory / "out"
    for mode, warned in ((0o600, False), (0o644, True)):
        status, said = into(path, mode, *words)
        assert (status, "others can read the file with the " in said) == (0, warned)
        assert path.stat().st_size


@pytest.mark.parametrize("command", ["strip", "showconf"])
def test_no_key_goes_into_a_file_that_others_can_read(directory: Path, command: str) -> None:
    words = [command, "qre0" if command == "strip" else str(write_profile(directory, "qre0", SERVER))]
    write_profile(directory, "qre0", SERVER)
    path = directory / "out"
    shown = ("--show-keys",)
    for mode, refused in ((0o644, True), (0o640, True), (0o600, False)):
        status, said = into(path, mode, *words, *shown)
        assert (status, "would go to; set umask 077 first" in said) == ((2, True) if refused else (0, False))
        assert bool(path.stat().st_size) is not refused
    assert into(path, 0o644, *words) == (0, "")
    assert into(path, 0o644, *words, QRE_HIDE_KEYS="never")[0] == 2


def test_short_ids_are_sixteen_digits_and_differ(capsys: pytest.CaptureFixture[str]) -> None:
    ids = [output(capsys, "genshortid").strip() for _ in range(4)]
    assert len(set(ids)) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", short_id) for short_id in ids)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "version") == output(capsys, "--version")


# --- init ---


def test_init_writes_a_matching_pair(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, *INIT)
    paths = [directory / "server0.conf", directory / "client0.conf"]
    for path in paths:
        assert str(path) in out
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server, client = (load_profile_file(path) for path in paths)
    assert server.server is not None
    assert client.client is not None
    assert str(server.server.listen) == str(client.client.endpoint) == "10.9.0.1:443"
    assert server.server.server_name == client.client.server_name == "www.example.org"
    (section,) = server.server.clients
    assert (section.name, section.short_id, server.server.short_ids) == ("client0", client.client.short_id, ())
    assert [each.ip for each in section.address] == [each.ip for each in client.address]
    assert server.server.client_endpoints == (client.client.endpoint,)
    stdin = io.TextIOWrapper(io.BytesIO(base64.b64encode(server.server.private_key)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        assert output(capsys, "pubkey").strip() == base64.b64encode(client.client.public_key).decode()
    assert sorted(os.listdir(directory)) == ["client0.conf", "server0.conf"]
    assert base64.b64encode(server.server.private_key).decode() not in out


@pytest.mark.parametrize(
    ("given", "both"),
    [
        (("AllowedIPs=0.0.0.0/0",), True),
        (("AllowedIPs=0.0.0.0/1,128.0.0.0/1",), True),
        (("AllowedIPs=10.0.0.0/8",), False),
        (("AllowedIPs=0.0.0.0/0,fd00::/8",), False),
        (("AllowedIPs=0.0.0.0/0", "MTU=1200"), False),
        ((), False),
    ],
)
def test_a_tunnel_for_everything_gets_both_ip_versions(directory: Path, given: tuple[str, ...], both: bool) -> None:
    assert main(["init", "Endpoint=192.0.2.1:443", "Dest=www.example.org:443", *given]) == 0
    server, client = (load_profile_file(directory / f"{name}.conf") for name in ("server0", "client0"))
    assert [each.version for each in server.address] == [each.version for each in client.address]
    assert (len(client.address), len({each.network for each in server.address + client.address})) == (
        (2, 2) if both else (1, 1)
    )
    assert (ip_network("::/0") in client.allowed_ips) is both
    if both:
        assert client.address[1].network.subnet_of(ip_network("fd00::/8"))


def test_init_takes_every_field_in_any_form(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(
        capsys, "init", "endpoint=vpn.example.org:8443", "dest=192.0.2.9:443", "sni=Site.Example", "server=s",
        "client_profile=c", "server-address=fd00::1/64", "client-address=fd00::2/64", "allowed-ips=::/0", "mtu=1300",
        "persistent-keepalive=25", "reality-max-time-diff=2m",
    )  # fmt: skip
    server, client = load_profile_file(directory / "s.conf"), load_profile_file(directory / "c.conf")
    assert server.server is not None
    assert client.client is not None
    assert str(server.server.listen) == "0.0.0.0:8443"
    assert server.server.server_name == client.client.server_name == "site.example"
    assert server.server.max_time_diff_ms == 120_000
    assert (server.mtu, client.mtu, client.keepalive_s, server.keepalive_s) == (1300, 1300, 25, 0)
    assert [str(network) for network in client.allowed_ips] == ["::/0"]
    assert server.server.client_allowed_ips == client.allowed_ips


def test_init_makes_the_directory_for_its_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path / "new"))
    output(capsys, *INIT)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("there", ["server0", "client0"])
def test_init_overwrites_nothing_and_writes_both_or_none(
    there: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / f"{there}.conf"
    path.write_text("mine")
    assert complaint(capsys, *INIT) == [
        f"qre-tool: {path} : it exists already, and nothing was written; "
        "choose another profile name, or move the old one away"
    ]
    assert os.listdir(directory) == [path.name]
    assert path.read_text() == "mine"


def test_init_leaves_nothing_when_the_directory_refuses(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.link, []

    def link(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert complaint(capsys, *INIT)[0].startswith(f"qre-tool: {directory}/client0.conf : cannot be written: No space")
    assert os.listdir(directory) == []


def test_init_with_a_plan_writes_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"would write {directory}/server0.conf" in output(capsys, "--dry-run", *INIT)
    assert os.listdir(directory) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["ServerProfile=../x"], "profile '../x' : it is not a profile name"),
        (["ServerProfile=same", "ClientProfile=same"], "both profiles would be same"),
        (["ServerAddress=10.77.0.300/24"], "init: server: Address : '10.77.0.300/24' is not an address"),
        (["ClientAddress=10.78.0.2/24"], "10.78.0.2/24 is outside the server's networks"),
        (["ClientAddress=10.77.0.1/32"], "10.77.0.1 is the server's own"),
        (["ClientAddress=10.77.0.255/24"], "10.77.0.255 is not an address of a host in 10.77.0.0/24"),
        (["MTU=9000"], "init: server: MTU : '9000' is not a number"),
        (["Listen=x"], "init: server: Listen : 'x' has no port"),
    ],
)
def test_init_names_a_wrong_field(
    fields: list[str], told: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in complaint(capsys, *INIT, *fields)[0]
    assert os.listdir(directory) == []


def test_init_names_everything_that_is_wrong_at_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = complaint(capsys, "init", "Endpoint=nowhere", "Dest=192.0.2.1:443")
    assert [line.split(" : ")[0] for line in lines] == [
        "qre-tool: init: server: ServerName",
        "qre-tool: init: client: Endpoint",
    ]
    assert len(complaint(capsys, "init")) == 2
