"""The user data plane over paths of other sizes: client — router — server, each a namespace of its own.

The link between router and server is the narrow one. The router answers what does not fit it with ICMP, or is a black
hole; the server's own device is as wide as ever, so that its datagrams vanish on the link in either case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import fmean
from typing import Any

import pytest

from qre.ends import Role
from tests.support.daemons import wait_for
from tests.support.dataplane_endpoint import Endpoint
from tests.support.namespaces import Namespace, join, run
from tests.support.ping import answered, ping
from tests.support.wireguard import tcp_rate

C, S = Role.CLIENT, Role.SERVER
OUTER = {C: "10.90.1.2", S: "10.90.3.2"}
INNER = {C: ["10.91.6.2/24", "fd00:6::2/64"], S: ["10.91.6.1/24", "fd00:6::1/64"]}
DEVICE = "qp0"
OTHER = {C: S, S: C}
#: The overhead of QUIC: the client's packets bear a routed connection ID of 20 bytes, the server's an empty one.
AROUND = {C: 44, S: 24}
#: Link MTU, and the UDP payload that is found; a client knows that the path carries a browser's 1,250 bytes.
PATHS = ((1280, 1200), (1300, 1200), (1400, 1326), (1420, 1389), (9000, 1436))
BROWSER = 1250


class Lab(ExitStack):
    """Both ends with a router between them, and data planes that are not started yet."""

    def __init__(self) -> None:
        super().__init__()
        try:
            self.ends = {C: self._namespace("pc"), S: self._namespace("ps")}
            self.router = self._namespace("pr")
            self.links = {
                C: join(self.ends[C], f"{OUTER[C]}/24", self.router, "10.90.1.1/24"),
                S: join(self.ends[S], f"{OUTER[S]}/24", self.router, "10.90.3.1/24"),
            }
            for role in Role:
                self.ends[role].ip("route", "add", "default", "via", f"{OUTER[role].rsplit('.', 1)[0]}.1")
            self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
            self.endpoints: dict[Role, Endpoint] = {}
        except BaseException:
            self.close()
            raise

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self.callback(made.delete)
        return made

    def narrow(self, mtu: int) -> None:
        """Make the router's link to the server carry this much."""
        if mtu > 1500:
            for role in Role:
                self.ends[role].ip("link", "set", self.links[role][0], "mtu", str(mtu))
                self.router.ip("link", "set", self.links[role][1], "mtu", str(mtu))
        else:
            self.router.ip("link", "set", self.links[S][1], "mtu", str(mtu))

    def black_hole(self) -> None:
        """Nothing that the router says about packets is heard."""
        rules = "table ip hole { chain out { type filter hook output priority 0; ip protocol icmp drop; }; }"
        self.router.run("nft", rules)

    def start(self, **environment: str) -> Lab:
        for role in (S, C):
            addresses = OUTER[role], OUTER[OTHER[role]]
            endpoint = Endpoint(self.ends[role], role, DEVICE, addresses, INNER[role], **environment)
            self.callback(endpoint.kill)
            self.endpoints[role] = endpoint
        return self

    def settled(self, seconds: float = 15) -> dict[Role, dict[str, Any]]:
        """What both ends know of the path, once they do."""
        found: dict[Role, dict[str, Any]] = {}

        def both() -> bool:
            found.update({role: endpoint.path() for role, endpoint in self.endpoints.items()})
            return all(path["settled"] for path in found.values())

        wait_for("the search", both, seconds)
        return found

    def drops(self, role: Role) -> dict[str, int]:
        drops: dict[str, int] = self.endpoints[role].path()["drops"]
        return drops

    def ping(self, role: Role, address: str, *options: str) -> int:
        """How many of 3 are answered."""
        return answered(self.ends[role], address, *options, count=3)

    def refused(self, role: Role, address: str, *options: str) -> str:
        """What ping says of those that are not, complaints included."""
        return ping(self.ends[role], address, *options, count=3, wait=1)

    def rate(self, role: Role, version: int = 4) -> float:
        """Mbit/s of a TCP stream from this end to the other, in a second."""
        address = inner(OTHER[role], version)
        return tcp_rate(self.ends[role], self.ends[OTHER[role]], address, 1) / 1e6


