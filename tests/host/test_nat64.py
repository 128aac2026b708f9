"""A client on a network that has IPv6 alone reaches a server of IPv4 by way of the network's translator (tayga)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.daemons import PATIENCE, wait_for, which
from tests.support.lab import DualLab
from tests.support.namespaces import run
from tests.support.ping import answered
from tests.support.private_etc import PrivateEtc, private_etc
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

PREFIX = "2001:db8:64::"
POOL, ITS_OWN = "192.168.255.0/24", "192.168.255.1"
#: What the network's name servers would answer.
TELLS = f"127.0.0.1 localhost\n{PREFIX}192.0.0.170 ipv4only.arpa\n{PREFIX}192.0.0.171 ipv4only.arpa\n"
QUICKLY = "ReconnectMin = 500ms\nReconnectMax = 1s\n"


@contextmanager
def translator(tunnel: Tunnel) -> Iterator[None]:
    """On the router; the client has no IPv4 any more."""
    program = which("tayga")
    lab, configuration = tunnel.lab, tunnel.directory / "tayga.conf"
    assert isinstance(lab, DualLab)
    configuration.write_text(
        f"tun-device nat64\nipv4-addr {ITS_OWN}\nprefix {PREFIX}/96\ndynamic-pool {POOL}\n"
        f"data-dir {tunnel.directory}\n"
    )
    run(*lab.router.prefix, program, "-c", str(configuration), "--mktun")
    lab.router.ip("link", "set", "nat64", "up")
    lab.router.ip("route", "add", POOL, "dev", "nat64")
    lab.router.ip("route", "add", f"{PREFIX}/96", "dev", "nat64")
    lab.client.ip("-4", "addr", "flush", "dev", lab.client_device)
    process = lab.router.popen([program, "-d", "-c", str(configuration)], log=tunnel.directory / "tayga.log")
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def network() -> Iterator[tuple[Tunnel, PrivateEtc]]:
    with Tunnel(QUICKLY, lab=DualLab) as tunnel, translator(tunnel):
        tunnel.server.start().wait_ready()
        yield tunnel, private_etc(tunnel.client, tunnel.directory)


@pytest.mark.parametrize("named", [False, True], ids=["an address", "a name with that address alone"])
def test_a_server_of_ipv4_is_reached_by_way_of_the_translator(
    network: tuple[Tunnel, PrivateEtc], named: bool
) -> None:
    tunnel, etc = network
    etc.replace("hosts", TELLS + f"{tunnel.lab.SERVER} vpn.example.test\n")
    if named:
        tunnel.edit("client0", "Endpoint", f"vpn.example.test:{PORT}")
    tunnel.client.start().wait_ready().wait_session()
    assert answered(tunnel.lab.client, SERVER_INNER) == 5
    assert f"[{PREFIX}" in tunnel.client.tool("show", "client0")
    # Through the server's restart, too, and although the resolver says nothing more.
    tunnel.server.stop()
    tunnel.server.start().wait_ready()
    wait_for("the tunnel", lambda: answered(tunnel.lab.client, SERVER_INNER, count=1, wait=1) == 1)


def test_where_nobody_tells_of_a_translator_it_says_that_there_is_no_route(
    network: tuple[Tunnel, PrivateEtc],
) -> None:
    tunnel, _ = network
    tunnel.client.start().wait_ready()
    wait_for("the cause", lambda: tunnel.client.said().count("no route") >= 1)
    assert "ipv4only" not in tunnel.client.said()
