"""A client that hears nothing any more, as Chromium: repeats, a new port, CLOSE, and a new session. Real daemons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.ping import answered
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

#: At the server's door, as on a path in front of it.
DOOR = "table ip door {{ chain in {{ type filter hook prerouting priority -150; {rule}; }}; }}"
#: The repeats, the three PATH_CHALLENGEs and the frames that a session then still has to say end before the CLOSE.
GIVES_UP = (6.3, 6.9)


def session_of(daemon: Daemon) -> dict[str, Any]:
    """Its only one, as JSON."""
    (session,) = json.loads(daemon.tool("--json", "show", daemon.profile))["devices"][0]["sessions"]
    assert isinstance(session, dict)
    return session


def up(tunnel: Tunnel) -> Tunnel:
    """And a spare connection ID has been given to the client."""
    tunnel.up()
    wait_for("a spare connection ID", lambda: len(session_of(tunnel.server)["cids"]) == 2)
    assert answered(tunnel.lab.client, SERVER_INNER) == 5
    return tunnel


@contextmanager
def shut(tunnel: Tunnel, rule: str = f"udp dport {PORT} drop") -> Iterator[None]:
    """While packets that ``rule`` names do not reach the server."""
    tunnel.lab.server.run("nft", DOOR.format(rule=rule))
    try:
        yield
    finally:
        tunnel.lab.server.run("nft", "delete table ip door")


def one_ping(tunnel: Tunnel) -> None:
    assert answered(tunnel.lab.client, SERVER_INNER, "-s", "400", count=1, wait=1) == 0


def sent(dump: Tcpdump) -> list[Datagram]:
    dump.stop()
    return [each for each in dump.datagrams() if each.destination[1] == PORT]


def test_experiment2() -> None:
    import time

    with ExitStack() as stack:
        tunnel = up(stack.enter_context(Tunnel()))
        dump = stack.enter_context(
            Tcpdump(tunnel.lab.client, tunnel.lab.client_device, tunnel.directory / "c.pcap", PORT)
        )
        port = int(session_of(tunnel.server)["endpoint"].rpartition(":")[2])
        print(session_of(tunnel.server)["cids"])
        with shut(tunnel, f"udp sport {port} drop"):
            one_ping(tunnel)
            wait_for("new port", lambda: not session_of(tunnel.server)["endpoint"].endswith(f":{port}"))
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
            print(session_of(tunnel.server)["cids"])
            time.sleep(6)
            print(session_of(tunnel.server)["cids"])
            print(tunnel.lab.client.run("ss", "-Hunp", "dport", "=", "443"))
        told = sent(dump)
        first = next(each for each in told if len(each.payload) > 400)
        for each in told:
            if each.time >= first.time:
                print(f"{each.time - first.time:7.3f} {each.source[1]} {len(each.payload)} {each.payload[1:5].hex()}")
        print(tunnel.client.said())
        print(tunnel.client.tool("show", "client0"))
        print(tunnel.server.said())
        tunnel.client.tool("show", "client0")
