"""A client that comes back: with a ticket, as the browser does, to a real server in front of a real Caddy.

``QRE_RESTARTS`` restarts each (two unless set), and ``QRE_REPLAYS`` copies of a kind (ten).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qre.wire.packet import PacketType, long_header_destination_cid, packets_untrusted, parse_header_untrusted
from qre.wire.protection import Protection, initial_secrets
from tests.support.daemons import Daemon, wait_for
from tests.support.false_binder import with_false_binder
from tests.support.ja4 import hellos
from tests.support.namespaces import Namespace, run
from tests.support.ping import answered
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

pytestmark = pytest.mark.root
FRESH = "q13d0312h3_55b375c5d22e_178839b6cec1"
RESUMED = "q13d0314h3_55b375c5d22e_79cc91d6b50c"
RESTARTS = int(os.environ.get("QRE_RESTARTS", "2"))
REPLAYS = int(os.environ.get("QRE_REPLAYS", "10"))
#: What a Caddy says to a false binder, and to the first half of any hello: the payload of an Initial.
CLOSE = bytes.fromhex("1c41330000")
ACK_OF_HALF = [(37, 0, bytes.fromhex("0201000000"))]
_ASK = """
import json, socket, sys
for line in open(sys.argv[1]):
    source, to, datagrams = json.loads(line)
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((source, 0))
    made.settimeout(0.4)
    for each in datagrams:
        made.sendto(bytes.fromhex(each), tuple(to))
    heard = []
    try:
        while True:
            heard.append(made.recv(65535).hex())
            made.settimeout(0.1)
    except TimeoutError:
        pass
    if len(sys.argv) > 2:
        for each in datagrams * 2:
            made.sendto(bytes.fromhex(each), tuple(to))
        try:
            while True:
                heard.append(made.recv(65535).hex())
        except TimeoutError:
            pass
    print(json.dumps(heard), flush=True)
"""


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    """A server that has seen how its Dest answers whoever comes back, and a client that holds a ticket."""
    with Tunnel() as tunnel:
        tunnel.server.start().wait_ready()
        tunnel.server.tool("refresh", "server0")
        tunnel.client.start().wait_ready().wait_session()
        yield tunnel


def restart(*daemons: Daemon) -> None:
    """The client last."""
    for daemon in reversed(daemons):
        assert daemon.stop() == 0
    for daemon in daemons:
        daemon.start().wait_ready()
    daemons[-1].wait_session()


@contextmanager
def captured(tunnel: Tunnel, name: str) -> Iterator[Tcpdump]:
    with Tcpdump(tunnel.lab.client, tunnel.lab.client_device, tunnel.directory / f"{name}.pcap", PORT) as dump:
        yield dump


def kinds(dump: Tcpdump) -> list[str]:
    """JA4 of each hello."""
    return [ja4 for ja4, _ in hellos(dump.path)]


def flows(dump: Tcpdump) -> list[list[Datagram]]:
    """The datagrams of each of the client's ports that has sent a hello, both directions."""
    found: dict[int, list[Datagram]] = {}
    for each in dump.datagrams():
        port = each.destination[1] if each.source[1] == PORT else each.source[1]
        found.setdefault(port, []).append(each)
    return [
        flow for flow in found.values() if flow[0].destination[1] == PORT and types(flow[0]) == (PacketType.INITIAL,)
    ]


def is_resumed(flow: list[Datagram]) -> bool:
    """The server's Handshake packets then have no certificate: together they are short."""
    heard = [each.payload for each in flow if each.source[1] == PORT]
    parts = [each for data in heard for each in packets_untrusted(data, short_cid_length=0)]
    lengths = [each.end - each.start for each in parts if each.type is PacketType.HANDSHAKE]
    return 0 < sum(lengths) < 500


def types(datagram: Datagram) -> tuple[PacketType, ...]:
    length = 4 if datagram.destination[1] == PORT else 0
    return tuple(each.type for each in packets_untrusted(datagram.payload, short_cid_length=length))


