"""What tcpdump says of packets that leave as super-packets: those that the module cuts, and those that it makes."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(600), pytest.mark.several_cpus]
LIBRARY = ". /tmp/library\n"
SIZE = 1_500_000
MAX_SEGMENTS = 64
SEND = """
head -c {size} /dev/urandom >/tmp/sent
$B ethtool -K qre0 gro off
$B tcpdump --immediate-mode -Z root -Q in -i qre0 -nn -s 0 -B 16384 -w /tmp/capture tcp 2>/tmp/heard &
capture=$!
$B python3 -c '
import socket
server = socket.create_server(("", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
taken, _ = server.accept()
open("/tmp/got", "wb").write(b"".join(iter(lambda: taken.recv(65536), b"")))
' &
listener=$!
until_true 'grep -q "listening on" /tmp/heard && $B ss -Hltn | grep -q :9000'
$A timeout 60 python3 -c '
import socket
socket.create_connection(("{address}", 9000)).sendall(open("/tmp/sent", "rb").read())
'
wait $listener
sleep 1  # for the last to be seen: what tcpdump has seen it writes at its end
kill $capture
wait $capture || true
cmp /tmp/sent /tmp/got
tcpdump -r /tmp/capture -nn -vv >/tmp/read 2>/dev/null
echo "correct=$(grep -c '(correct), seq [0-9]*:' /tmp/read)"
echo "wrong=$(grep -c -e incorrect -e 'bad cksum' /tmp/read)"
echo "largest=$(grep -c 'length {largest}$' /tmp/read)"
grep -m 3 -e incorrect -e 'bad cksum' /tmp/read || tail -n 3 /tmp/read
"""

IDENTIFICATIONS = """
for each in "a va" "b vb"; do
    set -- $each
    ip netns exec $1 ethtool -K $2 tx-udp-segmentation off gro off
    ip netns exec $1 tcpdump --immediate-mode -Z root -Q in -i $2 -nn -s 64 -B 16384 -w /tmp/in.$1 udp port 443 \\
        2>/tmp/heard.$1 &
done
$A iperf3 -s -D
until_true '[ "$(cat /tmp/heard.? | grep -c "listening on")" = 2 ] && $A ss -Hltn | grep -q :5201'
$B iperf3 -c 10.77.0.1 -n 1M >/dev/null
$B iperf3 -c 10.77.0.1 -n 1M -R >/dev/null
sleep 1  # for the last to be seen: what tcpdump has seen it writes at its end
pkill iperf3
pkill -INT tcpdump
wait
for each in a b; do
    echo $each $(tcpdump -r /tmp/in.$each -nn -v 2>/dev/null |
        sed -n 's/.* id \\([0-9]*\\), .*flags .DF., proto UDP.*/\\1/p')
done
"""


@pytest.mark.parametrize(("address", "largest"), [("10.77.0.2", 1328), ("fd77::2", 1308)])
def test_segments_of_a_super_packet_have_right_headers_and_checksums(vm: Vm, address: str, largest: int) -> None:
    script = SEND.format(size=SIZE, address=address, largest=largest)
    try:
        printed = vm.check(LIBRARY + f"net_up; tunnel_up {5000 + largest}\n" + script)
    finally:
        vm.run(LIBRARY + "net_down")
    counted = {name: int(number) for name, number in re.findall(r"^(\w+)=(\d+)$", printed, re.M)}
    assert counted["wrong"] == 0, printed
    # A busy guest does not capture all of them: what it did is judged. They are as large as the MTU of 1380 allows.
    assert counted["correct"] >= counted["largest"] > 100, printed
    assert vm.splats() == []


def identifications(printed: str, end: str) -> list[int]:
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{end} "))
    return [int(word) for word in line.split()[1:]]


#: The client's socket is a connected one of a program, at the one port that there is then.
CONNECTED = """
$B sysctl -qw net.ipv4.ip_local_port_range="5555 5555"
$B bash -c '. /tmp/library; exec 7<>/dev/udp/10.9.0.1/443; MORE_B=Fd=7 tunnel_up 9001'
$B sysctl -qw net.ipv4.ip_local_port_range="32768 60999"
"""


def test_packets_of_a_client_whose_socket_is_connected_are_counted(vm: Vm) -> None:
    """As those of the program that has connected it: on, by one for each, segments of a super-packet, too."""
    try:
        printed = vm.check(LIBRARY + "net_up\n" + CONNECTED + IDENTIFICATIONS)
    finally:
        vm.run(LIBRARY + "net_down")
    numbers = identifications(printed, "a")
    assert len(numbers) > 500
    # Of two processors' packets the later counted may leave first.
    counted = sorted((number - numbers[0] + 32_768) % 65_536 for number in numbers)
    steps = [two - one for one, two in pairwise(counted)]
    assert steps.count(1) > 0.9 * len(steps) and 0 < min(steps) <= max(steps) < 1000, "what was lost was counted"
    assert max(identifications(printed, "b")) < MAX_SEGMENTS, "the server's"


def test_a_packet_has_no_identification_as_a_socket_sends_it(vm: Vm) -> None:
    """A client's never, when nothing connected its socket; a server's as its segments are numbered: from 0 on, in
    each super-packet."""
    try:
        printed = vm.check(LIBRARY + "net_up; tunnel_up 9000\n" + IDENTIFICATIONS)
    finally:
        vm.run(LIBRARY + "net_down")
    from_client, from_server = identifications(printed, "a"), identifications(printed, "b")
    assert len(from_client) > 500 and set(from_client) == {0}, printed
    assert len(from_server) > 500 and max(from_server) < MAX_SEGMENTS, printed
