"""Names with several addresses: a dead one delays, and no more. Real daemons, each with an /etc of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.daemons import TOOL, Daemon, wait_for
from tests.support.lab import Lab
from tests.support.ping import answered
from tests.support.private_etc import private_etc
from tests.support.site import PAGE, Caddy, visit
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

VPN, DEST = "vpn.example", "dest.example"
DEAD_SERVER, DEAD_SITE = "10.90.1.3", "10.90.2.3"
NOWHERE = "02:00:00:00:00:01"
#: Becomes the program that it is given, which is told what a kernel without IPv6 says.
WITHOUT_IPV6 = """
import errno, os, seccomp, socket, sys
without = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
without.add_rule(seccomp.ERRNO(errno.EAFNOSUPPORT), "socket", seccomp.Arg(0, seccomp.EQ, socket.AF_INET6))
without.load()
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass
class NamingDaemon(Daemon):
    """``around``: a program that becomes the daemon."""

    around: list[str] = field(default_factory=list)

    def command(self) -> list[str]:
        command = super().command()
        at = command.index(TOOL)
        return [*command[:at], *self.around, *command[at:]]


def named(tunnel: Tunnel, daemon: Daemon, name: str, *addresses: str) -> NamingDaemon:
    """The same daemon, for whom the name has these addresses."""
    made = NamingDaemon(daemon.namespace, daemon.profile, daemon.directory, daemon.pin_dir, daemon.environment)
    hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address in addresses)
    private_etc(made, tunnel.directory).replace("hosts", hosts)
    tunnel.daemons[tunnel.daemons.index(daemon)] = made
    return made


@pytest.fixture
def lab() -> Iterator[Tunnel]:
    """Packets to the dead addresses vanish: nobody says that they are not there."""
    with Tunnel() as tunnel:
        tunnel.lab.client.ip("neigh", "add", DEAD_SERVER, "lladdr", NOWHERE, "dev", tunnel.lab.client_device)
        tunnel.edit("client0", "Endpoint", f"{VPN}:{PORT}")
        tunnel.edit("server0", "Dest", f"{DEST}:{PORT}")
        yield tunnel


def test_a_client_connects_through_the_second_address_within_seconds(lab: Tunnel) -> None:
    lab.server = named(lab, lab.server, DEST, Lab.SITE)
    lab.client = named(lab, lab.client, VPN, DEAD_SERVER, Lab.SERVER)
    lab.server.start().wait_ready()
    lab.client.start().wait_ready()
    began = time.monotonic()
    lab.client.wait_session()
    took = time.monotonic() - began
    said = lab.client.said()
    assert f"no session with {VPN}:{PORT} at {DEAD_SERVER}: no answer in time" in said
    assert "the name has another address, which is tried now" in said
    assert took < 8, "2 s for the dead one, and a handshake on a machine with much else to do"
    assert answered(lab.lab.client, SERVER_INNER) == 5


def test_a_client_whose_kernel_has_no_ipv6_passes_over_such_an_address(lab: Tunnel) -> None:
    """Within the same attempt."""
    lab.server = named(lab, lab.server, DEST, Lab.SITE)
    lab.client = named(lab, lab.client, VPN, DEAD_SERVER, "2001:db8::1", Lab.SERVER)
    assert isinstance(lab.client, NamingDaemon)
    lab.client.around = [sys.executable, "-c", WITHOUT_IPV6]
    lab.server.start().wait_ready()
    lab.client.start().wait_ready()
    lab.client.wait_session()
    said = lab.client.said()
    words = "this machine has no sockets of that version of IP"
    assert any(words in line and line.endswith("which is tried now") for line in said.splitlines())
    assert "next attempt in" not in said
    assert answered(lab.lab.client, SERVER_INNER) == 5


def test_strangers_reach_dest_through_its_second_address(lab: Tunnel) -> None:
    lab.lab.server.ip("neigh", "add", DEAD_SITE, "lladdr", NOWHERE, "dev", lab.lab.uplink_device)
    lab.server = named(lab, lab.server, DEST, DEAD_SITE, Lab.SITE)
    lab.server.start().wait_ready()
    wait_for("the page", lambda: page(lab) == PAGE)
    assert answers_by(lab) == f"{Lab.SITE}:{PORT}"


def test_an_address_of_dest_that_dies_under_way_is_left(lab: Tunnel) -> None:
    lab.lab.site.ip("addr", "add", f"{DEAD_SITE}/24", "dev", lab.lab.site_device)
    other = Caddy(lab.lab.site, lab.directory / "other", DEAD_SITE, PORT)
    try:
        lab.server = named(lab, lab.server, DEST, DEAD_SITE, Lab.SITE)
        lab.server.start().wait_ready()
        assert visit(lab.lab.client, Lab.SERVER, other.authority, PORT) == PAGE
        assert answers_by(lab) == f"{DEAD_SITE}:{PORT}"
    finally:
        other.stop()
    wait_for("the page by the other address", lambda: page(lab) == PAGE)
    assert answers_by(lab) == f"{Lab.SITE}:{PORT}"


def test_a_server_without_a_route_to_dest_says_so_when_a_visitor_comes(lab: Tunnel) -> None:
    lab.server = named(lab, lab.server, DEST, Lab.SITE)
    lab.server.start().wait_ready()
    lab.lab.server.ip("link", "set", lab.lab.uplink_device, "down")
    lab.lab.server.ip("route", "add", "10.90.1.0/24", "via", Lab.SERVER_GATEWAY)
    lab.lab.server.ip("route", "del", "default")
    assert page(lab) == ""
    words = f"visitors get no answer, Dest {Lab.SITE}:{PORT} cannot be reached: this machine has no route to it"
    wait_for("the words", lambda: words in lab.server.said())
    lab.lab.server.ip("link", "set", lab.lab.uplink_device, "up")
    wait_for("the page", lambda: page(lab) == PAGE)
    assert words in lab.server.said()


def test_a_name_that_cannot_be_resolved_is_told_with_the_resolvers_that_were_asked(lab: Tunnel) -> None:
    lab.client = named(lab, lab.client, "another.example", Lab.SERVER)
    etc = private_etc(lab.client, lab.directory / "another")
    conf = "nameserver 192.0.2.53\nnameserver 192.0.2.54\noptions timeout:1 attempts:1\n"
    etc.replace("resolv.conf", conf)
    lab.client.start().wait_ready()
    words = f"cannot resolve {VPN}: the resolver gave no answer (asked 192.0.2.53, 192.0.2.54); is the network up"
    notify = lab.client.notify
    assert notify is not None
    wait_for("STATUS", lambda: any(words in line for line in notify.poll()))
    assert words in lab.client.said()


def page(lab: Tunnel) -> str:
    """What a visitor gets within seconds; empty: nothing."""
    try:
        return visit(lab.lab.client, Lab.SERVER, lab.site.authority, PORT, timeout=3)
    except RuntimeError:
        return ""


def answers_by(lab: Tunnel) -> str:

    shown = json.loads(lab.server.tool("--json", "show", "server0"))
    found = find(shown, "dest_profile")
    assert isinstance(found, dict)
    return str(found["address"])


def find(value: object, key: str) -> object:
    if isinstance(value, dict):
        return (
            value[key] if key in value else next((got for each in value.values() if (got := find(each, key))), None)
        )
    if isinstance(value, list):
        return next((got for each in value if (got := find(each, key))), None)
    return None
