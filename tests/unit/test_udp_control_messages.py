"""Datagrams of IPv4 and IPv6 at one socket: real ones, on loopback."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from qre.causes import Cause
from qre.errors import MachineError
from qre.kernel.udp import underlay_sockets
from qre.kernel.udp.control_messages import (
    TIME_SPACE,
    age_of,
    as_sockaddr,
    as_told,
    family_of,
    local_of,
    report_time,
    source_of,
)
from qre.kernel.udp.underlay_sockets import client_socket, group_socket, require_free, source_address
from qre.workers.handshake.port.datagrams import receive_into, send_to
from qre.workers.handshake.port.flow_parts import network_of
from tests.support.daemons import PATIENCE

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
ECT0 = 2


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A server's, of all addresses of both versions."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        number = probe.getsockname()[1]
    with group_socket("::", number) as made:
        made.setblocking(True)
        made.settimeout(PATIENCE)
        yield made


@pytest.mark.parametrize(
    ("family", "spoken_to"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.9"), (socket.AF_INET6, "::1")],
)
@pytest.mark.parametrize("ecn", [0, ECT0])
def test_a_visitor_of_either_version_is_answered_from_the_address_that_it_speaks_to(
    port: socket.socket, family: int, spoken_to: str, ecn: int
) -> None:
    to = spoken_to, port.getsockname()[1]
    with client_socket("", 0, family) as visitor:
        visitor.settimeout(PATIENCE)
        send_to(visitor, to, b"hello", ecn)
        buffer = bytearray(100)
        length, source, mark, _ = receive_into(port, buffer, ours=())
        assert (length, mark) == (5, ecn)
        assert source == (LOOPBACK[family], visitor.getsockname()[1], spoken_to)
        for segment, answers in ((0, [b"answer"]), (4, [b"answ", b"er"])):
            send_to(port, source, b"answer", ecn, segment)
            for answer in answers:
                length, source_of_answer, mark, _ = receive_into(visitor, buffer, ours=None)
                assert (bytes(buffer[:length]), source_of_answer, mark) == (answer, to, ecn)


def test_what_is_sent_to_an_address_that_is_not_listened_on_is_not_taken(port: socket.socket) -> None:
    ours = frozenset(map(as_told, (ip_address("127.0.0.1"), ip_address("::1"))))
    buffer = bytearray(100)
    for family, spoken_to, taken in (
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.0.0.9", False),
        (socket.AF_INET6, "::1", True),
    ):
        with client_socket("", 0, family) as visitor:
            send_to(visitor, (spoken_to, port.getsockname()[1]), b"hello", 0)
            if taken:
                assert receive_into(port, buffer, ours=ours)[0] == 5
            else:
                with pytest.raises(OSError, match="not Listen's"):
                    receive_into(port, buffer, ours=ours)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::2:3", "::1.2.3.4", "2001:db8:0:1:1:1:1:1", "fe80::"])
def test_an_address_is_compared_as_the_kernel_tells_it(text: str) -> None:
    address = ip_address(text)
    message = (socket.IPPROTO_IPV6, 50, address.packed + bytes(4))
    if address.version == 4:
        message = (socket.IPPROTO_IP, 8, bytes(4) + address.packed + address.packed)
    assert local_of([message]) == as_told(address)


def test_what_does_not_fit_a_packet_goes_in_fragments_over_either_version(port: socket.socket) -> None:
    for family, ip in LOOPBACK.items():
        with client_socket("", 0, family) as visitor:
            visitor.settimeout(PATIENCE)
            send_to(port, (ip, visitor.getsockname()[1], ip), bytes(65_507), 0)
            assert len(visitor.recv(65_535)) == 65_507
            with pytest.raises(OSError) as refused:
                send_to(port, (ip, visitor.getsockname()[1], ip), bytes(65_507 + 30), 0, whole=True)
            assert refused.value.errno == errno.EMSGSIZE


def test_where_packets_would_come_from() -> None:
    for ip in LOOPBACK.values():
        assert source_address("", ip_address(ip)) == ip_address(ip)


@pytest.mark.parametrize(
    ("received", "told"),
    [
        (("192.0.2.1", 443), ("192.0.2.1", 443)),
        (("::ffff:192.0.2.1", 443, 0, 0), ("192.0.2.1", 443)),
        (("2001:db8::1", 443, 0, 0), ("2001:db8::1", 443)),
        (("::ffff:0:1", 443, 0, 0), ("::ffff:0:1", 443)),
    ],
)
def test_a_mapped_address_is_told_as_that_of_ipv4(received: tuple[object, ...], told: tuple[str, int]) -> None:
    assert source_of(received) == told
    assert as_sockaddr(socket.AF_INET6, told)[0] == received[0] or told[0] == received[0]
    assert family_of(told[0]) == (socket.AF_INET6 if ":" in told[0] else socket.AF_INET)


def test_a_household_has_one_share_of_the_port() -> None:
    assert network_of("192.0.2.1") == network_of("192.0.2.255") != network_of("192.0.3.1")
    same = {network_of(ip) for ip in ("2001:db8:1:200::1", "2001:db8:1:2ff:ffff::1", "2001:0db8:1:2aa::")}
    assert len(same) == 1
    assert network_of("2001:db8:1:300::1") not in same


def test_a_kernel_without_a_version_of_ip_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "")

    monkeypatch.setattr(underlay_sockets, "_new", missing)
    for asked in (lambda: client_socket("", 0, socket.AF_INET6), lambda: require_free("::", 443)):
        with pytest.raises(MachineError, match="no sockets of that version of IP") as caught:
            asked()
        assert caught.value.cause is Cause.VERSION_MISSING


def test_a_datagram_tells_how_long_it_has_waited() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader:
        reader.bind(("127.0.0.1", 0))
        report_time(reader)
        began = time.monotonic()
        reader.sendto(b"hello", reader.getsockname())
        time.sleep(0.03)
        ancillary = reader.recvmsg(16, TIME_SPACE)[1]
        age = age_of(ancillary)
    assert 0.03 <= age <= time.monotonic() - began


@pytest.mark.parametrize("seconds_ago", [-5.0, 0.2, 3600.0])
def test_an_age_that_cannot_be_is_none(seconds_ago: float) -> None:
    """The clock was set meanwhile, or it lies."""
    at = time.time() - seconds_ago
    stamp = int(at).to_bytes(8, "little") + int(at % 1 * 1e9).to_bytes(8, "little")
    assert age_of([(socket.SOL_SOCKET, 35, stamp)]) == 0.0
    assert age_of([(socket.SOL_SOCKET, 35, stamp[:8])]) == 0.0
    assert age_of([]) == 0.0
