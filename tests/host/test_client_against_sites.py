"""The real client visits real HTTP/3 sites that know nothing of QRE, and is read from outside with tshark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qre.visit.visitor_files import load_fingerprint
from tests.support.daemons import wait_for
from tests.support.ja4 import hellos, tshark
from tests.support.namespaces import Namespace, join
from tests.support.site import NAME, Caddy, make_authority
from tests.support.tcpdump import Tcpdump

CLIENT, SITE = "10.91.1.2", "10.91.1.1"
PORT = 443


class Road:
    """``client —10.91.1.0/24— site``"""

    def __init__(self) -> None:
        self.client, self.site = Namespace("t-visitor"), Namespace("t-site")
        self.client_device, _ = join(self.client, f"{CLIENT}/24", self.site, f"{SITE}/24")

    def close(self) -> None:
        self.client.delete()
        self.site.delete()


@pytest.fixture(scope="module")
def road() -> Iterator[Road]:
    road = Road()
    yield road
    road.close()
    for namespace in (road.client, road.site):
        assert not Path("/run/netns", namespace.name).exists()


@pytest.fixture(scope="module")
def caddy(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caddy]:
    caddy = Caddy(road.site, tmp_path_factory.mktemp("caddy"), SITE, PORT)
    yield caddy
    caddy.stop()
    assert caddy.process.returncode is not None


def visits(
    road: Road, authority: Path | None, count: int, key: bytes = b"", port: int = PORT
) -> list[dict[str, Any]]:
    """What the client told of ``count`` visits."""
    environment = dict(os.environ)
    environment.pop("SSL_CERT_FILE", None)
    if authority is not None:
        environment["SSL_CERT_FILE"] = str(authority)
    done = subprocess.run(
        [*road.client.prefix, sys.executable, "-m", "tests.support.visitor", SITE, str(port), NAME, str(count)]
        + ([key.hex()] if key else []),
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_sixteen_first_flights_are_the_browsers(road: Road, caddy: Caddy, tmp_path: Path) -> None:
    with Tcpdump(road.client, road.client_device, tmp_path / "visits.pcap") as capture:
        told = visits(road, caddy.authority, 16, os.urandom(32))
        assert [visit["events"] for visit in told] == [["NotRecognised", "Closed"]] * 16
        wait_for("sixteen first flights in the capture", lambda: whole_flights(capture) >= 16)

    found = hellos(capture.path)
    assert {ja4 for ja4, _ in found} == {load_fingerprint().ja4} == {"q13d0312h3_55b375c5d22e_178839b6cec1"}
    assert len(found) == 16
    assert len({tuple(kinds) for _, kinds in found}) == 16
    parameters = tshark(capture.path, "tls.quic.parameter.type", "tls.quic.parameter.type")
    assert len({row[0] for row in parameters if row[0].count(",") == 12}) == 16

    flights: dict[int, list[bytes]] = {}
    for datagram in capture.datagrams():
        if datagram.source[0] == CLIENT:
            assert datagram.dont_fragment
            assert datagram.tos == 0
            assert len(datagram.payload) <= 1250
            flights.setdefault(datagram.source[1], []).append(datagram.payload)
    assert len(flights) == 16
    for datagrams in flights.values():
        assert [len(payload) for payload in datagrams[:3]] == [1250, 1250, 1250]
        for payload in datagrams:
            assert payload[0] & 0x80 or not payload[0] & 0x20, "the spin bit is not 0"
    assert_first_flights(capture.path)


def whole_flights(capture: Tcpdump) -> int:
    """The client's ports of which the capture, written a block at a time, holds a first flight by now."""
    ports = Counter(datagram.source[1] for datagram in capture.datagrams() if datagram.source[0] == CLIENT)
    return sum(count >= 3 for count in ports.values())


