"""What real clients put on the wire, decrypted, beside what Chromium 156 was measured to do: sizes, numbers, times.

``QRE_FRESH`` connections of clients that were never there and ``QRE_RETURNS`` of clients that come back (a few of
each unless set: 40 and 20 are a measurement). Where a thing varies, our samples and the browser's may be of one kind.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from qre.wire.frames import Ack, Stream
from qre.wire.varint import read_varint_untrusted, read_vector_untrusted
from tests.support.browser_flights import (
    FirstFlight,
    compare,
    features,
    first_flight,
    flows,
    recorded,
    sent_by_client,
)
from tests.support.capture import KeyLog
from tests.support.daemons import wait_for
from tests.support.decrypted_flow import DecryptedFlow, Sent, read_flow
from tests.support.ja4 import hellos
from tests.support.tcpdump import Tcpdump, read_udp
from tests.support.tunnel import PORT, Tunnel

pytestmark = pytest.mark.root
FRESH = int(os.environ.get("QRE_FRESH", "2"))
RETURNS = int(os.environ.get("QRE_RETURNS", "2"))
JA4_FRESH = "q13d0312h3_55b375c5d22e_178839b6cec1"
JA4_RESUMED = "q13d0314h3_55b375c5d22e_79cc91d6b50c"
#: Samples of one kind are less alike than this once in so many runs, whatever thing it is.
UNLIKELY = 0.05 if FRESH >= 40 else 0.002
EXTENSIONS = {0, 10, 13, 16, 27, 43, 45, 51, 57, 0x44CD, 0xFE0D, 0xCA34}
#: Transport parameters that have one value in all connections.
PARAMETERS = {
    0x01: "80007530", 0x03: "45c0", 0x04: "80f00000", 0x05: "80600000", 0x06: "80600000", 0x07: "80600000",
    0x08: "4064", 0x09: "4067", 0x0F: "", 0x20: "80010000", 0x3128: "4f524947",
}  # fmt: skip
INITIAL_RTT, VERSIONS = 0x3127, 0x11
#: SETTINGS that have one value in all connections.
SETTINGS = {1: 65_536, 6: 262_144, 7: 100, 0x33: 1}
#: What the first half second of a connection has, comes within this (seconds).
AWHILE = 0.4
#: Datagrams of the second flight, by what caused one: a browser coalesces what is due together.
SECOND_FLIGHT = {
    "I": range(1250, 1251),
    "H": range(35, 37),
    "H1": range(136, 153),
    "IH": range(1250, 1251),
    "IH1": range(1250, 1251),
    "1": range(30, 34),  # the server has spoken before the request; of two ranges where it was out of order
}
#: The same of one that comes back.
RETURNING_FLIGHT = {
    "I": range(1250, 1251),
    "H": range(69, 76),
    "H1": range(100, 153),
    "IH": range(1250, 1251),
    "IH1": range(1250, 1251),
}
#: With a host of twelve characters, alone or behind an ACK.
REQUESTS = range(453, 471)
ICONS, ICON_STREAM = range(414, 432), 4
#: What is as long as that probes the path's MTU.
PROBES = 1300
EARLY_REQUESTS = {461, 465}


@dataclass
class Captured:
    """Connections of one kind, in order."""

    flights: list[FirstFlight]
    flows: list[DecryptedFlow]
    kinds: list[str]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Captured, Captured]]:
    """Fresh connections, and resumed ones."""
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        tunnel.server.start().wait_ready()
        tunnel.server.tool("refresh", "server0")
        log = stack.enter_context(KeyLog())
        found = []
        for name, count, forgets in (("fresh", FRESH, True), ("back", RETURNS, False)):
            path = tunnel.directory / f"{name}.pcap"
            with Tcpdump(tunnel.lab.client, tunnel.lab.client_device, path, PORT):
                for number in range(count):
                    come(tunnel, log, forgets=forgets and number < count - 1)
            if keep := os.environ.get("QRE_KEEP_CAPTURES"):
                Path(keep, path.name).write_bytes(path.read_bytes())
            found.append((path, [ja4 for ja4, _ in hellos(path)]))
        sessions = {each.client: each for each in log.sessions.values()}
        made = []
        for path, kinds in found:
            read = flows(read_udp(path), PORT)
            made.append(
                Captured(
                    [first_flight(sent_by_client(flow, PORT)) for flow in read],
                    [read_flow(flow, PORT, sessions.get(flow[0].source)) for flow in read],
                    kinds,
                )
            )
        yield made[0], made[1]


def come(tunnel: Tunnel, log: KeyLog, *, forgets: bool) -> None:
    """One connection of a client, with what a browser does in its first half second."""
    client = tunnel.client
    log.watch(client.start())
    before = len(log.sessions)
    client.wait_ready().wait_session()
    wait_for("its keys", lambda: len(log.sessions) > before)
    time.sleep(AWHILE)
    assert client.stop() == 0
    if forgets:
        client.tool("down", "client0")


# --- the first flight ---


def test_first_flights_have_the_browsers_shape(both: tuple[Captured, Captured]) -> None:
    for captured, ja4, count in zip(both, (JA4_FRESH, JA4_RESUMED), (FRESH, RETURNS), strict=True):
        assert captured.kinds == [ja4] * count
        assert len(captured.flights) == count
        for flight in captured.flights:
            assert [len(each) for each in flight.datagrams] == [1250, 1250]
            assert flight.numbers == (1, 2) and len(flight.destination_cid) == 8
            start, end = flight.second_part
            assert 55 <= start <= 86 and end - start == (len(flight.hello) + 1) // 2 + 2
            for each, fewest in zip(flight.layouts, (4, 3), strict=True):
                assert len(each.crypto) <= fewest + 8 and each.pings <= 10
                assert flight.token or (len(each.crypto) >= fewest and each.pings >= 2)
        for varies in ("destination_cid", "extensions", "parameters"):
            assert len({str(getattr(flight, varies)) for flight in captured.flights}) == count, varies


def test_hellos_have_the_browsers_extensions_and_transport_parameters(both: tuple[Captured, Captured]) -> None:
    fresh, back = both
    for flight in fresh.flights:
        assert {kind for kind, _ in flight.extensions} == EXTENSIONS
        assert len(flight.hello) in {*range(1874, 1891), *range(1906, 1923), *range(1938, 1955), *range(1970, 1987)}
        assert flight.token == b""
    for flight in back.flights:
        *others, (last, body) = flight.extensions
        assert {kind for kind, _ in others} == EXTENSIONS | {42} and (last, len(body)) == (41, 199)
        assert 2080 <= len(flight.hello) <= 2222
        assert int.from_bytes(body[2:4], "big") == 156 and body[-33] == 32
        (rtt,) = (value for kind, value in flight.parameters if kind == INITIAL_RTT)
        assert len(rtt) in (2, 4) and 0 < read_varint_untrusted(rtt, 0)[0] < 1_000_000
        assert len(flight.token) in (0, 90, 91)
    for flight in (*fresh.flights, *back.flights):
        found = {kind: value.hex() for kind, value in flight.parameters}
        assert {kind: found[kind] for kind in PARAMETERS} == PARAMETERS
        versions = sorted((found[VERSIONS][8:16], found[VERSIONS][16:24]), key=lambda each: each != "00000001")
        assert found[VERSIONS][:8] == versions[0] == "00000001"
        assert all(digit == "a" for digit in versions[1][1::2])
        (grease,) = set(found) - set(PARAMETERS) - {INITIAL_RTT, VERSIONS}
        assert grease % 31 == 27 and grease > 1 << 30 and len(found[grease]) <= 30


@pytest.mark.skipif(min(FRESH, RETURNS) < 20, reason="a few connections do not show how something varies: QRE_FRESH")
def test_what_varies_in_first_flights_varies_as_the_browsers(both: tuple[Captured, Captured]) -> None:
    fresh, back = both
    alike = compare(features(fresh.flights), recorded("first-flights"))
    print("fresh", len(alike), list(alike.items())[:8])
    assert min(alike.values()) > UNLIKELY / len(alike), alike
    alike = compare(features(back.flights), recorded("first-flights-back"))
    print("back", len(alike), list(alike.items())[:8])
    assert min(alike.values()) > UNLIKELY / len(alike), alike


# --- what follows ---


def test_a_second_flight_and_its_request_are_the_browsers(both: tuple[Captured, Captured]) -> None:
    seen: Counter[tuple[tuple[str, int], ...]] = Counter()
    for flow in both[0].flows:
        request = next((each for each in flow.by_client if each.length in REQUESTS), None)
        assert request is not None, [(each.kinds, each.length, each.frames) for each in flow.by_client]
        second = flow.by_client[2 : flow.by_client.index(request)]
        seen[tuple((each.kinds, each.length) for each in second)] += 1
        for each in second:
            assert each.length in SECOND_FLIGHT[each.kinds], (each.kinds, each.length)
        finished = next(each for each in second if each.kinds.endswith("H1"))
        *_, one_rtt = finished.packets
        acknowledgement, control = one_rtt.frames
        assert isinstance(acknowledgement, Ack) and acknowledgement.ecn == ()
        assert isinstance(control, Stream) and control.stream_id == 2 and control.offset == 0
        is_control_stream(control.data)
        is_request(request)
        assert request.at - finished.at >= 0.0003
        numbered(flow)
    print(seen)


def is_control_stream(data: bytes) -> None:
    """SETTINGS with a GREASE setting, and a GREASE frame."""
    assert 39 <= len(data) <= 46 and data[:2] == b"\x00\x04" and data[2] in (27, 31)
    found, at = {}, 3
    while at < 3 + data[2]:
        identifier, at = read_varint_untrusted(data, at)
        found[identifier], at = read_varint_untrusted(data, at)
    assert {each: found.pop(each) for each in SETTINGS} == SETTINGS
    (grease,) = found
    assert grease % 31 == 2 and grease > 1 << 30
    frame, at = read_varint_untrusted(data, at)
    content, end = read_vector_untrusted(data, at)
    assert frame % 31 == 2 and frame > 1 << 30 and len(content) <= 3 and end == len(data)


def is_request(sent: Sent) -> None:
    (packet,) = sent.packets
    *acknowledgements, priority, request = packet.frames
    assert all(isinstance(each, Ack) for each in acknowledgements)
    assert isinstance(priority, Stream) and (priority.stream_id, len(priority.data)) == (2, 12)
    assert isinstance(request, Stream) and (request.stream_id, request.offset, len(request.data)) == (0, 0, 413)


def numbered(flow: DecryptedFlow) -> None:
    """One count of packets, whatever their kind, from 1 on; one is left out in front of a timeout's, as there may be
    where a machine is busy."""
    count = 0
    for each in flow.until_handed_over:
        for packet in each.packets:
            count += 1
            if packet.number is not None:
                assert count <= packet.number <= count + 2, (each.kinds, packet.number, count)
                count = packet.number


def test_acknowledgements_are_a_browsers_and_report_marks_once_there_are_any(
    both: tuple[Captured, Captured],
) -> None:
    for captured in both:
        for flow in captured.flows:
            lone = [each for each in flow.until_handed_over if is_lone_ack(each)]
            for each in lone:  # three bytes less where no mark has come yet
                (frame,) = (one for one in each.frames if isinstance(one, Ack))
                assert 30 <= each.length + 3 * (not frame.ecn) <= 34, each.length
            said = [frame for each in flow.until_handed_over for frame in of_1rtt(each) if isinstance(frame, Ack)]
            counted = [len(each.ecn) for each in said]
            assert counted == sorted(counted) and set(counted) <= {0, 3} and counted[-1] == 3
            assert captured is both[1] or counted[:1] == [0], "with Finished"


def of_1rtt(sent: Sent) -> list[object]:
    return [frame for packet in sent.packets if packet.kind == "1" for frame in packet.frames]


def is_lone_ack(sent: Sent) -> bool:
    return sent.kinds == "1" and [type(each) for each in sent.frames] == [Ack]


def test_a_client_that_comes_back_sends_early_data_and_one_datagram_for_the_flight(
    both: tuple[Captured, Captured],
) -> None:
    for flow in both[1].flows:
        first, second, control, request, *later = flow.by_client
        assert (control.kinds, request.kinds) == ("0", "0")
        assert 75 <= control.length <= 82 and request.length in EARLY_REQUESTS
        answer = [each for each in later if set(each.kinds) & set("IH")]
        for each in answer:  # on a busy machine in several datagrams, and the hello again in front of them
            assert each.length in RETURNING_FLIGHT[each.kinds], (each.kinds, each.length)
            assert each.kinds != "IH" or [one.length for one in each.packets] == [1176, 74]
        early = [each for each in (first, second, control, request) if each.at < flow.by_server[0].at]
        assert len({each.datagram.payload[6:14] for each in early}) == 1, (
            "the server's connection ID is not known yet"
        )
        assert Counter(kind for each in later for kind in each.kinds)["0"] == 0, "early data are not repeated"


def test_a_first_visit_requests_the_pages_icon_and_whoever_comes_back_has_it(
    both: tuple[Captured, Captured],
) -> None:
    delays, answers = [], Counter[int]()
    for flow in both[0].flows:
        icon, *repeats = (each for each in flow.by_client if of_stream(each, ICON_STREAM))
        page = next(each for each in flow.by_client if of_stream(each, 0))
        for each in (icon, *repeats):  # on a busy machine the answer may be later than a timeout
            *acknowledgements, priority, request = each.packets[0].frames
            assert all(isinstance(one, Ack) for one in acknowledgements) and each.length in ICONS
            assert isinstance(priority, Stream) and (priority.stream_id, len(priority.data)) == (2, 12)
            assert isinstance(request, Stream) and (request.offset, len(request.data)) == (0, 374)
        delays.append(icon.at - page.at)
        answers[next(each.length for each in flow.by_server if each.at > icon.at and each.length < PROBES)] += 1
    print("icons", sorted(delays), answers)
    assert all(0.1 <= each <= 0.75 for each in delays), "on a busy machine a little late"
    assert [each for flow in both[1].flows for each in flow.by_client if of_stream(each, ICON_STREAM)] == []


def of_stream(sent: Sent, stream_id: int) -> bool:
    return any(isinstance(frame, Stream) and frame.stream_id == stream_id for frame in sent.frames)


# --- below QUIC ---


def test_below_quic_a_clients_datagrams_are_the_browsers(both: tuple[Captured, Captured]) -> None:
    ports = []
    for captured in both:
        for flow in captured.flows:
            sent = [each.datagram for each in flow.by_client]
            ports.append(sent[0].source[1])
            first = sent[0].identification
            expected = [(first + number) % 65_536 for number in range(len(sent))]
            assert [each.identification for each in sent] == expected
            assert all(each.ttl == 64 and each.dont_fragment and each.tos == 0 for each in sent)
            assert all(len(each.payload) <= 1250 for each in sent)
            marks = {(each.kinds == "1", each.datagram.tos) for each in flow.by_server}
            assert marks == {(True, 2), (False, 0)}, "of Caddy's kind: ECT(0) in 1-RTT packets alone"
    assert all(32_768 <= each <= 60_999 for each in ports)
    assert len(ports) < 20 or len({each % 2 for each in ports}) == 2
