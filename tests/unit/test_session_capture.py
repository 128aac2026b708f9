"""session-capture, judged by tshark: what is in the files, that no other is made, and that wrong verdicts fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pylsqpack
import pytest

from qre.addresses import Interface
from qre.cli.main import main
from qre.cli.session import session_capture
from qre.cli.session.session_capture import SCENARIOS, VALID
from qre.config.model import ClientSettings, ServerSettings
from qre.dest_profile import DestProfile
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.in_memory.lone_server import Address
from qre.quic.in_memory.plan import InMemoryHandshake
from qre.quic.in_memory.strangers import Arrived, Stranger
from tests.support.daemons import which

STRANGERS = tuple(name for name in SCENARIOS if name != VALID)
PCAP, PCAPNG = b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a"
CHECKED = ("-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a pair of profiles, and nothing of this machine's configuration."""
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "Endpoint=203.0.113.5:443", "Dest=203.0.113.9:443", "ServerName=site.example"]) == 0
    yield tmp_path


def capture(scenario: str, *fields: str, path: str = "made.pcap", client: str = "client0.conf") -> int:
    return main(["session-capture", scenario, "server0.conf", client, path, *fields])


def tshark(path: str, *options: str) -> list[list[str]]:
    command = [which("tshark"), "-r", path, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [line.split("\t") for line in done.stdout.splitlines()]


def fields_of(path: str, *names: str, only: str = "", keys: bool = False) -> list[list[str]]:
    options = ["-T", "fields", *(word for name in names for word in ("-e", name)), *(["-Y", only] if only else [])]
    return tshark(path, *(["-o", f"tls.keylog_file:{path}.keys"] if keys else []), *options)


def edit(name: str, key: str, value: str, into: str) -> str:
    lines = [line for line in Path(name).read_text().splitlines() if not line.startswith(key)]
    Path(into).touch(mode=0o600)
    Path(into).write_text("\n".join([f"{key} = {value}", *lines, ""]))  # above the sections
    return into


def test_a_valid_client_completes_the_handshake(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capture("valid", "KeyLog=true") == 0
    assert "the handshake was completed" in capsys.readouterr().out
    assert oct((files / "made.pcap").stat().st_mode & 0o777) == oct((files / "made.pcap.keys").stat().st_mode & 0o777)
    names = ("tls.handshake.extensions_server_name", "tls.handshake.extensions_alpn_str")
    assert fields_of("made.pcap", *names, only="tls.handshake.type == 1") == [["site.example", "h3"]]
    # Of the server: EncryptedExtensions, Certificate, CertificateVerify, Finished; then the client's Finished.
    finished = fields_of("made.pcap", "ip.src", only="tls.handshake.type == 20", keys=True)
    assert {source for (source,) in finished} == {"203.0.113.5", "198.51.100.7"}
    assert fields_of("made.pcap", "ip.src", only="quic.frame_type == 0x1e", keys=True) == [["203.0.113.5"]]


def test_with_the_keys_there_is_a_connect_to_be_read(files: Path) -> None:
    assert capture(VALID, "key-log=true") == 0
    names = ("ip.src", "http3.frame_type", "http3.frame_payload")
    headers = {}
    for source, kinds, payloads in fields_of("made.pcap", *names, only="http3.frame_type == 1", keys=True):
        payload = payloads.split(",")[[int(kind, 0) for kind in kinds.split(",")].index(1)]
        headers[source] = dict(pylsqpack.Decoder(0, 0).feed_header(0, bytes.fromhex(payload))[1])
    request, response = headers["198.51.100.7"], headers["203.0.113.5"]
    assert request[b":method"] == b"CONNECT" and request[b":protocol"] == b"connect-ip"
    assert request[b":authority"] == b"site.example"
    assert response[b":status"] == b"200"


@pytest.mark.parametrize(
    ("cid", "lengths", "flight"),
    [(4, (1200, 1200), 1250), (18, (1252, 1252), 2100), (8, (1280, 1280), 1300)],
)
def test_the_flight_of_a_recorded_site_is_played(
    files: Path, cid: int, lengths: tuple[int, ...], flight: int
) -> None:
    site = DestProfile(
        reachable=True,
        checked_at=1,
        scid_length=cid,
        flight_datagram_lengths=lengths,
        handshake_flight_length=flight,
    )
    (files / "server0.dest").write_bytes(msgspec.json.encode(site))
    assert capture(VALID, "DestProfile=server0.dest") == 0
    names = ("udp.length", "quic.scil")
    sent = fields_of("made.pcap", *names, only="ip.src == 203.0.113.5")
    assert [int(length) - 8 for length, _ in sent[: len(lengths)]] == list(lengths)
    assert {each for _, scil in sent for each in scil.split(",") if each} == {str(cid)}


@pytest.mark.parametrize("command", ["session-plan", "session-demo", "session-capture"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "is no profile of a Dest"),
        (b"{" * 70_000, "is no profile of a Dest"),
        (b"[]", "is no profile of a Dest"),
        (b'{"reachable":true}', "is no profile of a Dest"),
        (b'{"reachable":false,"checked_at":1}', "could not be reached"),
    ],
)
def test_a_recorded_site_that_is_none_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], command: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (files / "site").write_bytes(content)
    words = ["server0.conf", "client0.conf"]
    capsys.readouterr()
    assert (
        main([command, *(["valid", *words, "made.pcap"] if "capture" in command else words), "DestProfile=site"]) == 2
    )
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("qre-tool: field DestProfile : ") and said in printed.err
    assert not (files / "made.pcap").exists()


