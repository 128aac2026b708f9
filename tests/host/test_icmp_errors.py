"""Dest is down, or the way to it is narrow: a visitor of the server's port is told, as by the port's own host."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qre.addresses import host_port
from qre.kernel.udp.port_errors import Limits
from qre.wire.internet_checksum import checksum_of, word_sum
from tests.support import refused_visitor
from tests.support.daemons import wait_for
from tests.support.lab import Ipv6Lab, Lab
from tests.support.namespaces import Namespace, join
from tests.support.tunnel import PORT, Tunnel

pytestmark = pytest.mark.root
CLOSED = 9
EITHER = pytest.mark.parametrize("lab", [Lab, Ipv6Lab], ids=["IPv4", "IPv6"])


def visit(tunnel: Tunnel, *, times: int = 2, length: int = 1250, seconds: float = 1.5, source: int = 40_000) -> Any:
    """What a visitor is told that sends so many datagrams, every second one from a connected socket."""
    lab = tunnel.lab
    arguments = (lab.SERVER, PORT, source, times, length, seconds)
    return json.loads(
        lab.client.run(sys.executable, str(Path(refused_visitor.__file__)), *(str(each) for each in arguments))
    )


@contextmanager
def serving(lab: type[Lab], dest: tuple[str, int]) -> Iterator[Tunnel]:
    """A server whose Dest is somewhere else than its site."""
    with Tunnel(lab=lab) as tunnel:
        tunnel.lab.client.run(
            "ethtool", "-K", tunnel.lab.client_device, "tx", "off"
        )  # sums are written by the sender
        tunnel.edit("server0", "Dest", host_port(*dest))
        yield tunnel


def unnumbered(packet: str) -> bytes:
    """An IPv4 packet without its identification and the sum that it is in: those count from packet to packet."""
    raw = bytes.fromhex(packet)
    if raw[0] >> 4 == 6:
        return raw
    assert checksum_of(word_sum(raw[:20])) == 0
    return raw[:4] + bytes(2) + raw[6:10] + bytes(2) + raw[12:]


@EITHER
def test_a_visitor_of_a_closed_dest_is_told_what_a_closed_port_of_the_server_tells(lab: type[Lab]) -> None:
    with serving(lab, (lab.SITE, CLOSED)) as tunnel:
        tunnel.server.start().wait_ready()
        first = visit(tunnel)
        assert first["errors"] == ["ECONNREFUSED"]
        assert len(first["packets"]) == 2
        tunnel.server.stop()
        own = visit(tunnel)  # of the kernel of the server's machine
        assert own["errors"] == ["ECONNREFUSED"]
        loose, connected = (unnumbered(packet) for packet in first["packets"])
        their_loose, their_connected = (unnumbered(packet) for packet in own["packets"])
        assert loose == their_loose
        assert without_what_differs(connected) == without_what_differs(their_connected)


def without_what_differs(packet: bytes) -> bytes:
    """A connected socket counts its datagrams, which no receiver is told; over IPv6 each socket has a flow label."""
    places = ((22, 24), (32, 34), (38, 40)) if packet[0] >> 4 == 4 else ((42, 44), (49, 52))
    for begin, end in places:  # ICMP's sum, identification and the header's sum; ICMPv6's sum, flow label
        packet = packet[:begin] + bytes(end - begin) + packet[end:]
    return packet


@EITHER
def test_a_visitor_whose_datagram_the_first_hop_to_dest_does_not_take_is_told_the_mtu(lab: type[Lab]) -> None:
    with serving(lab, (lab.SITE, CLOSED)) as tunnel:
        tunnel.lab.server.ip("link", "set", tunnel.lab.uplink_device, "mtu", "1300")
        tunnel.server.start().wait_ready()
        told = visit(tunnel, length=1400)
        assert_too_big(lab, told, 1300, 1400)
        assert visit(tunnel)["errors"] == ["ECONNREFUSED"], "what fits goes on"


@EITHER
def test_a_visitor_whose_datagram_a_router_on_the_way_to_dest_does_not_take_is_told_the_mtu(lab: type[Lab]) -> None:
    """Dest is in a network behind the site's machine, and the way there is narrow."""
    here, there, length = ("2001:db8:9::1", "2001:db8:9::2", 64) if lab is Ipv6Lab else ("10.99.0.1", "10.99.0.2", 24)
    far = Namespace("far")
    try:
        with serving(lab, (there, CLOSED)) as tunnel:
            site = tunnel.lab.site
            device, other = join(site, f"{here}/{length}", far, f"{there}/{length}")
            for namespace, name in ((site, device), (far, other)):
                namespace.ip("link", "set", name, "mtu", "1320")
            site.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            version = "-6" if lab is Ipv6Lab else "-4"
            far.ip(version, "route", "add", "default", "via", here)
            tunnel.lab.server.ip(version, "route", "add", there, "via", lab.SITE)
            tunnel.server.start().wait_ready()
            assert_too_big(lab, visit(tunnel, length=1400), 1320, 1400)
            assert visit(tunnel)["errors"] == ["ECONNREFUSED"], "what fits arrives"
    finally:
        far.delete()