def inner(role: Role, version: int = 4) -> str:
    return INNER[role][version == 6].split("/")[0]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made
        names = [made.router.name, *(namespace.name for namespace in made.ends.values())]
    left = run("ip", "netns", "list")
    assert not [name for name in names if name in left]


@pytest.mark.parametrize("hole", [False, True], ids=["icmp", "black-hole"])
@pytest.mark.parametrize(("mtu", "payload"), PATHS)
def test_everything_works_over_a_path_of(
    lab: Lab, mtu: int, payload: int, hole: bool, record_property: pytest.RecordProperty
) -> None:
    lab.narrow(mtu)
    if hole:
        lab.black_hole()
    paths = lab.start().settled()
    rates: dict[str, int] = {}
    for role, path in paths.items():
        found = max(payload, BROWSER) if role is C else payload
        assert path["path_mtu"] == found + 28
        limit = min(path["inner_mtu"], 1380)
        assert path["inner_mtu"] == found - AROUND[role]
        rates[f"IPv4 from the {role}"] = round(lab.rate(role))
        assert lab.ping(role, inner(OTHER[role]), "-M", "do", "-s", str(limit - 28)) == 3
        if limit < 1380:
            too_long = (role, inner(OTHER[role]), "-M", "do", "-s", str(limit - 27))
            assert f"mtu = {limit}" in lab.refused(*too_long), "the host is told"
            assert f"mtu={limit}" in lab.refused(*too_long), "and knows it from then on"
            assert lab.drops(role)["too-big"] >= 1
        assert lab.ping(role, inner(OTHER[role]), "-M", "dont", "-s", "3000") == 3, "fragments"
        if limit >= 1280:
            rates[f"IPv6 from the {role}"] = round(lab.rate(role, 6))
            for _ in Role:  # this host is told, and then the one that answers: nobody fragments for them
                lab.refused(role, inner(OTHER[role], 6), "-s", "3000")
            assert lab.ping(role, inner(OTHER[role], 6), "-s", "3000") == 3
        else:
            assert "Administratively prohibited" in lab.refused(role, inner(OTHER[role], 6))
            assert lab.drops(role)["ipv6-refused"] >= 3
    for what, rate in rates.items():
        record_property(what, f"{rate} Mbit/s")
        assert rate >= 5, f"{what}: {rates}"
    print(f"MTU {mtu}, {'a black hole' if hole else 'with ICMP'}: {rates} Mbit/s")


class Stream:
    """A TCP stream from the client to the server, its bytes looked at each half second."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        server, client = lab.ends[S], lab.ends[C]
        self.listener = server.popen(["iperf3", "--server", "--one-off", "--bind", inner(S)])
        lab.callback(self.listener.wait)
        lab.callback(self.listener.terminate)
        wait_for("iperf3", lambda: ":5201" in server.run("ss", "-Hltn"))
        command = ["iperf3", "--client", inner(S), "--time", f"{seconds:g}", "--interval", "0.5", "--json"]
        self.process = subprocess.Popen([*client.prefix, *command], stdout=subprocess.PIPE, text=True)
        lab.callback(self.process.kill)
        self.began = time.monotonic()

    def at(self, second: float) -> None:
        """Wait until then."""
        time.sleep(max(0.0, self.began + second - time.monotonic()))

    def rates(self) -> list[float]:
        """Mbit/s of each half second."""
        said, _ = self.process.communicate(timeout=60)
        return [entry["sum"]["bits_per_second"] / 1e6 for entry in json.loads(said)["intervals"]]


@pytest.mark.parametrize("hole", [False, True], ids=["icmp", "black-hole"])
def test_a_running_stream_survives_a_path_that_shrinks_and_grows(lab: Lab, hole: bool) -> None:
    if hole:
        lab.black_hole()
    lab.start(QRE_RAISE="3").settled()
    stream = Stream(lab, 16)
    stream.at(2)
    lab.narrow(1300)
    stream.at(9)
    assert lab.settled()[C]["path_mtu"] == BROWSER + 28
    lab.narrow(1500)
    rates = stream.rates()
    print(f"Mbit/s of each half second, narrow from 2 s to 9 s: {[round(rate) for rate in rates]}")
    usual = fmean(rates[:4])
    assert fmean(rates[12:18]) > usual / 10, f"four seconds later the narrow path is used: {rates}"
    assert fmean(rates[-10:]) > usual / 10, f"the wide path is used: {rates}"
    wait_for("the path is found to have grown", lambda: lab.endpoints[C].path()["path_mtu"] == 1464)


FORGER = """
import socket, struct, sys
source, victim, peer, port, peer_port, mtu = sys.argv[1], *sys.argv[2:4], *map(int, sys.argv[4:])
def total(data):
    words = sum(struct.unpack(f">{len(data) // 2}H", data))
    words = (words & 0xFFFF) + (words >> 16)
    return 0xFFFF - ((words & 0xFFFF) + (words >> 16))
