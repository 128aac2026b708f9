"""A client's session in the kernel acknowledges and idles as a browser: how often, and in how many bytes."""

from __future__ import annotations

import pytest

from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from tests.support.guest_peer import GuestPeer
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.both_versions(always=False)]
KEYS = 74_000
#: A browser's site has connection IDs of four bytes, this test one of twenty.
LONGER = 16
#: A client that looks for no larger size.
SMALL = "MaxUdpPayload=1200"


def test_a_client_acknowledges_and_idles_as_a_browser(peers: Vm) -> None:
    """PINGs ask for it: 80 of the first hundred packets, then 400. Half of twenty seconds without a packet is idle.
    The numbers are short, because what the client has sent before is acknowledged."""
    peer = GuestPeer(peers, Role.CLIENT, KEYS)
    peer.install("IdleMs=20000")
    got = peer.says(
        """
        ack on
        until DONE
        ack off
        burst 0 80 01
        wait 300
        burst 0 400 01
        wait 300
        ack on
        wait 10600
        """,
        meanwhile="sleep 0.5; $K ping -c 3 -i 0.2 -W 1 -q 10.77.0.1 || true",
    )
    acks = [packet for packet in got if packet.acknowledges]
    assert len(acks) >= 40 + 39
    if not peers.kernel.watchful:  # there ten packets take longer than the delay
        assert len(acks) <= 40 + 39 + 20, "some more where the guest was slow"
    sizes = {packet.size - LONGER for packet in acks}
    assert min(sizes) >= 28 and max(sizes) <= 38
    pings = [packet.size - LONGER for packet in got if packet.payload == b"\1" and packet.size < 100]
    assert set(pings) <= {26, 25} and pings[-1] == 25, "only the first packets have numbers of four bytes"


def test_a_clients_first_packet_is_as_long_as_an_acknowledgement_and_asks_for_none(peers: Vm) -> None:
    """Then nothing leaves until it asks a server that has said nothing, once and again."""
    peer = GuestPeer(peers, Role.CLIENT, KEYS + 1)
    got = peer.says("until DONE", meanwhile=f"sleep 1\n{peer.installation(SMALL)}\nsleep 3")
    seen = [(each.number - PACKET_NUMBER_BASE, each.size - LONGER, each.payload) for each in got]
    assert seen[:2] == [(0, 31, b""), (1, 26, b"\1")] and {each[1:] for each in seen[2:]} <= {(26, b"\1")}


def test_what_a_server_sends_shows_a_client_that_it_has_had_the_first_packet(peers: Vm) -> None:
    """It is not asked, and its packet is acknowledged by one with a number of one byte."""
    peer = GuestPeer(peers, Role.CLIENT, KEYS + 2)
    peer.check("rm -f /tmp/installed")
    got = peer.says(
        """
        until /tmp/installed
        burst 0 1 01
        wait 3000
        """,
        meanwhile=f"sleep 1\n{peer.installation(SMALL)}\nsleep 0.3\ntouch /tmp/installed",
    )
    assert [(each.acknowledges, each.size - LONGER) for each in got] == [(False, 31), (True, 31)]
