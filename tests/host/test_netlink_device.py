"""Real TUN devices: addresses, routes and rules as `ip` shows them, and nothing that is not ours touched."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import pytest

from qre.errors import InternalError, MachineError
from qre.kernel.rtnl import MAIN_TABLE, Rtnl
from qre.kernel.socket import NetlinkRefusedError, NetlinkSocket
from qre.kernel.tun import VNET_HEADER_SIZE, is_held, open_tun
from qre.kernel.tunnel import (
    FIRST_TABLE,
    MARK,
    DeviceSpec,
    Part,
    choose_table,
    clear_device,
    missing,
    restore,
    sync_device,
    wanted_routes,
)
from tests.support.daemons import PATIENCE
from tests.support.namespaces import Namespace
from tests.support.network import everything, ip

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("network")]
TUNGETVNETHDRSZ = 0x800454D7


@pytest.fixture
def rtnl() -> Iterator[Rtnl]:
    with Rtnl() as opened:
        yield opened


def spec(*addresses: str, routes: tuple[str, ...] = (), mtu: int = 1380, table: int = 0) -> DeviceSpec:
    return DeviceSpec(
        "qre0",
        tuple(ipaddress.ip_interface(text) for text in addresses),
        mtu,
        tuple(ipaddress.ip_network(text) for text in routes),
        table,
    )


# --- the TUN device ---


def test_a_tun_device_has_virtio_headers_no_packet_information_and_is_gone_with_its_descriptor() -> None:
    descriptor = open_tun("qre0", persistent=False)
    try:
        assert "tun type tun pi off vnet_hdr on persist off" in ip("-d", "link", "show", "qre0")
        size = fcntl.ioctl(descriptor, TUNGETVNETHDRSZ, struct.pack("=i", 0))
        assert struct.unpack("=i", size) == (VNET_HEADER_SIZE,)
        assert not os.get_inheritable(descriptor)
        assert not os.get_blocking(descriptor)
    finally:
        os.close(descriptor)
    assert "qre0" not in ip("link")


def test_a_persistent_device_stays_and_is_taken_over_and_made_fleeting_again() -> None:
    os.close(open_tun("qre0", persistent=True))
    assert "persist on" in ip("-d", "link", "show", "qre0")
    os.close(open_tun("qre0", persistent=True))
    assert "persist on" in ip("-d", "link", "show", "qre0")
    os.close(open_tun("qre0", persistent=False))
    assert "qre0" not in ip("link")


def test_a_device_that_a_process_holds_is_refused(tun: int) -> None:
    with pytest.raises(MachineError, match="another process holds it"):
        open_tun("qre0", persistent=False)
    assert is_held("qre0", "qre0")


def test_a_device_that_nobody_holds_is_told_apart_and_left_as_it_is() -> None:
    os.close(open_tun("qre0", persistent=True))
    assert not is_held("qre0", "qre0")
    assert "persist on" in ip("-d", "link", "show", "qre0")
    assert not is_held("qre1", "qre1")


@pytest.mark.parametrize(
    "make",
    [("link", "add", "qre0", "type", "veth", "peer", "name", "peer0"), ("tuntap", "add", "qre0", "mode", "tun")],
)
def test_a_foreign_device_of_the_same_name_is_refused_and_untouched(make: tuple[str, ...]) -> None:
    ip(*make)
    before = everything()
    with pytest.raises(MachineError, match="QRE did not make"):
        open_tun("qre0", persistent=True)
    assert everything() == before


def test_a_device_of_another_profile_is_refused_by_name() -> None:
    os.close(open_tun("qre0", persistent=True, profile="home"))
    with pytest.raises(MachineError, match=r"belongs to the profile home"):
        open_tun("qre0", persistent=True, profile="work")


@pytest.mark.parametrize("name", ["tun%d", "."])
def test_a_name_that_the_kernel_would_change_or_refuse_makes_no_device(name: str) -> None:
    before = everything()
    with pytest.raises(MachineError):
        open_tun(name, persistent=True)
    assert everything() == before


# --- addresses, routes, rules ---


def test_a_synced_device_is_up_with_its_mtu_and_addresses_and_no_link_local_one(rtnl: Rtnl, tun: int) -> None:
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::2/64", mtu=1400))
    shown = ip("address", "show", "qre0")
    assert "mtu 1400" in shown
    assert "inet 10.77.0.2/24" in shown
    assert "inet6 fd00::2/64" in shown
    assert "fe80" not in shown
    assert ",UP" in shown


def test_syncing_again_changes_nothing(rtnl: Rtnl, tun: int) -> None:
    wanted = spec("10.77.0.2/24", "fd00::2/64", routes=("0.0.0.0/0", "::/0", "192.168.0.0/16"), table=FIRST_TABLE)
    sync_device(rtnl, wanted)
    before = everything()
    sync_device(rtnl, wanted)
    assert everything() == before


def test_addresses_of_ours_that_are_not_wanted_any_more_go_and_those_of_others_stay(rtnl: Rtnl, tun: int) -> None:
    sync_device(rtnl, spec("10.77.0.2/24", "10.78.0.2/24", "fd00::2/64"))
    ip("address", "add", "10.99.0.1/24", "dev", "qre0")
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::3/64"))
    shown = ip("address", "show", "qre0")
    assert "10.77.0.2" in shown
    assert "10.99.0.1" in shown
    assert "fd00::3" in shown
    assert "10.78.0.2" not in shown
    assert "fd00::2/" not in shown


def test_a_new_address_in_the_network_of_the_old_one_survives_its_removal(rtnl: Rtnl, tun: int) -> None:
    sync_device(rtnl, spec("10.77.0.2/24"))
    sync_device(rtnl, spec("10.77.0.3/24"))
    shown = ip("address", "show", "qre0")
    assert "10.77.0.3/24" in shown
    assert "10.77.0.2" not in shown


def test_an_address_saved_by_an_earlier_start_goes_although_it_is_not_marked(rtnl: Rtnl, tun: int) -> None:
    ip("address", "add", "10.77.0.9/24", "dev", "qre0")
    sync_device(rtnl, spec("10.77.0.2/24"), (ipaddress.ip_interface("10.77.0.9/24"),))
    assert "10.77.0.9" not in ip("address", "show", "qre0")


def addresses() -> set[str]:
    """Those of qre0."""
    (shown,) = json.loads(ip("-j", "address", "show", "qre0"))
    return {f"{entry['local']}/{entry['prefixlen']}" for entry in shown["addr_info"]}


#: Of changes that a reload makes: old addresses, new ones, and where the tunnel leads to before, meanwhile and after.
CHANGES = {
    "another in the same network": (("10.77.0.2/24",), ("10.77.0.9/24",), ("10.77.0.1",)),
    "another network": (("10.77.0.2/24",), ("10.88.0.2/24",), ()),
    "another prefix length": (("10.77.0.2/24",), ("10.77.0.2/25",), ("10.77.0.1",)),
    "the first of two": (("10.77.0.2/24", "10.77.0.3/24"), ("10.77.0.3/24",), ("10.77.0.1",)),
    "two of three, and a new one": (
        ("10.77.0.2/24", "10.77.0.3/24", "10.77.0.4/24"), ("10.77.0.5/24", "10.77.0.4/24"), ("10.77.0.1",),
    ),
    "what its network covered": (("10.78.0.2/16",), ("10.88.0.2/24",), ("10.78.1.1",)),
    "IPv6 in the same network": (("fd00::2/64", "10.77.0.2/24"), ("fd00::9/64", "10.77.0.2/24"), ("fd00::1",)),
    "both families": (("10.77.0.2/24", "fd00::2/64"), ("fd00::9/64", "10.77.0.9/24"), ("10.77.0.1", "fd00::1")),
    "IPv4 goes": (("10.77.0.2/24", "fd00::2/64"), ("fd00::2/64",), ("fd00::1",)),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "networks"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_old_addresses_go_first_and_the_tunnel_keeps_its_routes_meanwhile(
    rtnl: Rtnl,
    tun: int,
    monkeypatch: pytest.MonkeyPatch,
    old: tuple[str, ...],
    new: tuple[str, ...],
    networks: tuple[str, ...],
    everywhere: bool,
) -> None:
    """Looked at after every single request to the kernel."""
    prefixes = ("192.168.0.0/16", "10.78.1.0/24", "fd01::/48", *(("0.0.0.0/0", "::/0") if everywhere else ()))
    destinations = [*networks, "fd01::1", *(("2001:db8::1",) if everywhere else ())]
    if any("." in address for address in new):
        destinations += ["192.168.1.1", *(("198.51.100.1",) if everywhere else ())]
    fwmark = FIRST_TABLE if everywhere else 0
    sync_device(rtnl, spec(*old, routes=prefixes, table=fwmark))
    seen: list[set[str]] = []
    real = NetlinkSocket.exchange

    def watched(self: NetlinkSocket, *arguments: object) -> object:
        answer = real(self, *arguments)  # type: ignore[arg-type]
        seen.append(addresses())
        for destination in destinations:
            assert "dev qre0" in ip("route", "get", destination), (destination, seen[-1])
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(NetlinkSocket, "exchange", watched)
        sync_device(rtnl, spec(*new, routes=prefixes, table=fwmark))
    assert seen[-1] == set(new)
    assert all(set(old) & set(new) <= each for each in seen), "an address that stays was gone"
    going, coming = set(old) - set(new), set(new) - set(old)
    assert not any(each & going and each & coming for each in seen), "old and new were there together"
    shown = ip("route", "show", "table", "all") + ip("-6", "route", "show", "table", "all")
    assert "metric 136" not in shown, "a bridge was left"


#: Sends back what comes to TCP port 5000.
ECHO = """
import socket, socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("10.77.0.1", 5000), Echo).serve_forever()
"""


def test_streams_and_datagrams_of_an_address_that_stays_notice_nothing(rtnl: Rtnl) -> None:
    peer = Namespace("peer")
    try:
        ip("link", "add", "qre0", "type", "veth", "peer", "name", "peer0", "netns", peer.name)
        peer.ip("address", "add", "10.77.0.1/24", "dev", "peer0")
        peer.ip("link", "set", "peer0", "up")
        echo = peer.popen([sys.executable, "-c", ECHO])
        sync_device(rtnl, spec("10.77.0.2/24", "10.77.0.3/24"))
        errors: list[OSError] = []
        stopped = threading.Event()

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind(("10.77.0.3", 0))
                while not stopped.is_set():
                    try:
                        sender.sendto(b"x", ("10.77.0.1", 9))
                    except ConnectionRefusedError:
                        continue  # the peer's word that nobody listens
                    except OSError as error:
                        errors.append(error)

        sending = threading.Thread(target=send)
        with connected("10.77.0.3") as stays, connected("10.77.0.2") as changes_length:
            sending.start()
            try:
                for wanted, _ in zip(
                    cycle((("10.77.0.9/24", "10.77.0.3/24"), ("10.77.0.2/24", "10.77.0.3/24"))),
                    range(20),
                    strict=False,
                ):
                    sync_device(rtnl, spec(*wanted))
                    echoed(stays)
            finally:
                stopped.set()
                sending.join()
            assert errors == []
            for length in (25, 24, 16, 24):
                sync_device(rtnl, spec(f"10.77.0.2/{length}", "10.77.0.3/24"))
                echoed(stays)
                echoed(changes_length)
    finally:
        echo.kill()
        echo.wait()
        peer.delete()


def connected(source: str) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("10.77.0.1", 5000), PATIENCE, source_address=(source, 0))
        except ConnectionRefusedError:  # it has not begun yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def echoed(stream: socket.socket) -> None:
    data = os.urandom(20_000)
    stream.sendall(data)
    received = b""
    while len(received) < len(data):
        piece = stream.recv(65_536)
        assert piece, "the stream has ended"
        received += piece
    assert received == data


def test_allowed_prefixes_get_routes_unless_a_network_of_the_device_covers_them(rtnl: Rtnl, tun: int) -> None:
    sync_device(rtnl, spec("10.77.0.2/24", routes=("10.77.0.128/25", "192.168.0.0/16", "fd01::/48", "10.0.0.0/8")))
    routes = ip("-4", "route", "show", "dev", "qre0")
    assert "192.168.0.0/16 proto 81" in routes
    assert "10.0.0.0/8 proto 81" in routes
    assert "10.77.0.128/25" not in routes
    assert "fd01::/48" in ip("-6", "route", "show", "dev", "qre0")
    assert "lookup 5" not in ip("rule")


def test_a_default_route_goes_round_marked_packets_and_round_nothing_more_specific(rtnl: Rtnl, tun: int) -> None:
    ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    ip("link", "set", "up1", "up")
    ip("address", "add", "10.1.0.2/24", "dev", "up0")
    ip("link", "set", "up0", "up")
    ip("route", "add", "default", "via", "10.1.0.1")
    ip("route", "add", "10.50.0.0/16", "via", "10.1.0.1")
    mark = choose_table(rtnl)
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::2/64", routes=("0.0.0.0/0", "::/0"), table=mark))
    assert "dev qre0" in ip("route", "get", "198.51.100.1")
    assert "dev up0" in ip("route", "get", "198.51.100.1", "mark", str(MARK))
    assert "dev up0" in ip("route", "get", "10.50.0.1")
    assert "dev up0" in ip("route", "get", "10.1.0.77")
    assert "dev qre0" in ip("-6", "route", "get", "2001:db8::1")


def test_clearing_a_device_removes_its_routes_rules_and_addresses_and_no_others(rtnl: Rtnl, tun: int) -> None:
    ip("rule", "add", "from", "10.9.9.9", "lookup", "1234")
    with Rtnl() as other:
        other.set_up(other.link("qre0"), 1380)
    before = everything()
    mark = choose_table(rtnl)
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::2/64", routes=("0.0.0.0/0", "::/0", "192.168.0.0/16"), table=mark))
    assert everything() != before
    clear_device(rtnl, "qre0", mark)
    assert everything() == before


def test_clearing_works_when_the_device_and_its_routes_are_gone_already(rtnl: Rtnl) -> None:
    before = everything()
    descriptor = open_tun("qre0", persistent=False)
    sync_device(rtnl, spec("10.77.0.2/24", routes=("0.0.0.0/0",), table=FIRST_TABLE))
    os.close(descriptor)
    clear_device(rtnl, "qre0", FIRST_TABLE)
    assert everything() == before


def test_taking_the_default_route_back_removes_table_and_rules_of_that_family_only(rtnl: Rtnl, tun: int) -> None:
    mark = choose_table(rtnl)
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::2/64", routes=("0.0.0.0/0", "::/0"), table=mark))
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::2/64", routes=("::/0",), table=mark))
    assert "fwmark" not in ip("-4", "rule")
    assert ip("-6", "rule").count("proto 81") == 4
    sync_device(rtnl, spec("10.77.0.2/24", "fd00::2/64"))
    assert "proto 81" not in ip("-6", "rule") + ip("-6", "route", "show", "table", "all")


def test_two_default_routes_get_a_table_and_rules_of_their_own(rtnl: Rtnl, tun: int) -> None:
    first = choose_table(rtnl)
    sync_device(rtnl, spec("10.77.0.2/24", routes=("0.0.0.0/0",), table=first))
    second = choose_table(rtnl)
    assert second == first + 1
    other = open_tun("qre1", persistent=False)
    wanted = DeviceSpec(
        "qre1", (ipaddress.ip_interface("10.78.0.2/24"),), 1380, (ipaddress.ip_network("0.0.0.0/0"),), second
    )
    sync_device(rtnl, wanted)
    assert ip("-4", "rule").count("proto 81") == 8
    clear_device(rtnl, "qre1", second)
    os.close(other)
    assert ip("-4", "rule").count("proto 81") == 4
    assert "dev qre0" in ip("route", "get", "198.51.100.1")


def test_a_route_that_another_device_has_is_refused_and_not_replaced(rtnl: Rtnl, tun: int) -> None:
    ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    ip("link", "set", "lan0", "up")
    ip("route", "add", "192.168.0.0/16", "dev", "lan0")
    with pytest.raises(NetlinkRefusedError, match=r"routing 192\.168\.0\.0/16 to qre0: File exists"):
        sync_device(rtnl, spec("10.77.0.2/24", routes=("192.168.0.0/16",)))
    assert "192.168.0.0/16 dev lan0" in ip("route")


def test_syncing_a_device_that_is_not_there_says_so(rtnl: Rtnl) -> None:
    with pytest.raises(MachineError, match="it does not exist"):
        sync_device(rtnl, spec("10.77.0.2/24"))


def test_a_refusal_of_the_kernel_carries_its_own_words(rtnl: Rtnl, tun: int) -> None:
    with pytest.raises(NetlinkRefusedError) as caught:
        sync_device(rtnl, spec("10.77.0.2/24", mtu=20))
    assert caught.value.code == errno.EINVAL
    assert "mtu" in str(caught.value)


def test_the_most_specific_prefix_is_routed_first_and_a_default_route_needs_a_mark() -> None:
    wanted = spec("10.77.0.2/24", routes=("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"), table=7)
    assert [(str(prefix), table) for prefix, table in wanted_routes(wanted)] == [
        ("10.1.0.0/16", MAIN_TABLE),
        ("10.0.0.0/8", MAIN_TABLE),
        ("0.0.0.0/0", 7),
    ]
    with pytest.raises(InternalError):
        wanted_routes(spec("10.77.0.2/24", routes=("::/0",)))


def test_prefixes_that_may_hold_the_server_keep_the_order_of_one_table(rtnl: Rtnl, tun: int) -> None:
    ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for device in ("up1", "up0"):
        ip("link", "set", device, "up")
    ip("address", "add", "10.1.0.2/24", "dev", "up0")
    for route in ("default", "198.51.0.0/16", "198.51.100.128/25"):
        ip("route", "add", route, "via", "10.1.0.1")
    prefixes = tuple(map(ipaddress.ip_network, ("198.51.100.0/24", "198.48.0.0/12", "192.168.0.0/16")))
    wanted = replace(spec("10.77.0.2/24", table=FIRST_TABLE), allowed_ips=prefixes, outer=prefixes[:1])
    sync_device(rtnl, wanted)

    def way(address: str, *more: str) -> str:
        return re.findall(r"dev (\S+)", ip("route", "get", address, *more))[0]

    ways = ("198.51.100.1", "198.51.100.129", "198.51.1.1", "198.50.1.1", "192.168.1.1", "8.8.8.8")
    assert [way(address) for address in ways] == ["qre0", "up0", "up0", "qre0", "qre0", "up0"]
    assert [way(address, "mark", str(MARK)) for address in ways[:4]] == ["up0"] * 4
    assert missing(rtnl, rtnl.link("qre0"), wanted) == []
    ip("rule", "del", "table", str(FIRST_TABLE), "suppress_prefixlength", "23")
    assert [part for part, _ in missing(rtnl, rtnl.link("qre0"), wanted)] == [Part.RULES]
    assert restore(rtnl, rtnl.link("qre0"), wanted) is None
    assert [way(address) for address in ways] == ["qre0", "up0", "up0", "qre0", "qre0", "up0"]
    assert ip("-4", "rule").count("proto 81") == 5, "nothing is left of the damaged ones"
    clear_device(rtnl, "qre0", FIRST_TABLE)
    assert "proto 81" not in ip("-4", "rule")


def test_halves_of_everything_are_closed_as_a_default_route_is(rtnl: Rtnl, tun: int) -> None:
    halves = tuple(map(ipaddress.ip_network, ("0.0.0.0/1", "128.0.0.0/1")))
    outer = (ipaddress.ip_network("198.51.100.7/32"),)
    sync_device(rtnl, replace(spec("10.77.0.2/24", table=FIRST_TABLE), allowed_ips=halves, outer=outer))
    for address in ("8.8.8.8", "198.51.100.1"):
        assert "dev qre0" in ip("route", "get", address)
    ip("link", "set", "qre0", "down")
    with pytest.raises(RuntimeError):
        ip("route", "get", "198.51.100.1")
    assert "unreachable" in ip("-4", "rule")