@pytest.mark.parametrize("scenario", STRANGERS)
def test_a_stranger_sends_and_gets_nothing_of_ours(
    files: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(scenario) == 0
    summary, _, missing = capsys.readouterr().out.splitlines()[-3:]
    assert "0 of the server; refused" in summary and "there is no Dest" in missing
    sources = [source for (source,) in fields_of("made.pcap", "ip.src")]
    assert len(sources) >= 2 and set(sources) == {"198.51.100.7"}
    names = [name for (name,) in fields_of("made.pcap", "tls.handshake.extensions_server_name") if name]
    expected = {"invalid-short-id": ["site.example"], "wrong-sni": ["www.site.example"]}
    assert names[:1] == expected.get(scenario, [])
    assert not (files / "made.pcap.keys").exists()


@pytest.mark.parametrize(
    ("path", "kind"), [("made.pcap", PCAP), ("made", PCAP), ("made.pcapng", PCAPNG), ("made.PcapNG", PCAPNG)]
)
@pytest.mark.parametrize("scenario", [VALID, "wrong-sni"])
def test_the_file_is_what_its_name_says_and_tells_what_it_shows(
    files: Path, capsys: pytest.CaptureFixture[str], scenario: str, path: str, kind: bytes
) -> None:
    capsys.readouterr()
    assert capture(scenario, path=path) == 0
    data, printed = (files / path).read_bytes(), capsys.readouterr().out.splitlines()
    note = {VALID: "A client that holds the keys", "wrong-sni": "A client that asks for another name"}[scenario]
    assert data.startswith(kind)
    kinds = {source for (source,) in fields_of(path, "frame.encap_type")}
    assert kinds == {"7"}, "raw IP"
    told = [comment for (comment,) in fields_of(path, "frame.comment") if comment]
    if kind == PCAP:
        assert data[:24] == PCAP + bytes.fromhex("0200 0400 00000000 00000000 ffff0000 65000000")
        assert told == [] and printed[1].startswith(note)
        assert ("there is no Dest" in printed[-1]) is (scenario != VALID)
    else:
        assert len(told) == 1 and told[0].startswith(note) and len(printed) == 1
        assert ("there is no Dest" in told[0]) is (scenario != VALID)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_headers_are_as_on_a_real_path(files: Path, scenario: str) -> None:
    assert capture(scenario, "ServerUnderlay=192.0.2.8:4443", "ClientUnderlay=192.0.2.9:5555") == 0
    names = ("ip.checksum.status", "udp.checksum.status", "ip.flags.df", "ip.ttl", "frame.time_epoch", "udp.length")
    rows = tshark("made.pcap", *CHECKED, "-T", "fields", *(word for name in names for word in ("-e", name)))
    assert all(row[:3] == ["1", "1", "1"] for row in rows)
    times = [float(row[4]) for row in rows]
    assert times == sorted(set(times))
    ends = fields_of("made.pcap", "ip.src", "udp.srcport", "ip.dst", "udp.dstport", "ip.ttl")
    there, back = ("192.0.2.9", "5555", "192.0.2.8", "4443", "64"), ("192.0.2.8", "4443", "192.0.2.9", "5555", "56")
    expected = {there, back} if scenario == VALID else {there}
    assert {tuple(row) for row in ends} == expected


def test_a_capture_is_replaced_and_nothing_else_is(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert capture(VALID, "KeyLog=true") == 0
    (files / "empty").touch()
    assert capture("random-udp", path="empty") == 0
    (files / "other.pcapng").write_bytes((files / "made.pcap").read_bytes())
    assert capture("random-udp", path="other.pcapng") == 0
    (files / "made.pcap").write_bytes((files / "other.pcapng").read_bytes())
    assert (files / "made.pcap").read_bytes().startswith(PCAPNG) and capture(VALID, "KeyLog=true") == 0
    capsys.readouterr()
    (files / "notes.pcap.keys").write_text("mine")
    kept = {each: each.read_bytes() for each in files.iterdir()}
    for path in ("client0.conf", "server0.conf", "notes.pcap"):
        assert capture(VALID, "KeyLog=true", path=path) == 2
        assert "it exists and is not a capture" in capsys.readouterr().err
        assert {each: each.read_bytes() for each in files.iterdir()} == kept


def test_a_server_on_every_address_gets_one(files: Path) -> None:
    edit("server0.conf", "Listen", "0.0.0.0:8443", "server0.conf")
    assert capture("random-udp") == 0
    assert {tuple(row) for row in fields_of("made.pcap", "ip.dst", "udp.dstport")} == {("192.0.2.1", "8443")}


def test_a_valid_client_that_is_refused_fails(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = edit("client0.conf", "RealityShortId", "0102030405060708", "other.conf")
    assert capture(VALID, client=other) == 2
    assert "the valid client is refused" in capsys.readouterr().err
    assert not (files / "made.pcap").exists()


def valid_flight(
    stranger: Stranger,
    server: ServerSettings,
    client: ClientSettings,
    addresses: tuple[Interface, ...],
    server_address: Address,
    unix_time: int,
    fingerprint: Fingerprint,
    random: Random,
) -> tuple[Arrived, ...]:
    """What a client that holds the keys would send in a stranger's place."""
    handshake = InMemoryHandshake(
        server=server,
        client=client,
        addresses=addresses,
        grant=lambda short_id, wanted: wanted,
        routes=(),
        routed_cid_len=20,
        server_address=server_address,
        client_address=("198.51.100.7", 50443),
        unix_time=unix_time,
        fingerprint=fingerprint,
        random=random,
    )
    return tuple(Arrived(sent.time, sent.data) for sent in handshake.run().datagrams if sent.by_client)


@pytest.mark.parametrize("scenario", STRANGERS)
def test_a_stranger_that_is_let_in_fails(
    files: Path, scenario: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session_capture, "flight", valid_flight)
    assert capture(scenario) == 2
    assert f"the server accepts {scenario} as an authenticated client" in capsys.readouterr().err
    assert not (files / "made.pcap").exists()


def test_a_wrong_name_that_is_the_servers_is_let_in_and_fails(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that do not match: what the client would call wrong is what the server is called."""
    assert capture("wrong-sni") == 0
    (files / "made.pcap").unlink()
    edit("server0.conf", "ServerName", "www.site.example", "server0.conf")
    capsys.readouterr()
    assert capture("wrong-sni") == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "the server accepts wrong-sni as an authenticated client" in printed.err
    assert "compare both files" in printed.err
    assert printed.out == "" and not (files / "made.pcap").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "session-capture"),
        (["valid", "server0.conf", "client0.conf"], "session-capture"),
        (["walid-client", "server0.conf", "client0.conf", "made.pcap"], "valid-client"),
        (["valid", "client0.conf", "server0.conf", "made.pcap"], "client0"),
        (["valid", "server0.conf", "nowhere.conf", "made.pcap"], "nowhere.conf"),
        (["valid", "server0.conf", "client0.conf", "made.pcap", "another"], "another"),
        (["valid", "server0.conf", "client0.conf", "made.pcap", "Colour=red"], "Colour"),
        (["valid", "server0.conf", "client0.conf", "made.pcap", "KeyLog=true", "key_log=true"], "KeyLog"),
        (["valid", "server0.conf", "client0.conf", "made.pcap", "KeyLog=perhaps"], "KeyLog"),
        (["random-udp", "server0.conf", "client0.conf", "made.pcap", "KeyLog=true"], "KeyLog"),
        (["random-udp", "server0.conf", "client0.conf", "made.pcap", "DestProfile=server0.conf"], "DestProfile"),
        (["valid", "server0.conf", "client0.conf", "made.pcap", "DestProfile=fifo"], "DestProfile"),
        (["valid", "server0.conf", "client0.conf", "made.pcap", "ServerUnderlay=1.2.3.4:5"], "ClientUnderlay"),
        (
            ["valid", "server0.conf", "client0.conf", "made.pcap", "ServerUnderlay=1.2.3.4:5", "ClientUnderlay=here"],
            "ClientUnderlay",
        ),
        (["valid", "server0.conf", "client0.conf", "nowhere/made.pcap"], "nowhere/made.pcap"),
        (["valid", "server0.conf", "client0.conf", "fifo"], "fifo"),
        (["valid", "server0.conf", "client0.conf", "link"], "link"),
        (["valid", "server0.conf", "client0.conf", "/dev/full"], "/dev/full"),
    ],
)
def test_what_is_wrong_is_named_and_no_file_made(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    os.mkfifo("fifo")
    (files / "link").symlink_to("/nonexistent/elsewhere")
    before = sorted(os.listdir())
    capsys.readouterr()
    assert main(["session-capture", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and named in printed.err
    assert "internal error" not in printed.err
    assert sorted(os.listdir()) == before


def test_keys_that_cannot_be_written_take_the_capture_with_them(files: Path) -> None:
    (files / "made.pcap.keys").mkdir()
    assert capture(VALID, "KeyLog=true") == 2
    assert not (files / "made.pcap").exists()
