"""A Dest that gives every connection the same connection ID: a live session's among them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from qre.quic.shadow.server_hello import Obstacle
from tests.support.aioquic_site import PAGE
from tests.support.daemons import wait_for
from tests.support.ping import answered_in_a_row
from tests.support.site import visit
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

ADDRESS = "10.90.2.4"
CID = bytes.fromhex("c1d0c1d0c1d0c1d0")
VISITS = 5


@contextmanager
def repeating_site(tunnel: Tunnel) -> Iterator[None]:
    """The server's Dest is such a site from now on."""
    place, directory = tunnel.lab.site, tunnel.site.directory
    place.ip("addr", "add", f"{ADDRESS}/24", "dev", tunnel.lab.site_device)
    files = str(directory / "site.pem"), str(directory / "site.key")
    process = place.popen([sys.executable, "-m", "tests.support.aioquic_site", ADDRESS, "443", *files, CID.hex()])
    try:
        wait_for("the site", lambda: f"{ADDRESS}:443 " in place.run("ss", "-Hlun"))
        tunnel.edit("server0", "Dest", f"{ADDRESS}:443")
        yield
    finally:
        process.kill()
        process.wait()


def sessions(tunnel: Tunnel) -> list[dict[str, Any]]:
    (device,) = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"]
    return list(device["sessions"])


def test_neither_the_session_nor_a_visitor_loses_anything_to_a_connection_id_that_both_have() -> None:
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        stack.enter_context(repeating_site(tunnel))
        another = tunnel.second_client()
        tunnel.up()
        (session,) = sessions(tunnel)
        assert session["connection_id"] == CID.hex()
        lab, ours = tunnel.lab, int(session["endpoint"].rpartition(":")[2])

        with (
            Tcpdump(lab.server, lab.server_device, tunnel.directory / "front.pcap", PORT) as front,
            Tcpdump(lab.server, lab.uplink_device, tunnel.directory / "uplink.pcap", PORT) as uplink,
        ):
            for _ in range(VISITS):
                assert visit(lab.client, lab.SERVER, tunnel.site.authority) == PAGE
                assert answered_in_a_row(lab.client, SERVER_INNER, 10) == 10
        visitors = [each for each in front.datagrams() if ours not in (each.source[1], each.destination[1])]
        came = Counter(each.payload for each in visitors if each.destination[1] == PORT)
        went = Counter(each.payload for each in visitors if each.source[1] == PORT)
        assert sum(payload[1:9] == CID for payload in came) >= VISITS  # short headers, at the session's connection ID
        assert came <= Counter(each.payload for each in uplink.datagrams() if each.destination[0] == ADDRESS)
        assert went <= Counter(each.payload for each in uplink.datagrams() if each.source[0] == ADDRESS)

        another.start().wait_ready()
        wait_for("the second client to be told", lambda: "did not recognise us" in another.said())
        assert Obstacle.TAKEN in tunnel.server.said()
        (still,) = sessions(tunnel)
        assert still["session_id"] == session["session_id"]
        assert answered_in_a_row(lab.client, SERVER_INNER, 10) == 10