def assert_too_big(lab: type[Lab], told: Any, mtu: int, length: int) -> None:
    assert told["errors"] == ["EMSGSIZE"]
    assert len(told["packets"]) == 2
    for packet in map(bytes.fromhex, told["packets"]):
        if lab is Ipv6Lab:
            assert (packet[40], packet[41], struct.unpack(">I", packet[44:48])[0]) == (2, 0, mtu)
            quoted = packet[48:]
            assert (len(packet), struct.unpack(">H", quoted[4:6])[0], quoted[7]) == (1280, 8 + length, 63)
        else:
            assert (packet[20], packet[21], struct.unpack(">H", packet[26:28])[0]) == (3, 4, mtu)
            assert checksum_of(word_sum(packet[20:])) == 0
            quoted = packet[28:]
            assert (len(packet), struct.unpack(">H", quoted[2:4])[0], quoted[8]) == (576, 28 + length, 63)


def test_a_flood_is_told_no_more_than_linux_tells_and_the_worker_may_die() -> None:
    with serving(Lab, (Lab.SITE, CLOSED)) as tunnel:
        tunnel.lab.site.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
        tunnel.server.start().wait_ready()
        seconds = 3.0
        told = visit(tunnel, times=600, seconds=seconds)
        assert Limits.PEER_BURST <= len(told["packets"]) <= Limits.PEER_BURST + seconds + 3
        loader = tunnel.server.workers()["bpf_loader"]
        os.kill(loader, signal.SIGKILL)
        wait_for("the loader is back", lambda: "worker bpf_loader is back" in tunnel.server.said())
        # The visitor has used up what it is told, but for one a second.
        wait_for("an error", lambda: visit(tunnel, source=41_000)["errors"] == ["ECONNREFUSED"])
        assert tunnel.server.workers()["bpf_loader"] != loader


def test_without_the_capability_visitors_hear_nothing_and_the_status_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Lab, (Lab.SITE, CLOSED)) as tunnel:
        command = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--", *tunnel.server.command()]
        monkeypatch.setattr(tunnel.server, "command", lambda: command)
        tunnel.server.start().wait_ready()
        assert visit(tunnel) == {"packets": [], "errors": []}
        status = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"][0]["status"]
        assert status.count("without CAP_NET_RAW: visitors are not told of ICMP errors about Dest") == 1


def test_a_session_goes_on_and_its_client_hears_nothing_when_dest_goes_down() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        tunnel.site.stop()
        assert visit(tunnel)["errors"] == ["ECONNREFUSED"]
        before = visit(tunnel, times=0, seconds=3.0)["packets"]
        assert before == []
        assert tunnel.lab.client.run("ping", "-c", "2", "-i", "0.2", "10.77.0.1")
