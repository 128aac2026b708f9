"""What belongs to one client is not another's: addresses and networks, whatever connects first, last or again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.daemons import Daemon, wait_for
from tests.support.namespaces import Namespace, join
from tests.support.ping import answered
from tests.support.tunnel import CLIENT_INNER, SERVER_INNER, Tunnel

ROOT = Path(__file__).resolve().parents[2]
QUICK = "ReconnectMin = 200ms\nReconnectMax = 1s\n"
LAN = "192.168.7.1"
ELSEWHERE = "10.90.4.2"


def add_sections(tunnel: Tunnel, **lines: tuple[str, ...]) -> None:
    """Sections of the server's profile: the client's profile -> further lines. They have the short ids of both."""
    tunnel.edit("server0", "RealityShortIds", tunnel.value("client0", "RealityShortId"))
    with tunnel.profile("server0").open("a") as file:
        for name, more in lines.items():
            short_id = tunnel.value(name, "RealityShortId")
            file.write("\n".join([f"[Client the-{name}]", f"ShortId = {short_id}", *more, ""]))


def hear(daemon: Daemon, words: str) -> None:
    wait_for(f"{daemon.profile} says: {words}", lambda: words in daemon.said())


def has_session(tunnel: Tunnel, name: str) -> bool:
    return (tunnel.directory / "run" / f"{name}.ready").exists()


def shown(daemon: Daemon) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(daemon.tool("--json", "show", daemon.profile))["devices"][0]
    return described


def one_session(tunnel: Tunnel) -> list[dict[str, Any]]:
    """The sessions, when those that were replaced or removed are closed."""
    wait_for("one session", lambda: len(shown(tunnel.server)["sessions"]) == 1)
    sessions: list[dict[str, Any]] = shown(tunnel.server)["sessions"]
    return sessions


def test_the_address_of_a_section_is_its_clients_whether_that_is_there_or_not() -> None:
    with Tunnel(QUICK) as tunnel:
        thief = tunnel.second_client(address=f"{CLIENT_INNER}/24")
        add_sections(tunnel, client0=(f"Address = {CLIENT_INNER}",), client1=("Address = 10.77.0.3",))
        tunnel.server.start().wait_ready()
        thief.start().wait_ready()
        hear(tunnel.server, f"client the-client1 at {tunnel.lab.CLIENT} asked for what it may not have: ")
        assert f"{CLIENT_INNER} belongs to client the-client0" in tunnel.server.said()
        tunnel.client.start().wait_ready().wait_session()
        assert answered(tunnel.lab.client, SERVER_INNER, "-I", "client0") == 5
        assert not has_session(tunnel, "client1")
        (session,) = shown(tunnel.server)["sessions"]
        assert (session["client"], session["allowed_ips"]) == ("the-client0", [f"{CLIENT_INNER}/32"])
        assert "client: the-client0" in tunnel.server.tool("show", "server0")
        assert "client the-client0 is connected from" in tunnel.server.said()


def test_a_client_with_a_section_gets_nothing_but_its_own_address_and_one_without_nothing_of_a_section() -> None:
    with Tunnel(QUICK) as tunnel:
        other = tunnel.second_client(address="10.77.0.9/24")
        add_sections(tunnel, client1=("Address = 10.77.0.3, 10.77.0.4",))
        tunnel.edit("client0", "Address", "10.77.0.4/24")
        tunnel.server.start().wait_ready()
        other.start().wait_ready()
        hear(tunnel.server, "10.77.0.9 is not in its section")
        other.stop()
        tunnel.client.start().wait_ready()
        hear(tunnel.server, "10.77.0.4 belongs to client the-client1")
        tunnel.client.stop()
        tunnel.edit("client1", "Address", "10.77.0.4/24")
        tunnel.edit("client0", "Address", "10.77.0.5/24")
        other.start().wait_ready().wait_session()
        tunnel.client.start().wait_ready().wait_session()
        assert {each["client"] for each in shown(tunnel.server)["sessions"]} == {"the-client1", None}


def test_an_address_is_kept_for_the_short_id_that_had_it_last_through_every_restart() -> None:
    with Tunnel(QUICK) as tunnel:
        thief = tunnel.second_client(address=f"{CLIENT_INNER}/24")
        tunnel.up()
        thief.start().wait_ready()
        owner = tunnel.value("client0", "RealityShortId")
        hear(tunnel.server, f"{CLIENT_INNER} is in use by client {owner}")
        assert answered(tunnel.lab.client, SERVER_INNER, "-I", "client0") == 5
        tunnel.client.stop()
        hear(tunnel.server, f"{CLIENT_INNER} was last used by client {owner}")
        os.kill(tunnel.server.workers()["handshake"], signal.SIGKILL)
        hear(tunnel.server, "worker handshake is back")
        tunnel.server.stop()
        tunnel.server.log.unlink()
        tunnel.server.start().wait_ready()
        hear(tunnel.server, f"{CLIENT_INNER} was last used by client {owner}")
        assert not has_session(tunnel, "client1")
        tunnel.client.start().wait_ready().wait_session()
        assert answered(tunnel.lab.client, SERVER_INNER, "-I", "client0") == 5
        leases = tunnel.directory / "state" / "server0.leases"
        assert leases.stat().st_mode & 0o777 == 0o600


def test_one_short_id_gets_no_network_by_handshakes_that_it_does_not_use() -> None:
    with Tunnel(QUICK) as tunnel:
        honest = tunnel.second_client(address="10.77.0.20/24")
        tunnel.server.start().wait_ready()
        wanted = [",".join(f"10.77.0.{8 * block + host}" for host in range(2, 10)) for block in range(4)]
        grabber = subprocess.Popen(
            [*tunnel.lab.client.prefix, sys.executable, "-m", "tests.support.grabber",
             str(tunnel.profile("client0")), *wanted],
            cwd=ROOT, env={**os.environ, "SSL_CERT_FILE": str(tunnel.site.authority)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert grabber.stdout is not None
            got = [grabber.stdout.readline().strip() for _ in wanted]
            granted = {address for line in got if not line.startswith("nothing") for address in line.split(",")}
            assert (len(granted), [line[:7] for line in got[2:]]) == (16, ["nothing", "nothing"]), got
            assert "more than one client's share of the network" in tunnel.server.said()
            honest.start().wait_ready().wait_session()
        finally:
            grabber.communicate("")


def test_a_network_behind_a_client_is_reached_through_it_alone_and_accepted_from_it_alone() -> None:
    with Tunnel(QUICK) as tunnel:
        other = tunnel.second_client()
        add_sections(
            tunnel,
            client0=(f"Address = {CLIENT_INNER}", "AllowedIPs = 192.168.7.0/24"),
            client1=("Address = 10.77.0.3",),
        )
        tunnel.lab.client.ip("addr", "add", f"{LAN}/32", "dev", "lo")
        tunnel.up()
        assert "192.168.7.0/24 dev server0" in tunnel.lab.server.ip("route", "show", "proto", "81")
        assert answered(tunnel.lab.server, LAN) == 5
        other.start().wait_ready().wait_session()
        for _ in range(2):
            assert answered(tunnel.lab.server, LAN) == 5, "not through the last to come"
            sessions = {each["client"]: each for each in shown(tunnel.server)["sessions"]}
            assert sessions["the-client0"]["allowed_ips"] == [f"{CLIENT_INNER}/32", "192.168.7.0/24"]
            assert sessions["the-client1"]["allowed_ips"] == ["10.77.0.3/32"]
            assert sessions["the-client1"]["tx_packets"] == 0
        tunnel.client.stop()
        wait_for("its session is gone", lambda: len(shown(tunnel.server)["sessions"]) == 1)
        assert answered(tunnel.lab.server, LAN, wait=1) == 0, "nobody else's while it is away"
        tunnel.lab.client.ip("route", "add", SERVER_INNER, "dev", "client1", "src", LAN, "metric", "1")
        assert answered(tunnel.lab.client, SERVER_INNER, "-I", LAN, wait=1) == 0
        assert shown(tunnel.server)["counters"]["drops"]["source-not-allowed"] >= 5
        tunnel.server.stop()
        assert "192.168.7" not in tunnel.lab.server.ip("route")


def test_allowed_ips_of_an_interface_with_two_clients_are_nobodys_and_that_is_said() -> None:
    with Tunnel(QUICK) as tunnel:
        tunnel.lab.client.ip("addr", "add", f"{LAN}/32", "dev", "lo")
        tunnel.edit("server0", "AllowedIPs", "192.168.7.0/24")
        tunnel.up()
        assert answered(tunnel.lab.server, LAN) == 5, "with one client it is that one's"
        tunnel.client.stop()
        tunnel.server.stop()
        other = tunnel.second_client()
        tunnel.up()
        other.start().wait_ready().wait_session()
        hear(tunnel.server, "AllowedIPs 192.168.7.0/24: routed to the device, but no client has it; name the client")
        assert answered(tunnel.lab.server, LAN, wait=1) == 0
        assert "192.168.7.0/24" not in json.dumps(shown(tunnel.server)["sessions"])


def test_a_reload_ends_sessions_of_removed_clients_and_applies_changed_addresses() -> None:
    with Tunnel(QUICK) as tunnel:
        other = tunnel.second_client()
        add_sections(tunnel, client0=(f"Address = {CLIENT_INNER}",), client1=("Address = 10.77.0.3",))
        tunnel.up()
        other.start().wait_ready().wait_session()
        (before,) = (
            each["session_id"] for each in shown(tunnel.server)["sessions"] if each["client"] == "the-client0"
        )
        profile = tunnel.profile("server0")
        kept = profile.read_text()
        profile.write_text(kept.replace("Address = 10.77.0.3", "Address = 10.77.0.7\nAllowedIPs = 192.168.9.0/24"))
        tunnel.server.tool("reload", "server0")
        hear(tunnel.server, "client the-client1: the session ended: its addresses are no longer its own")
        assert "192.168.9.0/24 dev server0" in tunnel.lab.server.ip("route")
        hear(tunnel.server, "10.77.0.3 is not in its section")
        assert not has_session(tunnel, "client1")
        profile.write_text(kept.partition("[Client the-client1]")[0])
        tunnel.server.tool("reload", "server0")
        assert "192.168.9" not in tunnel.lab.server.ip("route")
        profile.write_text(kept)
        tunnel.server.tool("reload", "server0")
        other.wait_session()
        profile.write_text(kept.partition("[Client the-client1]")[0])
        tunnel.server.tool("reload", "server0")
        hear(tunnel.server, "client the-client1: the session ended: its short id was removed")
        wait_for("the client hears it", lambda: not has_session(tunnel, "client1"))
        (session,) = one_session(tunnel)
        assert session["session_id"] == before, "the other one goes on"


def another_machine(tunnel: Tunnel) -> Daemon:
    """Where ``client0``'s profile is used, too, as ``client2``."""
    there = Namespace("twin")
    tunnel.stack.callback(there.delete)
    join(there, f"{ELSEWHERE}/24", tunnel.lab.server, "10.90.4.1/24")
    there.ip("route", "add", "default", "via", "10.90.4.1")
    tunnel.edit("client2", "MTU", "1380", like="client0")
    made = tunnel.daemon("client2")
    made.namespace = there
    return made


