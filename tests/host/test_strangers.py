"""Clients that do not prove themselves see the real site, say so, and try again; replays are strangers."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.site import OTHER_NAME
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, Tunnel

FASTER = "ReconnectMin = 500ms\nReconnectMax = 1s\n"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
OTHER_KEY = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="


def refusals(daemon: Daemon) -> list[str]:
    return re.findall(r".*did not recognise us.*", daemon.said())


def test_a_client_that_does_not_prove_itself_gets_the_site_says_so_and_keeps_trying() -> None:
    assert FAKETIME is not None
    with Tunnel(FASTER) as tunnel:
        tunnel.server.start().wait_ready()
        clients = []
        for name, key, value in (
            ("shortid", "RealityShortId", "00112233"),
            ("pubkey", "RealityPublicKey", OTHER_KEY),
            ("clock", "MTU", "1380"),
            ("sni", "ServerName", OTHER_NAME),
        ):
            tunnel.edit(name, key, value, like="client0")
            client = tunnel.daemon(name)
            if name == "clock":
                client.environment |= {
                    "LD_PRELOAD": str(FAKETIME),
                    "FAKETIME": "-10m",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                }
            clients.append(client.start().wait_ready())
        for client in clients:
            wait_for(f"two refusals of {client.profile}: {client.said()}", lambda c=client: len(refusals(c)) >= 2)
            assert not (tunnel.directory / "run" / f"{client.profile}.ready").exists()
        tunnel.client.start().wait_ready().wait_session()


def first_flight(datagrams: list[Datagram]) -> list[bytes]:
    """The client's first two Initials; on the wire they are as a browser's."""
    flight = [d for d in datagrams if d.destination[1] == PORT and d.payload[0] & 0xF0 == 0xC0][:2]
    assert all(len(d.payload) == 1250 and d.dont_fragment and d.tos == 0 for d in flight)
    return [d.payload for d in flight]


def assert_the_site_answers(tunnel: Tunnel, flight: list[bytes], address: str) -> None:
    """Replay ``flight`` from a new address; what comes back must be the site's own answer, byte for byte."""
    tunnel.lab.client.ip("addr", "add", f"{address}/24", "dev", tunnel.lab.client_device)
    uplink, front = tunnel.directory / f"up-{address}.pcap", tunnel.directory / f"front-{address}.pcap"
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind((sys.argv[1], 0)); s.connect((sys.argv[2], int(sys.argv[3])))\n"
        "[s.send(bytes.fromhex(data)) for data in sys.argv[4:]]\n"
        "s.settimeout(60); s.recv(2048)\n"
    )
    with (
        Tcpdump(tunnel.lab.server, tunnel.lab.uplink_device, uplink) as behind,
        Tcpdump(tunnel.lab.server, tunnel.lab.server_device, front) as before,
    ):
        tunnel.lab.client.run(
            "/usr/bin/python3", "-c", script, address, tunnel.lab.SERVER, str(PORT), *(data.hex() for data in flight)
        )
        wait_for("the site's answer", lambda: any(d.source[0] == tunnel.lab.SITE for d in behind.datagrams()))
        wait_for("our answer", lambda: any(d.destination[0] == address for d in before.datagrams()))
    to_site = [d.payload for d in behind.datagrams() if d.destination[0] == tunnel.lab.SITE]
    from_site = [d.payload for d in behind.datagrams() if d.source[0] == tunnel.lab.SITE]
    to_visitor = [d.payload for d in before.datagrams() if d.destination[0] == address]
    assert to_site[:2] == flight
    assert to_visitor
    assert all(payload in from_site for payload in to_visitor)


def test_a_replayed_first_flight_gets_the_site_whatever_was_restarted() -> None:
    """Each replay is of another flight: a site that has seen a flight once may well be silent at the second time."""
    with Tunnel(FASTER) as tunnel:
        tunnel.server.start().wait_ready()
        flights = []
        for number in range(3):
            with Tcpdump(tunnel.lab.server, tunnel.lab.server_device, tunnel.directory / f"{number}.pcap") as dump:
                tunnel.client.start().wait_ready().wait_session()
                wait_for("the first flight", lambda: len(first_flight(dump.datagrams())) == 2)
            flights.append(first_flight(dump.datagrams()))
            tunnel.client.stop()
        assert_the_site_answers(tunnel, flights[0], "10.90.1.11")

        before = tunnel.server.workers()["handshake"]
        os.kill(before, signal.SIGKILL)
        wait_for("the handshake worker is back", lambda: "worker handshake is back" in tunnel.server.said())
        assert_the_site_answers(tunnel, flights[1], "10.90.1.12")

        tunnel.server.stop()
        tunnel.server.start().wait_ready()
        assert_the_site_answers(tunnel, flights[2], "10.90.1.13")


def test_a_profile_name_that_could_leave_the_directory_touches_no_path() -> None:
    with Tunnel() as tunnel:
        before = sorted(tunnel.directory.rglob("*"))
        for name in ("../server0", "a/b", ".hidden", "..", "x" * 65, "a b", "", "a\\b", "-x"):
            for command in ("daemon", "up", "down", "reload", "strip"):
                with pytest.raises(RuntimeError, match="exit 2"):
                    tunnel.server.tool(command, name)
        assert sorted(tunnel.directory.rglob("*")) == before
