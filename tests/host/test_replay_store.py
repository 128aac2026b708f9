"""Servers with one private key take a hello once among all of them: they ask a real store, which may be down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host.test_strangers import first_flight
from tests.support.daemons import Daemon, wait_for
from tests.support.lab import Lab
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import PORT, Tunnel

PASSWORD = "hush-hush"
#: To Dest and back is twice as long.
FAR_MS = 30
SEND = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.connect((sys.argv[1], int(sys.argv[2])))\n"
    "[s.send(bytes.fromhex(data)) for data in sys.argv[3:]]\n"
)


@contextmanager
def redis(tunnel: Tunnel, path: Path) -> Iterator[None]:
    """A store on the first server's machine, at a port and at ``path``."""
    command = ["redis-server", "--port", "6379", "--bind", "127.0.0.1", "--unixsocket", str(path), "--save", ""]
    command += ["--requirepass", PASSWORD, "--dir", str(tunnel.directory), "--maxmemory-policy", "noeviction"]
    prefix = tunnel.lab.server.prefix
    with subprocess.Popen([*prefix, *command], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for("the store", path.exists)
            yield
        finally:
            process.terminate()


@contextmanager
def far_site(tunnel: Tunnel) -> Iterator[None]:
    """Dest is as far away as a site is: whom the store knows later than Dest answers is a stranger."""
    near, far = (Lab.SITE, "444"), (Lab.SITE, str(PORT))
    tunnel.edit("server0", "Dest", ":".join(near))
    road = tunnel.lab.site.popen([sys.executable, "-m", "tests.support.distance", *near, *far, str(FAR_MS)])
    try:
        yield
    finally:
        road.kill()
        road.wait()


def told(server: Daemon) -> dict[str, int]:
    (device,) = json.loads(server.tool("--json", "show", server.profile))["devices"]
    return {name: device["handshake"][name] for name in ("handshakes", "strangers")}


def connected(tunnel: Tunnel) -> set[str]:
    """The daemons' connections, as the store numbers them."""
    listed = tunnel.lab.server.run("redis-cli", "-a", PASSWORD, "--no-auth-warning", "client", "list")
    return {line.split()[0] for line in listed.splitlines() if "cmd=client" not in line}


def replay(tunnel: Tunnel, flight: list[bytes], address: str) -> None:
    """The flight of a client, sent again to another server."""
    words = (datagram.hex() for datagram in flight)
    tunnel.lab.client.run("/usr/bin/python3", "-c", SEND, address, str(PORT), *words)


def test_a_hello_is_taken_once_among_servers_that_share_a_store() -> None:
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n") as tunnel, far_site(tunnel):
        path = tunnel.directory / "store.sock"
        (second, at_second), (alone, at_alone) = tunnel.further_server(1), tunnel.further_server(2)
        tunnel.edit("server0", "ReplayStore", f"valkey://:{PASSWORD}@127.0.0.1:6379/2")
        tunnel.edit("server1", "ReplayStore", f"unix://:{PASSWORD}@{path}?2")
        with redis(tunnel, path):
            for server in (tunnel.server, second, alone):
                server.start().wait_ready()
            capture = tunnel.directory / "flight.pcap"
            with Tcpdump(tunnel.lab.server, tunnel.lab.server_device, capture) as dump:
                tunnel.client.start().wait_ready().wait_session()
                wait_for("the first flight", lambda: len(first_flight(dump.datagrams())) == 2)
            flight = first_flight(dump.datagrams())
            assert told(tunnel.server)["handshakes"] == 1
            checked = second.tool("check", "server1", check=False)
            assert f"yes  replay store     {path} answers in" in checked
            connections = connected(tunnel)
            tunnel.server.tool("reload", "server0")
            assert connected(tunnel) == connections, "a reload that does not name another store keeps its connection"
            replay(tunnel, flight, at_second)
            wait_for("the second's verdict", lambda: told(second) == {"handshakes": 0, "strangers": 1})
            replay(tunnel, flight, at_alone)
            wait_for("what the store is for", lambda: told(alone) == {"handshakes": 1, "strangers": 0})
        unreachable = "clients are not recognised: the replay store does not answer"
        wait_for("the loss", lambda: unreachable in tunnel.server.tool("show", "server0"))
        checked = tunnel.server.tool("check", "server0", check=False)
        assert "no   replay store     127.0.0.1:6379: Connection refused; see to it" in checked
        tunnel.client.stop()
        tunnel.client.start().wait_ready()
        wait_for("the site", lambda: "did not recognise us" in tunnel.client.said())
        path.unlink(missing_ok=True)
        with redis(tunnel, path):
            wait_for("the store's return", lambda: unreachable not in tunnel.server.tool("show", "server0"))
            tunnel.client.tool("reload", "client0")
            tunnel.client.wait_session()
        for server in (tunnel.server, second):
            assert PASSWORD not in server.said()
