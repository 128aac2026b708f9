"""The way of a tunnel's own packets: past every tunnel of the machine, from the address that was spoken to, and found
again as soon as the network is."""

from __future__ import annotations

import re
import time

import pytest

from tests.support.daemons import wait_for
from tests.support.ping import answered
from tests.support.site import PAGE, visit
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

BACK, LATE = 2.0, 3.0  # seconds; and what a machine with much else to do may add
SLOW = "ReconnectMin = 60s\nReconnectMax = 60s\n"


@pytest.mark.parametrize("allowed_ips", ["0.0.0.0/1, 128.0.0.0/1", "10.90.0.0/16, 10.77.0.0/24"])
def test_allowed_ips_that_cover_the_endpoint_do_not_swallow_the_tunnels_own_packets(allowed_ips: str) -> None:
    with Tunnel() as tunnel:
        tunnel.edit("client0", "AllowedIPs", allowed_ips)
        tunnel.up()
        tunnel.lab.site.ip("route", "add", "10.77.0.0/24", "via", tunnel.lab.SERVER_TO_SITE)
        tunnel.lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        client = tunnel.lab.client
        assert answered(client, SERVER_INNER) == 5
        assert answered(client, tunnel.lab.SITE) == 5
        assert "dev client0" in client.ip("route", "get", tunnel.lab.SITE)
        assert "dev client0" in client.ip("route", "get", tunnel.lab.SERVER), "what is not the tunnel's enters it"
        gateway = client.ip("route", "get", tunnel.lab.CLIENT_GATEWAY)
        assert f"dev {tunnel.lab.client_device}" in gateway, "a network of this host has the longer prefix"


def test_an_own_network_that_holds_the_endpoint_is_refused_in_words() -> None:
    with Tunnel() as tunnel:
        tunnel.edit("client0", "Address", "10.90.3.77/24")
        tunnel.server.start().wait_ready()
        tunnel.client.start().wait_ready()
        words = "Endpoint 10.90.3.2: packets to it would enter the tunnel itself: Address 10.90.3.77/24 covers it"
        wait_for("the refusal", lambda: words in tunnel.client.said())
        assert not (tunnel.directory / "run" / "client0.ready").exists()


def test_two_full_tunnels_of_one_machine_stay_out_of_each_other() -> None:
    with Tunnel() as tunnel:
        tunnel.edit("client0", "AllowedIPs", "0.0.0.0/0")
        tunnel.edit("server0", "Address", "10.77.0.1/24, 10.78.0.1/24")
        second = tunnel.second_client(address="10.78.0.2/24")
        tunnel.up()
        second.start().wait_ready().wait_session()
        client = tunnel.lab.client
        for address in (SERVER_INNER, "10.78.0.1"):
            assert answered(client, address) == 5
        assert "dev client1" in client.ip("route", "get", tunnel.lab.SITE), "the last one has what both ask for"
        assert second.stop() == 0
        assert "dev client0" in client.ip("route", "get", tunnel.lab.SITE)
        assert answered(client, SERVER_INNER) == 5
        assert tunnel.client.said().count("session lost") == 0


def test_a_server_on_all_addresses_answers_from_the_one_that_was_asked() -> None:
    with Tunnel() as tunnel:
        tunnel.edit("server0", "Listen", f"0.0.0.0:{PORT}")
        tunnel.edit("client0", "Endpoint", f"{tunnel.lab.SERVER_SECOND}:{PORT}")
        tunnel.up()
        second = tunnel.lab.SERVER_SECOND
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        assert answered(tunnel.lab.server, "10.77.0.2") == 5
        assert visit(tunnel.lab.client, second, tunnel.site.authority, PORT) == PAGE, "a stranger, too"
        assert visit(tunnel.lab.client, tunnel.lab.SERVER, tunnel.site.authority, PORT) == PAGE


@pytest.mark.parametrize("how", ["unplugged at the start", "lost under way"])
def test_a_client_is_back_soon_after_its_network_whatever_it_waits_for(how: str) -> None:
    settings = SLOW + "IdleTimeout = 4s\n"
    with Tunnel(settings) as tunnel:
        tunnel.server.start().wait_ready()
        ready = tunnel.directory / "run" / "client0.ready"
        if how == "lost under way":
            tunnel.client.start().wait_ready().wait_session()
        tunnel.lab.unplug_client()
        if how == "unplugged at the start":
            tunnel.client.start().wait_ready()
        wait_for(
            "a wait of a minute", lambda: re.search(r"next attempt in [456]\d\.", tunnel.client.said()) is not None
        )
        assert not ready.exists()
        time.sleep(0.5)
        tunnel.lab.plug_client()
        began = time.monotonic()
        wait_for("a session", ready.exists, 30)
        assert time.monotonic() - began < BACK + LATE
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
