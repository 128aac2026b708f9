"""A server's TCP face over IPv6: as over IPv4 (``test_site_tcp``), where the machine forwards IPv6 already."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address

import dpkt
import pytest

from qre.addresses import host_port
from tests.support.daemons import wait_for
from tests.support.lab import DualLab, Ipv6Lab, Lab
from tests.support.named_site import site_with_a_name
from tests.support.namespaces import Namespace
from tests.support.site import PAGE
from tests.support.site_tcp import SYN, SYN_ACK, WELCOME, connect, fetch, handshake, serving, told, wait_passed
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import PORT, Tunnel

_SWITCH = "net.ipv6.conf.all.forwarding"
_IS_OFF = f"{_SWITCH} is off, and QRE leaves this switch of the whole machine alone"
_REDIRECT = 137  # ICMPv6 (RFC 4861 section 4.5)


def _forward(server: Namespace) -> None:
    server.run("sysctl", "-qw", f"{_SWITCH}=1")


@pytest.fixture
def alone() -> Iterator[Tunnel]:
    """Listen and Dest have addresses of IPv6; the server's daemon is not started yet."""
    with Tunnel(lab=Ipv6Lab) as tunnel, serving(tunnel.lab.site, Ipv6Lab.SITE, 80, tunnel.directory / "plain"):
        yield tunnel


def test_ports_are_passed_as_soon_as_the_machine_forwards_ipv6_and_no_longer(alone: Tunnel) -> None:
    lab = alone.lab
    checked = alone.server.tool("check", "server0", check=False)
    assert f"no   tcp over ipv6    {_IS_OFF}; not needed" in checked
    alone.server.start().wait_ready()
    wait_for("the reason", lambda: {each["why"] for each in told(alone, 6).values()} == {_IS_OFF})
    assert told(alone) == {}
    assert connect(lab.client, Ipv6Lab.SERVER, 443) == ["ConnectionRefusedError"]
    assert f"tcp not passed: 443 over IPv6, 80 over IPv6: {_IS_OFF}" in alone.server.tool("show", "server0")
    wait_for("the log", lambda: f"TCP port 443 is not passed to Dest over IPv6: {_IS_OFF}" in alone.server.said())
    _forward(lab.server)
    wait_passed(alone, 6)
    assert "yes  tcp over ipv6    TCP 443, 80 is passed to Dest" in alone.server.tool("check", "server0", check=False)
    ours, dests = fetch(alone, Ipv6Lab.SERVER), fetch(alone, Ipv6Lab.SITE, by=lab.server)
    assert ours.partition("date:")[0] == dests.partition("date:")[0]
    assert WELCOME in lab.client.run("curl", "-sS", "-m", "20", f"http://[{Ipv6Lab.SERVER}]/")
    assert "tcp to dest: 443 over IPv6 (1 connection), 80 over IPv6 (1 connection)" in alone.server.tool(
        "show", "server0"
    )
    lab.server.run("sysctl", "-qw", f"{_SWITCH}=0")
    wait_for("the end of it", lambda: "qre" not in lab.server.run("nft", "list", "ruleset"))
    assert connect(lab.client, Ipv6Lab.SERVER, 443) == ["ConnectionRefusedError"]


@pytest.mark.parametrize("port", [443, 80])
def test_the_syn_ack_is_dests_and_both_sides_see_our_hop_limit(alone: Tunnel, port: int) -> None:
    lab, rule = alone.lab, f"tcp port {port} or icmp6"
    _forward(lab.server)
    alone.server.start().wait_ready()
    wait_passed(alone, 6)
    lab.site.run("sysctl", "-qw", "net.ipv6.conf.all.hop_limit=57", f"net.ipv6.conf.{lab.site_device}.hop_limit=57")
    with (
        Tcpdump(lab.server, lab.server_device, alone.directory / "visitor.pcap", 9, rule) as visitors,
        Tcpdump(lab.site, lab.site_device, alone.directory / "site.pcap", 9, rule) as sites,
    ):
        assert connect(lab.client, Ipv6Lab.SERVER, port, ttl=2)[0] == "connected"  # its last hop is the server
    ours, dests = (handshake(each.packets(6), SYN_ACK) for each in (visitors, sites))
    assert ours == dests._replace(ttl=64)
    assert dests.ttl == 57
    assert handshake(sites.packets(6), SYN) == handshake(visitors.packets(6), SYN)._replace(ttl=64)
    assert {str(IPv6Address(each.src)) for each in sites.packets(6) if isinstance(each.data, dpkt.tcp.TCP)} == {
        Ipv6Lab.SERVER_TO_SITE,
        Ipv6Lab.SITE,
    }


def test_a_neighbour_is_not_told_to_go_to_dest_himself(alone: Tunnel) -> None:
    """Dest, too, is a neighbour: the machine in between would send a redirect."""
    lab, dest = alone.lab, "2001:db8:3::5"
    lab.router.ip("addr", "add", f"{dest}/64", "dev", lab.server_gateway_device)
    alone.edit("server0", "Dest", host_port(dest, PORT))
    _forward(lab.server)
    with serving(lab.router, dest, 80, alone.directory / "neighbour"):
        alone.server.start().wait_ready()
        wait_for("port 80", lambda: not told(alone, 6)[80]["why"])
        capture = Tcpdump(
            lab.router, lab.server_gateway_device, alone.directory / "r.pcap", 9, "tcp port 80 or icmp6"
        )
        with capture:
            assert connect(lab.router, Ipv6Lab.SERVER, 80)[0] == "connected"
    packets = capture.packets(6)
    kinds = {each.data.type for each in packets if isinstance(each.data, dpkt.icmp6.ICMP6)}
    assert _REDIRECT not in kinds
    assert len([each for each in packets if isinstance(each.data, dpkt.tcp.TCP)]) >= 6, "all of it was there to see"


def test_one_port_of_both_versions_passes_each_to_dests_address_of_that_version() -> None:
    with Tunnel(lab=DualLab) as tunnel:
        lab = tunnel.lab
        tunnel.edit("server0", "Listen", f"[::]:{PORT}")
        site_with_a_name(tunnel, f"{Lab.SITE} {Ipv6Lab.SITE}")
        _forward(lab.server)
        tunnel.server.start().wait_ready()
        for version, address in ((4, Lab.SERVER), (6, Ipv6Lab.SERVER), (4, Lab.SERVER_SECOND)):
            wait_for("the port", lambda version=version: not told(tunnel, version)[443]["why"])
            assert PAGE in fetch(tunnel, address)
        assert [told(tunnel, version)[443]["connections"] for version in (4, 6)] == [2, 1]
        rules = lab.server.run("nft", "list", "ruleset")
        assert f"dnat to {Lab.SITE}:443" in rules and f"dnat to [{Ipv6Lab.SITE}]:443" in rules
        assert tunnel.server.stop() == 0
        assert lab.server.run("nft", "list", "ruleset") == ""
