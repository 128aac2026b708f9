"""A server that listens at several addresses of both IP versions: at each as with one, and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from qre.addresses import host_port
from tests.support.daemons import Daemon, wait_for
from tests.support.lab import DualLab, Ipv6Lab, Lab
from tests.support.ping import answered
from tests.support.site import PAGE, visit
from tests.support.site_tcp import connect, fetch, wait_passed
from tests.support.tunnel import CLIENT_INNER, PORT, SERVER_INNER, Tunnel

LISTEN = f"{Lab.SERVER}:{PORT}, [{Ipv6Lab.SERVER}]:{PORT}"
OURS, OTHERS = (Lab.SERVER, Ipv6Lab.SERVER), (Lab.SERVER_SECOND, Ipv6Lab.SERVER_SECOND)
#: A datagram to a UDP port, and what its sender hears: "ConnectionRefusedError" when the port is closed.
_PROBE = """
import socket, sys
made = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
made.settimeout(3)
made.connect((sys.argv[1], int(sys.argv[2])))
made.send(bytes([int(sys.argv[3])]) + bytes(1200))
try:
    made.recv(2048)
except OSError as error:
    print(type(error).__name__)
else:
    print("an answer")
"""
SHORT, LONG = 0x40, 0xC0


def heard(tunnel: Tunnel, address: str, first: int) -> str:
    return tunnel.lab.client.run(sys.executable, "-c", _PROBE, address, str(PORT), str(first)).strip()


def closed(tunnel: Tunnel) -> bool:
    """Whether the server's other addresses answer as where nothing listens."""
    told = {heard(tunnel, address, first) for address in OTHERS for first in (SHORT, LONG)}
    return told == {"ConnectionRefusedError"}


def reached(tunnel: Tunnel, *addresses: str) -> bool:
    """Whether a stranger gets Dest there."""
    return {visit(tunnel.lab.client, each, tunnel.site.authority, PORT) for each in addresses} == {PAGE}


def all_answered(tunnel: Tunnel, device: str = "client0") -> bool:
    return answered(tunnel.lab.client, SERVER_INNER, "-I", device, wait=1) == 5


@pytest.fixture
def both() -> Iterator[Tunnel]:
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n", lab=DualLab) as tunnel:
        tunnel.edit("server0", "Listen", LISTEN)
        yield tunnel


def test_clients_and_strangers_come_by_each_address_and_the_others_are_closed(both: Tunnel) -> None:
    second = both.second_client()
    both.edit("client1", "Endpoint", host_port(Ipv6Lab.SERVER, PORT))
    both.up()
    second.start().wait_ready().wait_session()
    assert all_answered(both) and all_answered(both, "client1")
    assert reached(both, *OURS)
    assert closed(both)
    shown = json.loads(both.server.tool("--json", "show", "server0"))["devices"][0]
    assert shown["listen"] == LISTEN and f"serving {LISTEN}, 2 sessions" in shown["status"]
    assert {each["endpoint"].rpartition(":")[0] for each in shown["sessions"]} == {Lab.CLIENT, f"[{Ipv6Lab.CLIENT}]"}
    assert f"status: serving {LISTEN}, 2 sessions\n" in both.server.tool("show", "server0")
    for worker in ("bpf_loader", "handshake", "dataplane"):
        os.kill(both.server.workers()[worker], signal.SIGKILL)
        wait_for(f"another {worker}", lambda: all_answered(both) and all_answered(both, "client1"))
        wait_for("Dest", lambda: reached(both, *OURS))
        assert closed(both)


def test_tcp_is_passed_to_dest_from_each_address_and_from_no_other(both: Tunnel) -> None:
    both.lab.server.ip("addr", "add", "10.90.3.5/24", "dev", both.lab.server_device)
    both.edit("server0", "Listen", f"{LISTEN}, 10.90.3.5:{PORT}")
    both.server.start().wait_ready()
    wait_passed(both)
    pages = {fetch(both, address).partition("date:")[0] for address in (Lab.SERVER, "10.90.3.5")}
    assert pages == {fetch(both, Lab.SITE, by=both.lab.server).partition("date:")[0]}
    assert connect(both.lab.client, Lab.SERVER_SECOND, PORT) == ["ConnectionRefusedError"]
    assert reached(both, *OURS, "10.90.3.5")


def test_a_client_that_knows_both_addresses_goes_on_at_the_other_when_one_is_silent(both: Tunnel) -> None:
    both.edit("client0", "Endpoint", LISTEN)
    both.up()
    assert _peer(both) == Lab.CLIENT
    both.lab.router.ip("route", "add", "blackhole", f"{Lab.SERVER}/32")
    wait_for("IPv6", lambda: _peer(both) == f"[{Ipv6Lab.CLIENT}]" and all_answered(both))
    both.lab.router.ip("-6", "route", "add", "blackhole", f"{Ipv6Lab.SERVER}/128")
    both.lab.router.ip("route", "del", "blackhole", f"{Lab.SERVER}/32")
    wait_for("IPv4", lambda: _peer(both) == Lab.CLIENT and all_answered(both))


def _peer(tunnel: Tunnel) -> str:
    """Where the server's newest session comes from; empty without one."""
    shown = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"][0]["sessions"]
    return shown[-1]["endpoint"].rpartition(":")[0] if shown else ""


def test_what_cannot_be_had_at_one_address_is_named_and_nothing_starts(both: Tunnel) -> None:
    both.edit("server0", "Listen", f"{LISTEN}, 10.90.3.77:{PORT}")
    absent = "Listen 10.90.3.77: this machine does not have that address; see `ip addr`"
    assert _refused(both.server, 1).endswith(absent), "it may come yet"
    both.edit("server0", "Listen", LISTEN)
    script = (
        "import socket, time\n"
        "made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"made.bind(({Lab.SERVER_SECOND!r}, {PORT}))\n"
        "time.sleep(60)\n"
    )
    with both.lab.server.popen([sys.executable, "-c", script]) as other:
        wait_for("the other program", lambda: f":{PORT} " in both.lab.server.run("ss", "-Hlun"))
        line = _refused(both.server, 2)
        other.kill()
    where = f"Listen {LISTEN} (together they take the port at every address)"
    assert f"{where}: another program uses this UDP port; stop it, or choose another port" in line
    assert CLIENT_INNER not in both.lab.server.ip("addr") and "server0" not in both.lab.server.ip("link")
    both.up()
    assert all_answered(both)


def _refused(daemon: Daemon, status: int) -> str:
    """The one line of a daemon that does not start."""
    before, process = len(daemon.said()), daemon.start().process
    daemon.process = None
    assert process is not None and process.wait(60) == status
    (line,) = daemon.said()[before:].splitlines()
    return line


def test_another_list_takes_a_restart(both: Tunnel) -> None:
    both.server.start().wait_ready()
    both.edit("server0", "Listen", f"{Lab.SERVER}:{PORT}")
    with pytest.raises(RuntimeError) as refused:
        both.server.tool("reload", "server0")
    assert f"Listen was {LISTEN} and is now {Lab.SERVER}:{PORT}" in str(refused.value)
    assert f"serving {LISTEN}" in both.server.tool("show", "server0")
    assert reached(both, *OURS)
