"""A delivered packet is whole for everything that meets it before a socket does: tc, XDP, packet sockets, netfilter,
other devices. Small packets, large ones, and those that GRO has merged."""

from __future__ import annotations

import re

import pytest

from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(900)
LIBRARY = ". /tmp/library\n"

#: Echo requests of every size that a packet has its own way for, the last in fragments; IPv6 besides.
PINGS = """
pings() {
    $B ping -c 3 -i 0.05 -W 2 -q "$@" -s 8 10.77.0.1
    $B ping -c 3 -i 0.05 -W 2 -q "$@" -s 1300 10.77.0.1
    $B ping -c 3 -i 0.05 -W 2 -q "$@" -s 3000 10.77.0.1
    $B ping -6 -c 3 -i 0.05 -W 2 -q "$@" -s 8 fd77::1
    $B ping -6 -c 3 -i 0.05 -W 2 -q "$@" -s 1300 fd77::1
}
"""
#: A host behind ``a``: namespace ``c``, reached over a bridge in ``a`` that has a veth's end as its port.
BEHIND = """
ip netns add c
ip -n a link add br0 type bridge
ip -n a link add p0 type veth peer name e0 netns c
ip -n a link set p0 master br0
ip -n a addr add 10.80.0.1/24 dev br0
ip -n c addr add 10.80.0.2/24 dev e0
ip -n a link set p0 up
ip -n a link set br0 up
ip -n c link set lo up
ip -n c link set e0 up
C="ip netns exec c"
$A sysctl -qw net.ipv4.ip_forward=1
ip -n b route add 10.80.0.0/24 dev qre0
ip -n c route add 10.77.0.0/24 via 10.80.0.1
listening() {
    until_true "$* ss -Hltn | grep -q :5201"
}
"""


@pytest.fixture(scope="module", autouse=True)
def modules(vm: Vm) -> None:
    """What meets packets here."""
    vm.check("modprobe -a sch_ingress cls_matchall act_mirred cls_bpf tun vrf bridge 8021q")
    vm.check("modprobe -a nft_masq nft_nat nft_ct nft_queue nfnetlink_queue")


def counted(printed: str, word: str) -> int:
    return len(re.findall(rf"^{word}\b", printed, re.MULTILINE))


