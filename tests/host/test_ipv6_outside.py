"""Outer packets of IPv6, and of both versions at one port. Packets over IPv6 alone: ``test_tunnel``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from qre.addresses import host_port
from tests.support.daemons import wait_for
from tests.support.lab import DualLab, Ipv6Lab, Lab
from tests.support.named_site import site_with_a_name
from tests.support.ping import answered
from tests.support.private_etc import private_etc
from tests.support.site import PAGE, Caddy, visit
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import CLIENT_INNER, PORT, SERVER_INNER, Tunnel

VPN = "vpn.example"


@pytest.fixture
def both() -> Iterator[Tunnel]:
    """Every address of the server's machine, of both versions."""
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n", lab=DualLab) as tunnel:
        tunnel.edit("server0", "Listen", f"[::]:{PORT}")
        yield tunnel


def test_one_port_serves_clients_and_strangers_of_both_versions(both: Tunnel) -> None:
    """Each is answered from the address that it speaks to, the second one of the server's machine, too."""
    second = both.second_client()
    both.edit("client1", "Endpoint", host_port(Ipv6Lab.SERVER_SECOND, PORT))
    both.up()
    second.start().wait_ready().wait_session()
    assert answered(both.lab.client, SERVER_INNER, "-I", "client0") == 5
    assert answered(both.lab.client, SERVER_INNER, "-I", "client1") == 5
    sessions = json.loads(both.server.tool("--json", "show", "server0"))["devices"][0]["sessions"]
    assert {each["endpoint"].rpartition(":")[0] for each in sessions} == {Lab.CLIENT, f"[{Ipv6Lab.CLIENT}]"}
    for address in (Lab.SERVER, Lab.SERVER_SECOND, Ipv6Lab.SERVER, Ipv6Lab.SERVER_SECOND):
        assert visit(both.lab.client, address, both.site.authority, PORT) == PAGE


def test_sessions_over_ipv6_outlive_the_processes_of_both_daemons() -> None:
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n", lab=Ipv6Lab) as tunnel:
        tunnel.up()
        for daemon in (tunnel.server, tunnel.client):
            for worker in ("handshake", "dataplane"):
                os.kill(daemon.workers()[worker], signal.SIGKILL)
                wait_for("another", lambda: _all_answered(tunnel))
        assert tunnel.client.said().count("session lost") == 0


def _all_answered(tunnel: Tunnel) -> bool:
    return answered(tunnel.lab.client, SERVER_INNER, wait=1) == 5


def test_a_client_that_moves_over_ipv6_keeps_its_session() -> None:
    with Tunnel(lab=Ipv6Lab) as tunnel:
        tunnel.up()
        moved = "2001:db8:1::77"
        tunnel.lab.client.ip("addr", "add", f"{moved}/64", "dev", tunnel.lab.client_device)
        for address in (Ipv6Lab.CLIENT, Ipv6Lab.CLIENT_SECOND):
            tunnel.lab.client.ip("addr", "del", f"{address}/64", "dev", tunnel.lab.client_device)
        wait_for("pings from the new address", lambda: _all_answered(tunnel))
        wait_for("show knows", lambda: f"[{moved}]:" in tunnel.server.tool("show", "server0"))
        assert tunnel.client.said().count("session lost") == 0
        assert "handshakes: 1 completed" in tunnel.client.tool("show", "client0")


def test_a_name_with_both_is_reached_over_ipv6_and_without_that_over_ipv4(both: Tunnel) -> None:
    both.edit("client0", "Endpoint", f"{VPN}:{PORT}")
    etc = private_etc(both.client, both.directory)
    etc.replace("hosts", f"127.0.0.1 localhost\n{Ipv6Lab.SERVER} {VPN}\n{Lab.SERVER} {VPN}\n")
    both.up()
    assert _peer(both) == f"[{Ipv6Lab.CLIENT}]"
    both.lab.router.ip("-6", "route", "add", "blackhole", f"{Ipv6Lab.SERVER}/128")
    wait_for("the other version", lambda: _peer(both) == Lab.CLIENT and _all_answered(both))


def _peer(tunnel: Tunnel) -> str:
    """Where the server's newest session comes from; empty without one."""
    shown = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"][0]["sessions"]
    return shown[-1]["endpoint"].rpartition(":")[0] if shown else ""


@pytest.mark.parametrize(
    ("allowed_ips", "beyond"), [("0.0.0.0/0, ::/0", "198.51.100.1"), ("::/0, 2001:db8::/32", "2001:db8:99::1")]
)
def test_a_full_tunnel_takes_everything_but_its_own_packets(allowed_ips: str, beyond: str) -> None:
    with Tunnel(lab=Ipv6Lab) as tunnel:
        tunnel.edit("client0", "Address", f"{CLIENT_INNER}/24, fd77::2/64")
        tunnel.edit("server0", "Address", f"{SERVER_INNER}/24, fd77::1/64")
        tunnel.edit("client0", "AllowedIPs", allowed_ips)
        tunnel.up()
        assert " dev client0 " in tunnel.lab.client.ip("route", "get", beyond)
        inner = ("fd77::1", "-s", "1200")  # once the path is known to carry them
        wait_for("large packets both ways", lambda: answered(tunnel.lab.client, *inner, wait=1) == 5)


def test_ipv6_that_is_closed_beside_a_tunnel_is_open_to_its_own_packets() -> None:
    """LeakProtection, with an Endpoint of IPv6."""
    with Tunnel(lab=Ipv6Lab) as tunnel:
        tunnel.edit("client0", "AllowedIPs", "0.0.0.0/0")
        tunnel.up()
        assert _all_answered(tunnel)
        with pytest.raises(RuntimeError, match="unreachable"):
            tunnel.lab.client.ip("-6", "route", "get", Ipv6Lab.SITE)


def _asked_from(tunnel: Tunnel, site: Caddy, server: str) -> set[str]:
    """A visitor of the server's address gets the page; the addresses that the site is asked from."""
    with Tcpdump(tunnel.lab.site, tunnel.lab.site_device, tunnel.directory / "site.pcap", PORT) as dump:
        assert visit(tunnel.lab.client, server, site.authority, PORT) == PAGE
    return {packet.source[0] for packet in dump.datagrams() if packet.destination[1] == PORT}


def test_a_visitor_over_ipv6_reaches_dest_over_ipv6_where_it_has_answered(both: Tunnel) -> None:
    site = site_with_a_name(both, f"{Lab.SITE} {Ipv6Lab.SITE}")
    both.up()
    wait_for("IPv6", lambda: _asked_from(both, site, Ipv6Lab.SERVER) == {Ipv6Lab.SERVER_TO_SITE})
    assert _asked_from(both, site, Lab.SERVER) == {Lab.SERVER_TO_SITE}
    assert _all_answered(both)


def test_where_dests_ipv6_has_never_answered_every_visitor_gets_the_site_over_ipv4(both: Tunnel) -> None:
    site = site_with_a_name(both, Lab.SITE)
    both.edit("client0", "Endpoint", host_port(Ipv6Lab.SERVER, PORT))
    both.up()
    assert visit(both.lab.client, Ipv6Lab.SERVER, site.authority, PORT) == PAGE
    wait_for("its look", lambda: f"Dest over IPv6, {host_port(Ipv6Lab.SITE, PORT)}: " in both.server.said())
    assert _asked_from(both, site, Ipv6Lab.SERVER) == {Lab.SERVER_TO_SITE}
    assert _all_answered(both)