quoted = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 1464, 0, 0x4000, 64, 17, 0, *map(socket.inet_aton, (victim, peer)))
quoted += struct.pack(">HHHH", port, peer_port, 1444, 0)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for code, value in ((4, mtu), (3, 0), (1, 0)):
    body = struct.pack(">BBHHH", 3, code, 0, 0, value) + quoted
    body = body[:2] + struct.pack(">H", total(body)) + body[4:]
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 1, 0, *map(socket.inet_aton, (source, victim)))
    raw.sendto(head + body, (victim, 0))
"""


def test_a_forged_icmp_error_has_no_effect(lab: Lab) -> None:
    """Fragmentation needed with an MTU of 600, and unreachables, from a foreign address, about the very packets."""
    lab.start().settled()
    ports = {C: (40_000, 443), S: (443, 40_000)}
    for role in Role:
        tuples = [OUTER[role], OUTER[OTHER[role]], *map(str, ports[role])]
        for _ in range(5):
            lab.router.run(sys.executable, "-c", FORGER, "203.0.113.9", *tuples, "600")
    assert "mtu 600" in lab.ends[C].ip("route", "get", OUTER[S]), "the kernel believed it, and others suffer"
    for role in Role:
        before = lab.endpoints[role].path()
        assert lab.ping(role, inner(OTHER[role]), "-M", "do", "-s", "1352") == 3
        assert lab.rate(role) >= 5
        after = lab.endpoints[role].path()
        assert after == before, "nothing was lost and nothing smaller is used"
        assert after["path_mtu"] == 1464


def test_the_first_hops_own_mtu_is_respected_at_once_and_when_it_shrinks(lab: Lab) -> None:
    device = lab.links[C][0]
    lab.ends[C].ip("link", "set", device, "mtu", "1420")
    lab.start().settled()
    assert lab.endpoints[C].path()["path_mtu"] == 1389 + 28
    lab.ends[C].ip("link", "set", device, "mtu", "1370")
    assert lab.rate(C) >= 5
    assert lab.settled()[C]["path_mtu"] == 1326 + 28


def test_a_connection_gets_an_mss_that_fits_both_ways(lab: Lab) -> None:
    """So that hosts behind the ends need hear no ICMP."""
    lab.narrow(1400)
    lab.start().settled()
    for role in Role:
        server, client = lab.ends[OTHER[role]], lab.ends[role]
        for version, headers in ((4, 40), (6, 60)):
            address, family = inner(OTHER[role], version), 2 if version == 4 else 10
            listen = f"import socket;s=socket.create_server(({address!r},9),family={family});c,_=s.accept();c.recv(1)"
            listener = server.popen([sys.executable, "-c", listen])
            try:
                wait_for("listener", lambda server=server: ":9 " in server.run("ss", "-Hltn"))
                connect = f"import socket;c=socket.create_connection(({address!r},9),5);print(c.getsockopt(6,2))"
                told = int(client.run(sys.executable, "-c", connect))
                # TCP_MAXSEG takes the timestamps' 12 bytes off.
                assert told + 12 == lab.endpoints[role].path()["inner_mtu"] - headers
            finally:
                listener.kill()
                listener.wait()