def test_a_client_that_is_restarted_comes_back_with_a_ticket_each_time(tunnel: Tunnel) -> None:
    with captured(tunnel, "client") as dump:
        for _ in range(RESTARTS):
            restart(tunnel.client)
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
        wait_for("the hellos", lambda: len(kinds(dump)) == RESTARTS)
    assert kinds(dump) == [RESUMED] * RESTARTS
    assert "recognise" not in tunnel.said()
    for flow in flows(dump):
        sent = [each for each in flow if each.destination[1] == PORT]
        assert [len(each.payload) for each in sent[:2]] == [1250, 1250]
        early = [each for each in sent if types(each) == (PacketType.ZERO_RTT,)]
        assert len(early) == 2
        assert 75 <= len(early[0].payload) <= 82
        assert 455 <= len(early[1].payload) <= 475
        assert all(len(each.payload) <= 1250 and each.tos == 0 for each in sent)
        heard = [each for each in flow if each.source[1] == PORT and types(each) != (PacketType.INITIAL,)]
        assert types(heard[0]) == (PacketType.INITIAL, PacketType.HANDSHAKE, PacketType.ONE_RTT)
        first = [len(each.payload) for each in flow if each.source[1] == PORT and len(each.payload) > 1000][:2]
        assert first == [1200, 1200]
        answer = next(each for each in sent if PacketType.HANDSHAKE in types(each))
        if types(answer) != (PacketType.HANDSHAKE,):  # on a busy machine the browser's Finished goes by itself, too
            assert (len(answer.payload), types(answer)) == (1250, (PacketType.INITIAL, PacketType.HANDSHAKE))


def test_a_server_that_is_restarted_takes_the_tickets_of_before(tunnel: Tunnel) -> None:
    with captured(tunnel, "both") as dump:
        for _ in range(RESTARTS):
            restart(tunnel.server, tunnel.client)
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
        wait_for("the hellos", lambda: len(kinds(dump)) == RESTARTS)
    assert kinds(dump) == [RESUMED] * RESTARTS
    assert "recognise" not in tunnel.said()
    assert all(is_resumed(flow) for flow in flows(dump))


def test_a_server_that_is_restarted_between_is_come_back_to(tunnel: Tunnel) -> None:
    """The client, which lives, goes on by itself: with a ticket, unless its last one met nobody."""
    with captured(tunnel, "server") as dump:
        for _ in range(RESTARTS):
            assert tunnel.server.stop() == 0
            tunnel.server.start().wait_ready()
            wait_for("a handshake", lambda: handshakes(tunnel) == "1")
            tunnel.client.wait_session()
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
        wait_for("the hellos", lambda: len(kinds(dump)) >= RESTARTS)
    assert set(kinds(dump)) <= {RESUMED, FRESH} and kinds(dump)[0] == RESUMED
    heard = [flow for flow in flows(dump) if any(each.source[1] == PORT for each in flow)]
    assert len(heard) >= RESTARTS
    assert "recognise" not in tunnel.said()


def test_a_server_that_has_lost_its_keys_makes_a_whole_handshake(tunnel: Tunnel) -> None:
    state = tunnel.directory / "state"
    with captured(tunnel, "lost") as dump:
        for _ in range(RESTARTS):
            tunnel.client.stop()
            tunnel.server.stop()
            (state / "server0.ticket-keys").unlink()
            tunnel.server.start().wait_ready()
            tunnel.client.start().wait_ready().wait_session()
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
        wait_for("the hellos", lambda: len(kinds(dump)) == RESTARTS)
    assert kinds(dump) == [RESUMED] * RESTARTS
    assert not any(is_resumed(flow) for flow in flows(dump))
    assert "recognise" not in tunnel.said(), "early data that is not taken goes again in the same connection"


def test_a_client_whose_file_is_wiped_comes_as_one_that_has_forgotten(tunnel: Tunnel) -> None:
    path = tunnel.directory / "state" / "client0.tickets"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tunnel.directory / "state" / "server0.ticket-keys").stat().st_mode & 0o777 == 0o600
    with captured(tunnel, "wiped") as dump:
        for _ in range(RESTARTS):
            assert tunnel.client.stop() == 0
            assert any(path.read_bytes()[20:])
            tunnel.client.tool("down", "client0")
            assert not path.exists()
            tunnel.client.start().wait_ready().wait_session()
        wait_for("the hellos", lambda: len(kinds(dump)) == RESTARTS)
    assert kinds(dump) == [FRESH] * RESTARTS


