"""What a client puts into its packets as destination connection ID is what its server's first packet says, from there
to the end of the session: the site's own, whatever its length. One client is a daemon, on the user data plane; more,
QRE_CID_CONNECTIONS of them for each length, are in one process, with the product's handshakes and sessions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qre.wire.packet import PacketType, is_short, packets_untrusted
from tests.bench.crowd import Crowd, prepare, sections
from tests.support.daemons import wait_for
from tests.support.ping import answered
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

CONNECTIONS = int(os.environ.get("QRE_CID_CONNECTIONS", "1"))
LENGTHS = (4, 8, 18, 20)


@contextmanager
def sites(tunnel: Tunnel) -> Iterator[dict[int, str]]:
    """The address of one for each length."""
    place, directory = tunnel.lab.site, tunnel.site.directory
    files = str(directory / "site.pem"), str(directory / "site.key")
    addresses = {length: f"10.90.2.{100 + length}" for length in LENGTHS}
    processes = []
    try:
        for length, address in addresses.items():
            place.ip("addr", "add", f"{address}/24", "dev", tunnel.lab.site_device)
            command = [sys.executable, "-m", "tests.support.aioquic_site", address, str(PORT), *files, f"-{length}"]
            processes.append(place.popen(command))
        for address in addresses.values():
            wait_for("the sites", lambda there=address: f"{there}:{PORT} " in place.run("ss", "-Hlun"))
        yield addresses
    finally:
        for process in processes:
            process.kill()
            process.wait()


def chosen(connection: list[Datagram]) -> bytes:
    """The connection ID that the server's first packet says."""
    first = next(each for each in connection if each.source[1] == PORT)
    packet = next(iter(packets_untrusted(first.payload, short_cid_length=0)))
    assert packet.type is PacketType.INITIAL
    return packet.source_cid


def connect_all(tunnel: Tunnel, spec: Path) -> None:
    """One client after the other comes and stays, then a daemon comes, is used, and goes."""
    crowd = Crowd(tunnel.lab.client, spec, tunnel.site.authority)
    try:
        told = crowd.grow(CONNECTIONS)
        assert told["up"] == CONNECTIONS, told
        tunnel.client.start().wait_ready().wait_session()
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
        tunnel.client.stop()
    finally:
        crowd.end()


def test_the_destination_connection_id_never_changes_whatever_its_length() -> None:
    with Tunnel() as tunnel, sites(tunnel) as addresses:
        lab, changed = tunnel.lab, 0
        spec = prepare(tunnel, sections(CONNECTIONS))
        for length, address in addresses.items():
            tunnel.edit("server0", "Dest", f"{address}:{PORT}")
            tunnel.server.start().wait_ready()
            with Tcpdump(lab.client, lab.client_device, tunnel.directory / f"{length}.pcap", PORT) as dump:
                connect_all(tunnel, spec)
            tunnel.server.stop()
            connections: dict[int, list[Datagram]] = {}
            for each in dump.datagrams():
                client = each.source if each.destination[1] == PORT else each.destination
                connections.setdefault(client[1], []).append(each)
            assert len(connections) == CONNECTIONS + 1
            for each in connections.values():
                cid = chosen(each)
                assert len(cid) == length
                said = [one.payload for one in each if one.destination[1] == PORT and is_short(one.payload)]
                assert len(said) > 1
                changed += {one[1 : 1 + length] for one in said} != {cid}
        print(f"{changed} of {len(LENGTHS) * (CONNECTIONS + 1)} connections had another destination connection ID")
        assert not changed
