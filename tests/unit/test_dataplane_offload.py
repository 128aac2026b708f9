"""Super-packets: what is split, completed, checked and joined, judged by sums computed word by word."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.wire.datagram import DATAGRAM_HEAD
from qre.workers.dataplane.inner.coalesce import Deliverer
from qre.workers.dataplane.inner.ecn import CE, ECT0, ECT1, NOT_ECT, decapsulated
from qre.workers.dataplane.inner.offload import (
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    NO_OFFLOAD,
    VNET_HEADER,
    split_untrusted,
)
from tests.support.inner_packets import V4, V6, assert_whole, offloaded, tcp, udp, upper_of


def split(read: bytes, most: int = 1400) -> list[bytes]:
    plaintexts = split_untrusted(read, most)
    assert all(text.startswith(DATAGRAM_HEAD) for text in plaintexts)
    return [text[3:] for text in plaintexts]


@pytest.mark.parametrize(("addresses", "gso"), [(V4, GSO_TCPV4), (V6, GSO_TCPV6)])
@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 45_000, 45_001])
@pytest.mark.parametrize("options", [b"", bytes(12)])
def test_a_tcp_super_packet_becomes_whole_segments(
    addresses: tuple[bytes, bytes], gso: int, length: int, options: bytes
) -> None:
    payload = random.Random(length).randbytes(length)
    packet = tcp(addresses, payload, 0xFFFFFF00, 0x99, options=options, whole=False)
    segments = split(offloaded(packet, gso, 1000))
    at = upper_of(packet) + 20 + len(options)
    assert b"".join(segment[at:] for segment in segments) == payload
    for n, segment in enumerate(segments):
        assert_whole(segment)
        sequence, flags = int.from_bytes(segment[at - 16 - len(options) :][:4], "big"), segment[at - 7 - len(options)]
        assert sequence == (0xFFFFFF00 + 1000 * n) & 0xFFFFFFFF
        assert bool(flags & 0x09) == (n == len(segments) - 1)  # FIN, PSH on the last
        assert bool(flags & 0x80) == (n == 0)  # CWR on the first
        assert segment[7 if addresses is V6 else 8] == 63  # the hop is taken


@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_udp_super_packet_becomes_whole_datagrams(addresses: tuple[bytes, bytes]) -> None:
    payload = random.Random(1).randbytes(2500)
    segments = split(offloaded(udp(addresses, payload), GSO_UDP_L4, 1000, 6))
    assert [len(segment) - upper_of(segment) - 8 for segment in segments] == [1000, 1000, 500]
    for segment in segments:
        assert_whole(segment)


@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_missing_checksum_is_completed(addresses: tuple[bytes, bytes], payload: bytes) -> None:
    (packet,) = split(offloaded(tcp(addresses, payload, whole=False), GSO_NONE, 0))
    assert_whole(packet)


def test_a_packet_without_offload_loses_a_hop_and_nothing_else() -> None:
    packet = tcp(V4, b"payload")
    (out,) = split(NO_OFFLOAD + packet)
    assert_whole(out)
    assert out[8] == 63
    assert out[:8] + out[12:] == packet[:8] + packet[12:]


@pytest.mark.parametrize("hops", [0, 1])
@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_packet_whose_hops_are_over_is_refused(addresses: tuple[bytes, bytes], hops: int) -> None:
    with pytest.raises(UntrustedInputError, match="hops"):
        split(NO_OFFLOAD + tcp(addresses, b"", hops=hops))


def test_every_ttl_checksum_is_mended() -> None:
    for hops in range(2, 256):
        for ident in (0, 0x4000, 0xFFFF):
            assert_whole(split(NO_OFFLOAD + tcp(V4, b"", hops=hops, ident=ident))[0])


def test_what_would_not_fit_is_refused_not_cut() -> None:
    for read in (NO_OFFLOAD + tcp(V4, bytes(1400)), offloaded(udp(V4, bytes(9000)), GSO_UDP_L4, 1380, 6)):
        with pytest.raises(UntrustedInputError, match="too big"):
            split(read)


@pytest.mark.parametrize(("addresses", "gso"), [(V4, GSO_TCPV4), (V6, GSO_TCPV6)])
@pytest.mark.parametrize("length", [1381, 2000, 60_000])
def test_tcp_super_packets_whose_segments_would_not_fit_are_cut_into_shorter_ones(
    addresses: tuple[bytes, bytes], gso: int, length: int
) -> None:
    payload = random.Random(length).randbytes(length)
    packet = tcp(addresses, payload, 0xFFFFFF00, 0x19, options=bytes(12), whole=False)
    segments = split(offloaded(packet, gso, 1380), 1282)
    at = upper_of(packet) + 32
    assert b"".join(segment[at:] for segment in segments) == payload
    assert max(map(len, segments)) == 1282
    sequence = 0xFFFFFF00
    for segment in segments:
        assert_whole(segment)
        assert int.from_bytes(segment[at - 28 : at - 24], "big") == sequence
        sequence = (sequence + len(segment) - at) & 0xFFFFFFFF


@pytest.mark.parametrize("most", [-1, 0, 60, 72, 73, 80])
def test_what_leaves_no_room_for_payload_is_refused(most: int) -> None:
    for addresses, gso in ((V4, GSO_TCPV4), (V6, GSO_TCPV6)):
        with pytest.raises(UntrustedInputError, match="too big"):
            split(offloaded(tcp(addresses, bytes(60_000), options=bytes(12), whole=False), gso, 1380), most)


@settings(max_examples=200)
@given(
    st.binary(max_size=120),
    st.tuples(*[st.integers(0, 255)] * 2, *[st.integers(0, 65535)] * 4),
    st.sampled_from([0x45, 0x60, 0x4F, 0x00]),
)
def test_any_read_is_split_or_refused(packet: bytes, header: tuple[int, ...], first: int) -> None:
    try:
        out = split_untrusted(VNET_HEADER.pack(*header) + bytes((first,)) + packet, 1400)
    except UntrustedInputError:
        return
    assert all(len(plaintext) <= 1403 for plaintext in out)


def deliver(*packets: bytes, permits: bool = True) -> tuple[list[bytes], Counter[str]]:
    drops: Counter[str] = Counter()
    plaintexts = [DATAGRAM_HEAD + packet for packet in packets]
    writes = Deliverer(drops).writes(plaintexts, lambda address: permits, 1400)
    return [b"".join(buffers) for buffers in writes], drops


@pytest.mark.parametrize(("addresses", "gso"), [(V4, GSO_TCPV4), (V6, GSO_TCPV6)])
@pytest.mark.parametrize("length", [3000, 2999, 2001])
def test_segments_in_order_are_joined_and_splitting_gives_them_back(
    addresses: tuple[bytes, bytes], gso: int, length: int
) -> None:
    payload = random.Random(2).randbytes(length)
    original = offloaded(tcp(addresses, payload, flags=0x18, options=bytes(12), whole=False), gso, 1000)
    segments = split(original)
    (joined,), _ = deliver(*segments)
    flags, kind, header, size, start, offset = VNET_HEADER.unpack_from(joined)
    assert (flags, kind, size, start, offset) == (NEEDS_CSUM, gso, 1000, upper_of(segments[0]), 16)
    assert header == start + 32
    again = split(joined)
    hop = 7 if addresses is V6 else 8
    assert [s[:hop] + s[hop + 4 if hop == 8 else hop + 1 :] for s in again] == [
        s[:hop] + s[hop + 4 if hop == 8 else hop + 1 :] for s in segments
    ]


@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_segment_with_a_wrong_checksum_is_delivered_as_it_came(addresses: tuple[bytes, bytes]) -> None:
    segments = [tcp(addresses, bytes([n]) * 101, 1000 + 101 * n) for n in range(4)]
    broken = bytearray(segments[2])
    broken[-3] ^= 4
    segments[2] = bytes(broken)
    written, _ = deliver(*segments)
    assert [VNET_HEADER.unpack_from(write)[1] != GSO_NONE for write in written] == [True, False, False]
    assert written[1] == NO_OFFLOAD + segments[2]
    assert written[2] == NO_OFFLOAD + segments[3]


@pytest.mark.parametrize(
    "second",
    [
        tcp(V4, bytes(100), 1101),  # a gap
        tcp(V4, bytes(101), 1100),  # longer than the first
        tcp(V4, bytes(100), 1100, window=501),
        tcp(V4, bytes(100), 1100, options=bytes(4)),
        tcp(V4, bytes(100), 1100, hops=63),
        tcp(V4, bytes(100), 1100, tos=3),
        tcp(V4, bytes(100), 1100, flags=0x11),  # FIN
        tcp(V4, bytes(100), 1100, flags=0x30),  # URG
        tcp(V4, b"", 1100),
        tcp((V4[1], V4[0]), bytes(100), 1100),
        udp(V4, bytes(100)),
        tcp(V6, bytes(100), 1100),
    ],
)
def test_what_differs_is_not_joined(second: bytes) -> None:
    first = tcp(V4, bytes(100))
    assert deliver(first, second)[0] == [NO_OFFLOAD + first, NO_OFFLOAD + second]


def test_a_pushed_or_shorter_segment_ends_a_group() -> None:
    a, b, c = tcp(V4, bytes(100)), tcp(V4, bytes(100), 1100, 0x18), tcp(V4, bytes(100), 1200)
    assert len(deliver(a, b, c)[0]) == 2
    b = tcp(V4, bytes(99), 1100)
    assert len(deliver(a, b, tcp(V4, bytes(99), 1199))[0]) == 2


def test_flows_that_alternate_are_joined_each_for_itself_in_order() -> None:
    one = [tcp(V4, bytes(100), 1000 + 100 * n) for n in range(4)]
    two = [tcp((V4[1], V4[0]), bytes(50), 1000 + 50 * n) for n in range(4)]
    written, _ = deliver(*[packet for pair in zip(one, two, strict=True) for packet in pair])
    assert sorted(len(write) for write in written) == [10 + 40 + 200, 10 + 40 + 400]


def test_a_super_packet_never_exceeds_what_ip_can_say() -> None:
    written, _ = deliver(*[tcp(V4, bytes(1380), 1000 + 1380 * n) for n in range(60)])
    assert all(len(write) <= 10 + 65_535 for write in written)
    assert len(written) == 2


def test_wrong_sources_and_wrong_lengths_are_dropped_and_counted() -> None:
    packet = tcp(V4, b"x")
    assert deliver(packet, permits=False) == ([], Counter({"source-not-allowed": 1}))
    for broken in (b"", packet[:-1], packet + b"\0", b"\x55" + packet[1:], tcp(V6, b"x")[:-1], tcp(V6, b"x")[:39]):
        assert deliver(broken) == ([], Counter({"malformed": 1}))


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=90), max_size=4), st.sampled_from([b"\x45", b"\x60", b""]))
def test_any_plaintext_is_delivered_or_dropped(inner: list[bytes], first: bytes) -> None:
    written, drops = deliver(*[first + packet for packet in inner])
    assert len(written) + sum(drops.values()) <= len(inner)


@pytest.mark.parametrize("addresses", [V4, V6])
@pytest.mark.parametrize(
    ("outer", "inner", "result"),
    [
        (NOT_ECT, ECT0, ECT0),
        (ECT0, NOT_ECT, NOT_ECT),
        (ECT0, ECT1, ECT1),
        (ECT1, ECT0, ECT1),
        (ECT1, NOT_ECT, NOT_ECT),
        (CE, ECT0, CE),
        (CE, ECT1, CE),
        (CE, CE, CE),
        (CE, NOT_ECT, None),
    ],
)
def test_congestion_marks_are_taken_over_as_rfc_6040_says(
    addresses: tuple[bytes, bytes], outer: int, inner: int, result: int | None
) -> None:
    drops: Counter[str] = Counter()
    out = decapsulated([DATAGRAM_HEAD + tcp(addresses, b"x", tos=0xB8 | inner)], outer, drops)
    if result is None:
        assert not out
        assert drops == {"congestion": 1}
        return
    packet = out[0][3:]
    assert_whole(packet)
    tos = packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2], "big") >> 4 & 0xFF
    assert tos == 0xB8 | result
