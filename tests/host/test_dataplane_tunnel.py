"""The data plane in two processes, each in a network namespace, over veth: judged by ping, TCP and captures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from tests.support.daemons import PATIENCE, wait_for
from tests.support.dataplane import ROUTED_CID, install_of, marks_memfd
from tests.support.dataplane_endpoint import Endpoint
from tests.support.namespaces import Namespace, join, run
from tests.support.ping import answered, answered_in_a_row
from tests.support.tcpdump import Tcpdump, read_udp
from tests.support.wireguard import tcp_rate

OUTER = {Role.CLIENT: "10.90.1.2", Role.SERVER: "10.90.1.1"}
INNER = {Role.CLIENT: ["10.91.5.2/24", "fd00:5::2/64"], Role.SERVER: ["10.91.5.1/24", "fd00:5::1/64"]}
DEVICE, MTU = "qt0", 1380


class Tunnel:
    """Two namespaces, and the endpoints that were started in them."""

    def __init__(self) -> None:
        self.namespaces: dict[Role, Namespace] = {}
        self.endpoints: dict[Role, Endpoint] = {}
        try:
            self.namespaces = {Role.CLIENT: Namespace("t-dpc"), Role.SERVER: Namespace("t-dps")}
            self.devices = join(
                self.namespaces[Role.CLIENT],
                f"{OUTER[Role.CLIENT]}/24",
                self.namespaces[Role.SERVER],
                f"{OUTER[Role.SERVER]}/24",
            )
        except BaseException:
            self.close()
            raise

    def start(self, role: Role, pass_fds: list[int] | None = None, **environment: str) -> None:
        other = Role.SERVER if role is Role.CLIENT else Role.CLIENT
        self.endpoints[role] = Endpoint(
            self.namespaces[role],
            role,
            DEVICE,
            (OUTER[role], OUTER[other]),
            INNER[role],
            pass_fds=pass_fds or (),
            **environment,
        )

    def both(self, **environment: str) -> None:
        self.start(Role.SERVER, **environment)
        self.start(Role.CLIENT, **environment)
        self.established()

    def established(self) -> None:
        """Packets come through, and answers back, up to the device's MTU: neither end refuses one for its size."""
        target = INNER[Role.SERVER][0].split("/")[0]
        wait_for("the tunnel", lambda: answered(self.namespaces[Role.CLIENT], target, count=1, wait=1) == 1)
        for role, endpoint in self.endpoints.items():
            wait_for(f"the path of the {role}", lambda end=endpoint: end.path().get("inner_mtu", 0) >= MTU)

    def end(self) -> dict[Role, dict[str, object]]:
        """Server first, so that the client hears its close."""
        return {role: self.endpoints.pop(role).end() for role in (Role.SERVER, Role.CLIENT)}

    def close(self) -> None:
        for endpoint in self.endpoints.values():
            endpoint.kill()
        for namespace in self.namespaces.values():
            namespace.delete()


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    made = Tunnel()
    names = [namespace.name for namespace in made.namespaces.values()]
    processes = []
    try:
        yield made
    finally:
        processes = [endpoint.process for endpoint in made.endpoints.values()]
        made.close()
    assert all(process.returncode is not None for process in processes)
    left = run("ip", "netns", "list")
    assert not [name for name in names if name in left]


def test_ping_passes_both_ways_in_both_families_and_sizes(tunnel: Tunnel) -> None:
    tunnel.both()
    for role, addresses in ((Role.CLIENT, ("10.91.5.1", "fd00:5::1")), (Role.SERVER, ("10.91.5.2", "fd00:5::2"))):
        for address in addresses:
            for size in ("0", "1000", "1332" if ":" in address else "1352", "5000"):
                assert answered(tunnel.namespaces[role], address, "-s", size) == 5
    counters = tunnel.end()
    told = ["SessionBegun", "SessionConfirmed", "KeyPhaseConfirmed", "SessionLost"]
    assert counters[Role.CLIENT]["reports"] == told


def test_a_tcp_stream_arrives_whole_both_ways(tunnel: Tunnel) -> None:
    tunnel.both()
    assert tcp_rate(tunnel.namespaces[Role.CLIENT], tunnel.namespaces[Role.SERVER], "10.91.5.1", 1) > 1e6
    assert tcp_rate(tunnel.namespaces[Role.SERVER], tunnel.namespaces[Role.CLIENT], "10.91.5.2", 1) > 1e6
    assert tcp_rate(tunnel.namespaces[Role.CLIENT], tunnel.namespaces[Role.SERVER], "fd00:5::1", 1) > 1e6
    drops = tunnel.end()[Role.SERVER]["drops"]
    assert isinstance(drops, dict)
    assert not {"decrypt-failed", "malformed", "replayed", "tun-refused"} & drops.keys()