def test_another_boot_of_the_machine_ends_all_tickets(tunnel: Tunnel) -> None:
    with captured(tunnel, "boot") as dump:
        tunnel.client.environment["QRE_BOOT_ID"] = "another"
        restart(tunnel.client)
        wait_for("the hello", lambda: len(kinds(dump)) == 1)
        tunnel.server.environment["QRE_BOOT_ID"] = "another"
        restart(tunnel.server, tunnel.client)
        wait_for("the hello", lambda: len(kinds(dump)) == 2)
    assert kinds(dump) == [FRESH, RESUMED]
    assert not is_resumed(flows(dump)[1])
    assert "recognise" not in tunnel.said()


def test_a_copied_first_flight_gets_what_a_site_gives_that_takes_its_own_ticket_again(tunnel: Tunnel) -> None:
    """A resumption without a certificate, of which whoever has copied it can do nothing; and to the next copies
    silence, for as long as a site knows where the first flight went."""
    lab = tunnel.lab
    with captured(tunnel, "copied") as dump:
        restart(tunnel.client)
        wait_for("the hello", lambda: len(kinds(dump)) == 1)
    (flow,) = flows(dump)
    before, ours, its = handshakes(tunnel), first_flight(flow), first_flight(return_to_the_site(tunnel))
    for source in (lab.CLIENT, lab.CLIENT_SECOND):
        told = asked(tunnel.directory, lab.client, lab.SERVER, elsewhere(ours), source)
        site_told = asked(tunnel.directory, lab.server, lab.SITE, elsewhere(its))
        assert len(told) == len(site_told) == REPLAYS
        for heard in [*told, *site_told]:
            assert [len(each) for each in heard[:2]] == [1200, 1200]
            length = handshake_lengths(heard)[0]  # behind it come repetitions, on a busy machine
            assert 176 <= length <= 200, "the site's differs by its GREASE"
            assert sum(map(len, heard)) <= 3 * 2500
    its_same = asked(tunnel.directory, lab.server, lab.SITE, [its] * REPLAYS)
    for source in (lab.CLIENT_SECOND, lab.CLIENT):  # as they were, early data included
        same = asked(tunnel.directory, lab.client, lab.SERVER, [ours] * REPLAYS, source)
        for told in (same, its_same):
            assert len(told) == REPLAYS and sum(map(bool, told)) <= 2
            assert all(handshake_lengths(heard)[0] <= 200 for heard in told if heard)
    assert handshakes(tunnel) == before
    assert answered(lab.client, SERVER_INNER) == 5


def test_a_copied_ticket_with_a_false_binder_gets_what_a_site_says_to_one_of_its_own(tunnel: Tunnel) -> None:
    """One CLOSE, behind the ACK of the hello's first half, and the same again for its repetitions."""
    lab = tunnel.lab
    with captured(tunnel, "copied") as dump:
        restart(tunnel.client)
        wait_for("the hello", lambda: len(kinds(dump)) == 1)
    (flow,) = flows(dump)
    before, ours, its = handshakes(tunnel), first_flight(flow), first_flight(return_to_the_site(tunnel))
    seen = []
    for namespace, address, flight in ((lab.client, lab.SERVER, ours), (lab.server, lab.SITE, its)):
        flights = [with_false_binder(flight, os.urandom(8)) for _ in range(REPLAYS)]
        answers = answers_to(tunnel.directory, namespace, address, flights, repeats=True)
        assert len(answers) == REPLAYS
        seen.append([read_initials(*each) for each in zip(flights, answers, strict=True)])
    for heard in (each for end in seen for each in end):
        closes = [each for each in heard if each[-1] == CLOSE]
        assert heard == [*ACK_OF_HALF[: len(heard) - len(closes)], *closes], "nothing else is ever said"
        assert len(closes) == 4, "to the hello, and to the first, second and fourth datagram behind it"
        assert {number for _, number, _ in closes} == {len(heard) - len(closes)}
        assert {length for length, _, _ in heard} == {37}
    assert handshakes(tunnel) == before
    assert answered(lab.client, SERVER_INNER) == 5


