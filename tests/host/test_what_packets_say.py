"""«Connected» means that packets pass: STATUS, ``show`` and ``check`` say so when they do not. Real daemons."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from tests.support.daemons import Daemon, wait_for
from tests.support.ping import answered
from tests.support.tunnel import SERVER_INNER, Tunnel

FRONT = "table ip front {{ chain in {{ type filter hook prerouting priority -150; {rule}; }}; }}"


def statuses(tunnel: Tunnel) -> list[str]:
    assert tunnel.client.notify is not None
    return [line for line in tunnel.client.notify.poll() if line.startswith("STATUS=")]


def sessions(daemon: Daemon) -> list[dict[str, Any]]:
    (device,) = json.loads(daemon.tool("--json", "show", daemon.profile))["devices"]
    found = device["sessions"]
    assert isinstance(found, list)
    return found


def test_a_firewall_that_appears_in_front_of_the_port_is_said_within_seconds_and_that_it_is_gone() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        assert "; " not in statuses(tunnel)[-1]
        tunnel.lab.server.run("nft", FRONT.format(rule="udp dport 443 drop"))
        ping = tunnel.lab.client.popen(["ping", "-i", "0.2", "-w", "60", SERVER_INNER])
        try:
            began = time.monotonic()
            wait_for("STATUS", lambda: "nothing has come back for" in statuses(tunnel)[-1])
            took = time.monotonic() - began
            assert took < 15
            wait_for("the server notices it, too", lambda: sessions(tunnel.server)[0]["health"] == "silent")
            assert sessions(tunnel.server)[0]["unanswered_ms"] >= 5000
            assert "answers: none for" in tunnel.server.tool("show", "server0")
            wait_for("the client gives its session up", lambda: not sessions(tunnel.client))
            found = json.loads(tunnel.client.tool("--json", "check", "client0", check=False))
            (item,) = [item for item in found["items"] if item["item"] == "tunnel"]
            assert item["answer"] == "no"
            later = "no answer in time"  # of the next attempt, where the check has taken long
            assert "nothing has come back" in item["seen"] or later in item["seen"]
            tunnel.lab.server.run("nft", "delete table ip front")
            wait_for("STATUS", lambda: "nothing has come back" not in statuses(tunnel)[-1])
            wait_for("the log", lambda: "packets pass again" in tunnel.client.said())
        finally:
            ping.kill()
            ping.wait()
        seconds = re.findall(r"nothing has come back for (\d+) s", tunnel.client.said())
        assert seconds and 5 <= int(seconds[0]) <= max(6.0, took), "a busy machine says it later, and how much"
        assert answered(tunnel.lab.client, SERVER_INNER) == 5


def test_a_path_that_swallows_all_but_small_packets_is_said() -> None:
    """Smaller than QUIC allows: no search finds a size that passes, while small packets of the session do.

    Whether the search had found a larger size before or not. One of ten large ones passes: without any, the session
    ends, and no hello passes for another."""
    with Tunnel() as tunnel:
        tunnel.up()
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        tunnel.lab.server.run(
            "nft", FRONT.format(rule="udp dport 443 meta length > 900 numgen random mod 10 < 9 drop")
        )
        ping = tunnel.lab.client.popen(["ping", "-i", "0.1", "-s", "1100", "-w", "90", SERVER_INNER])
        try:
            wait_for("STATUS", lambda: "packets were lost" in statuses(tunnel)[-1])
            (session,) = json.loads(tunnel.client.tool("--json", "show", "client0"))["devices"][0]["sessions"]
            assert session["tx_lost"] > 10
        finally:
            ping.kill()
            ping.wait()


def test_packets_that_are_all_marked_ce_pass_and_the_log_says_so() -> None:
    """RFC 6040 would drop what knows no ECN inside; but a client marks nothing, and where every packet of a server's
    is marked as congested none is meant."""
    with Tunnel() as tunnel:
        tunnel.up()
        for namespace, port in ((tunnel.lab.server, "dport"), (tunnel.lab.client, "sport")):
            rule = f"udp {port} 443 ip ecn set ce"
            namespace.run(
                "nft", f"table ip marks {{ chain in {{ type filter hook prerouting priority -150; {rule}; }}; }}"
            )
        wait_for("pings pass again", lambda: answered(tunnel.lab.client, SERVER_INNER, wait=2) == 5)
        for daemon in (tunnel.client, tunnel.server):
            assert "packets arrive marked CE" in daemon.said()
