"""Clients by name, with real daemons: added, renamed and removed while others' packets pass."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import Any

import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.json_schemas import check_against_schema
from tests.support.ping import answered, numbers_answered
from tests.support.tunnel import SERVER_INNER, Tunnel

pytestmark = pytest.mark.root

QUICK = "ReconnectMin = 200ms\nReconnectMax = 1s\n"
#: Of fifty clients, those that there are.
REAL = int(os.environ.get("QRE_CLIENTS", "4"))
#: Of those that are started together: each is four processes.
AT_ONCE = 4
#: Of what a removed client may still do (seconds).
OUT_WITHIN = 2.0


def listed(tunnel: Tunnel) -> dict[str, dict[str, Any]]:
    answer = json.loads(tunnel.server.tool("--json", "list-clients", "server0"))
    check_against_schema("list-clients", answer)
    assert answer["running"]
    return {one["name"] or one["short_id"]: one for one in answer["clients"]}


def shown(tunnel: Tunnel, *client: str) -> dict[str, Any]:
    answer = json.loads(tunnel.server.tool("--json", "show", "server0", *client))
    check_against_schema("show", answer)
    described: dict[str, Any] = answer["devices"][0]
    return described


def hand_out(tunnel: Tunnel, name: str) -> Daemon:
    """Added at the server, handed over as a link, imported on the client's side."""
    tunnel.server.tool("add-client", "server0", name, f"File={tunnel.directory / name}")
    link = tunnel.server.tool("export", "server0", name, "As=link").strip()
    assert f"next: qre-tool daemon {name}" in tunnel.client.tool("import", link)
    assert tunnel.profile(name).stat().st_mode & 0o777 == 0o600
    return tunnel.daemon(name)


def add(tunnel: Tunnel, name: str) -> Daemon:
    return hand_out(tunnel, name).start().wait_ready().wait_session()


def check_that_nobody_is_added_whom_the_daemon_does_not_take(tunnel: Tunnel) -> None:
    """It refuses the reload: another key of the file was changed, too."""
    tunnel.edit("server0", "Listen", "127.0.0.1:4433")
    before = tunnel.profile("server0").read_bytes()
    with pytest.raises(RuntimeError, match=r"did not take the change: .*; the profile is as it was"):
        tunnel.server.tool("add-client", "server0", "bob", f"File={tunnel.directory / 'bob'}")
    assert tunnel.profile("server0").read_bytes() == before
    assert not (tunnel.directory / "bob").exists()


def check_that_old_and_new_keys_are_taken_for_a_time(tunnel: Tunnel, alice: Daemon) -> None:
    lines = tunnel.server.tool("rotate-key", "server0", "For=1h").splitlines()
    assert lines[0] == "# changed the key of server0: the daemon has it"
    (link,) = (line.removeprefix("al ") for line in lines if line.startswith("al "))
    alice.stop()
    alice.start().wait_ready().wait_session()  # with the old one
    assert "replaced" in tunnel.client.tool("import", link, "Profile=alice", "--replace")
    tunnel.edit("server0", "RealityPreviousKeyUntil", "2000-01-01T00:00:00Z")
    tunnel.server.tool("reload", "server0")
    alice.stop()
    alice.start().wait_ready().wait_session()  # with the new one, the only one that is taken now


def test_clients_come_and_go_and_the_others_lose_no_packet() -> None:
    with Tunnel(QUICK) as tunnel:
        tunnel.up()
        ping = tunnel.lab.client.popen(
            ["ping", "-i", "0.05", "-I", "client0", SERVER_INNER], log=tunnel.directory / "ping"
        )
        try:
            assert tunnel.server.tool("check", "--ready", "server0").startswith("ready: serving")
            alice = add(tunnel, "alice")
            assert tunnel.client.tool("check", "--ready", "alice").startswith("ready: connected to ")
            assert answered(tunnel.lab.client, SERVER_INNER, "-I", "alice") == 5
            (session,) = shown(tunnel, "alice")["sessions"]
            assert session["client"] == "alice"
            tunnel.server.tool("rename-client", "server0", "alice", "al")
            (same,) = shown(tunnel, "al")["sessions"]
            assert same["session_id"] == session["session_id"]
            clients = listed(tunnel)
            assert clients["al"]["connected"] and clients["al"]["rx_packets"] >= 5
            assert "client: al\n  address: 10.77.0.3\n  connected: yes\n" in tunnel.server.tool(
                "show", "server0", "al"
            )
            check_that_old_and_new_keys_are_taken_for_a_time(tunnel, alice)
            tunnel.server.tool("remove-client", "server0", "al")
            began = time.monotonic()
            ready = tunnel.directory / "run" / "alice.ready"
            wait_for("the end of alice's session", lambda: not ready.exists())
            wait_for("its end at the server", lambda: len(shown(tunnel)["sessions"]) == 1)
            assert time.monotonic() - began < OUT_WITHIN
            wait_for("the reason", lambda: "this short id was removed" in alice.said())
            assert answered(tunnel.lab.client, SERVER_INNER, "-I", "alice", count=2, wait=1) == 0
            assert "al" not in listed(tunnel)
            check_that_nobody_is_added_whom_the_daemon_does_not_take(tunnel)
        finally:
            ping.send_signal(signal.SIGINT)
            ping.wait()
        said = (tunnel.directory / "ping").read_text()
        (sent,) = map(int, re.findall(r"(\d+) packets transmitted", said))
        # the answer to the last one may have been on its way when ping was ended
        assert set(range(1, sent)) <= numbers_answered(said) and sent > 20, said[-300:]