def test_a_file_through_the_tunnel_has_the_same_bytes(tunnel: Tunnel, tmp_path: Path) -> None:
    tunnel.both()
    content = os.urandom(5_000_000)
    (tmp_path / "in").write_bytes(content)
    receive = (
        "import socket,sys\n"
        "s = socket.create_server(('10.91.5.1', 7000)); print('up', flush=True); c, _ = s.accept()\n"
        "f = open(sys.argv[1], 'wb')\n"
        "while d := c.recv(1 << 16): f.write(d)\n"
    )
    send = (
        "import socket,sys\n"
        "s = socket.create_connection(('10.91.5.1', 7000)); s.sendall(open(sys.argv[1], 'rb').read())\n"
    )
    server, client = tunnel.namespaces[Role.SERVER], tunnel.namespaces[Role.CLIENT]
    receiver = subprocess.Popen(
        [*server.prefix, sys.executable, "-c", receive, str(tmp_path / "out")], stdout=subprocess.PIPE
    )
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        client.run(sys.executable, "-c", send, str(tmp_path / "in"))
        receiver.communicate(timeout=PATIENCE)
    finally:
        receiver.kill()
        receiver.communicate()
    assert (tmp_path / "out").read_bytes() == content


def test_keys_change_twice_a_second_under_traffic_and_nothing_is_lost(tunnel: Tunnel) -> None:
    tunnel.both(QRE_REKEY="0.5")
    assert answered_in_a_row(tunnel.namespaces[Role.CLIENT], "10.91.5.1", 80) == 80
    counters = tunnel.end()
    assert int(str(counters[Role.SERVER]["epoch"])) >= 3
    assert abs(int(str(counters[Role.SERVER]["epoch"])) - int(str(counters[Role.CLIENT]["epoch"]))) <= 1


def test_a_packet_whose_hops_are_over_does_not_enter_the_tunnel(tunnel: Tunnel) -> None:
    tunnel.both()
    assert answered(tunnel.namespaces[Role.CLIENT], "10.91.5.1", "-t", "1", count=2, wait=1) == 0
    assert answered(tunnel.namespaces[Role.CLIENT], "10.91.5.1", "-t", "2", count=2) == 2
    drops = tunnel.end()[Role.CLIENT]["drops"]
    assert isinstance(drops, dict)
    assert drops["hops-over"] == 2


