"""What leaves a client behind its page, decrypted: for two seconds of an idle tunnel what a browser sends that looks
at it, and nothing else.

``QRE_QUIET`` connections (a few unless set).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qre.wire.frames import Ack, Ping, Stream
from qre.wire.number import PACKET_NUMBER_BASE
from tests.support.browser_flights import flows
from tests.support.capture import KeyLog
from tests.support.daemons import wait_for
from tests.support.decrypted_flow import DecryptedFlow, Sent, read_flow
from tests.support.tcpdump import Tcpdump, read_udp
from tests.support.tunnel import PORT, Tunnel

pytestmark = pytest.mark.root
COUNT = int(os.environ.get("QRE_QUIET", "3"))
#: After the session is up (seconds).
AWHILE = 2.0
#: A browser's ACK: of one range, and of more with the numbers of a data plane, which are longer.
ACKS = range(30, 38)
#: An ACK waits for 25 ms at most; a busy machine is late (seconds).
LATE = 0.2


@pytest.fixture(scope="module")
def idle() -> Iterator[list[DecryptedFlow]]:
    """Tunnels in which nothing is sent."""
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        tunnel.server.start().wait_ready()
        tunnel.server.tool("refresh", "server0")
        log = stack.enter_context(KeyLog())
        path = tunnel.directory / "idle.pcap"
        with Tcpdump(tunnel.lab.client, tunnel.lab.client_device, path, PORT):
            for number in range(COUNT):
                log.watch(tunnel.client.start())
                tunnel.client.wait_ready().wait_session()
                wait_for("its keys", lambda number=number: len(log.sessions) > number)
                time.sleep(AWHILE)
                assert tunnel.client.stop() == 0
                tunnel.client.tool("down", "client0")
        sessions = {each.client: each for each in log.sessions.values()}
        yield [read_flow(flow, PORT, sessions.get(flow[0].source)) for flow in flows(read_udp(path), PORT)]


def behind_the_request(flow: DecryptedFlow) -> list[Sent]:
    """What the client sent, its CLOSE excepted; and an icon's request, for which a busy machine has time."""
    request = next(place for place, each in enumerate(flow.by_client) if each.length > 450 and each.kinds == "1")
    asked = False
    found = []
    for each in flow.by_client[request + 1 : -1]:
        asked = asked or any(isinstance(frame, Stream) for frame in each.frames)
        if not asked or of_the_data_plane([each]):
            found.append(each)
    return found


def of_the_data_plane(sent: list[Sent]) -> list[Sent]:
    return [each for each in sent if (each.packets[-1].number or 0) >= PACKET_NUMBER_BASE]


def test_a_client_sends_nothing_behind_its_request_but_what_is_as_long_as_an_acknowledgement(
    idle: list[DecryptedFlow],
) -> None:
    assert len(idle) == COUNT
    for flow in idle:
        sent = behind_the_request(flow)
        assert [each.length for each in sent if each.kinds != "1" or each.length not in ACKS] == []
        assert [each for each in sent if any(isinstance(frame, Ping) for frame in each.frames)] == []


def test_each_of_them_follows_something_that_a_browser_would_acknowledge(idle: list[DecryptedFlow]) -> None:
    for flow in idle:
        for each in behind_the_request(flow):
            before = max(other.at for other in flow.by_server if other.at < each.at)
            assert each.at - before < LATE


def test_the_first_packet_of_the_data_plane_says_nothing_and_nothing_answers_it(idle: list[DecryptedFlow]) -> None:
    for flow in idle:
        first, *others = of_the_data_plane(behind_the_request(flow))
        (packet,) = first.packets
        assert (first.length, packet.number, packet.frames) == (31, PACKET_NUMBER_BASE, ())
        assert all(isinstance(frame, Ack) for each in others for frame in each.frames), "of probes of the path's MTU"
        answered = [
            frame
            for each in flow.by_server
            for frame in each.frames
            if isinstance(frame, Ack) and frame.ranges[0][1] >= PACKET_NUMBER_BASE
        ]
        assert answered == []
