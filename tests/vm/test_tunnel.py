"""The data path in a real kernel: ping, streams, datagrams, fragments, IPv6 inside; and what the counters say."""

from __future__ import annotations

import re

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(600), pytest.mark.every_kernel, pytest.mark.several_cpus]
LIBRARY = ". /tmp/library\n"


def counters(vm: Vm, namespace: str) -> dict[str, str]:
    printed = vm.check(LIBRARY + f"ip netns exec {namespace} $TOOLS/qrectl device-get Device=qre0")
    return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)


def both_counters(vm: Vm) -> tuple[dict[str, str], dict[str, str]]:
    """Those of both ends, at a moment when nothing is under way: IPv6 sends of itself when a device comes up."""
    for _ in range(20):
        found = counters(vm, "a"), counters(vm, "b")
        if all(found[ours].get("RxPackets") == found[1 - ours].get("TxPackets") for ours in (0, 1)):
            break
    return found


@pytest.mark.both_versions
def test_ping_fragments_and_ipv6_arrive_both_ways_and_are_counted(tunnel: Vm) -> None:
    before = both_counters(tunnel)
    printed = tunnel.check(
        LIBRARY
        + """
        $B ping -c 10 -i 0.05 -W 2 -q 10.77.0.1
        $A ping -c 10 -i 0.05 -W 2 -q 10.77.0.2
        $B ping -c 5 -i 0.05 -W 2 -q -s 3000 10.77.0.1
        $B ping -6 -c 5 -i 0.05 -W 2 -q fd77::1
        $B ping -6 -c 5 -i 0.05 -W 2 -q -s 3000 fd77::1
        """
    )
    assert printed.count(" 0% packet loss") == 5, printed
    after = both_counters(tunnel)
    for ours, theirs in ((0, 1), (1, 0)):
        for kind, least in (("Packets", 25), ("Bytes", 25 * 84)):
            received = int(after[ours][f"Rx{kind}"]) - int(before[ours][f"Rx{kind}"])
            sent = int(after[theirs][f"Tx{kind}"]) - int(before[theirs][f"Tx{kind}"])
            assert received == sent >= least
        assert not [name for name in after[ours] if name.startswith("Drop")], after[ours]


@pytest.mark.both_versions
def test_a_tcp_stream_and_udp_datagrams_run_through_it(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + """
        $A iperf3 -s -D >/dev/null
        until_listens a 5201
        $B timeout 60 iperf3 -c 10.77.0.1 -t 3
        $B timeout 60 iperf3 -c 10.77.0.1 -t 3 -R
        $B timeout 60 iperf3 -c fd77::1 -t 2
        $B timeout 60 iperf3 -c 10.77.0.1 -u -b 5M -l 1200 -t 2
        """
    )
    rates = [float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec.*receiver", printed)]
    assert len(rates) == 4 and min(rates) > 1, printed


def test_the_aead_is_the_machines_own_instructions(tunnel: Vm) -> None:
    printed = tunnel.check(LIBRARY + "$A $TOOLS/qrectl sessions Device=qre0")
    driver = re.search(r"AeadDriver=(.*)", printed)
    assert driver is not None and "aesni" in driver.group(1), printed


def test_no_key_comes_out(tunnel: Vm) -> None:
    printed = tunnel.check(
        LIBRARY
        + """
        $A $TOOLS/qrectl sessions Device=qre0
        $A $TOOLS/qrectl devices
        $A ip -d link show qre0
        dmesg
        """
    )
    for secret in (
        "02030405060708090a0b0c0d0e0f",
        "12131415161718191a1b1c1d1e1f",
        "2122232425",
        "3132333435",
        "4142434445",
    ):
        assert secret not in printed
