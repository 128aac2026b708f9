"""Sources of outer packets on qre.ko: where the handshake's packets were seen to come from and to go to."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 200, 400.0
#: A router, c, between client and server; the server has two addresses, and the client is sent to the second.
ROUTED = """
ip -n b link del vb
ip netns add c
ip -n c link set lo up
ip -n a link add va type veth peer name ca netns c
ip -n b link add vb type veth peer name cb netns c
for each in "a va 10.9.0.1/24" "a va 10.9.0.3/24" "c ca 10.9.0.254/24" "b vb 10.8.0.2/24" "c cb 10.8.0.254/24"; do
    set -- $each
    ip -n $1 addr add $3 dev $2
    ip -n $1 link set $2 up
done
ip netns exec c sysctl -qw net.ipv4.ip_forward=1
ip -n a route add default via 10.9.0.254
ip -n b route add default via 10.8.0.254
sed -i 's/^Listen.*/Listen = 0.0.0.0:443/' /tmp/e/dev/server0.conf
sed -i 's/^Endpoint.*/Endpoint = 10.9.0.3:443/; $a AllowedIPs = 0.0.0.0/0' /tmp/e/dev/client0.conf
"""


@pytest.fixture(scope="module")
def daemons(vm: Vm) -> Iterator[Vm]:
    with guest_daemons(
        vm,
        f"""{ROUTED}
        daemons_up {START}
        """,
        3 * START,
    ):
        yield vm


def test_a_full_tunnel_through_a_gateway_to_a_second_address_uses_the_outer_addresses(daemons: Vm) -> None:
    printed = daemons.check(
        LIBRARY
        + """
        timeout 60 ip netns exec c tcpdump -Z root -n -i ca -c 20 udp port 443 >/tmp/outer 2>/dev/null &
        $B ping -c 10 -i 0.2 -W 5 -q 10.77.0.1
        $A ping -c 3 -i 0.2 -W 5 -q 10.77.0.2
        wait $! 2>/dev/null || true
        cat /tmp/outer
        ip -n b route get 8.8.8.8
        """,
        SLOW,
    )
    assert printed.count(" 0% packet loss") == 2, printed
    ways = set(re.findall(r"IP (\S+)\.\d+ > (\S+)\.\d+:", printed))
    assert ways == {("10.8.0.2", "10.9.0.3"), ("10.9.0.3", "10.8.0.2")}, printed
    assert "dev client0" in printed
