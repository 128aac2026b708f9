"""A tunnel that takes all of IPv4 leaves nothing open, of IPv6 neither, whatever happens to its daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.daemons import PATIENCE, Daemon, children, wait_for
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


def way_out(tunnel: Tunnel) -> str:
    """Where the client's packets to the rest of the world go: a device, or ``unreachable``."""
    try:
        found = tunnel.lab.client.ip("route", "get", "198.51.100.99").split()
    except RuntimeError as error:
        assert "unreachable" in str(error)
        return "unreachable"
    return found[found.index("dev") + 1]


def a_full_tunnel() -> Tunnel:
    tunnel = Tunnel()
    tunnel.edit("client0", "AllowedIPs", "0.0.0.0/0")
    return tunnel


def _status(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.wait(PATIENCE)


def _kill_supervisor(tunnel: Tunnel) -> None:
    supervisor = next(children(tunnel.client.pid))
    os.kill(supervisor, signal.SIGKILL)


def _remove_device(tunnel: Tunnel) -> None:
    tunnel.lab.client.ip("link", "del", "client0")


def _restart(tunnel: Tunnel) -> None:
    """As `systemctl restart` does."""
    os.kill(tunnel.client.pid, signal.SIGUSR1)


@pytest.mark.parametrize(("end", "status"), [(_kill_supervisor, 1), (_remove_device, 1), (_restart, 0)])
def test_an_end_that_nobody_asked_for_leaves_nothing_open_and_the_next_daemon_takes_over(
    end: Callable[[Tunnel], None], status: int
) -> None:
    with a_full_tunnel() as tunnel:
        uplink = way_out(tunnel)
        tunnel.up()
        assert way_out(tunnel) == "client0"
        end(tunnel)
        assert _status(tunnel.client) == status
        assert way_out(tunnel) == "unreachable"
        assert ("`qre-tool down client0` removes them" in tunnel.client.said()) or status == 0
        tunnel.client.process = None
        tunnel.client.start().wait_ready().wait_session()
        assert way_out(tunnel) == "client0"
        assert tunnel.client.stop() == 0
        assert way_out(tunnel) == uplink
        assert "proto 81" not in tunnel.lab.client.ip("rule")


def test_a_start_that_fails_after_a_kill_opens_nothing_and_down_knows_the_rules_by_any_name() -> None:
    with a_full_tunnel() as tunnel:
        uplink = way_out(tunnel)
        tunnel.up()
        tunnel.client.stop(signal.SIGKILL)
        tunnel.edit("client0", "PostUp", "false")
        tunnel.client.process = None
        assert _status(tunnel.client.start()) == 2
        assert way_out(tunnel) == "unreachable"
        checked = tunnel.client.tool("check", "client0", check=False)
        assert "no   left rules" in checked and "`qre-tool down client0`" in checked
        assert tunnel.server.stop() == 0
        assert tunnel.client.tool("show").startswith("nothing is up: a daemon left the rules of its default route")
        tunnel.client.process = None
        tunnel.profile("client0").rename(tunnel.directory / "gone")
        assert "delete routes and rules of table" in tunnel.client.tool("--dry-run", "down", "client0")
        tunnel.client.tool("down", "client0")
        assert way_out(tunnel) == uplink
        assert tunnel.client.tool("show") == ""


def test_a_reload_that_asks_for_name_servers_which_nobody_manages_is_refused_and_the_tunnel_stays() -> None:
    with a_full_tunnel() as tunnel:
        tunnel.up()
        tunnel.edit("client0", "DNS", "10.77.0.1")
        with pytest.raises(RuntimeError, match="neither systemd-resolved nor resolvconf manages"):
            tunnel.client.tool("reload", "client0")
        assert way_out(tunnel) == "client0"
        assert tunnel.client.process is not None and tunnel.client.process.poll() is None
