"""Linux's IPVS in front of two servers with one private key and one replay store: a hello is taken once among both,
and when one is killed the other carries the tunnel."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.host.test_strangers import first_flight
from tests.support.guest_daemons import guest_daemons
from tests.support.tcpdump import read_udp
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1800), pytest.mark.guest_python, pytest.mark.only_in_all]
#: The second server is the profile server1 in the namespace d.
LIBRARY = """
COUNT='import json, sys; h = json.load(sys.stdin)["devices"][0]["handshake"]; print(h["handshakes"], h["strangers"])'
. /tmp/library; . $GUEST/daemons.sh
profile() { case $1 in a) echo server0 ;; b) echo client0 ;; d) echo server1 ;; esac; }
counts() { show $1 | python3 -c "$COUNT"; }
"""
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 300, 600.0
#: Clients come to the balancer, c; the servers are behind it, and answer through it.
BALANCED = """
modprobe -a ip_vs ip_vs_rr
ip -n b link del vb
ip netns add c
ip netns add d
ip -n c link set lo up
ip -n d link set lo up
for each in "b vb cb" "a va ca" "d vd cd"; do
    set -- $each
    ip -n $1 link add $2 type veth peer name $3 netns c
done
for each in "b vb 10.9.0.2/24" "b vb 10.9.0.3/24" "c cb 10.9.0.1/24" "a va 10.10.1.1/24" "c ca 10.10.1.254/24" \\
    "d vd 10.10.2.1/24" "c cd 10.10.2.254/24"; do
    set -- $each
    ip -n $1 addr add $3 dev $2
    ip -n $1 link set $2 up
done
ip -n a route add default via 10.10.1.254
ip -n d route add default via 10.10.2.254
ip netns exec c sysctl -qw net.ipv4.ip_forward=1
ip netns exec c ipvsadm -A -u 10.9.0.1:443 -s rr
for each in 10.10.1.1 10.10.2.1; do ip netns exec c ipvsadm -a -u 10.9.0.1:443 -r $each:443 -m; done
ip netns exec c redis-server --bind 10.10.1.254 10.10.2.254 --save "" --requirepass hush --dir /tmp --daemonize yes \\
    --maxmemory-policy noeviction >/dev/null
cd $QRE_CONFIG_DIR
umask 077
store() { sed "s|^Listen.*|Listen = $1:443\\nReplayStore = valkey://:hush@$2:6379|" server0.conf; }
store 10.10.2.1 10.10.2.254 | sed "s/^Device.*/Device = server1/" >server1.conf
store 10.10.1.1 10.10.1.254 >server0.new
mv server0.new server0.conf
sed "s|/run/qa|/run/qd|; s|/tmp/sa|/tmp/sd|" /tmp/e/a.conf >/tmp/e/d.conf
chmod 644 /tmp/e/d.conf
(umask 022 && mkdir -p /run/qd /tmp/sd)
"""
REPLAY = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.9.0.3", 0))
s.connect(("10.9.0.1", 443))
[s.send(bytes.fromhex(data)) for data in sys.argv[1:]]
"""


@pytest.fixture(scope="module")
def daemons(vm: Vm) -> Iterator[Vm]:
    """Both servers, then the client."""
    with guest_daemons(
        vm,
        f"""{LIBRARY}{BALANCED}
        daemon_start a
        daemon_start d
        daemon_ready a {START}
        daemon_ready d {START}
        setsid ip netns exec c tcpdump -Z root -n -i cb -s 0 -U -w /tmp/capture udp port 443 >/dev/null 2>&1 &
        daemon_start b
        daemon_ready b {START}
        session_up {START}
        """,
        4 * START,
    ):
        yield vm


def test_a_hello_is_taken_once_and_the_other_server_goes_on_when_one_is_killed(daemons: Vm) -> None:
    daemons.check(LIBRARY + "$B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1; cp /tmp/capture /run/share/capture", SLOW)
    words = " ".join(data.hex() for data in first_flight(list(read_udp(daemons.share / "capture"))))
    said = daemons.check(
        LIBRARY
        + f"""
        counts a; counts d
        $B $PYTHON -c '{REPLAY}' {words}
        until_true '[ "$(counts a; counts d)" = "1 0
0 1" ] || [ "$(counts a; counts d)" = "0 1
1 0" ]'
        """,
        SLOW,
    )
    assert sorted(said.split()) == ["0", "0", "0", "1"], said
    printed = daemons.check(
        LIBRARY
        + f"""
        if [ "$(counts a | cut -c1)" = 1 ]; then killed=a at=10.10.1.1; else killed=d at=10.10.2.1; fi
        daemon_kill $killed
        ip -n $killed link del $(profile $killed)
        ip netns exec c ipvsadm -d -u 10.9.0.1:443 -r $at:443
        for ((i = 0; i < {START}; i++)); do
            $B ping -c 1 -W 1 -q 10.77.0.1 >/dev/null && break
        done
        $B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1
        """,
        SLOW,
    )
    assert " 0% packet loss" in printed, printed
    assert json.loads(daemons.check(LIBRARY + "show b", SLOW))["devices"][0]["up"]