def read_initials(flight: list[bytes], answer: list[bytes]) -> list[tuple[int, int, bytes]]:
    """Of each datagram: its length, and the number and payload of the Initial that it is."""
    cid = long_header_destination_cid(flight[0])
    assert cid is not None
    keys, found = Protection(initial_secrets(cid)[1]), []
    for data in answer:
        (header,) = packets_untrusted(data, short_cid_length=0)
        clear, number, payload = keys.unprotect_untrusted(data, header.number_offset, 0)
        assert (header.type, clear[0], len(header.source_cid)) == (PacketType.INITIAL, 0xC1, 4)
        found.append((len(data), number, payload))
    return found


def return_to_the_site(tunnel: Tunnel) -> list[Datagram]:
    """What a visitor of the server's sends to the site, with a ticket of the site's, and what it hears."""
    device = tunnel.lab.uplink_device
    with Tcpdump(tunnel.lab.server, device, tunnel.directory / "return.pcap", PORT) as dump:
        tunnel.server.tool("refresh", "server0")
        wait_for("a return", lambda: RESUMED in kinds(dump))
    return next(flow for flow in flows(dump) if is_resumed(flow))


def first_flight(flow: list[Datagram]) -> list[bytes]:
    """Two Initials and early data."""
    return [each.payload for each in flow if each.destination[1] == PORT][:4]


def elsewhere(flight: list[bytes]) -> list[list[bytes]]:
    """The Initials of a first flight ten times, to other connection IDs: whoever has seen them can make them."""
    return [rewritten(flight, os.urandom(8)) for _ in range(REPLAYS)]


def rewritten(flight: list[bytes], cid: bytes) -> list[bytes]:
    before = long_header_destination_cid(flight[0])
    assert before is not None and len(before) == len(cid)
    reader, writer = (Protection(initial_secrets(each)[0]) for each in (before, cid))
    made = []
    for data in flight[:2]:
        at = parse_header_untrusted(data, short_cid_length=0).number_offset
        header, number, payload = reader.unprotect_untrusted(data, at, 0)
        made.append(writer.protect(header[:6] + cid + header[6 + len(cid) :], number, payload))
    return made


def handshake_lengths(heard: list[bytes]) -> list[int]:
    """Of the Handshake packets."""
    parts = [each for data in heard for each in packets_untrusted(data, short_cid_length=0)]
    return [each.end - each.start for each in parts if each.type is PacketType.HANDSHAKE]


def asked(
    directory: Path, namespace: Namespace, address: str, flights: list[list[bytes]], source: str = "0.0.0.0"
) -> list[list[bytes]]:
    """What comes back to each, from another port, without acknowledgements of half a hello."""
    answers = answers_to(directory, namespace, address, flights, source)
    return [[each for each in heard if len(each) != 37] for heard in answers]


def answers_to(
    directory: Path,
    namespace: Namespace,
    address: str,
    flights: list[list[bytes]],
    source: str = "0.0.0.0",
    *,
    repeats: bool = False,
) -> list[list[bytes]]:
    """What comes back to each, from another port; with ``repeats`` also to the same twice more, behind its answer."""
    path = directory / "orders"
    orders = ([source, [address, PORT], [each.hex() for each in flight]] for flight in flights)
    path.write_text("".join(f"{json.dumps(order)}\n" for order in orders))
    said = run(*namespace.prefix, sys.executable, "-c", _ASK, str(path), *(["again"] if repeats else []))
    return [[bytes.fromhex(each) for each in json.loads(line)] for line in said.splitlines()]


def handshakes(tunnel: Tunnel) -> str:
    """How many the server has made."""
    (count,) = re.findall(r"handshakes: (\d+)", tunnel.server.tool("show", "server0"))
    return str(count)


def test_nothing_of_tickets_is_left_of_a_profile_that_is_down(tunnel: Tunnel) -> None:
    for daemon, name in ((tunnel.client, "client0.tickets"), (tunnel.server, "server0.ticket-keys")):
        assert daemon.stop() == 0
        path = tunnel.directory / "state" / name
        assert path.exists()
        assert f"wipe {path}" in daemon.tool("down", daemon.profile, "--dry-run")
        daemon.tool("down", daemon.profile)
        assert not path.exists()
