"""What happens to the path below the tunnel: unplugged, moved, its far end killed, or led through the tunnel."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.ping import answered
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import SERVER_INNER, Tunnel

FASTER = "IdleTimeout = 4s\nReconnectMin = 500ms\nReconnectMax = 1s\n"


def all_answered(tunnel: Tunnel) -> bool:
    """To be asked again and again: none of the answers need come."""
    return answered(tunnel.lab.client, SERVER_INNER, wait=2) == 5


def test_an_unplugged_peer_is_noticed_and_found_again() -> None:
    with Tunnel(FASTER) as tunnel:
        tunnel.up()
        ready = tunnel.directory / "run" / "client0.ready"
        tunnel.lab.unplug_server()
        wait_for("the loss is noticed", lambda: not ready.exists())
        tunnel.lab.plug_server()
        wait_for("a session again", ready.exists)
        assert answered(tunnel.lab.client, SERVER_INNER) == 5


@pytest.mark.parametrize(
    ("settings", "noticed"),
    [
        ("RoutedCidLen = 20\n", ("stateless reset", "has taken the place of the old one")),
        ("", ("has taken the place of the old one",)),
    ],
)
def test_a_server_that_was_killed_has_its_client_back_at_once(settings: str, noticed: tuple[str, ...]) -> None:
    """By a stateless reset of a connection ID that it made, or because the client hears nothing any more."""
    with Tunnel(f"ReconnectMin = 500ms\n{settings}") as tunnel:  # the idle timeout is 30 s: it is not what helps here
        tunnel.up()
        assert tunnel.server.process is not None
        tunnel.server.process.kill()
        tunnel.server.process.wait()
        wait_for("its processes are gone", lambda: not tunnel.lab.server.run("ss", "-Hlun", "sport", "=", "443"))
        tunnel.server.start().wait_ready()
        answered(tunnel.lab.client, SERVER_INNER, wait=1)
        ready = tunnel.directory / "run" / "client0.ready"
        wait_for("a session again", lambda: ready.exists() and all_answered(tunnel))
        assert any(words in tunnel.client.said() for words in noticed), "one of them, whichever is sooner"


def client_port(tunnel: Tunnel) -> str:
    """Local address and port of the client's only socket, connected to the server."""
    (line,) = tunnel.lab.client.run("ss", "-Hun", "dport", "=", "443").splitlines()
    return line.split()[2]


def test_a_client_that_moves_keeps_its_session() -> None:
    """And its port, though its socket is connected."""
    with Tunnel() as tunnel:
        tunnel.up()
        device = tunnel.lab.client_device
        host, port = client_port(tunnel).split(":")
        assert host == tunnel.lab.CLIENT
        tunnel.lab.client.ip("addr", "add", "10.90.1.77/24", "dev", device)
        tunnel.lab.client.ip("addr", "del", f"{tunnel.lab.CLIENT}/24", "dev", device)
        if "10.90.1.77" not in tunnel.lab.client.ip("-o", "addr"):  # it went with the primary one
            tunnel.lab.client.ip("addr", "add", "10.90.1.77/24", "dev", device)
        tunnel.lab.route_client()
        wait_for("pings from the new address", lambda: all_answered(tunnel))
        wait_for("show knows", lambda: "10.90.1.77:" in tunnel.server.tool("show", "server0"))
        assert tunnel.client.said().count("session lost") == 0
        assert "handshakes: 1 completed" in tunnel.client.tool("show", "client0")
        assert client_port(tunnel) == f"10.90.1.77:{port}"
        assert answered(tunnel.lab.server, "10.77.0.2") == 5


