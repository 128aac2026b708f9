"""A client that comes back: with a ticket, as the browser does, to a real server in front of a real Caddy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.daemons import wait_for
from tests.support.ja4 import hellos
from tests.support.ping import answered
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

FRESH = "q13d0312h3_55b375c5d22e_178839b6cec1"
RESUMED = "q13d0314h3_55b375c5d22e_79cc91d6b50c"


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    """A server that has seen how its Dest answers whoever comes back, and a client that holds a ticket."""
    with Tunnel() as tunnel:
        tunnel.server.start().wait_ready()
        tunnel.server.tool("refresh", "server0")
        tunnel.client.start().wait_ready().wait_session()
        yield tunnel


def restart_client(tunnel: Tunnel) -> None:
    assert tunnel.client.stop() == 0
    tunnel.client.start().wait_ready().wait_session()


def test_a_client_that_is_restarted_comes_back_with_a_ticket_each_time(tunnel: Tunnel) -> None:
    with ExitStack() as stack:
        dump = stack.enter_context(
            Tcpdump(tunnel.lab.client, tunnel.lab.client_device, tunnel.directory / "back.pcap", PORT)
        )
        for _ in range(3):
            restart_client(tunnel)
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
        wait_for("hellos", lambda: len(hellos(dump.path)) >= 3)
        dump.stop()
        for d in list(dump.datagrams())[:240]:
            print(round(d.time % 100, 4), "C>" if d.destination[1] == PORT else "<S", len(d.payload), d.tos)
        print(tunnel.said())
        assert [name for name, _ in hellos(dump.path)] == [RESUMED] * 3
