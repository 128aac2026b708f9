"""Three servers, each with keys of its own, are one service: a client that lost one is back in seconds."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import time
from base64 import b64decode
from itertools import pairwise

from qre.cli.profile.configuration import public_key
from qre.config.values import show_key
from tests.support.daemons import PATIENCE, Daemon, wait_for
from tests.support.lab import Lab
from tests.support.namespaces import Namespace
from tests.support.tunnel import SERVER_INNER, Tunnel

#: What a tunnel may be without a server (seconds).
BACK = 5.0


def another_server(tunnel: Tunnel, number: int) -> tuple[Daemon, str]:
    """A machine of its own between client and site, with keys of its own, and where it listens."""
    daemon, address = tunnel.further_server(number)
    tunnel.edit(daemon.profile, "RealityPrivateKey", show_key(secrets.token_bytes(32)))
    tunnel.edit(daemon.profile, "RealityShortIds", secrets.token_hex(8))
    return daemon, f"{address}:443"


def connected_to(tunnel: Tunnel, endpoint: str) -> bool:
    return f"status: connected to {endpoint}\n" in tunnel.client.tool("show", "client0")


def gap_of(tunnel: Tunnel, deed: subprocess.Popen[bytes] | Namespace) -> float:
    """The longest time without an answer (seconds), when a server is killed or its link cut under a ping."""
    command = ["ping", "-n", "-D", "-i", "0.05", "-w", "12", SERVER_INNER]
    with subprocess.Popen([*tunnel.lab.client.prefix, *command], stdout=subprocess.PIPE, text=True) as ping:
        assert ping.stdout is not None
        time.sleep(1)
        if isinstance(deed, Namespace):
            deed.ip("link", "set", tunnel.lab.server_device, "down")
        else:
            deed.send_signal(signal.SIGKILL)
        times = [float(found[1]) for line in ping.stdout if (found := re.match(r"\[([\d.]+)\].* ttl=", line))]
    assert len(times) > 20
    return max(later - sooner for sooner, later in pairwise(times))


def test_one_of_three_is_killed_or_silent_and_the_next_carries_the_tunnel_until_it_is_back() -> None:
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 2s\n") as tunnel:
        (second, at_second), (third, at_third) = another_server(tunnel, 1), another_server(tunnel, 2)
        first = f"{Lab.SERVER}:443"
        names = ("server0", "server1", "server2")
        keys = [b64decode(tunnel.value(name, "RealityPrivateKey")) for name in names]
        tunnel.edit("client0", "Endpoint", f"{first}, {at_second}, {at_third}")
        tunnel.edit("client0", "RealityPublicKey", ", ".join(show_key(public_key(key)) for key in keys))
        tunnel.edit("client0", "RealityShortId", ", ".join(tunnel.value(name, "RealityShortIds") for name in names))
        for server in (second, third):
            server.start().wait_ready()
        tunnel.up()
        wait_for("the first server, heard", lambda: connected_to(tunnel, first))
        killed = tunnel.server.process
        assert killed is not None
        assert gap_of(tunnel, killed) < BACK
        killed.wait(PATIENCE)
        assert connected_to(tunnel, at_second)
        tunnel.server.process = None  # it ended by a signal, as it should
        tunnel.server.start().wait_ready()
        wait_for("the first one again", lambda: connected_to(tunnel, first))
        assert gap_of(tunnel, tunnel.lab.server) < BACK
        assert connected_to(tunnel, at_second)
        tunnel.lab.plug_server()
        wait_for("the first one once more", lambda: connected_to(tunnel, first))
