"""Packets in two datagrams, so that a client's have a browser's size: what it sends, and what a server joins."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from qre.ends import Role
from qre.kernel.abi import Drop
from qre.wire.datagram import MAX_SPLIT, SPLIT_HEAD, in_two
from qre.workers.dataplane.inner.joining import MOST_KEPT, Joiner
from tests.support.guest_peer import GuestPeer
from tests.support.inner_packets import udp
from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(900)
LIBRARY = ". /tmp/library\n"
BROWSER = 1250
INSIDE = (bytes([10, 77, 0, 2]), bytes([10, 77, 0, 1]))
_numbers = iter(range(60_000, 60_100))
#: What is sent from b is captured there: the sizes of its UDP payloads.
CAPTURED = """
rm -f /tmp/heard
ip netns exec b tcpdump --immediate-mode -Z root -Q out -i vb -nn -s 64 -B 16384 -w /tmp/out udp port 443 \\
    2>/tmp/heard &
capture=$!
until_true 'grep -q "listening on" /tmp/heard'
ip netns exec b ethtool -K vb tx-udp-segmentation off
{sent}
sleep 1  # for the last to be seen: what tcpdump has seen it writes at its end
pkill -INT tcpdump
wait $capture
echo sizes $(tcpdump -r /tmp/out -nn -v 2>/dev/null | sed -n 's/.*UDP, length \\([0-9]*\\)$/\\1/p')
"""
#: Segments of 1,300 bytes, in super-packets.
SEGMENTS = """
$A timeout 20 python3 -c '
import socket
with socket.socket(socket.{family}, socket.SOCK_DGRAM) as made:
    made.bind(("{address}", 9))
    made.settimeout(10)
    print("ready", flush=True)
    print("got", sum(made.recv(2000) == bytes([n]) * 1300 for n in range(40)), flush=True)
' >/tmp/received & receiver=$!
until_true 'grep -q ready /tmp/received'
$B python3 -c '
import socket
with socket.socket(socket.{family}, socket.SOCK_DGRAM) as made:
    made.setsockopt(socket.IPPROTO_UDP, 103, 1300)
    for n in range(0, 40, 10):
        made.sendto(b"".join(bytes([n + k]) * 1300 for k in range(10)), ("{address}", 9))
