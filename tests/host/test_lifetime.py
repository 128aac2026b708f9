"""SessionLifetime: a client's session ends for a newer one, from another port, under a ping, and nothing is lost.

``QRE_LIFETIMES`` times, of 10 s each (one unless set).
"""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import ExitStack
from typing import Any

from tests.support.capture import KeyLog, decrypt
from tests.support.daemons import Daemon, wait_for
from tests.support.lab import Lab
from tests.support.ping import answered, answered_in_a_row
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

SHORT = "SessionLifetime = 10s\n"
LIFETIMES = int(os.environ.get("QRE_LIFETIMES", "1"))
#: One every 50 ms: a session of 7.5 to 12.5 s ends meanwhile, or two.
REQUESTS = 300


def sessions(daemon: Daemon) -> list[dict[str, Any]]:
    (device,) = json.loads(daemon.tool("show", daemon.profile, "--json"))["devices"]
    found = device["sessions"]
    assert isinstance(found, list)
    return found


def ports(tunnel: Tunnel) -> set[int]:
    """Of the client's end, as its server sees them."""
    return {int(session["endpoint"].rpartition(":")[2]) for session in sessions(tunnel.server)}


def test_sessions_end_for_newer_ones_under_a_ping_and_nothing_is_lost() -> None:
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(SHORT))
        log = stack.enter_context(KeyLog())
        dumps = tunnel.captures(stack)
        log.watch(tunnel.server.start())
        log.watch(tunnel.client.start())
        tunnel.server.wait_ready()
        tunnel.client.wait_ready().wait_session()
        before = ports(tunnel)
        sockets = tunnel.lab.client.run("ss", "-Hun").count(f":{PORT}")
        for _ in range(LIFETIMES):
            assert answered_in_a_row(tunnel.lab.client, SERVER_INNER, REQUESTS) == REQUESTS
        (completed,) = re.findall(r"handshakes: (\d+) completed", tunnel.client.tool("show", "client0"))
        assert int(completed) > LIFETIMES
        wait_for(
            "the end of the older one", lambda: len(sessions(tunnel.server)) == 1 == len(sessions(tunnel.client))
        )
        assert not ports(tunnel) & before
        wait_for("its socket's end", lambda: tunnel.lab.client.run("ss", "-Hun").count(f":{PORT}") == sockets)
        assert "session ended" not in tunnel.said()
        assert "two machines" not in tunnel.said()
        judge(log, dumps)


def judge(log: KeyLog, dumps: list[Tcpdump]) -> None:
    """Everything that was captured, decrypted: no number twice under a key, in any of the sessions."""
    for dump in dumps:
        dump.stop()
    assert not log.missed
    found = decrypt(log.sessions.values(), [datagram for dump in dumps for datagram in dump.datagrams()], PORT)
    print(f"{found.packets} packets of {len(log.sessions)} sessions, {len(found.undecrypted)} not decrypted")
    assert len(log.sessions) > LIFETIMES
    for session_id in log.sessions:
        for direction in found.sent_by(session_id):
            assert direction.reused() == [] and direction.wrong_phase == 0
            numbers = [number for _, number in direction.ciphertexts]
            assert len(numbers) == len(set(numbers)) > 5
    assert not found.undecrypted


def test_an_old_session_goes_on_while_no_new_one_can_be_made() -> None:
    """The network lets only the port pass that it knows."""
    with Tunnel(SHORT) as tunnel:
        tunnel.up()
        (port,) = known = ports(tunnel)
        rule = f"udp dport {PORT} udp sport != {port} drop"
        tunnel.lab.client.run(
            "nft", "add table ip guard; add chain ip guard out { type filter hook output priority 0; }"
        )
        tunnel.lab.client.run("nft", f"add rule ip guard out ip daddr {Lab.SERVER} {rule}")
        wait_for("an attempt that fails", lambda: "a new session fails, the old one goes on" in tunnel.client.said())
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        assert ports(tunnel) == known
        tunnel.lab.client.run("nft", "delete table ip guard")
        wait_for("another port", lambda: not ports(tunnel) & known)
        assert answered(tunnel.lab.client, SERVER_INNER) == 5


def test_handshake_workers_killed_while_there_are_two_leave_one() -> None:
    with Tunnel(SHORT) as tunnel:
        tunnel.up()
        wait_for("two sessions", lambda: len(sessions(tunnel.client)) == 2)
        for daemon in (tunnel.client, tunnel.server):
            os.kill(daemon.workers()["handshake"], signal.SIGKILL)
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        wait_for("one session", lambda: len(sessions(tunnel.server)) == 1 == len(sessions(tunnel.client)))
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