def test_a_client_that_moves_to_another_machine_keeps_its_address() -> None:
    with Tunnel(QUICK) as tunnel:
        tunnel.up()
        moved = another_machine(tunnel)
        tunnel.client.stop(signal.SIGKILL)  # it tells nobody: the server still has its session
        moved.start().wait_ready().wait_session()
        assert answered(moved.namespace, SERVER_INNER) == 5
        assert answered(tunnel.lab.server, CLIENT_INNER) == 5
        (session,) = one_session(tunnel)
        assert session["endpoint"].startswith(f"{ELSEWHERE}:")
        assert "machines" not in moved.said() + tunnel.server.said()
        moved.stop()
        tunnel.client.start().wait_ready().wait_session()


def test_two_machines_with_one_profile_are_named_on_both_ends_and_one_of_them_stays() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        short_id = tunnel.value("client0", "RealityShortId")
        twin = another_machine(tunnel)
        twin.start().wait_ready().wait_session()
        began = time.monotonic()
        named = f"short id {short_id}: session lost: it is used on another machine, too, which is connected"
        clients = (tunnel.client, twin)
        wait_for("both ends name it", lambda: any(named in each.said() for each in clients), 10.0)
        wait_for(
            "the server, too", lambda: f"client {short_id} is on two machines, seen at" in tunnel.server.said(), 1
        )
        assert time.monotonic() - began < 10
        assert f"on two machines: client {short_id}" in shown(tunnel.server)["status"]
        (away,) = [each for each in clients if named in each.said()]
        (stays,) = [each for each in clients if each is not away]
        assert "give each machine a short id of its own: `qre-tool genshortid`" in shown(away)["status"]
        (session,) = one_session(tunnel)
        address = tunnel.lab.CLIENT if stays is tunnel.client else ELSEWHERE
        assert session["endpoint"].startswith(f"{address}:")
        assert answered(stays.namespace, SERVER_INNER) == 5
        away.stop()
        away.log.unlink()
        away.start().wait_ready()
        hear(away, "it is used on another machine, too, which is connected")
        assert shown(tunnel.server)["sessions"][0]["session_id"] == session["session_id"], "it was not replaced"
        stays.stop()
        away.stop()
        away.start().wait_ready().wait_session()
