"""ICMP errors in the name of a port: byte for byte what a Linux kernel said of the same datagrams, how many leave,
and what is refused."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec
import pytest

from qre.ends import Role
from qre.errors import MachineError, UntrustedInputError
from qre.ipc.messages import WorkerConfig
from qre.kernel.udp.port_errors import (
    QUOTED,
    Failing,
    Limits,
    PortError,
    failing_of,
    icmp_error,
    udp_checksum,
)
from qre.structs import decoder, encoder
from qre.wire.internet_checksum import checksum_of, word_sum
from qre.workers.bpf_loader import error_sender
from qre.workers.bpf_loader.error_sender import ErrorSender

DATA = (bytes(range(256)) * 5)[:1250]
#: What Linux 6.18 sent behind the IP header when no program listened, up to the payload that it quotes: ICMP, and the
#: headers of DATA, which came with ECT(0).
KERNEL = {
    4: "03032d7300000000 450204fe00004000401120f50a7b00010a7b0002 c350115c04ea6963",
    6: "010440f300000000 602dc43004ea1140 20010db8007700000000000000000001 20010db8007700000000000000000002"
    "c350115c04ea21f9",
}
ENDS = {
    4: (ip_address("10.123.0.1"), ip_address("10.123.0.2")),
    6: (ip_address("2001:db8:77::1"), ip_address("2001:db8:77::2")),
}
TRAFFIC = {4: 0x02, 6: 0x02DC430}
SPOKE, LISTENS = 50_000, 4444


def error(version: int = 4, data: bytes = DATA, **changed: Any) -> PortError:
    visitor, local = ENDS[version]
    made = PortError(
        visitor=visitor,
        visitor_port=SPOKE,
        local=local,
        local_port=LISTENS,
        failing=Failing.PORT,
        hops=64,
        traffic=TRAFFIC[version],
        length=len(data),
        checksum=udp_checksum((visitor, SPOKE), (local, LISTENS), data),
        payload=data[: QUOTED[version]],
    )
    return msgspec.structs.replace(made, **changed)


def with_checksum(message: bytes) -> bytes:
    """An ICMPv6 message as the kernel completes it (RFC 4443 §2.3)."""
    visitor, local = ENDS[6]
    pseudo = local.packed + visitor.packed + struct.pack(">II", len(message), 58)
    return message[:2] + checksum_of(word_sum(pseudo + message)).to_bytes(2, "big") + message[4:]


def test_an_error_has_the_bytes_of_a_kernels_own() -> None:
    for version, whole in ((4, 576 - 20), (6, 1280 - 40)):
        expected = bytes.fromhex(KERNEL[version]) + DATA[: QUOTED[version]]
        assert len(expected) == whole
        made = icmp_error(error(version))
        assert (made if version == 4 else with_checksum(made)) == expected


def test_a_short_datagram_is_quoted_whole_and_an_odd_one_is_summed_right() -> None:
    for version in (4, 6):
        for length in (0, 1, 33):
            made = icmp_error(error(version, DATA[:length]))
            assert len(made) == 8 + {4: 28, 6: 48}[version] + length
            assert checksum_of(word_sum(made if version == 4 else b"")) in {0, 0xFFFF}


@pytest.mark.parametrize(
    ("version", "failing", "mtu", "expected"),
    [
        (4, Failing.NET, 0, (3, 0, 0)),
        (4, Failing.HOST, 0, (3, 1, 0)),
        (4, Failing.PORT, 0, (3, 3, 0)),
        (4, Failing.TOO_BIG, 1200, (3, 4, 1200)),
        (4, Failing.NET_PROHIBITED, 0, (3, 9, 0)),
        (4, Failing.HOST_PROHIBITED, 0, (3, 10, 0)),
        (4, Failing.PROHIBITED, 0, (3, 13, 0)),
        (6, Failing.NET, 0, (1, 0, 0)),
        (6, Failing.HOST, 0, (1, 3, 0)),
        (6, Failing.PORT, 0, (1, 4, 0)),
        (6, Failing.TOO_BIG, 1280, (2, 0, 1280)),
        (6, Failing.NET_PROHIBITED, 0, (1, 1, 0)),
        (6, Failing.HOST_PROHIBITED, 0, (1, 1, 0)),
        (6, Failing.PROHIBITED, 0, (1, 1, 0)),
    ],
)
def test_type_code_and_mtu(version: int, failing: Failing, mtu: int, expected: tuple[int, int, int]) -> None:
    made = icmp_error(error(version, failing=failing, mtu=mtu))
    assert (made[0], made[1], int.from_bytes(made[4:8], "big")) == expected
    if (version, failing) not in {(6, Failing.NET_PROHIBITED), (6, Failing.HOST_PROHIBITED)}:
        assert failing_of(version, made[0], made[1]) is failing  # and read again, it says the same


def test_what_is_not_passed_on() -> None:
    for version, kind, code in (
        (4, 3, 2),
        (4, 3, 5),
        (4, 5, 1),
        (4, 11, 0),
        (4, 12, 0),
        (6, 1, 2),
        (6, 3, 0),
        (6, 4, 1),
    ):
        assert failing_of(version, kind, code) is None


# --- hostile requests ---


@pytest.mark.parametrize(
    "changed",
    [
        {"local": ENDS[6][1]},
        {"traffic": 0x100},
        {"payload": DATA[: QUOTED[4] - 1]},
        {"payload": DATA[: QUOTED[4] + 1]},
        {"payload": b""},
        {"length": 3},
        {"mtu": 1200},
        {"failing": Failing.TOO_BIG},
        {"failing": Failing.TOO_BIG, "mtu": 67},
        {"failing": Failing.TOO_BIG, "mtu": 1278},
        {"visitor": ip_address("224.0.0.1")},
        {"visitor": ip_address("0.0.0.0")},
    ],
)
def test_no_error_is_made_that_no_host_would_send(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        icmp_error(error(**changed))


def test_over_ipv6_no_path_is_narrower_than_1280_bytes() -> None:
    with pytest.raises(ValueError, match="MTU"):
        icmp_error(error(6, failing=Failing.TOO_BIG, mtu=1279))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hops", 0),
        ("hops", 256),
        ("traffic", 1 << 28),
        ("length", 65_508),
        ("checksum", 65_536),
        ("mtu", 65_536),
        ("visitor_port", 0),
        ("local_port", 0),
        ("failing", "redirect"),
        ("visitor", "example.org"),
        ("payload", bytes(max(QUOTED.values()) + 1)),
        ("more", 1),
    ],
)
def test_a_message_beyond_its_bounds_is_not_read(field: str, value: object) -> None:
    written = msgspec.msgpack.decode(encoder().encode(error()))
    assert decoder(PortError).decode(msgspec.msgpack.encode(written)) == error()
    written[field] = value
    with pytest.raises(msgspec.ValidationError):
        decoder(PortError).decode(msgspec.msgpack.encode(written))


# --- how many ---


def test_one_address_gets_six_at_once_and_then_one_a_second_as_from_linux() -> None:
    limits, visitor = Limits(100.0), ENDS[4][0]
    assert [limits.take(visitor, 100.0) for _ in range(8)] == [True] * 6 + [False] * 2
    assert not limits.take(visitor, 100.9)
    assert limits.take(visitor, 101.1)
    assert not limits.take(visitor, 101.9)
    assert [limits.take(visitor, 200.0) for _ in range(7)] == [True] * 6 + [False]


def test_all_addresses_together_get_no_more_than_the_common_bound_however_many_they_are() -> None:
    limits = Limits(0.0)
    visitors = [ip_address(0x0A000000 + number) for number in range(3 * Limits.MOST_PEERS)]
    assert sum(limits.take(each, 0.0) for each in visitors) == Limits.ALL_BURST
    told = sum(limits.take(each, number / len(visitors)) for number, each in enumerate(visitors))
    assert told in range(Limits.ALL_PER_SECOND - 2, Limits.ALL_PER_SECOND + 1)
    assert len(limits._peers) == Limits.MOST_PEERS


def test_a_clock_that_stands_still_gives_nothing() -> None:
    limits = Limits(5.0)
    assert sum(limits.take(ENDS[4][0], 5.0) for _ in range(100)) == Limits.PEER_BURST


# --- the sender ---


def config(listen: str = "10.123.0.2") -> WorkerConfig:
    return WorkerConfig(
        profile="server0", device="server0", role=Role.SERVER, address=(ip_interface("10.77.0.1/24"),), mtu=1380,
        keepalive_s=0, allowed_ips=(), server_name="localhost", listen_ip=listen, listen_port=LISTENS,
    )  # fmt: skip


class Sends:
    """An ErrorSender whose sockets are pipes, and what it sent."""

    def __init__(self, *names: str) -> None:
        self.left: list[tuple[int, PortError]] = []
        self.fails: Exception | None = None
        self.held = {name: os.open("/dev/null", os.O_RDONLY) for name in names}
        self.sender = ErrorSender(self.held)

    def send(self, fd: int, sent: PortError) -> None:
        icmp_error(sent)
        if self.fails is not None:
            raise self.fails
        self.left.append((fd, sent))


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sends]]:
    made: list[Sends] = []

    def make(*names: str) -> Sends:
        made.append(Sends(*names))
        monkeypatch.setattr(error_sender, "send_error", made[-1].send)
        return made[-1]

    yield make
    for each in made:
        each.sender.close()


def test_an_error_of_the_port_leaves_by_the_socket_of_its_version(sends: Callable[..., Sends]) -> None:
    one = sends("icmp", "icmpv6")
    one.sender.send(error(), config())
    one.sender.send(error(6), config("::"))
    assert one.left == [(one.held["icmp"], error()), (one.held["icmpv6"], error(6))]


@pytest.mark.parametrize("changed", [{"local": ip_address("10.123.0.3")}, {"local_port": 443}, {"length": 1}])
def test_what_is_not_the_ports_or_no_host_sends_does_not_leave(
    sends: Callable[..., Sends], changed: dict[str, Any]
) -> None:
    one = sends("icmp")
    with pytest.raises(UntrustedInputError):
        one.sender.send(error(**changed), config())
    assert not one.left


def test_where_the_port_is_closed_there_is_no_error_of_it(sends: Callable[..., Sends]) -> None:
    one = sends("icmp")
    named = msgspec.structs.replace(config("0.0.0.0"), listen_only=(error().local,))
    one.sender.send(error(), named)
    with pytest.raises(UntrustedInputError):
        one.sender.send(error(local=ip_address("10.123.0.3")), named)
    assert one.left == [(one.held["icmp"], error())]


def test_a_flood_of_requests_is_limited_whoever_is_behind_it(sends: Callable[..., Sends]) -> None:
    one = sends("icmp")
    for _ in range(100):
        one.sender.send(error(), config())
    assert len(one.left) in {Limits.PEER_BURST, Limits.PEER_BURST + 1}


def test_a_missing_socket_and_a_kernel_that_refuses_are_told(sends: Callable[..., Sends]) -> None:
    one = sends("icmpv6")
    with pytest.raises(MachineError, match="no socket"):
        one.sender.send(error(), config())
    one.fails = OSError(errno.ENETUNREACH, "")
    with pytest.raises(MachineError, match="Network is unreachable"):
        one.sender.send(error(6), config("::"))


def test_closing_closes_each_socket_once(sends: Callable[..., Sends]) -> None:
    one = sends("icmp", "icmpv6")
    one.sender.close()
    one.sender.close()
    for fd in one.held.values():
        with pytest.raises(OSError):
            os.fstat(fd)
