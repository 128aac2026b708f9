"""Which sockets a UDP port has, while the rest of the machine's come and go."""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from qre.errors import MachineError, QreError
from qre.kernel.port_sockets import bound_sockets, tcp_listeners
from qre.kernel.site_tcp.listeners import taken_ports
from qre.kernel.socket import NetlinkRefusedError, NetlinkSocket
from qre.kernel.udp.underlay_sockets import AbsentAddressError, require_free, server_pair
from tests.support.daemons import PATIENCE

LOOPBACK = ["127.0.0.1", "::1"]
EVERY = ["0.0.0.0", "::"]
#: As many others as need several pages of /proc/net/udp.
OTHERS = 60


def free_port(ip: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


@contextmanager
def others(ip: str) -> Iterator[None]:
    """Sockets of other programs, of which one is closed and one made as fast as it goes."""
    ended = threading.Event()

    def come_and_go() -> None:
        held: deque[socket.socket] = deque()
        while not ended.is_set():
            held.append(socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM))
            held[-1].bind((ip, 0))
            if len(held) > OTHERS:
                held.popleft().close()
        for one in held:
            one.close()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)


@pytest.fixture(params=["asked", "read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sock_diag, or where the kernel says that it has none for UDP."""
    if request.param == "read":

        def refuse(_: NetlinkSocket, what: str, *__: object) -> None:
            raise NetlinkRefusedError(what, errno.ENOENT)

        monkeypatch.setattr(NetlinkSocket, "exchange", refuse)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("ip", LOOPBACK + EVERY)
def test_the_group_of_a_port_is_found_and_refused_to_others(ip: str) -> None:
    number = free_port(ip)
    assert bound_sockets(ip, number) == 0
    with ExitStack() as stack:
        for made in server_pair(ip, number):
            stack.enter_context(made)
        assert bound_sockets(ip, number) == 2
        with pytest.raises(QreError, match=rf"Listen (\[{ip}\]|{ip}):\d+: another program uses this UDP port"):
            server_pair(ip, number)
    assert bound_sockets(ip, number) == 0


def test_several_addresses_are_there_and_their_port_is_free_or_it_is_refused_by_name() -> None:
    number = free_port("127.0.0.1")
    ours = (ip_address("127.0.0.1"), ip_address("::1"))
    with ExitStack() as stack:
        for made in server_pair("::", number, ours):
            stack.enter_context(made)
        assert bound_sockets("::", number) == 2
        text = f"Listen 127.0.0.1:{number}, [::1]:{number} (together they take the port at every address): another"
        with pytest.raises(QreError, match=re.escape(text)):
            require_free("::", number, ours)
        with pytest.raises(QreError, match=re.escape(text)):
            server_pair("::", number, ours, beside_kernel=2)
    for beside_kernel in (None, 0):
        with pytest.raises(AbsentAddressError, match="Listen 2001:db8::9: this machine does not have that address"):
            server_pair("::", number, (*ours, ip_address("2001:db8::9")), beside_kernel=beside_kernel)
    assert bound_sockets("::", number) == 0


def test_a_socket_of_another_address_is_not_of_the_port() -> None:
    number = free_port("127.0.0.1")
    with ExitStack() as stack:
        for made in server_pair("127.0.0.1", number):
            stack.enter_context(made)
        found = {ip: bound_sockets(ip, number) for ip in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "::1")}
    assert found == {"127.0.0.1": 2, "127.0.0.2": 0, "0.0.0.0": 2, "::1": 0}


@pytest.mark.parametrize("ip", LOOPBACK)
def test_sockets_that_come_and_go_change_no_count(ip: str) -> None:
    number = free_port(ip)
    with ExitStack() as stack:
        for made in server_pair(ip, number):
            stack.enter_context(made)
        with others(ip):
            assert {bound_sockets(ip, number) for _ in range(1000)} == {2}


def test_an_address_that_is_not_here_is_said() -> None:
    with pytest.raises(QreError, match="does not have that address"):
        server_pair("2001:db8::1", free_port("::1"))


@pytest.mark.parametrize("only", [False, True])
def test_a_listener_of_ipv6_says_whether_it_takes_ipv4(only: bool) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        listening.bind(("::", 0))
        listening.listen()
        number = listening.getsockname()[1]
        assert [one.alone for one in tcp_listeners(6) if one.port == number] == [only]
        assert [one for one in tcp_listeners(4) if one.port == number] == []
        assert (number in taken_ports(IPv4Address("127.0.0.1"))) is not only
        assert number in taken_ports(IPv6Address("2001:db8::7"))


@pytest.mark.parametrize(
    ("bound", "taken_of"),
    [("::1", ["::", "::1"]), ("::ffff:127.0.0.1", ["0.0.0.0", "127.0.0.1"]), ("127.0.0.1", ["0.0.0.0", "127.0.0.1"])],
)
def test_a_listener_has_the_port_of_its_address_and_of_every_address_of_its_version(
    bound: str, taken_of: list[str]
) -> None:
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind((bound, 0))
        listening.listen()
        number = listening.getsockname()[1]
        asked = ("0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1", "2001:db8::1")
        assert [each for each in asked if number in taken_ports(ip_address(each))] == taken_of


def test_a_refusal_is_said_and_what_is_no_socket_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: NetlinkSocket, what: str, *__: object) -> None:
        raise NetlinkRefusedError(what, errno.EPERM)

    monkeypatch.setattr(NetlinkSocket, "exchange", lambda *_: [(20, bytes(30))])
    assert bound_sockets("::", 443) == 0
    monkeypatch.setattr(NetlinkSocket, "exchange", refuse)
    with pytest.raises(MachineError, match="listing the sockets of ports"):
        bound_sockets("::", 443)
