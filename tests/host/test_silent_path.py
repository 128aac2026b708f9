"""A client that hears nothing any more, as Chromium: repeats, a new port, CLOSE, and a new session. Real daemons."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Final

import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.ping import answered
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

#: At the server's door, as on a path in front of it.
DOOR: Final = "table ip door {{ chain in {{ type filter hook prerouting priority -150; {rule}; }}; }}"
#: Of the datagram around a ping of this size, with a connection ID of four bytes.
INSIDE, AROUND = 400, 28 + 28
GIVEN_UP: Final = "nothing has come back for as long as a browser waits"


def session_of(daemon: Daemon) -> dict[str, Any]:
    """Its only one, as JSON; empty while there is not one."""
    found = json.loads(daemon.tool("--json", "show", daemon.profile))["devices"][0]["sessions"]
    return dict(found[0]) if len(found) == 1 else {}


def port_of(tunnel: Tunnel) -> int:
    """The client's, as its server sees it; 0 while there is not one session."""
    return int(session_of(tunnel.server).get("endpoint", ":0").rpartition(":")[2])


def sockets(tunnel: Tunnel) -> int:
    """How many of the client's lead to the server."""
    return len(tunnel.lab.client.run("ss", "-Hun", "dport", "=", str(PORT)).splitlines())


def up(tunnel: Tunnel) -> Tunnel:
    """And the client has got a spare connection ID."""
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
    assert answered(tunnel.lab.client, SERVER_INNER, "-s", str(INSIDE), count=1, wait=0.2) == 0


def works_again(tunnel: Tunnel) -> float:
    """How long it takes until a ping is answered (seconds)."""
    began = time.monotonic()
    wait_for("answers", lambda: answered(tunnel.lab.client, SERVER_INNER, count=1, wait=0.2) == 1)
    return time.monotonic() - began


def short_headers(dump: Tcpdump) -> list[Datagram]:
    """Those of the client's session, from the ping on."""
    dump.stop()
    sent = [each for each in dump.datagrams() if each.destination[1] == PORT and each.payload[0] < 0x80]
    first = next(place for place, each in enumerate(sent) if len(each.payload) == INSIDE + AROUND)
    return sent[first:]


def test_what_leaves_a_client_that_hears_nothing_is_what_leaves_chromium_and_it_comes_back() -> None:
    """Of a round trip of milliseconds. A busy machine is late with each."""
    with ExitStack() as stack:
        tunnel = up(stack.enter_context(Tunnel()))
        lab = tunnel.lab
        dump = stack.enter_context(Tcpdump(lab.client, lab.client_device, tunnel.directory / "client.pcap", PORT))
        before, port = sockets(tunnel), port_of(tunnel)
        with shut(tunnel):
            one_ping(tunnel)
            wait_for("the end of the session", lambda: GIVEN_UP in tunnel.client.said())
        wait_for("another session", lambda: port_of(tunnel) not in {0, port})
        assert works_again(tunnel) < 10
        wait_for("the end of all other sockets", lambda: sockets(tunnel) == before)
        sent = short_headers(dump)
    began = sent[0].time
    old = [each for each in sent if each.source[1] == port]
    *_, close = old
    assert 66 <= len(close.payload) <= 68 and 6.3 < close.time - began < 8
    repeats = [each for each in old if len(each.payload) == INSIDE + AROUND]
    assert 5 <= len(repeats) <= 8
    gaps = [two.time - one.time for one, two in pairwise(repeats)]
    assert gaps[3] > gaps[0] and gaps[-1] > 2 * gaps[0], (
        "the unit ring compares each; a busy machine is late with some"
    )
    assert {len(each.payload) for each in old} <= {INSIDE + AROUND, 25, len(close.payload)}
    trial = [each for each in sent if each.time < close.time and each.source[1] != port]
    assert len({each.source for each in trial}) == 1
    assert [len(each.payload) for each in trial] == [1250] * 3
    assert all(0.29 < two.time - one.time < 0.6 for one, two in pairwise(trial))
    assert repeats[1].time < trial[0].time, "two repeats before"
    used, spare = old[0].payload[1:5], trial[0].payload[1:5]
    assert used != spare and {each.payload[1:5] for each in old} == {used}
    assert {each.payload[1:5] for each in trial} == {spare}


def test_a_path_that_comes_back_on_another_port_alone_keeps_the_session() -> None:
    """With another connection ID, and nothing is left of the old port; whatever worker dies afterwards."""
    with Tunnel("ReconnectMin = 500ms\n") as tunnel:
        up(tunnel)
        before, port, session = sockets(tunnel), port_of(tunnel), session_of(tunnel.server)
        with shut(tunnel, f"udp dport {PORT} udp sport {port} drop"):
            one_ping(tunnel)
            wait_for("another port", lambda: port_of(tunnel) not in {0, port})
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
            wait_for("the end of the old socket", lambda: sockets(tunnel) == before)
            after = session_of(tunnel.server)
            assert after["session_id"] == session["session_id"]
            wait_for("the end of its connection ID", lambda: len(session_of(tunnel.server)["cids"]) == 2)
            assert len(set(session["cids"]) & set(session_of(tunnel.server)["cids"])) == 1
            for worker in ("handshake", "dataplane"):
                os.kill(tunnel.client.workers()[worker], signal.SIGKILL)
                wait_for(f"another {worker} worker", lambda: works_again(tunnel) < 100)
            assert session_of(tunnel.server)["session_id"] == session["session_id"], "it was not made anew"
        assert "handshakes: 0 completed" in tunnel.client.tool("show", "client0")
        assert "session lost" not in tunnel.client.said()
        assert sockets(tunnel) == before


def test_a_trial_under_way_outlives_a_handshake_worker_of_either_end() -> None:
    with Tunnel("ReconnectMin = 500ms\n") as tunnel:
        up(tunnel)
        before = sockets(tunnel)
        with shut(tunnel):
            one_ping(tunnel)
            wait_for("a socket is lent", lambda: sockets(tunnel) > before)
            for daemon in (tunnel.client, tunnel.server):
                os.kill(daemon.workers()["handshake"], signal.SIGKILL)
        works_again(tunnel)
        wait_for("sockets that nobody uses are gone", lambda: sockets(tunnel) == before)
        wait_for("one session at each end", lambda: port_of(tunnel) != 0 and bool(session_of(tunnel.client)))
        assert answered(tunnel.lab.client, SERVER_INNER) == 5


@pytest.mark.parametrize(("seconds", "given_up"), [(3, False), (10, True)])
def test_a_path_that_comes_back_carries_packets_within_seconds(seconds: int, given_up: bool) -> None:
    """On the old session, or on one that was begun beside it; after longer on a new one."""
    with Tunnel() as tunnel:
        up(tunnel)
        before = sockets(tunnel)
        ping = tunnel.lab.client.popen(["ping", "-n", "-i", "0.1", "-w", "60", SERVER_INNER])
        try:
            with shut(tunnel):
                time.sleep(seconds)
            took = works_again(tunnel)
        finally:
            ping.kill()
            ping.wait()
        print(f"{took:.2f} s after the path was back")
        assert took < 10, "3 s and a handshake, where the machine is not busy"
        assert (GIVEN_UP in tunnel.client.said()) is given_up
        wait_for("one session", lambda: bool(session_of(tunnel.client)))
        wait_for("sockets that nobody uses are gone", lambda: sockets(tunnel) == before)
