"""A tunnel that takes all of IPv4 leaves no IPv6 open beside it, whatever happens to its daemon."""

from __future__ import annotations

import signal

import pytest

from tests.support.daemons import wait_for
from tests.support.namespaces import Namespace, join
from tests.support.tunnel import Tunnel

BEYOND, NEIGHBOUR = "2001:db8:1::1", "2001:db8::1"


def reached(tunnel: Tunnel, address: str) -> bool:
    return " 0% packet loss" in tunnel.lab.client.run("ping", "-6", "-c", "1", "-W", "2", address, check=False)


def an_uplink(tunnel: Tunnel) -> None:
    """The client's, for IPv6: a router, and a host behind it."""
    router = Namespace("router")
    tunnel.stack.callback(router.delete)
    device, _ = join(tunnel.lab.client, "2001:db8::2/64", router, f"{NEIGHBOUR}/64")
    router.ip("address", "add", f"{BEYOND}/128", "dev", "lo")
    tunnel.lab.client.ip("route", "add", "default", "via", NEIGHBOUR, "dev", device)
    wait_for("the uplink", lambda: reached(tunnel, BEYOND))


def test_ipv6_leads_to_neighbours_alone_until_the_tunnel_is_taken_down() -> None:
    with Tunnel() as tunnel:
        an_uplink(tunnel)
        tunnel.edit("client0", "AllowedIPs", "0.0.0.0/0")
        tunnel.up()
        assert not reached(tunnel, BEYOND)
        with pytest.raises(RuntimeError, match="unreachable"):  # at once, so that programs use IPv4
            tunnel.lab.client.ip("-6", "route", "get", BEYOND)
        assert reached(tunnel, NEIGHBOUR)
        for switch, open_ in (("off", True), ("on", False)):
            tunnel.edit("client0", "LeakProtection", switch)
            tunnel.client.tool("reload", "client0")
            assert reached(tunnel, BEYOND) is open_
        tunnel.client.stop(signal.SIGKILL)
        assert not reached(tunnel, BEYOND)
        tunnel.client.tool("down", "client0")
        tunnel.client.process = None  # it ended by a signal, as it should
        assert reached(tunnel, BEYOND)
        assert "proto 81" not in tunnel.lab.client.ip("-6", "rule")