def numbers_on_the_wire(capture: Path) -> dict[Role, list[tuple[int, int, bytes]]]:
    """(key phase bit, packet number, datagram) of what each role sent, header protection taken off."""
    found: dict[Role, list[tuple[int, int, bytes]]] = {Role.CLIENT: [], Role.SERVER: []}
    for datagram in read_udp(capture):
        role = Role.SERVER if datagram.source[0] == OUTER[Role.SERVER] else Role.CLIENT
        payload = datagram.payload
        assert datagram.dont_fragment
        assert datagram.tos == 0
        at = 1 + (len(ROUTED_CID) if role is Role.CLIENT else 0)
        mask = (
            Cipher(algorithms.AES(install_of(role).tx_hp_key), modes.ECB())
            .encryptor()
            .update(payload[at + 4 : at + 20])
        )
        first = payload[0] ^ (mask[0] & 0x1F)
        assert first & 0xF8 == 0x40  # fixed bit, spin 0, reserved 0
        size = (first & 3) + 1
        assert size == 4 or role is Role.CLIENT, "bare acknowledgements of a client have shorter ones"
        short = int.from_bytes(payload[at : at + size], "big") ^ int.from_bytes(mask[1 : 1 + size], "big")
        expected, window = max((number for _, number, _ in found[role]), default=0) + 1, 1 << 8 * size
        number = short if size == 4 else expected + (short - expected + window // 2) % window - window // 2
        found[role].append((first & 4, number, payload))
    return found


@pytest.mark.parametrize("victim", [Role.CLIENT, Role.SERVER])
def test_a_killed_data_plane_goes_on_without_using_a_number_twice(
    tunnel: Tunnel, victim: Role, tmp_path: Path
) -> None:
    marks = marks_memfd()
    try:
        other = Role.SERVER if victim is Role.CLIENT else Role.CLIENT
        target = INNER[other][0].split("/")[0]
        capture = tmp_path / "wire.pcap"
        with Tcpdump(tunnel.namespaces[Role.SERVER], tunnel.devices[1], capture):
            rekey = {Role.SERVER: "0.4", Role.CLIENT: "0.1"}
            for role in (Role.SERVER, Role.CLIENT):
                remembered = {"QRE_MARKS": str(marks)} if role is victim else {}
                tunnel.start(role, [marks], QRE_REKEY=rekey[role], **remembered)
            tunnel.established()
            for _ in range(2):
                assert answered_in_a_row(tunnel.namespaces[victim], target, 15) == 15
                tunnel.endpoints.pop(victim).kill()
                tunnel.start(victim, [marks], QRE_REKEY=rekey[victim], QRE_MARKS=str(marks), QRE_EPOCH="0")
            assert answered_in_a_row(tunnel.namespaces[victim], target, 15) >= 14
        sent = numbers_on_the_wire(capture)
    finally:
        os.close(marks)
    for packets in sent.values():
        numbers = Counter(number for _, number, _ in packets)
        distinct = {(number, payload) for _, number, payload in packets}
        assert len(distinct) == len(numbers)
        assert min(numbers) == PACKET_NUMBER_BASE
    assert max(number for _, number, _ in sent[victim]) >= PACKET_NUMBER_BASE + 2 * 65_536


def test_what_strangers_send_to_the_port_costs_nothing_but_counters(tunnel: Tunnel) -> None:
    tunnel.both()
    flood = (
        "import os, socket\n"
        "cid = bytes.fromhex('" + ROUTED_CID.hex() + "')\n"
        "for port in range(200):\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    for n in range(10):\n"
        "        s.sendto(os.urandom(n * 7), ('10.90.1.1', 443))\n"
        "        s.sendto(b'\\x40' + cid + os.urandom(n * 7), ('10.90.1.1', 443))\n"
    )
    tunnel.namespaces[Role.CLIENT].run(sys.executable, "-c", flood)
    assert answered(tunnel.namespaces[Role.CLIENT], "10.91.5.1") == 5
    counters = tunnel.end()[Role.SERVER]
    drops = counters["drops"]
    assert isinstance(drops, dict)
    assert drops["decrypt-failed"] > 500
    assert drops["malformed"] > 100
    assert drops["unknown-cid"] > 100
    reports = counters["reports"]
    assert isinstance(reports, list)
    assert set(reports) - {"Stray"} <= {"SessionConfirmed", "KeyPhaseConfirmed"}
    assert reports.count("Stray") <= 2000, "within its budget of some seconds"


def test_inner_udp_super_packets_are_split(tunnel: Tunnel) -> None:
    tunnel.both()
    receive = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.91.5.1', 7001)); s.settimeout(60)\n"
        "print('up', flush=True)\n"
        "print([len(s.recv(65535)) for _ in range(11)], flush=True)\n"
    )
    send = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendmsg([bytes(10300)], [(17, 103, (1000).to_bytes(2, 'little'))], 0, ('10.91.5.1', 7001))\n"
    )
    server, client = tunnel.namespaces[Role.SERVER], tunnel.namespaces[Role.CLIENT]
    receiver = subprocess.Popen([*server.prefix, sys.executable, "-c", receive], stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        client.run(sys.executable, "-c", send)
        out, _ = receiver.communicate(timeout=PATIENCE)
    finally:
        receiver.kill()
        receiver.communicate()
    assert out.strip() == str([1000] * 10 + [300])


def test_a_device_that_is_down_or_gone_makes_nobody_spin(tunnel: Tunnel) -> None:
    tunnel.both()
    server = tunnel.namespaces[Role.SERVER]
    process = tunnel.endpoints[Role.SERVER].process
    server.ip("link", "set", DEVICE, "down")
    assert answered(tunnel.namespaces[Role.CLIENT], "10.91.5.1", count=2, wait=1) == 0
    server.ip("link", "set", DEVICE, "up")
    assert answered(tunnel.namespaces[Role.CLIENT], "10.91.5.1", count=2) == 2
    server.ip("link", "del", DEVICE)
    before = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    assert answered(tunnel.namespaces[Role.CLIENT], "10.91.5.1", count=2, wait=1) == 0
    time.sleep(0.5)  # in which who spins would
    after = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = sum(int(after[at]) - int(before[at]) for at in (11, 12))
    assert ticks < 20  # hundredths of a second
    drops = tunnel.end()[Role.SERVER]["drops"]
    assert isinstance(drops, dict)
    assert drops["tun-refused"] >= 2