'
wait $receiver
cat /tmp/received
"""


@pytest.fixture
def pair(vm: Vm) -> Iterator[Vm]:
    """A session whose client is as large as a browser, and whose server joins."""
    vm.check(
        LIBRARY + f"net_up\nMORE_A=Splits= MORE_B='Splits= MaxUdpPayload={BROWSER}' tunnel_up {next(_numbers)}"
        "\n$B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1\n$B ping -c 3 -i 0.05 -W 2 -q fd77::1"
        f"\n$B $TOOLS/qrectl path-proven Device=qre0 SessionId=$ID ProvenPayload={BROWSER} ProvenAgoMs=0"
    )
    yield vm
    vm.check(LIBRARY + "net_down")
    assert vm.splats() == []


def sizes(printed: str) -> Counter[int]:
    (line,) = re.findall(r"^sizes (.*)$", printed, re.M)
    return Counter(map(int, line.split()))


def told(vm: Vm, namespace: str) -> dict[str, int]:
    printed = vm.check(
        LIBRARY + f"ip netns exec {namespace} $TOOLS/qrectl session-get Device=qre0 SessionId=$ID"
        f"\nip netns exec {namespace} $TOOLS/qrectl device-get Device=qre0"
    )
    return {name: int(value) for name, value in re.findall(r"^(\w+)=(\d+)$", printed, re.M)}


@pytest.mark.parametrize(
    ("ping", "length"),
    [("-M do -s 1300 10.77.0.1", 1328), ("-M dont -s 1300 10.77.0.1", 1328), ("-s 1300 fd77::1", 1348)],
    ids=["IPv4", "IPv4 that may be fragmented", "IPv6"],
)
def test_what_does_not_fit_one_datagram_goes_in_two(pair: Vm, ping: str, length: int) -> None:
    before = told(pair, "b")
    printed = pair.check(LIBRARY + CAPTURED.format(sent=f"$B ping -c 20 -i 0.05 -W 5 {ping}"))
    assert ", 0% packet loss" in printed, printed
    found = sizes(printed)
    assert found[BROWSER] == 20 and max(found) == BROWSER, found
    after, server = told(pair, "b"), told(pair, "a")
    others = 4  # such as router solicitations
    assert 20 <= after["TxPackets"] - before["TxPackets"] <= 20 + others, "a packet in two is one"
    assert 20 * length <= after["TxBytes"] - before["TxBytes"] <= 20 * length + 100 * others
    assert not [name for name in (*after, *server) if name.startswith("Drop")]


def test_a_stream_upward_has_smaller_segments_and_none_is_in_two(pair: Vm) -> None:
    script = """
    $A iperf3 -s -D
    until_true '$A ss -Hltn | grep -q :5201'
    $B timeout 60 iperf3 -c 10.77.0.1 -n 2M >/dev/null
    $B timeout 60 iperf3 -c fd77::1 -n 2M >/dev/null
    pkill iperf3
    """
    found = sizes(pair.check(LIBRARY + CAPTURED.format(sent=script)))
    assert max(found) == BROWSER and found[BROWSER] > 1000, found
    small = sum(count for size, count in found.items() if 100 < size < BROWSER - 100)
    assert small < found[BROWSER] / 10, found


@pytest.mark.every_kernel
@pytest.mark.parametrize(("family", "address"), [("AF_INET", "10.77.0.1"), ("AF_INET6", "fd77::1")])
def test_segments_of_a_super_packet_go_in_two_each(pair: Vm, family: str, address: str) -> None:
    printed = pair.check(LIBRARY + CAPTURED.format(sent=SEGMENTS.format(family=family, address=address)))
    assert "got 40" in printed, printed
    found = sizes(printed)
    assert found[BROWSER] == 40 and max(found) == BROWSER, found


def test_what_it_carries_is_told(pair: Vm) -> None:
    client, server = told(pair, "b"), told(pair, "a")
    limit = BROWSER - 44  # a connection ID of 20 bytes
    assert client["InnerMtu"] == client["InnerMtuIPv6"] == limit
    assert client["InnerMtuInTwo"] == MAX_SPLIT
    assert server["InnerMtuInTwo"] == 0 and server["InnerMtuIPv6"] == server["InnerMtu"]


def test_a_client_that_may_not_split_has_what_ipv6_needs_and_a_browsers_size_for_the_rest(vm: Vm) -> None:
    script = "$B ping -c 10 -i 0.05 -W 5 -s 1300 -M dont -q 10.77.0.1; $B ping -c 10 -i 0.05 -W 5 -s 1232 -q fd77::1"
    try:
        vm.check(
            LIBRARY + f"net_up\nMORE_B=UsualPayload={BROWSER} tunnel_up {next(_numbers)}"
            "\n$B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1\nuntil_true '$B ping -c 1 -W 2 -s 1232 fd77::1 >/dev/null'"
        )
        printed = vm.check(LIBRARY + CAPTURED.format(sent=script))
        client = told(vm, "b")
    finally:
        vm.run(LIBRARY + "net_down")
    assert printed.count(", 0% packet loss") == 2, printed
    found = sizes(printed)
    assert found[1280 + 44] == 10, found
    (fragment,) = {size for size in found if 1200 < size < 1280 + 44}
    assert fragment <= BROWSER and found[fragment] == 10, found
    assert (client["InnerMtu"], client["InnerMtuInTwo"]) == (BROWSER - 44, 0)
    assert client["InnerMtuIPv6"] >= 1280
    assert vm.splats() == []


# --- what a server joins ---


def parts_of(chance: random.Random) -> list[bytes]:
    """Parts as they may come, and as they may not."""
    made: list[bytes] = []
    for _ in range(60):
        packet = udp(INSIDE, chance.randbytes(chance.randint(1000, 1400)))
        first, second = in_two(
            packet, chance.choice((0, 1, 2, 3, 2000, 40_000)), chance.randint(len(packet) // 2 + 1, len(packet) - 1)
        )
        made += chance.choice(([first, second], [second, first], [first], [second], [first, first, second]))
    for _ in range(20):
        head = SPLIT_HEAD + chance.randbytes(2) + chance.choice((b"\0\0", b"\x00\x04", b"\x05\xdd", b"\xff\xff"))
        made.append(head + chance.randbytes(chance.choice((0, 1, 600))))
        made.append(SPLIT_HEAD + chance.randbytes(chance.randrange(5)))
    swap = chance.randrange(len(made))
    return made[swap:] + made[:swap]


def test_the_kernel_joins_and_drops_what_the_user_data_plane_does(peers: Vm) -> None:
    chance = random.Random(20)
    parts = parts_of(chance)
    drops: Counter[str] = Counter()
    joiner = Joiner(drops, allowed=True)
    whole = joiner.whole_untrusted(parts, 0.0)
    assert len(whole) > 20 and drops["part-alone"] > 5 and drops["malformed"] > 10
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install("Splits= AllowedIPs=10.77.0.2/32")
    peer.check("$K $TOOLS/blast 9 >/dev/null 2>&1 & echo $! >/tmp/blast")
    peer.says("\n".join(f"send 0 {part.hex()}" for part in parts) + "\nwait 500")
    peer.check("kill $(cat /tmp/blast)")
    assert int(peer.session()["RxPackets"]) == len(whole)
    assert peer.drops() == {Drop.MALFORMED: drops["malformed"], Drop.PART_ALONE: drops["part-alone"]}


def test_parts_are_kept_for_a_second_and_not_more_than_so_many(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install("Splits=")
    packet = udp(INSIDE, bytes(1300))
    pairs = [in_two(packet, number, 1000) for number in range(MOST_KEPT + 3)]
    firsts, seconds = zip(*pairs, strict=True)
    # The debugging kernel takes longer than their second for all of them.
    completed = seconds[-2:] if peers.kernel.watchful else seconds[-MOST_KEPT:]
    peer.says("\n".join(f"send 0 {part.hex()}" for part in (*firsts, *completed)) + "\nwait 300")
    assert int(peer.session()["RxPackets"]) == len(completed)
    assert peer.drops() == {Drop.PART_ALONE: 3}
    one, two = in_two(packet, 999, 1000)
    peer.says(f"send 0 {one.hex()} 0 {65_536 + 200}\nwait 1300\nsend 0 {two.hex()} 0 {65_536 + 201}\nwait 300")
    assert int(peer.session()["RxPackets"]) == len(completed)
    assert peer.drops() == {Drop.PART_ALONE: 4}


def test_a_packet_that_was_joined_is_checked_as_any_other(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install("Splits= AllowedIPs=10.77.0.2/32")
    foreign = in_two(udp((bytes([10, 77, 0, 3]), INSIDE[1]), bytes(1300)), 1, 1000)
    none = in_two(bytes(1300), 2, 1000)
    peer.says("\n".join(f"send 0 {part.hex()}" for part in (*foreign, *none)) + "\nwait 300")
    assert int(peer.session()["RxPackets"]) == 0
    assert peer.drops() == {Drop.SOURCE_NOT_ALLOWED: 1, Drop.BAD_PACKET: 1}


@pytest.mark.parametrize(("role", "more"), [(Role.SERVER, ""), (Role.CLIENT, "Splits=")])
def test_parts_from_who_may_not_send_them_are_dropped(peers: Vm, role: Role, more: str) -> None:
    peer = GuestPeer(peers, role, next(_numbers))
    peer.install(more)
    addresses = INSIDE if role is Role.SERVER else INSIDE[::-1]
    parts = in_two(udp(addresses, bytes(1300)), 1, 1000)
    peer.says("\n".join(f"send 0 {part.hex()}" for part in parts) + "\nwait 300")
    assert int(peer.session()["RxPackets"]) == 0
    assert peer.drops() == {Drop.UNKNOWN_CONTEXT: 2}
