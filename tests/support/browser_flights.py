"""What varies in a browser's connections, in ours and in captures of Chromium 156, and whether both are alike.

``features`` reads first flights, which everybody can decrypt, into samples: of each thing that varies, every value
that was seen. ``tests/data/chromium-156/*.json`` has the same samples of Chromium's, made by this module:
``python -m tests.support.browser_flights fresh CAPTURE… > FILE``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import dpkt

from qre.wire.frames import Crypto, Frame, Padding, Ping
from qre.wire.packet import PacketType, packets_untrusted
from qre.wire.varint import read_varint_untrusted, read_vector_untrusted
from tests.support.packets import Layout, layout, open_initial, packets
from tests.support.tcpdump import Datagram

#: Value of each thing that varies: samples.
Samples = dict[str, list[float]]

_DATA = Path(__file__).resolve().parents[1] / "data" / "chromium-156"
#: Extensions (IANA) whose length varies, and GREASE.
_ECH, _PARAMETERS, _PRE_SHARED_KEY = 0xFE0D, 57, 41
_ECH_OVERHEAD = 42
_INITIAL_RTT = 0x3127
_VERSION_INFORMATION = 0x11
_VERSION_1 = bytes.fromhex("00000001")
#: Of a ClientHello: header, version, random, session ID, three cipher suites, compression, length of the extensions.
_EXTENSIONS_AT = 4 + 2 + 32 + 1 + 2 + 6 + 2 + 2
#: Of 62 packets of Chromium's that came back neighbours fell in 0.57 ± 0.02 of all places, and of its 658 fresh ones
#: in 0.50 ± 0.01, as ours do in both: taken for an accident.
_NOT_JUDGED = {"disorder of CRYPTO frames"}
#: More values of one kind are not kept in a file.
_MOST = 400


@dataclass(frozen=True)
class FirstFlight:
    """The first two datagrams of a connection. ``lengths``: of the packet numbers."""

    datagrams: tuple[bytes, bytes]
    layouts: tuple[Layout, Layout]
    numbers: tuple[int, int]
    lengths: tuple[int, int]
    destination_cid: bytes
    token: bytes
    hello: bytes
    gap: float  # seconds

    @property
    def extensions(self) -> list[tuple[int, bytes]]:
        """In their order."""
        return list(_extensions(self.hello))

    @property
    def parameters(self) -> list[tuple[int, bytes]]:
        """Transport parameters in their order."""
        return list(_parameters(dict(self.extensions)[_PARAMETERS]))

    @property
    def second_part(self) -> tuple[int, int]:
        """Where the part of the hello begins and ends that the second datagram has."""
        pieces = self.layouts[1].crypto
        return min(pieces), max(offset + len(data) for offset, data in pieces.items())


def first_flight(sent: Sequence[Datagram]) -> FirstFlight:
    """Of the datagrams that a client has sent; AssertionError when the first two are no browser's."""
    found = []
    for each in sent[:2]:
        (packet,) = packets(each.payload, 0)
        assert packet.kind is PacketType.INITIAL and packet.source_cid == b""
        found.append((packet, open_initial(packet, packet.destination_cid)))
    (one, first), (two, second) = found
    assert one.destination_cid == two.destination_cid and one.token == two.token
    layouts = layout(first.payload), layout(second.payload)
    return FirstFlight(
        datagrams=(sent[0].payload, sent[1].payload),
        layouts=layouts,
        numbers=(first.number, second.number),
        lengths=(first.length, second.length),
        destination_cid=one.destination_cid,
        token=one.token,
        hello=_put_together(layouts),
        gap=sent[1].time - sent[0].time,
    )


def _put_together(layouts: tuple[Layout, Layout]) -> bytes:
    whole = b""
    for offset, data in sorted((*layouts[0].crypto.items(), *layouts[1].crypto.items())):
        assert offset == len(whole), "a gap or an overlap"
        whole += data
    return whole


def _extensions(hello: bytes) -> Iterator[tuple[int, bytes]]:
    at = _EXTENSIONS_AT
    while at < len(hello):
        end = at + 4 + int.from_bytes(hello[at + 2 : at + 4], "big")
        yield int.from_bytes(hello[at : at + 2], "big"), hello[at + 4 : end]
        at = end


