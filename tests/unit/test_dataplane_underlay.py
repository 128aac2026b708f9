"""The UDP socket of sessions, on loopback: batches, marks, and kernels or packets that do not fit."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from qre.errors import MachineError
from qre.kernel.udp.control_messages import family_of, report_local, report_time
from qre.kernel.udp.underlay_sockets import client_socket, connect_anew
from qre.workers.dataplane.many_datagrams import ManyDatagrams
from qre.workers.dataplane.underlay import UnderlaySocket
from tests.support.daemons import PATIENCE

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def bound(ip: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(family_of(ip), socket.SOCK_DGRAM)
    if ip == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((ip, 0))
    return sock


class Pair:
    """Addresses are of ``family``, also where a socket is one of both families."""

    def __init__(self, family: int = socket.AF_INET, one: str = "", two: str = "") -> None:
        self.ip = LOOPBACK[family]
        self.use(bound(one or self.ip), bound(two or self.ip))

    def use(self, one: socket.socket, two: socket.socket) -> None:
        self.to = self.ip, two.getsockname()[1]
        self.source = self.ip, one.getsockname()[1]
        self.drops: Counter[str] = Counter()
        self.one = UnderlaySocket(one.detach(), self.drops)
        self.two = UnderlaySocket(two.detach(), self.drops)

    def arrived(self, count: int) -> tuple[list[bytes], set[int], int]:
        """Datagrams, ECN codepoints and system calls."""
        datagrams: list[bytes] = []
        marks: set[int] = set()
        calls = 0
        deadline = time.monotonic() + PATIENCE
        while len(datagrams) < count and time.monotonic() < deadline:
            received = self.two.receive()
            if received is None:
                time.sleep(0.001)
                continue
            calls += 1
            datagrams += received[0]
            assert received[1] == self.source
            marks.add(received[2])
        return datagrams, marks, calls

    def close(self) -> None:
        self.one.close()
        self.two.close()


class Connected(Pair):
    """The first one is a client's."""

    def use(self, one: socket.socket, two: socket.socket) -> None:
        one.connect(two.getsockname())
        super().use(one, two)


class Talkative(Pair):
    """The second one was made to tell when datagrams come, and to which address."""

    def use(self, one: socket.socket, two: socket.socket) -> None:
        report_time(two)
        report_local(two)
        super().use(one, two)


@pytest.fixture(params=LOOPBACK, ids=["IPv4", "IPv6"])
def connected(request: pytest.FixtureRequest) -> Iterator[Connected]:
    made = Connected(request.param)
    yield made
    made.close()


