"""SessionLifetime on qre.ko: a session ends for a newer one, from another port, and nothing is lost; packets of the
client are counted in their identification through the handshake and behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.tcpdump import read_udp
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python, pytest.mark.only_in_all]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
#: Seconds in a guest: Python starts slowly there, and makes a handshake in several.
START, LIFETIME = 200, 40


@pytest.fixture(scope="module")
def daemons(vm: Vm) -> Iterator[Vm]:
    with guest_daemons(
        vm,
        f"""
        echo "SessionLifetime = {LIFETIME}s" >>/tmp/e/b.conf
        ip netns exec b ethtool -K vb tx-udp-segmentation off
        setsid ip netns exec b tcpdump -Z root -n -i vb -Q out -s 0 -w /tmp/capture udp port 443 >/dev/null 2>&1 &
        daemons_up {START}
        """,
        3 * START,
    ):
        yield vm


def test_sessions_end_for_newer_ones_and_nothing_is_lost(daemons: Vm) -> None:
    printed = daemons.check(
        LIBRARY
        + f"""
        $B ping -i 0.1 -w {round(2.6 * LIFETIME)} -W 10 -q 10.77.0.1
        pkill -INT tcpdump
        sleep 1
        cp /tmp/capture /run/share/capture
        $A $TOOLS/qrectl sessions Device=server0 | grep -c ^SessionId
        cat /tmp/service.?/said
        """,
        10 * LIFETIME,
    )
    assert " 0% packet loss" in printed, printed
    assert "session ended" not in printed and "Traceback" not in printed
    by_port: dict[int, list[int]] = {}
    for datagram in read_udp(daemons.share / "capture"):
        by_port.setdefault(datagram.source[1], []).append(datagram.identification)
    assert len(by_port) >= 3, "each session has a port of its own"
    for numbers in by_port.values():
        assert {(two - one) % 65_536 for one, two in pairwise(numbers)} == {1}, numbers[:100]
    assert int(re.findall(r"^(\d+)$", printed, re.M)[0]) in {1, 2}
