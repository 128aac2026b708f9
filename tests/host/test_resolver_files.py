"""Names resolve with the files that are there now: replaced under way, linked elsewhere, or made after the start."""

from __future__ import annotations

import re
import time

import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.lab import NOWHERE
from tests.support.ping import answered
from tests.support.private_etc import PrivateEtc, private_etc
from tests.support.site import PAGE, visit
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

SERVER_NAME = "vpn.example.test"
BACK, LATE = 2.0, 3.0  # seconds; and what a machine with much else to do may add
SLOW = "ReconnectMin = 60s\nReconnectMax = 60s\n"


def by_name(settings: str = SLOW) -> tuple[Tunnel, PrivateEtc]:
    """A tunnel whose client has a name for Endpoint, and an /etc of its own."""
    tunnel = Tunnel(settings)
    tunnel.edit("client0", "Endpoint", f"{SERVER_NAME}:{PORT}")
    return tunnel, private_etc(tunnel.client, tunnel.directory)


def cannot_resolve(daemon: Daemon) -> bool:
    return "cannot resolve" in daemon.said()


@pytest.mark.parametrize("how", ["a new hosts file", "a link to another", "a resolver made under way"])
def test_a_client_resolves_its_endpoint_as_soon_as_it_can(how: str) -> None:
    tunnel, etc = by_name()
    with tunnel:
        line = f"127.0.0.1 localhost\n{tunnel.lab.SERVER} {SERVER_NAME}\n"
        tunnel.server.start().wait_ready()
        tunnel.client.start().wait_ready()
        wait_for("a failed attempt", lambda: cannot_resolve(tunnel.client))
        time.sleep(0.3)
        began = time.monotonic()
        match how:
            case "a new hosts file":
                etc.replace("hosts", line)
            case "a link to another":
                etc.replace("hosts.of-tunnel", line)
                etc.link("hosts", "hosts.of-tunnel")
            case _:
                etc.replace("resolv.conf", f"nameserver {NOWHERE}\n")
                etc.remove("hosts")
                etc.replace("hosts", line)
        tunnel.client.wait_session()
        assert time.monotonic() - began < BACK + LATE
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        assert re.search(r"handshake, .*restart", tunnel.client.said()) is None
        assert "resolver" not in tunnel.client.workers(), "it lives for one name"


def test_a_server_resolves_its_dest_when_the_file_that_names_it_comes() -> None:
    with Tunnel() as tunnel:
        tunnel.edit("server0", "Dest", f"site.example.test:{PORT}")
        etc = private_etc(tunnel.server, tunnel.directory)
        tunnel.server.start().wait_ready()
        assert cannot_resolve(tunnel.server)
        etc.replace("hosts", f"127.0.0.1 localhost\n{tunnel.lab.SITE} site.example.test\n")

        def page() -> str:
            try:
                return visit(tunnel.lab.client, tunnel.lab.SERVER, tunnel.site.authority, PORT)
            except RuntimeError:
                return ""

        wait_for("the site's page", lambda: page() == PAGE)