#: The family of the packets, and where the ends are bound.
PAIRS = {
    "IPv4": (socket.AF_INET, "", ""),
    "IPv6": (socket.AF_INET6, "", ""),
    "IPv4 from a socket of both": (socket.AF_INET, "::", ""),
    "IPv4 to a socket of both": (socket.AF_INET, "", "::"),
    "IPv6 to a socket of both": (socket.AF_INET6, "", "::"),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(*PAIRS[request.param])
    yield made
    made.close()


def test_datagrams_of_any_sizes_arrive_one_by_one_in_order(pair: Pair) -> None:
    sizes = [1400] * 100 + [600, 1400, 1400, 900, 1400, 20, 20, 20, 1]
    packets = [bytes([n]) * size for n, size in enumerate(sizes)]
    assert pair.one.send(packets, pair.to) == []
    datagrams, marks, calls = pair.arrived(len(packets))
    assert datagrams == packets
    assert marks == {0}
    assert calls < len(packets) / 5


@pytest.mark.parametrize("count", [1, 3])
def test_packets_leave_with_the_ecn_codepoint_that_is_asked_for(pair: Pair, count: int) -> None:
    for ecn in (2, 0, 1):
        pair.one.send([b"x"] * count, pair.to, ecn)
        assert pair.arrived(count)[1] == {ecn}


def test_marks_stay_when_every_datagram_gets_a_call_of_its_own(pair: Pair) -> None:
    pair.one.send([b"a" * 100, b"b" * 65_508, b"c" * 100], pair.to, 2)
    assert pair.arrived(2)[1] == {2}


def test_a_packet_too_long_for_the_link_is_told_and_the_others_arrive(pair: Pair) -> None:
    packets = [b"a" * 100, b"b" * 65_508, b"c" * 100]
    assert pair.one.send(packets, pair.to) == []
    assert pair.arrived(2)[0] == [packets[0], packets[2]]
    assert pair.one.refused == [65_508]
    assert pair.drops == {}


def closed_port(ip: str) -> tuple[str, int]:
    with bound(ip) as gone:
        return ip, gone.getsockname()[1]


def hear_of_errors(made: socket.socket) -> None:
    """IP_RECVERR, IPV6_RECVERR."""
    made.setsockopt(socket.IPPROTO_IP, 11, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, 25, 1)


@pytest.mark.parametrize("count", [1, 5])
def test_an_icmp_error_of_an_earlier_packet_costs_none_that_follows(pair: Pair, count: int) -> None:
    """A connected socket is told of them, and one that asks for them of those to any peer."""
    hear_of_errors(pair.one._socket)
    pair.one.send([b"nobody hears"], closed_port(pair.ip))
    assert pair.one.send([b"x" * 50] * count, pair.to) == []
    assert len(pair.arrived(count)[0]) == count
    assert pair.drops == {}


def test_icmp_errors_that_come_on_receipt_are_counted_and_hide_nothing(pair: Pair) -> None:
    hear_of_errors(pair.two._socket)
    pair.two.send([b"nobody hears"], closed_port(pair.ip))
    pair.one.send([b"x"] * 3, pair.to)
    assert pair.arrived(3)[0] == [b"x"] * 3
    assert pair.drops == {"unreachable": 1}


class Refusing:
    """A socket whose super-packets fail with ``error``, and whose room ends after ``room`` datagrams."""

    def __init__(self, sock: Any, error: int, room: int = 1000) -> None:
        self.sock, self.error, self.room = sock, error, room

    def sendmsg(self, *arguments: Any) -> int:
        raise OSError(self.error, "refused")

    def sendto(self, data: bytes, to: Any) -> int:
        if not self.room:
            raise BlockingIOError
        self.room -= 1
        return int(self.sock.sendto(data, to))

    def close(self) -> None:
        self.sock.close()


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
def test_without_segmentation_in_the_kernel_they_go_one_by_one(pair: Pair, error: int) -> None:
    pair.one._socket = Refusing(pair.one._socket, error)  # type: ignore[assignment]  # a kernel that cannot
    assert pair.one.send([b"x" * 50] * 20, pair.to) == []
    assert len(pair.arrived(20)[0]) == 20


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_what_a_full_socket_did_not_take_comes_back(pair: Pair, error: int) -> None:
    pair.one._socket = Refusing(pair.one._socket, error, room=7)  # type: ignore[assignment]  # a full kernel
    packets = [bytes([n]) * 50 for n in range(20)]
    assert pair.one.send(packets, pair.to) == packets[7:]
    assert pair.arrived(7)[0] == packets[:7]


def test_each_datagram_of_a_connected_socket_is_a_packet_of_its_own(connected: Connected) -> None:
    sizes = [1400] * 150 + [600, 1400, 900, 1, 20]
    packets = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    assert connected.one.send(packets, connected.to) == []
    datagrams, marks, calls = connected.arrived(len(packets))
    assert (datagrams, marks, calls) == (packets, {0}, len(packets))


def test_a_connected_socket_marks_packets_too(connected: Connected) -> None:
    connected.one.send([b"x"] * 3, connected.to, 2)
    assert connected.arrived(3)[1] == {2}


def test_a_packet_too_long_for_the_link_of_a_connected_socket_is_told(connected: Connected) -> None:
    packets = [b"a" * 100, b"b" * 65_508, b"c" * 100]
    assert connected.one.send(packets, connected.to) == []
    assert connected.arrived(2)[0] == [packets[0], packets[2]]
    assert connected.one.refused == [65_508]


@pytest.mark.parametrize("count", [1, 5, 100])
def test_a_connected_socket_outlives_that_nobody_hears(connected: Connected, count: int) -> None:
    """ICMP's port unreachable, which it is told with the next call."""
    port = connected.to[1]
    connected.two.close()
    for _ in range(3):
        assert connected.one.send([b"nobody hears"], connected.to) == []
    again = socket.socket(family_of(connected.ip), socket.SOCK_DGRAM)
    again.bind((connected.ip, port))
    connected.two = UnderlaySocket(again.detach(), connected.drops)
    assert connected.one.send([b"x" * 50] * count, connected.to) == []
    assert len(connected.arrived(count)[0]) == count
    assert connected.one.receive() is None


class Full(ManyDatagrams):
    """Of a kernel that takes three datagrams in a call, and no more than ``room`` of them."""

    room = 7

    def send(self, fd: int, datagrams: Sequence[bytes]) -> int:
        if not self.room:
            raise BlockingIOError
        took = super().send(fd, datagrams[: min(3, self.room)])
        self.room -= took
        return took


def test_what_a_full_connected_socket_did_not_take_comes_back(connected: Connected) -> None:
    connected.one._many = Full()
    packets = [bytes([n]) * 50 for n in range(20)]
    assert connected.one.send(packets, connected.to) == packets[7:]
    assert connected.arrived(7)[0] == packets[:7]


@pytest.mark.parametrize("ip", LOOPBACK.values())
def test_a_socket_that_is_connected_anew_keeps_its_port_and_hears_its_peer_alone(ip: str) -> None:
    with client_socket(ip, 0) as made, bound(ip) as first, bound(ip) as second:
        port = made.getsockname()[1]
        for peer in (first, second, second, first):
            connect_anew(made, (ip, peer.getsockname()[1]))
            assert (made.getsockname()[1], made.getpeername()) == (port, peer.getsockname())
        second.sendto(b"from elsewhere", made.getsockname())
        first.sendto(b"from the peer", made.getsockname())
        made.settimeout(PATIENCE)
        assert made.recv(100) == b"from the peer"


@pytest.mark.parametrize("family", LOOPBACK)
def test_ports_of_clients_are_the_kernels_choice(family: int) -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(client_socket("", 0, family)).getsockname()[1] for _ in range(50)]
    assert len(set(ports)) == 50
    assert {port % 2 for port in ports} == {0, 1}


def test_an_unreachable_peer_is_counted_and_stops_nothing(pair: Pair) -> None:
    assert pair.one.send([b"x" * 50] * 3, ("255.255.255.255", 9)) == []  # EACCES
    assert pair.drops == {"send-failed": 3}
    assert pair.one.send([b"y"], pair.to) == []
    assert pair.arrived(1)[0] == [b"y"]


@pytest.mark.parametrize("family", LOOPBACK)
def test_marks_are_read_whatever_else_a_socket_was_made_to_tell(family: int) -> None:
    with contextlib.closing(Talkative(family)) as pair:
        assert pair.one.send([b"marked"], pair.to, 2) == []
        assert pair.arrived(1)[:2] == ([b"marked"], {2})


def test_only_a_udp_socket_is_taken() -> None:
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)):
        with pytest.raises(MachineError):
            UnderlaySocket(socket.socket(family, kind).detach(), Counter())