def test_a_clients_packets_are_counted_from_a_random_number_as_a_browsers() -> None:
    """On the handshake, in a tunnel with many packets at once, and though ICMP says that nobody hears them."""
    begins = set()
    with Tunnel("ReconnectMin = 500ms\n") as tunnel:
        lab = tunnel.lab
        tunnel.server.start().wait_ready()
        with Tcpdump(lab.client, lab.client_device, tunnel.directory / "client.pcap", 443) as dump:
            tunnel.client.start().wait_ready().wait_session()
            assert answered(lab.client, SERVER_INNER, "-s", "1000", count=100) == 100
            lab.server.run("nft", "table ip front { chain in { type filter hook input priority 0; }; }")
            lab.server.run("nft", "add rule ip front in udp dport 443 reject with icmp type port-unreachable")
            answered(lab.client, SERVER_INNER, count=20, wait=0.5)
            lab.server.run("nft", "delete table ip front")
            assert answered(lab.client, SERVER_INNER) == 5
        sent = [each for each in dump.datagrams() if each.destination[1] == 443]
        assert len({each.source for each in sent}) == 1, "the session and its socket outlive ICMP errors"
        numbers = [each.identification for each in sent]
        assert len(numbers) > 120
        assert {(two - one) % 65_536 for one, two in pairwise(numbers)} == {1}
        begins.add(numbers[0])
        assert tunnel.client.said().count("session lost") == 0
    assert begins != {0}


def session_of(daemon: Daemon) -> dict[str, Any]:
    """Its only one, as JSON."""
    (session,) = json.loads(daemon.tool("--json", "show", daemon.profile))["devices"][0]["sessions"]
    assert isinstance(session, dict)
    return session


def settled(tunnel: Tunnel, daemon: Daemon) -> bool:
    """A server refuses IPv6 when the search for the path MTU is over, not before: larger datagrams may still pass."""
    return daemon is tunnel.client or session_of(daemon)["inner_mtu_ipv6"] == 0


def test_a_small_path_is_told_by_show_and_by_the_log_and_carries_no_ipv6_downward() -> None:
    """The client's hello has passed, and it splits what is larger; the server sends in one datagram or not at all."""
    with Tunnel() as tunnel:
        for name, number in (("server0", 1), ("client0", 2)):
            tunnel.edit(name, "Address", f"10.77.0.{number}/24, fd77::{number}/64")
        for namespace, device in (
            (tunnel.lab.client, tunnel.lab.client_device),
            (tunnel.lab.server, tunnel.lab.server_device),
        ):
            namespace.ip("link", "set", device, "mtu", "1280")
        tunnel.up()
        for daemon, outer, inner, more in (
            (tunnel.client, 1278, 1222, ", up to 1500 in two datagrams"),
            (tunnel.server, 1228, 1176, "; IPv6 inside is refused, it needs 1280"),
        ):
            said = f"path mtu: {outer} bytes, inner packets up to {inner}{more}"
            wait_for("show tells it", lambda daemon=daemon, said=said: said in daemon.tool("show", daemon.profile))
            wait_for("the end of the search for it", lambda daemon=daemon: settled(tunnel, daemon))
            session = session_of(daemon)
            assert (session["path_mtu"], session["inner_mtu"]) == (outer, inner)
            assert bool(session["inner_mtu_ipv6"]) is bool(session["inner_mtu_in_two"]) is (daemon is tunnel.client)
        assert answered(tunnel.lab.client, SERVER_INNER, "-s", "3000") == 5
        refused = tunnel.lab.server.run("ping", "-n", "-c", "2", "-W", "1", "fd77::2", check=False)
        assert "Administratively prohibited" in refused
        assert "which leaves 1176 for inner packets: IPv6 needs 1280, and is refused" in tunnel.server.said()
        assert "ipv6-refused 2" in tunnel.server.tool("show", "server0")


def test_a_default_route_leads_everything_through_the_tunnel_but_the_tunnel_itself() -> None:
    with Tunnel() as tunnel:
        tunnel.edit("client0", "AllowedIPs", "0.0.0.0/0")
        tunnel.server.start().wait_ready()
        tunnel.client.start().wait_ready().wait_session()
        tunnel.lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        tunnel.lab.site.ip("route", "add", "10.77.0.0/24", "via", tunnel.lab.SERVER_TO_SITE)
        assert "dev client0" in tunnel.lab.client.ip("route", "get", tunnel.lab.SITE)
        assert answered(tunnel.lab.client, tunnel.lab.SITE) == 5, "the site is reached through the tunnel alone"
        rules = tunnel.lab.client.ip("rule")
        assert "suppress_prefixlength 0" in rules
        tunnel.client.stop()
        assert "suppress_prefixlength" not in tunnel.lab.client.ip("rule")
