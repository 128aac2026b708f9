"""What a prober sees of a server is what it sees of the site: the same questions to both, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qre.wire.packet import is_long
from tests.support.ping import answered
from tests.support.probes import ping_initial, probe, unknown_version
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    """A server before its site, which the client's network can reach, too."""
    with Tunnel() as made:
        made.lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        made.lab.site.ip("route", "add", "10.90.1.0/24", "via", made.lab.SERVER_TO_SITE)
        made.server.start().wait_ready()
        yield made


def both(tunnel: Tunnel, make: Callable[[], list[bytes]], **more: float) -> tuple[list[bytes], list[bytes]]:
    """The answers of the site and those at the port, to different datagrams of one kind."""
    lab = tunnel.lab
    site, port = (
        probe(lab.client, address, PORT, make(), sockets=int(more.get("sockets", 1)), wait=more.get("wait", 0.7))
        for address in (lab.SITE, lab.SERVER)
    )
    return site, port


def kinds(answers: list[bytes]) -> list[tuple[bool, bytes, int]]:
    """Header form, version and length."""
    return sorted((is_long(each), each[1:5] if is_long(each) else b"", len(each)) for each in answers)


@pytest.mark.parametrize("length", [1200, 1472, 1473, 4000, 9200])
def test_a_version_that_nobody_knows_is_answered_whatever_its_length(tunnel: Tunnel, length: int) -> None:
    """Above 1,472 bytes it comes in fragments, and goes to the site so."""
    site, port = both(tunnel, lambda: [unknown_version(length)])
    assert len(site) == 1 and site[0][1:5] == bytes(4)
    assert [len(each) for each in port] == [len(each) for each in site]
    assert port[0][1:5] == bytes(4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [ping_initial()],
        lambda: [ping_initial(1199)],
        lambda: [ping_initial(1472)],
        lambda: [b"garbage"],
        lambda: [b"\x41" + bytes(60)],
        lambda: [b"\xc3\x00\x00\x00\x01" + bytes(1195)],
        lambda: [unknown_version(600)],
    ],
)
def test_what_is_no_hello_has_the_sites_answer(tunnel: Tunnel, make: Callable[[], list[bytes]]) -> None:
    site, port = both(tunnel, make)
    assert kinds(site) == kinds(port)


def test_three_hundred_at_once_have_as_many_answers_as_the_site_gives(tunnel: Tunnel) -> None:
    site, port = both(tunnel, lambda: [ping_initial() for _ in range(300)], sockets=300, wait=3.0)
    assert len(site) == 300
    assert len(port) >= 295, "a datagram or two may be lost on a busy machine"


def test_what_is_injected_at_a_clients_address_is_answered_by_the_site(tunnel: Tunnel) -> None:
    """Spoken from the client's own address and port, after its handshake, as somebody on the path would."""
    client = tunnel.client.start().wait_ready().wait_session()
    try:
        source = _outer_port(tunnel)
        for make in (lambda: unknown_version(1200), ping_initial):
            answers = _inject(tunnel, source, make())
            assert len(answers) == 1 and is_long(answers[0])
        assert tunnel.client.tool("show", "client0").count("established") >= 1
    finally:
        client.stop()


def test_what_comes_from_port_0_is_answered_by_nobody_and_harms_nobody(tunnel: Tunnel) -> None:
    """Nothing can be sent there. With the session's own connection ID it goes to the data plane, else to the site."""
    client = tunnel.client.start().wait_ready().wait_session()
    try:
        cid, before = bytes.fromhex(_session(tunnel)["connection_id"]), tunnel.server.workers()
        for data in (b"\x40" + cid + bytes(60), ping_initial(), unknown_version(1200)):
            assert _inject(tunnel, 0, data) == []
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        assert tunnel.server.workers() == before
    finally:
        client.stop()


def _session(tunnel: Tunnel) -> dict[str, Any]:
    (device,) = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"]
    (session,) = device["sessions"]
    return dict(session)


def _outer_port(tunnel: Tunnel) -> int:
    """Of the client's session, as its server sees it: the client has a spare port, too."""
    return int(_session(tunnel)["endpoint"].rpartition(":")[2])


_INJECT = """
import socket, struct, sys, time
source, server, port, data = sys.argv[1], sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
ip, sport = source.split(":")
listen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
listen.settimeout(1.0)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
raw.bind((ip, 0))
raw.sendto(struct.pack("!HHHH", int(sport), port, 8 + len(data), 0) + data, (server, 0))
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        packet = listen.recv(65535)
    except TimeoutError:
        break
    head = (packet[0] & 15) * 4
    if packet[9] != 17 or packet[12:16] != socket.inet_aton(server) or packet[head + 8] < 0x80:
        continue
    if struct.unpack("!HH", packet[head:head + 4]) == (port, int(sport)):
        print(packet[head + 8:].hex())
"""


def _inject(tunnel: Tunnel, port: int, data: bytes) -> list[bytes]:
    """Send ``data`` in the client's name; long headers that come back to its port."""
    printed = tunnel.lab.client.run(
        "/usr/bin/python3", "-c", _INJECT, f"{tunnel.lab.CLIENT}:{port}", tunnel.lab.SERVER, str(PORT), data.hex()
    )
    return [bytes.fromhex(line) for line in printed.split()]