def test_a_worker_that_is_away_does_not_make_clients_disappear() -> None:
    """What it alone knows is told as unknown, never as nobody."""
    with Tunnel(QUICK) as tunnel:
        tunnel.server.start().wait_ready()
        add(tunnel, "alice")
        wait_for("the session", lambda: len(shown(tunnel)["sessions"]) == 1)
        text = json.dumps(shown(tunnel)) + tunnel.server.tool("show", "server0")
        assert tunnel.value("alice", "RealityShortId") not in text
        seen = set()
        for worker in ("handshake", "dataplane"):
            os.kill(tunnel.server.workers()[worker], signal.SIGKILL)
            for _ in range(6):
                metrics = tunnel.server.tool("metrics", "server0")
                clients = re.search(r"^qre_clients\{.*\} (\S+)$", metrics, re.MULTILINE)
                assert clients is None or float(clients[1]) == 2, metrics
                seen.add((worker, clients is None))
                described = shown(tunnel)
                assert described["clients"] is None or len(described["clients"]) == 2
                assert "alice" in listed(tunnel)
            wait_for("the session", lambda: len(shown(tunnel)["sessions"] or ()) == 1)
        assert {("handshake", True), ("dataplane", True)} <= seen, "it was never asked while the worker was away"


def test_fifty_clients_are_a_table_of_those_that_are_there() -> None:
    """`make test-clients` has all of them connect."""
    others = 50 - REAL
    with Tunnel(QUICK) as tunnel:
        text = tunnel.profile("server0").read_text()
        sections = (
            f"\n[Client user-{number:02}]\nShortId = {number:016x}\nAddress = 10.77.0.{100 + number}\n"
            for number in range(others)
        )
        tunnel.profile("server0").write_text(text + "".join(sections))
        tunnel.up()
        clients = [hand_out(tunnel, f"real-{number:02}") for number in reversed(range(REAL))]
        for first in range(0, REAL, AT_ONCE):
            for client in clients[first : first + AT_ONCE]:
                client.start()
            for client in clients[first : first + AT_ONCE]:
                client.wait_ready().wait_session()
        assert len(listed(tunnel)) == 51
        told = tunnel.server.tool("show", "server0")
        title, *rows, totals = told.partition("\n\n")[2].splitlines()
        names = [row.split()[0] for row in rows]
        assert names == [*(f"real-{number:02}" for number in range(REAL)), tunnel.value("client0", "RealityShortId")]
        assert title.startswith("client ") and max(map(len, (title, *rows))) <= 100
        away = f"; {others} of 51 clients not connected" if others else ""
        assert re.match(rf"{REAL + 1} sessions: .* received, .* sent{away}$", totals)
        listing = tunnel.server.tool("list-clients", "server0").splitlines()
        assert max(map(len, listing)) <= 100 and listing[-1].startswith(f"51 clients, {REAL + 1} connected; ")
        print("\n".join(["", title, *rows, totals, "", *listing]))
        watched = tunnel.server.tool("watch", "server0", "Count=2", "Interval=0.2").partition("received/s")[2]
        assert "/s received, " in watched.splitlines()[-1]
        check_that_one_comes_and_goes_unnoticed(tunnel, clients)


def check_that_one_comes_and_goes_unnoticed(tunnel: Tunnel, others: list[Daemon]) -> None:
    """Everybody else has the session that it had."""
    before = {one["session_id"] for one in shown(tunnel)["sessions"]}
    add(tunnel, "late")
    tunnel.server.tool("remove-client", "server0", "late")
    wait_for("the end of its session", lambda: {one["session_id"] for one in shown(tunnel)["sessions"]} == before)
    for client in others:
        assert answered(tunnel.lab.client, SERVER_INNER, "-I", client.profile, count=2) == 2
