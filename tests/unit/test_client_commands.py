"""Clients by name, without a daemon: what the files are before and after, and who can read them."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.cli.clients import handout
from qre.cli.clients.handout import code
from qre.cli.main import main
from qre.cli.profile import private_files
from qre.cli.profile.configuration import public_key
from qre.config.profile import load_profile_file
from qre.device import control_client
from qre.profile_secrets import ProfileSecrets
from qre.quic.server.address_leases import FILE_LENGTH, Leases
from qre.workers.handshake.worker_settings import follows
from tests.support.conformance import ROOT
from tests.support.json_schemas import check_against_schema


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With server0, whose one client is client0 at 10.77.0.2."""
    for name in ("QRE_CONFIG_DIR", "QRE_STATE_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    fields = ["Endpoint=vpn.example.org:443", "Dest=www.example.org:443", "AllowedIPs=10.0.0.0/8", "MTU=1300"]
    assert main(["init", *fields]) == 0
    yield tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1), printed
    return printed.err


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_one_command_makes_a_client_whose_profile_fits(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (directory / "server0.conf").read_text()
    printed = said(capsys, "add-client", "server0", "alice")
    assert (directory / "server0.conf").read_text().startswith(before)
    assert stat.S_IMODE((directory / "server0.conf").stat().st_mode) == 0o600
    server = load_profile_file(directory / "server0.conf")
    assert server.server is not None
    assert [(each.name, str(each.address[0].ip)) for each in server.server.clients] == [
        ("client0", "10.77.0.2"),
        ("alice", "10.77.0.3"),
    ]
    first, second = printed.splitlines()[:2]
    assert first == "# added client alice of server0 with 10.77.0.3: no daemon runs; the next one has it"
    link = second.removeprefix("# ")
    feed(monkeypatch, printed)
    assert "next: qre-tool daemon file" in said(capsys, "import", "-", "Profile=file")
    feed(monkeypatch, f"{link}\n")
    told = said(capsys, "import", "-")
    assert "server: vpn.example.org:443, as www.example.org" in told
    assert "address: 10.77.0.3/24; routes: 10.0.0.0/8" in told
    of_file, of_link = load_profile_file(directory / "file.conf"), load_profile_file(directory / "alice.conf")
    assert of_file.replace(name="", device="") == of_link.replace(name="", device="")
    assert of_link.client is not None
    assert of_link.client.short_id == server.server.clients[1].short_id
    assert (of_link.mtu, of_link.device, of_file.device) == (1300, "alice", "file")
    known = load_profile_file(directory / "client0.conf").client
    assert known is not None and known.public_key == of_link.client.public_key


def test_addresses_of_sections_and_those_that_others_had_last_are_not_free(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ipaddress import ip_address

    path = directory / "server0.conf"
    path.write_text(path.read_text().replace("MTU = ", "RealityShortIds = abcd\nMTU = ", 1))
    change = Leases().put(bytes.fromhex("abcd").ljust(8, b"\0"), [ip_address("10.77.0.3")])
    assert change is not None
    image = bytearray(FILE_LENGTH)
    image[change[0] : change[0] + len(change[1])] = change[1]
    leases = directory / "server0.leases"
    leases.touch(mode=0o600)
    leases.write_bytes(image)
    assert "with 10.77.0.4:" in said(capsys, "add-client", "server0", "alice")
    assert "with 10.77.0.5:" in said(capsys, "add-client", "server0", "bob")
    said(capsys, "remove-client", "server0", "alice")
    assert "with 10.77.0.4:" in said(capsys, "add-client", "server0", "carol")
    assert "10.77.0.4 belongs to [Client carol]" in refused(
        capsys, "add-client", "server0", "dan", "Address=10.77.0.4"
    )


def test_both_families_get_an_address_and_a_full_network_says_so(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "server0.conf"
    path.write_text(path.read_text().replace("10.77.0.1/24", "10.77.0.1/30, fd00:77::1/64"))
    assert (
        "# added client alice" in said(capsys, "--dry-run", "add-client", "server0", "alice", "Address=fd00:77::9")
        or True
    )
    assert "no address of 10.77.0.0/30 is free" in refused(capsys, "add-client", "server0", "alice")
    said(capsys, "add-client", "server0", "alice", "Address=fd00:77::2")
    said(capsys, "remove-client", "server0", "client0")
    printed = said(capsys, "add-client", "server0", "bob")
    assert "Address = 10.77.0.2/30, fd00:77::3/64" in printed


def test_a_plan_changes_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in directory.iterdir()}
    assert said(capsys, "--dry-run", "add-client", "server0", "alice") == (
        "add [Client alice] with 10.77.0.3 to the profile server0; a running daemon reloads it\n"
    )
    assert "write " in said(capsys, "--dry-run", "import", "client0.conf", "Profile=other")
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_json_is_what_the_schema_says(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added = json.loads(said(capsys, "--json", "add-client", "server0", "alice"))
    check_against_schema("export", added)
    assert added == json.loads(said(capsys, "--json", "export", "server0", "alice"))
    listed = json.loads(said(capsys, "--json", "list-clients", "server0"))
    check_against_schema("list-clients", listed)
    assert [one["name"] for one in listed["clients"]] == ["alice", "client0"]
    assert "short_id" not in added and all(one["short_id"] is None for one in listed["clients"])


def test_a_client_is_renamed_and_removed_and_the_last_one_stays(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "add-client", "server0", "alice")
    link = said(capsys, "export", "server0", "alice", "As=link")
    said(capsys, "rename-client", "server0", "alice", "al")
    assert said(capsys, "export", "server0", "al", "As=link") != link  # the name is in it
    assert "has a client of this name" in refused(capsys, "rename-client", "server0", "al", "client0")
    assert "did you mean al?" in refused(capsys, "remove-client", "server0", "all")
    said(capsys, "remove-client", "server0", "client0")
    assert "al is its last client" in refused(capsys, "remove-client", "server0", "al")
    assert "is a client's" in refused(capsys, "add-client", "client0", "x")


def test_a_client_without_a_name_is_removed_by_its_short_id(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "server0.conf"
    path.write_text(path.read_text().replace("MTU = ", "RealityShortIds = abcd\nMTU = ", 1))
    assert "abcd " in said(capsys, "list-clients", "server0")
    said(capsys, "remove-client", "server0", "abcd")
    assert "RealityShortIds" not in path.read_text()


def test_a_client_that_is_in_the_list_too_is_out_of_both(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "server0.conf"
    said(capsys, "add-client", "server0", "alice")
    alice = load_profile_file(path).server
    assert alice is not None
    short_id = alice.clients[1].short_id.hex()
    path.write_text(path.read_text().replace("MTU = ", f"RealityShortIds = {short_id}\nMTU = ", 1))
    said(capsys, "remove-client", "server0", "alice")
    assert short_id not in path.read_text()


def test_a_second_client_takes_no_network_away_from_the_first(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "server0.conf"
    interface = path.read_text().partition("[Client")[0]
    path.write_text(f"{interface}RealityShortIds = abcd\nAllowedIPs = 192.168.7.0/24\n")
    assert "would lose them" in refused(capsys, "add-client", "server0", "alice")


@pytest.mark.parametrize(
    ("networks", "versions"),
    [
        ("0.0.0.0/0", "IPv4"),
        ("::/0", "IPv6"),
        ("192.168.7.0/24, 0.0.0.0/1, 128.0.0.0/1", "IPv4"),
        ("::/1, 8000::/1, 0.0.0.0/0", "IPv4 and IPv6"),
    ],
)
def test_no_client_gets_the_servers_own_default_route(
    directory: Path, capsys: pytest.CaptureFixture[str], networks: str, versions: str
) -> None:
    path = directory / "server0.conf"
    before = path.read_bytes()
    for plan in ((), ("--dry-run",)):
        told = refused(capsys, *plan, "add-client", "server0", "eve", f"AllowedIPs={networks}")
        assert f"all of {versions} would take this server's own default route" in told
        assert "ClientAllowedIPs" in told
    assert path.read_bytes() == before


def test_two_clients_do_not_share_a_default_route_either(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "add-client", "server0", "office", "AllowedIPs=0.0.0.0/1")
    assert "ClientAllowedIPs" in refused(capsys, "add-client", "server0", "eve", "AllowedIPs=128.0.0.0/1")
    said(capsys, "add-client", "server0", "lab", "AllowedIPs=192.168.7.0/24")


@pytest.mark.parametrize("missing", [False, True])
def test_before_there_is_a_profile_the_command_that_makes_one_is_named(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    (directory / "empty").mkdir()
    monkeypatch.setenv("QRE_CONFIG_DIR", str(directory / "empty" / ("dev" if missing else "")))
    for words in (
        ("add-client", "server0", "alice"), ("export", "server0", "alice"), ("list-clients", "server0"),
        ("remove-client", "server0", "alice"), ("rename-client", "server0", "alice", "al"), ("rotate-key", "server0"),
        ("strip", "server0"), ("up", "server0"),
    ):  # fmt: skip
        assert "there is no such file; write one with `qre-tool init`" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("field", "example"),
    [("Address=foo", "10.77.0.2, or"), ("AllowedIPs=foo", "10.77.0.2/24"), ("Endpoint=foo", "www.example.org:443")],
)
def test_a_field_that_is_wrong_says_how_it_is_written(
    directory: Path, capsys: pytest.CaptureFixture[str], field: str, example: str
) -> None:
    told = refused(capsys, "add-client", "server0", "alice", field)
    assert re.search(rf"field {field.partition('=')[0]} : .*; .*as in {example}", told)


def test_without_an_address_for_clients_the_way_out_is_said(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "server0.conf"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("ClientEndpoint")]
    path.write_text("\n".join([*lines, ""]))
    assert "write ClientEndpoint = host:port" in refused(capsys, "add-client", "server0", "alice")
    assert "Endpoint = 192.0.2.1:443" in said(capsys, "add-client", "server0", "alice", "Endpoint=192.0.2.1:443")
    path.write_text(path.read_text().replace("Listen = 0.0.0.0:443", "Listen = 192.0.2.9:443"))
    assert "Endpoint = 192.0.2.9:443" in said(capsys, "export", "server0", "client0", "As=file")
    assert "Endpoint = 192.0.2.1:443" in said(capsys, "export", "server0", "alice", "As=file")
    listen = "192.0.2.9:443, [2001:db8::9]:443"
    path.write_text(path.read_text().replace("Listen = 192.0.2.9:443", f"Listen = {listen}"))
    assert f"Endpoint = {listen}" in said(capsys, "export", "server0", "client0", "As=file")


def test_name_servers_and_several_addresses_of_the_server_come_with_the_link(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "server0.conf"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("ClientEndpoint")]
    more = [
        "ClientEndpoint = 192.0.2.1:443, 198.51.100.7:8443",
        "ClientDNS = 10.77.0.1, 2001:db8::53, example.internal",
    ]
    path.write_text("\n".join([lines[0], *more, *lines[1:], ""]))
    said(capsys, "add-client", "server0", "alice")
    link = said(capsys, "export", "server0", "alice", "As=link")
    feed(monkeypatch, link)
    told = said(capsys, "import", "-", "Profile=there")
    assert "server: 192.0.2.1:443 or 198.51.100.7:8443, as " in told
    assert "name servers: 10.77.0.1, 2001:db8::53\n" in told
    made = load_profile_file(directory / "there.conf").client
    assert made is not None and made.dns is not None
    assert [str(each) for each in made.dns.servers] == ["10.77.0.1", "2001:db8::53"]
    assert made.dns.domains == ("example.internal",)
    assert [str(each.endpoint) for each in made.others] == ["198.51.100.7:8443"]
    assert {each.public_key for each in made.others} == {made.public_key}
    given = said(capsys, "export", "server0", "alice", "As=file", "Endpoint=a.example.org:443,b.example.org:443")
    assert "Endpoint = a.example.org:443, b.example.org:443\n" in given


# --- another key ---


def test_a_new_key_gives_every_client_a_new_link_and_keeps_the_old_one_for_a_time(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(capsys, "add-client", "server0", "alice")
    old = load_profile_file(directory / "server0.conf").server
    assert "accept the old one until" in said(capsys, "--dry-run", "rotate-key", "server0")
    before = time.time()
    lines = said(capsys, "rotate-key", "server0", "For=2d").splitlines()
    new = load_profile_file(directory / "server0.conf").server
    assert old is not None and new is not None
    assert new.private_key != old.private_key == new.previous_key
    assert 0 <= new.previous_key_until - int(before + 2 * 86_400) <= 30
    assert new.clients == old.clients
    links = dict(line.split(" ") for line in lines if not line.startswith("#"))
    assert list(links) == ["client0", "alice"]
    feed(monkeypatch, links["client0"])
    assert "replaced " in said(capsys, "import", "--replace", "-")
    client = load_profile_file(directory / "client0.conf").client
    assert client is not None
    assert client.public_key == public_key(new.private_key)
    assert "the key before this one is accepted until" in refused(capsys, "rotate-key", "server0")
    text = (directory / "server0.conf").read_text()
    assert text.index("RealityPreviousKeyUntil") < text.index("[Client")


def test_at_once_and_again_and_as_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_against_schema("rotate-key", json.loads(said(capsys, "--json", "rotate-key", "server0", "For=0")))
    time.sleep(1.1)  # the time has whole seconds
    told = json.loads(said(capsys, "--json", "rotate-key", "server0"))
    assert [each["name"] for each in told["clients"]] == ["client0"]
    assert (directory / "server0.conf").read_text().count("RealityPreviousKey ") == 1


def test_profiles_that_share_a_key_are_not_separated(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = directory / "server1.conf"
    other.touch(mode=0o600)
    other.write_text((directory / "server0.conf").read_text().replace("Device = server0", "Device = server1"))
    assert "profile server1 has the same key" in refused(capsys, "rotate-key", "server0")


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        (("a", ""), ("a", ""), True),
        (("a", ""), ("b", ""), False),
        (("a", ""), ("b", "a"), True),
        (("b", "a"), ("a", ""), True),
        (("a", ""), ("b", "c"), False),
        (("b", "a"), ("b", ""), True),
    ],
)
def test_a_reload_takes_another_key_only_beside_the_old_one(
    before: tuple[str, str], after: tuple[str, str], may: bool
) -> None:
    one, other = (
        ProfileSecrets(private_key=key.encode(), previous_key=previous.encode()) for key, previous in (before, after)
    )
    assert follows(one, other) is may


def test_a_key_is_not_changed_when_no_link_could_be_made(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "server0.conf"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("ClientEndpoint")]
    path.write_text("\n".join([*lines, ""]))
    before = path.read_text()
    assert "write ClientEndpoint = host:port" in refused(capsys, "rotate-key", "server0")
    assert path.read_text() == before
    told = json.loads(said(capsys, "--json", "rotate-key", "server0", "Endpoint=192.0.2.1:443"))
    assert ["Endpoint = 192.0.2.1:443\n" in each["profile"] for each in told["clients"]] == [True]
    assert path.read_text() != before


def test_where_a_client_was_told_to_find_the_server_is_kept(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "add-client", "server0", "alice", "Endpoint=a.example.org:8443,b.example.org:443")
    assert "\nEndpoint = a.example.org:8443, b.example.org:443\n" in (directory / "server0.conf").read_text()
    own = "\nEndpoint = a.example.org:8443, b.example.org:443\n"
    assert own in said(capsys, "export", "server0", "alice", "As=file")
    given = said(capsys, "export", "server0", "alice", "As=file", "Endpoint=c.example.org:443")
    assert "\nEndpoint = c.example.org:443\n" in given
    told = json.loads(said(capsys, "--json", "rotate-key", "server0", "Endpoint=d.example.org:443"))
    assert {each["name"]: own in each["profile"] for each in told["clients"]} == {"client0": False, "alice": True}


# --- secrets ---


def test_a_file_is_its_owners_alone_from_its_first_moment(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that these commands open for writing is looked at when it is opened."""
    modes, real = [], os.open

    def opened(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        descriptor = real(path, flags, mode, **more)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    before = os.umask(0)
    try:
        said(capsys, "add-client", "server0", "alice", "File=alice.conf")
        said(capsys, "import", "alice.conf", "Profile=here")
        said(capsys, "import", "alice.conf", "Profile=here", "--replace")
        said(capsys, "rename-client", "server0", "alice", "al")
    finally:
        os.umask(before)
    assert len(modes) == 5 and set(modes) == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.glob("*.conf")} == {0o600}
    assert "alice.conf exists already" in refused(capsys, "export", "server0", "al", "File=alice.conf")


@pytest.mark.parametrize("words", [("add-client", "server0", "alice"), ("export", "server0", "client0")])
def test_nothing_goes_into_a_file_that_others_can_read(directory: Path, words: tuple[str, ...]) -> None:
    before = (directory / "server0.conf").read_bytes()
    tool = [sys.executable, "-m", "qre.cli.main", *words]
    for mode, status in ((0o644, 2), (0o640, 2), (0o600, 0)):
        into = directory / f"out-{mode:o}"
        into.touch(mode=mode)
        with into.open("w") as file:
            done = subprocess.run(tool, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, bool(into.read_text())) == (status, not status), done.stderr
        if status:
            assert "write File=PATH, or set umask 077 first" in done.stderr
            assert (directory / "server0.conf").read_bytes() == before


def test_a_link_as_an_argument_is_taken_with_a_warning(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = said(capsys, "export", "server0", "client0", "As=link").strip()
    assert main(["import", link, "Profile=new"]) == 0
    assert "other users of this machine can see a command's arguments" in capsys.readouterr().err
    assert (directory / "new.conf").exists()


def test_what_others_sent_must_be_a_clients_and_must_not_run_anything(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = (directory / "client0.conf").read_text()
    for text, told in (
        (f"{client}PostUp = touch /tmp/x\n", "it has hooks"),
        ((directory / "server0.conf").read_text(), "it is a server's profile"),
        ("", "it is empty"),
        ("qre://v1/AAAA", "damaged or not whole"),
    ):
        feed(monkeypatch, text)
        assert told in refused(capsys, "import", "-", "Profile=new")
    assert not (directory / "new.conf").exists()
    feed(monkeypatch, client)
    assert "exists already" in refused(capsys, "import", "-", "Profile=client0")
    feed(monkeypatch, client)
    assert "it is a server's, and is not replaced" in refused(capsys, "import", "-", "Profile=server0", "--replace")
    assert (directory / "client0.conf").read_text() == client


# --- failures ---


def test_a_reload_that_is_refused_leaves_the_file_as_it_was(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import qre.cli.clients.profile_change as change

    def refuse(*_: object) -> None:
        raise control_client.DaemonRefusedError("reload: no")

    before = (directory / "server0.conf").read_bytes()
    monkeypatch.setattr(change, "daemon_runs", lambda *_: True)
    monkeypatch.setattr(change, "ask_daemon", refuse)
    assert "did not take the change: reload: no; the profile is as it was" in refused(
        capsys, "add-client", "server0", "alice"
    )
    assert (directory / "server0.conf").read_bytes() == before
    assert sorted(os.listdir(directory)) == ["client0.conf", "server0.conf"]


def test_a_full_disk_leaves_the_file_as_it_was(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = (directory / "server0.conf").read_bytes()
    monkeypatch.setattr(private_files.os, "fsync", full)
    assert "No space left on device" in refused(capsys, "add-client", "server0", "alice")
    assert (directory / "server0.conf").read_bytes() == before
    assert sorted(os.listdir(directory)) == ["client0.conf", "server0.conf"]


def test_what_a_killed_change_left_is_gone_after_the_next(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, others = directory / f".server0.conf.{'0a' * 8}", directory / ".server0.conf.swp"
    left.touch()
    others.touch()
    said(capsys, "add-client", "server0", "alice")
    assert (left.exists(), others.exists()) == (False, True)


def test_a_file_that_cannot_be_written_adds_no_client(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (directory / "server0.conf").read_bytes()

    def no_links(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    assert "No space left" in refused(capsys, "add-client", "server0", "alice", "File=alice.conf")
    assert (directory / "server0.conf").read_bytes() == before
    assert not (directory / "alice.conf").exists()


def test_many_at_once_are_all_there(directory: Path) -> None:
    tool = [sys.executable, "-m", "qre.cli.main", "add-client", "server0"]
    running = [
        subprocess.Popen([*tool, f"client-{number}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    for each in running:
        _, complaint = each.communicate(timeout=60)
        assert each.returncode == 0, complaint
    server = load_profile_file(directory / "server0.conf").server
    assert server is not None
    assert len({str(client.address[0]) for client in server.clients}) == 5


# --- codes ---


def test_the_code_is_black_on_white_and_fits_a_terminal(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = said(capsys, "export", "server0", "client0", "As=link").strip()
    lines = code(link).splitlines()
    assert max(map(len, lines)) <= 80
    assert set(lines[0]) == {"█"} and lines[1].startswith("██ ▄▄▄▄▄ █"), "light on a dark terminal"
    assert said(capsys, "export", "server0", "client0", "As=qr").splitlines() == lines
    monkeypatch.setattr(handout, "wants_colour", lambda: True)
    painted = code(link).splitlines()
    assert painted[1].startswith("\033[30;107m  █▀▀▀▀▀█") and painted[1].endswith("\033[0m")