def assert_first_flights(capture: Path) -> None:
    """tshark's reading of the Initials that carry the hello."""
    fields = (
        "udp.srcport",
        "quic.packet_number",
        "quic.packet_length",
        "quic.dcil",
        "quic.scil",
        "quic.crypto.offset",
    )
    streams: dict[str, list[list[str]]] = {}
    for row in tshark(capture, f"ip.src == {CLIENT} and quic.long.packet_type == 0 and quic.crypto.offset", *fields):
        streams.setdefault(row[0], []).append(row)
    assert len(streams) == 16
    for rows in streams.values():
        first, second = rows[:2]
        assert [first[1], second[1]] == ["1", "2"]
        assert first[2] == second[2] == "1250", "the packet does not fill its datagram"
        assert (first[3], first[4]) == ("8", "0")
        offsets = [[int(offset) for offset in row[5].split(",")] for row in (first, second)]
        assert 0 in offsets[0]
        assert 55 <= min(offsets[1]) <= 86
        assert max(offsets[0]) > max(offsets[1])


def test_a_site_tells_what_a_server_has_to_imitate(road: Road, caddy: Caddy) -> None:
    (told,) = visits(road, caddy.authority, 1)
    assert told["events"] == ["SiteAnswered", "Closed"]
    profile = told["profile"]
    assert profile["reachable"]
    assert profile["scid_length"] == 4
    assert profile["cipher"] == "AES_128_GCM_SHA256"
    assert profile["group"] == "X25519MLKEM768"
    assert profile["alpn"] == "h3"
    assert profile["http_status"] == 200
    assert profile["server_hello_extensions"] == [43, 51]
    assert profile["flight_datagram_lengths"][:2] == [1200, 1200]
    assert profile["session_ticket_lengths"] == [181]
    assert 500 < profile["handshake_flight_length"] < 800
    assert profile["transport_parameters"][1:6] == [5, 6, 7, 4, 8]
    assert profile["certificate_chain_length"] > 300
    assert profile["warnings"] == []


def test_a_site_that_no_authority_vouches_for_is_a_man_in_the_middle(
    road: Road, caddy: Caddy, tmp_path: Path
) -> None:
    other = make_authority(tmp_path / "other")
    with Tcpdump(road.client, road.client_device, tmp_path / "middle.pcap") as capture:
        (told,) = visits(road, other, 1, os.urandom(32))
        wait_for("the CLOSE", lambda: sum(d.source[0] == CLIENT for d in capture.datagrams()) >= 3)
    assert told["events"] == ["ManInTheMiddle", "Closed"]
    assert "not trusted" in told["texts"][0]
    (probed,) = visits(road, other, 1)
    assert probed["events"] == ["SiteAnswered", "Closed"]
    assert "not trusted" in probed["profile"]["warnings"][0]


@pytest.mark.parametrize("key", [b"", os.urandom(32)], ids=["probe", "stranger"])
def test_another_implementation_of_quic_completes_the_handshake_too(road: Road, tmp_path: Path, key: bytes) -> None:
    authority = make_authority(tmp_path)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("gardens\n")
    log = tmp_path / "gtlsserver.log"
    server = road.site.popen(
        [
            "gtlsserver",
            "-q",
            "-d",
            str(tmp_path / "www"),
            SITE,
            "4433",
            f"{tmp_path}/site.key",
            f"{tmp_path}/site.pem",
        ],
        log=log,
    )
    try:
        wait_for("gtlsserver", lambda: ":4433 " in road.site.run("ss", "-Hlun"))
        (told,) = visits(road, authority, 1, key, port=4433)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert told["events"] == ["NotRecognised" if key else "SiteAnswered", "Closed"]
    if not key:
        assert told["profile"]["group"] == "X25519"
        assert told["profile"]["http_status"] == 200


def test_nobody_at_home_is_told_after_ten_seconds(road: Road) -> None:
    (told,) = visits(road, None, 1, os.urandom(32), port=9)
    assert told["events"] == ["HandshakeFailed", "Closed"]
    assert "no answer" in told["texts"][0]