def _parameters(value: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(value):
        identifier, at = read_varint_untrusted(value, at)
        content, at = read_vector_untrusted(value, at)
        yield identifier, content


# --- samples ---


def features(flights: Iterable[FirstFlight]) -> Samples:
    """Everything that varies in first flights, but lengths that follow from the name of the site."""
    found: Samples = {}

    def add(name: str, *values: float) -> None:
        found.setdefault(name, []).extend(values)

    for flight in flights:
        start, end = flight.second_part
        add("the hello's second part begins at", start)
        for number, each in enumerate(flight.layouts, 1):
            ranges = [(0, start), (end, len(flight.hello))] if number == 1 else [(start, end)]
            add(f"CRYPTO frames of packet {number}", len(each.crypto))
            add(f"PINGs of packet {number}", each.pings)
            runs = [frame.length for frame in each.frames if isinstance(frame, Padding)]
            add(f"runs of PADDING in packet {number}", len(runs))
            add("length of a run of PADDING", *runs)
            add("length of a CRYPTO frame", *(len(data) for data in each.crypto.values()))
            add("where a range is cut", *_cuts(each, ranges))
            add("kind of the first frame", _kind(each.frames[0]))
            add("kind of the last frame", _kind(each.frames[-1]))
            add("disorder of CRYPTO frames", _disorder(each))
        _add_hello(flight, add)
        add("first byte of the connection ID", flight.destination_cid[0])
    return found


def _add_hello(flight: FirstFlight, add: object) -> None:
    assert callable(add)
    kinds = [kind for kind, _ in flight.extensions]
    add("ECH payload", len(dict(flight.extensions)[_ECH]) - _ECH_OVERHEAD)
    for place, kind in enumerate(kinds):
        if kind != _PRE_SHARED_KEY:
            add(f"place of extension {kind}", place)
    for place, (identifier, content) in enumerate(flight.parameters):
        grease = identifier % 31 == 27 and identifier > 1 << 30
        if identifier != _INITIAL_RTT:
            add(f"place of parameter {'of GREASE' if grease else identifier}", place)
        if grease:
            add("length of the GREASE parameter", len(content))
            add("the GREASE parameter (log2)", math.log2(identifier))
        if identifier == _VERSION_INFORMATION:
            add("version 1 comes first", content[4:8] == _VERSION_1)


def _cuts(found: Layout, ranges: list[tuple[int, int]]) -> Iterator[float]:
    """Where, as a part of its range, each CRYPTO frame begins that does not begin it."""
    for offset in found.crypto:
        for start, end in ranges:
            if start < offset < end:
                yield (offset - start) / (end - start)


def _kind(frame: Frame) -> int:
    return [Crypto, Ping, Padding].index(type(frame))


def _disorder(found: Layout) -> float:
    """The share of neighbours whose offsets fall."""
    pairs = list(pairwise(found.crypto))
    return sum(later < earlier for earlier, later in pairs) / max(1, len(pairs))


def recorded(name: str) -> Samples:
    """Chromium's samples."""
    found: Samples = json.loads((_DATA / f"{name}.json").read_text())
    return found


# --- are two samples alike? ---


def likelihood(one: Sequence[float], other: Sequence[float]) -> float:
    """p of the test of Kolmogorov and Smirnov with two samples (asymptotic; of values that are equal more is
    allowed): how likely samples of one thing are as far apart as these."""
    one, other = sorted(one), sorted(other)
    apart: float = max(abs(_below(one, at) / len(one) - _below(other, at) / len(other)) for at in {*one, *other})
    size = math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    scaled = (size + 0.12 + 0.11 / size) * apart
    if scaled < 0.2:
        return 1.0
    terms = ((2.0 if k % 2 else -2.0) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))


def _below(values: Sequence[float], at: float) -> int:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if values[middle] <= at else (low, middle)
    return low


def compare(ours: Samples, browsers: Samples) -> dict[str, float]:
    """p of each thing that varies, the least first."""
    assert set(ours) <= set(browsers), set(ours) - set(browsers)
    found = {name: likelihood(ours[name], browsers[name]) for name in ours if name not in _NOT_JUDGED}
    return dict(sorted(found.items(), key=lambda each: each[1]))


# --- captures ---


def flows(datagrams: Iterable[Datagram], port: int) -> list[list[Datagram]]:
    """The datagrams of each client's port that begins with an Initial, both directions."""
    found: dict[tuple[str, int], list[Datagram]] = {}
    for each in datagrams:
        client = each.destination if each.source[1] == port else each.source
        found.setdefault(client, []).append(each)
    return [flow for flow in found.values() if flow[0].destination[1] == port and _is_initial(flow[0].payload)]


def _is_initial(payload: bytes) -> bool:
    return next(iter(packets_untrusted(payload, short_cid_length=0))).type is PacketType.INITIAL


def sent_by_client(flow: Iterable[Datagram], port: int) -> list[Datagram]:
    return [each for each in flow if each.destination[1] == port]


def _thinned(values: list[float]) -> list[float]:
    """As many as are kept, from the least to the largest."""
    values = sorted(round(value, 4) for value in values)
    step = max(1.0, len(values) / _MOST)
    return [values[int(number * step)] for number in range(min(len(values), _MOST))]


def _read_raw(path: Path) -> Iterator[Datagram]:
    """Of a capture of bare IPv4 packets."""
    with path.open("rb") as file:
        for time, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ip.IP(frame)
            if isinstance(ip.data, dpkt.udp.UDP):
                source, destination = (".".join(map(str, each)) for each in (ip.src, ip.dst))
                udp = ip.data
                yield Datagram(
                    float(time), (source, udp.sport), (destination, udp.dport), ip.tos, bool(ip.df), bytes(udp.data)
                )


def main(which: str, paths: list[str]) -> None:
    """Print the samples of captures of a browser: of connections that are ``fresh``, or come ``back``."""
    found = []
    for path in paths:
        for flow in flows(_read_raw(Path(path)), 443):
            sent = sent_by_client(flow, 443)
            if (sent[0].payload[1:] != sent[1].payload[1:]) and _is_initial(sent[1].payload):
                flight = first_flight(sent)
                if any(kind == _PRE_SHARED_KEY for kind, _ in flight.extensions) is (which == "back"):
                    found.append(flight)
    samples = features(found)
    samples["gap of the first two datagrams"] = [each.gap for each in found]
    lines = (f"{json.dumps(name)}: {json.dumps(_thinned(values))}" for name, values in samples.items())
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
