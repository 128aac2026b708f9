"""The way of outer packets: marks, priority and the device of the socket that they leave by, as of a UDP socket that
sends them itself. Rules and filters of a kill switch and of a VRF go by those, and all may change under a session."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(600)
LIBRARY = ". /tmp/library\n"
_sessions = iter(range(62_000, 63_000))
#: Counts what leaves b for the server by its mark and priority; ``counted`` tells one of them, and begins anew.
COUNTERS = """
count_in() {
    "$@" nft 'add table ip t; add chain ip t c { type filter hook output priority raw; }'
    local ports="udp dport 443-5555" mark
    for mark in 0 7 1234; do
        "$@" nft "add counter ip t mark$mark; add rule ip t c $ports meta mark $mark counter name mark$mark"
    done
    "$@" nft "add counter ip t priority3; add rule ip t c $ports meta priority 0:3 counter name priority3"
}
counted() { # counted NAME WAY...
    local name=$1
    shift
    "$@" nft reset counter ip t $name | sed -n "s/.*packets \\([0-9]*\\) .*/$name=\\1/p"
}
"""


@pytest.fixture
def net(vm: Vm) -> Iterator[Vm]:
    vm.check(LIBRARY + "modprobe -a nf_tables vrf dummy; net_up")
    yield vm
    vm.run("pkill -x qrectl")
    vm.check(LIBRARY + "net_down")
    assert vm.splats() == []


def numbers(printed: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+)=(\d+)$", printed, re.MULTILINE)}


def test_a_devices_mark_is_on_what_leaves_by_sockets_of_the_module_now_and_later(net: Vm) -> None:
    printed = net.check(
        LIBRARY
        + COUNTERS
        + f"""
        count_in $B
        tunnel_up {next(_sessions)}
        $B $TOOLS/qrectl device-set Device=qre0 FwMark=1234
        sleep 0.5  # what was sent before the mark is on its way
        counted mark0 $B >/dev/null
        $B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1
        $B ping -c 1 -W 2 -q -s 3000 10.77.0.1
        counted mark0 $B
        counted mark1234 $B
        $B $TOOLS/qrectl device-set Device=qre0 FwMark=7
        $B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1
        counted mark7 $B
        """
    )
    found = numbers(printed)
    assert printed.count(" 0% packet loss") == 3, printed
    assert found["mark0"] == 0 and found["mark1234"] >= 4 and found["mark7"] >= 3, printed


def test_a_rule_by_mark_takes_an_open_session_where_its_socket_is_marked(net: Vm) -> None:
    """Of a socket of the module's own, and of user space's, whose mark is its owner's to change."""
    printed = net.check(
        LIBRARY
        + COUNTERS
        + f"""
        for each in a b; do
            ip -n $each rule add fwmark 1234 lookup 99
            ip -n $each route add unreachable default table 99
        done
        count_in $A
        mkfifo /tmp/orders
        $A $TOOLS/qrectl hold 10.9.0.1 443 register </tmp/orders >/tmp/held &
        exec 9>/tmp/orders
        until_true 'grep -q held /tmp/held'
        tunnel_up {next(_sessions)}
        lost() {{
            $B ping -c 3 -i 0.05 -W 1 -q 10.77.0.1 | sed -n "s/.* \\([0-9]*\\)% packet loss.*/$1=\\1/p"
        }}
        lost unmarked || true
        $B $TOOLS/qrectl device-set Device=qre0 FwMark=1234
        lost client_marked || true
        $B $TOOLS/qrectl device-set Device=qre0 FwMark=0
        lost client_unmarked || true
        order() {{ echo "$1" >&9; until_true "grep -q '$1' /tmp/held"; }}
        order "mark 1234"
        lost server_marked || true
        order "mark 7"
        counted mark0 $A >/dev/null
        lost server_unmarked || true
        counted mark7 $A
        order "priority 3"
        lost server_prioritised || true
        counted priority3 $A
        counted mark0 $A
        exec 9>&-
        rm /tmp/orders
        """
    )
    found = numbers(printed)
    assert [found[name] for name in ("unmarked", "client_marked", "client_unmarked")] == [0, 100, 0], printed
    assert [found[name] for name in ("server_marked", "server_unmarked", "server_prioritised")] == [100, 0, 0], (
        printed
    )
    assert found["mark7"] >= 3 and found["priority3"] >= 3 and found["mark0"] == 0, printed


def test_an_underlay_in_a_vrf_is_reached_by_a_socket_that_is_bound_to_it(net: Vm) -> None:
    printed = net.check(
        LIBRARY
        + f"""
        ip -n a link add red type vrf table 77
        ip -n a link set red up
        ip -n a link set va master red
        ip -n a addr show va | grep -q 10.9.0.1 || ip -n a addr add 10.9.0.1/24 dev va
        $A $TOOLS/qrectl hold 10.9.0.1 443 register red >/tmp/held </dev/null &
        until_true 'grep -q held /tmp/held'
        tunnel_up {next(_sessions)}
        $B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1
        $A ping -c 3 -i 0.05 -W 2 -q 10.77.0.2
        $A $TOOLS/qrectl device-get Device=qre0 | grep Drop16 || true
        """
    )
    assert printed.count(" 0% packet loss") == 2, printed
    assert "Drop16" not in printed, printed


def test_of_two_ways_a_socket_that_is_bound_to_a_device_takes_that_one(net: Vm) -> None:
    """The other one has the better route."""
    printed = net.check(
        LIBRARY
        + f"""
        ip link add vc netns a type veth peer name vd netns b
        ip -n a addr add 10.9.1.1/24 dev vc
        ip -n b addr add 10.9.1.2/24 dev vd
        ip -n a link set vc up
        ip -n b link set vd up
        ip -n b addr add 10.9.0.9/32 dev lo
        ip -n a route add 10.9.0.9/32 via 10.9.0.2 metric 10
        ip -n a route add 10.9.0.9/32 via 10.9.1.2 metric 20
        for each in all vb vd; do ip netns exec b sysctl -qw net.ipv4.conf.$each.rp_filter=0; done
        $A $TOOLS/qrectl hold 10.9.0.1 443 register vc >/tmp/held </dev/null &
        until_true 'grep -q held /tmp/held'
        tunnel_up {next(_sessions)}
        $A $TOOLS/qrectl session-del Device=qre0 SessionId=$ID
        $A $TOOLS/qrectl session-install Device=qre0 SessionId=$ID ConnectionId=$C ClientConnectionId= KeyEpoch=0 \\
            TxKey=$(key {next(_sessions)} $K1) RxKey=$K2 TxHpKey=$H1 RxHpKey=$H2 TxIv=$I1 RxIv=$I2 \\
            PacketNumber=65536 UnderlayLocalIPv4=10.9.0.1 UnderlayLocalPort=443 UnderlayPeerIPv4=10.9.0.9 \\
            UnderlayPeerPort=5555
        sent() {{ $A cat /sys/class/net/$1/statistics/tx_packets; }}
        before_va=$(sent va) before_vc=$(sent vc)
        $A ping -c 20 -i 0.05 -W 1 -q 10.77.0.2 || true
        echo "va=$(($(sent va) - before_va))"
        echo "vc=$(($(sent vc) - before_vc))"
        """
    )
    found = numbers(printed)
    assert found["vc"] >= 20 and found["va"] < 10, printed