#: Where tc sends what qre0 has delivered, and what must be made for it. A device of the kernel's named to0 counts.
TARGETS = {
    "veth": ("ip -n a link add to0 type veth peer name to1; ip -n a link set to1 up", "egress redirect dev to0"),
    "veth, a copy": (
        "ip -n a link add to0 type veth peer name to1; ip -n a link set to1 up",
        "egress mirror dev to0",
    ),
    "dummy": ("ip -n a link add to0 type dummy", "egress redirect dev to0"),
    "VLAN": (
        "ip -n a link add to1 type dummy; ip -n a link set to1 up; ip -n a link add to0 link to1 type vlan id 7",
        "egress redirect dev to0",
    ),
    "itself, back to the peer": ("", "egress redirect dev qre0"),
    "itself, as if received again": ("", "ingress redirect dev qre0"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_packets_that_tc_sends_elsewhere_get_there(tunnel: Vm, target: str) -> None:
    make, action = TARGETS[target]
    printed = tunnel.check(
        LIBRARY
        + PINGS
        + f"""
        {make}
        [ -z "{make}" ] || ip -n a link set to0 up
        $A iperf3 -s -D >/dev/null
        $A tc qdisc add dev qre0 clsact
        $A tc filter add dev qre0 ingress matchall action mirred {action}
        pings -c 2 -W 1 >/dev/null || true
        $A tc filter del dev qre0 ingress
        # Merged ones: a stream that is under way, for as long as it bears it
        received() {{ $A cat /sys/class/net/qre0/statistics/rx_bytes; }}
        more=$(($(received) + 100000))
        timeout 20 $B iperf3 -c 10.77.0.1 -t 2 >/dev/null &
        until_true '[ $(received) -gt $more ]'
        $A tc filter add dev qre0 ingress matchall action mirred {action}
        sleep 0.5  # of packets that go there
        $A tc filter del dev qre0 ingress
        wait $! || true
        $A pkill iperf3
        [ -z "{make}" ] || echo "elsewhere $($A cat /sys/class/net/to0/statistics/tx_packets)"
        $B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1
        """
    )
    assert " 0% packet loss" in printed, f"afterwards all is as before: {printed}"
    if make:
        found = re.search(r"elsewhere (\d+)", printed)
        assert found is not None and int(found[1]) >= 10, printed


def test_a_tun_device_that_they_are_sent_to_gets_whole_packets(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + PINGS
        + """
        $A $TOOLS/tunread to0 >/tmp/tun &
        until_true 'grep -q open /tmp/tun'
        ip -n a link set to0 up
        $A tc qdisc add dev qre0 clsact
        $A tc filter add dev qre0 ingress matchall action mirred egress mirror dev to0
        pings
        $A iperf3 -s -D >/dev/null
        until_listens a 5201
        $B timeout 30 iperf3 -c 10.77.0.1 -t 1 >/dev/null
        sleep 1  # for the last to be read: of a stream nothing says which that is
        kill %1
        $A pkill iperf3
        cat /tmp/tun
        """
    )
    assert counted(printed, "wrong") == 0, printed
    lengths = {int(length) for length in re.findall(r"^right (\d+)$", printed, re.MULTILINE)}
    assert {36, 1328, 56, 1348} <= lengths, printed


def test_bpf_programs_of_tc_and_xdp_find_the_ip_header_where_the_packet_begins(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + PINGS
        + """
        seen() { bpftool -j map dump name seen; echo; }
        $A tc qdisc add dev qre0 clsact
        $A tc filter add dev qre0 ingress bpf da obj $TOOLS/headers.bpf.o sec tc
        pings
        $A iperf3 -s -D >/dev/null
        until_listens a 5201
        $B timeout 30 iperf3 -c 10.77.0.1 -t 1 >/dev/null
        seen
        $A tc qdisc del dev qre0 clsact
        until_true "! bpftool map show name seen 2>/dev/null | grep -q seen"
        $A ip link set dev qre0 xdpgeneric obj $TOOLS/headers.bpf.o sec xdp
        pings
        $B timeout 30 iperf3 -c 10.77.0.1 -t 1 >/dev/null
        seen
        $A ip link set dev qre0 xdpgeneric off
        $A pkill iperf3
        """
    )
    assert printed.count(" 0% packet loss") == 10, printed
    maps = re.findall(r'"key":0,"value":(\d+)\}.*"key":1,"value":(\d+)\}', printed)
    assert len(maps) == 2, printed
    for right, wrong in maps:
        assert int(right) > 20 and int(wrong) == 0, printed


def test_a_capture_shows_the_inner_packets_as_they_are(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + PINGS
        + """
        capture="timeout 60 tcpdump --immediate-mode -Z root -Q in -i qre0 -nn -v"
        $A $capture icmp or icmp6 >/tmp/seen 2>/tmp/heard &
        until_true 'grep -q "listening on" /tmp/heard'
        cat /tmp/heard
        pings
        sleep 1  # for the last to be seen: what tcpdump has seen it writes at its end
        pkill -INT tcpdump
        wait
        cat /tmp/seen
        """
    )
    assert "link-type RAW (Raw IP)" in printed, printed
    assert len(re.findall(r"10\.77\.0\.2 > 10\.77\.0\.1: ICMP echo request, .* length 16$", printed, re.M)) == 3, (
        printed
    )
    assert len(re.findall(r"10\.77\.0\.2 > 10\.77\.0\.1: ICMP echo request, .* length 1308$", printed, re.M)) == 3, (
        printed
    )
    assert len(re.findall(r"fd77::2 > fd77::1: \[icmp6 sum ok\] ICMP6, echo request", printed)) >= 3, printed


def test_packets_that_wait_in_a_netfilter_queue_are_whole_and_arrive(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + PINGS
        + """
        $A nft 'add table inet t; add chain inet t c { type filter hook prerouting priority raw; }
                add rule inet t c iifname "qre0" queue num 7'
        $A $TOOLS/nfqueue 7 >/tmp/queue &
        until_true 'grep -q open /tmp/queue'
        pings
        kill %1
        cat /tmp/queue
        """
    )
    assert printed.count(" 0% packet loss") == 5, printed
    assert counted(printed, "wrong") == 0 and counted(printed, "right") >= 15, printed


def test_a_vrf_takes_the_device_and_both_ends_reach_each_other(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + PINGS
        + """
        ip -n a link add red type vrf table 77
        ip -n a link set red up
        $A sysctl -qw net.ipv6.conf.qre0.keep_addr_on_down=1
        ip -n a link set qre0 master red
        pings
        $A ping -c 3 -i 0.05 -W 2 -q -I red 10.77.0.2
        $A ping -6 -c 3 -i 0.05 -W 2 -q -I red fd77::2
        """
    )
    assert printed.count(" 0% packet loss") == 7, printed


@pytest.mark.parametrize("gro", ["on", "off"])
def test_packets_are_forwarded_to_a_host_behind_a_bridge_and_back(tunnel: Vm, gro: str) -> None:
    printed = tunnel.check(
        LIBRARY
        + BEHIND
        + f"""
        $A ethtool -K qre0 gro {gro}
        $B ping -c 3 -i 0.05 -W 2 -q 10.80.0.2
        $B ping -c 3 -i 0.05 -W 2 -q -s 3000 10.80.0.2
        $C iperf3 -s -D >/dev/null
        listening $C
        $B timeout 60 iperf3 -c 10.80.0.2 -t 2
        $B timeout 60 iperf3 -c 10.80.0.2 -t 2 -R
        """
    )
    assert printed.count(" 0% packet loss") == 2, printed
    rates = [float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec.*receiver", printed)]
    assert len(rates) == 2 and min(rates) > 1, printed


def test_connections_are_tracked_and_their_addresses_translated_both_ways(tunnel: Vm) -> None:
    """Masquerading towards the host behind, which has no way back to the tunnel's addresses; and a port forwarded."""
    printed = tunnel.check(
        LIBRARY
        + BEHIND
        + """
        ip -n c route del 10.77.0.0/24
        $A nft 'add table ip n
                add chain ip n post { type nat hook postrouting priority srcnat; }
                add rule ip n post oifname "br0" masquerade
                add chain ip n pre { type nat hook prerouting priority dstnat; }
                add rule ip n pre iifname "qre0" tcp dport 80 dnat to 10.80.0.2:5201
                add chain ip n in { type filter hook forward priority filter; }
                add rule ip n in ct state invalid counter drop'
        $B ping -c 3 -i 0.05 -W 2 -q 10.80.0.2
        $B ping -c 3 -i 0.05 -W 2 -q -s 3000 10.80.0.2
        $C iperf3 -s -D >/dev/null
        listening $C
        $B timeout 60 iperf3 -c 10.80.0.2 -t 2
        $B timeout 60 iperf3 -c 10.77.0.1 -p 80 -t 2 -R
        $A nft list chain ip n in
        """
    )
    assert "ct state invalid counter packets 0 bytes 0 drop" in printed, printed
    assert printed.count(" 0% packet loss") == 2, printed
    rates = [float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec.*receiver", printed)]
    assert len(rates) == 2 and min(rates) > 1, printed
