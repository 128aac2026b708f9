"""What becomes of inner packets that are too large: answers, fragments, lowered MSS; sums computed word by word."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.wire.datagram import DATAGRAM_HEAD
from qre.workers.dataplane.inner import inner_errors
from qre.workers.dataplane.inner.fragments import fragments_untrusted, may_be_fragmented_untrusted
from qre.workers.dataplane.inner.mss import with_mss_lowered_untrusted
from qre.workers.dataplane.inner.offload import (
    GSO_NONE,
    GSO_UDP_L4,
    NEEDS_CSUM,
    NO_OFFLOAD,
    TOO_BIG,
    VNET_HEADER,
    as_super_packet_untrusted,
    split_untrusted,
)
from qre.workers.dataplane.refusals import Refusals
from tests.support.dataplane import Ends
from tests.support.inner_packets import V4, V6, assert_whole, ip, offloaded, pseudo, slow_sum, tcp, udp

C = Role.CLIENT
SYN, SYN_ACK, ACK = 0x02, 0x12, 0x10
ICMP, ICMPV6, UDP = 1, 58, 17


def mss(value: int) -> bytes:
    return struct.pack(">BBH", 2, 4, value)


# --- ICMP ---


def icmp_of(answer: bytes) -> tuple[int, int, int, bytes]:
    """Type, code, MTU and quote of a whole ICMP or ICMPv6 error."""
    at = 20 if answer[0] >> 4 == 4 else 40
    if at == 20:
        assert slow_sum(answer[:20]) == slow_sum(answer[20:]) == 0xFFFF
        assert (int.from_bytes(answer[2:4], "big"), answer[9]) == (len(answer), ICMP)
    else:
        assert (int.from_bytes(answer[4:6], "big"), answer[6]) == (len(answer) - 40, ICMPV6)
        assert slow_sum(pseudo(answer, ICMPV6, len(answer) - 40) + answer[40:]) == 0xFFFF
    kind, code, value = struct.unpack(">BBxxI", answer[at : at + 8])
    return kind, code, value, answer[at + 8 :]


@pytest.mark.parametrize("length", [1200, 1201, 60_000])
def test_a_sender_is_told_the_size_by_the_address_that_it_sent_to(length: int) -> None:
    for addresses, kind, code, most in ((V4, 3, 4, 576), (V6, 2, 0, 1280)):
        packet = tcp(addresses, bytes(length))
        answer = inner_errors.too_big(inner_errors.quote(packet), 1282)
        assert len(answer) == min(most, len(packet) + (28 if addresses is V4 else 48))
        at = 12 if addresses is V4 else 8
        assert answer[at : at + 2 * len(addresses[0])] == addresses[1] + addresses[0]
        told_kind, told_code, mtu, quote = icmp_of(answer)
        assert (told_kind, told_code, mtu) == (kind, code, 1282)
        assert packet.startswith(quote)


def test_ipv6_is_refused_as_administratively_prohibited() -> None:
    packet = udp(V6, b"payload")
    kind, code, value, quote = icmp_of(inner_errors.ipv6_refused(inner_errors.quote(packet)))
    assert (kind, code, value, quote) == (1, 1, 0, packet)


def changed(packet: bytes, at: int, value: bytes) -> bytes:
    return packet[:at] + value + packet[at + len(value) :]


V4_UDP, V6_UDP = udp(V4, b"payload"), udp(V6, b"payload")
FRAGMENT_HEADER = bytes((UDP, 0)) + bytes.fromhex("0000 00000001")


@pytest.mark.parametrize(
    "packet",
    [
        V4_UDP,
        V6_UDP,
        tcp(V4, b"x"),
        ip(V4, ICMP, bytes.fromhex("0800000000010001")),
        ip(V6, ICMPV6, bytes.fromhex("8000000000010001")),
        changed(V4_UDP, 6, b"\x20\x00"),  # the first of several fragments
        ip(V6, 44, FRAGMENT_HEADER + V6_UDP[40:]),
        ip(V6, 60, bytes((UDP, 0)) + bytes(6) + V6_UDP[40:]),
        ip(V6, 59, bytes(8)),
    ],
)
def test_these_are_answered(packet: bytes) -> None:
    assert inner_errors.may_be_answered_untrusted(packet)


@pytest.mark.parametrize(
    "packet",
    [
        ip(V4, ICMP, bytes.fromhex("0304000000000000")),
        ip(V4, ICMP, bytes.fromhex("0500000000000000")),
        ip(V6, ICMPV6, bytes.fromhex("0200000000000500")),
        ip(V6, 60, bytes((ICMPV6, 0)) + bytes(6) + bytes.fromhex("0200000000000500")),
        changed(V4_UDP, 6, b"\x20\x01"),
        ip(V6, 44, FRAGMENT_HEADER[:2] + b"\0\x08" + FRAGMENT_HEADER[4:] + V6_UDP[40:]),
        *[changed(V4_UDP, 12, source) for source in (bytes(4), b"\x7f\0\0\1", b"\xe0\0\0\1", b"\xff\xff\xff\xff")],
        *[changed(V4_UDP, 16, destination) for destination in (b"\xe0\0\0\1", b"\xff\xff\xff\xff")],
        *[changed(V6_UDP, 8, source) for source in (bytes(16), bytes(15) + b"\1", b"\xff\x02" + bytes(14))],
        changed(V6_UDP, 24, b"\xff\x02" + bytes(14)),
        ip(V6, 0, (bytes((0, 0)) + bytes(6)) * 9 + V6_UDP[40:]),  # headers without end
        ip(V6, 60, bytes((UDP, 255)) + bytes(6)),
        changed(V4_UDP, 0, b"\x4f"),
        V4_UDP[:27],
        V6_UDP[:47],
        b"",
        bytes(60),
    ],
)
def test_these_are_not(packet: bytes) -> None:
    assert not inner_errors.may_be_answered_untrusted(packet)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([0x45, 0x46, 0x4F, 0x60, 0x6F]))
def test_any_beginning_of_a_packet_is_answered_whole_or_not_at_all(packet: bytes, first: int) -> None:
    packet = bytes((first,)) + packet
    if inner_errors.may_be_answered_untrusted(packet):
        assert icmp_of(inner_errors.too_big(inner_errors.quote(packet), 1300))[2] == 1300
        assert inner_errors.flow_of(packet)


def test_answers_have_a_rate() -> None:
    budget = inner_errors.Budget(rate=10, burst=5)
    assert sum(budget.take(100.0) for _ in range(50)) == 5
    assert sum(budget.take(101.0) for _ in range(50)) == 5
    assert sum(budget.take(101.0 + n / 100) for n in range(1, 201)) == 20
    assert not budget.take(0.0), "a clock that goes back gives nothing"


# --- fragments ---


def may_be_cut(packet: bytes, place: int = 0) -> bytes:
    """Without Don't Fragment, its checksum right again."""
    packet = changed(changed(packet, 6, place.to_bytes(2, "big")), 10, b"\0\0")
    return changed(packet, 10, (0xFFFF - slow_sum(packet[:20])).to_bytes(2, "big"))


def joined(parts: list[bytes]) -> tuple[bytes, int]:
    """The payload of fragments, and where it began; every header is looked at."""
    payload, first, expected = b"", -1, -1
    for part in parts:
        packet = part.removeprefix(DATAGRAM_HEAD)
        assert part.startswith(DATAGRAM_HEAD)
        assert slow_sum(packet[:20]) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        at = 8 * (int.from_bytes(packet[6:8], "big") & 0x1FFF)
        first = at if first < 0 else first
        assert expected in {-1, at}
        payload, expected = payload + packet[20:], at + len(packet) - 20
    return payload, first


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9000), st.integers(1156, 1412), st.sampled_from([0, 0x2000, 0x2008, 0x0064]))
def test_fragments_fit_and_make_the_same_whole(length: int, limit: int, place: int) -> None:
    payload = random.Random(length).randbytes(length)
    packet = may_be_cut(ip(V4, UDP, payload), place)
    parts = fragments_untrusted(DATAGRAM_HEAD + packet, limit)
    assert joined(parts) == (payload, 8 * (place & 0x1FFF))
    assert all(len(part) - 3 <= limit for part in parts)
    more = [bool(part[3 + 6] & 0x20) for part in parts]
    assert more == [True] * (len(parts) - 1) + [bool(place & 0x2000)]


def test_what_must_not_be_fragmented_is_not() -> None:
    assert may_be_fragmented_untrusted(may_be_cut(V4_UDP))
    for packet in (V4_UDP, V6_UDP, b"", changed(may_be_cut(V4_UDP), 0, b"\x46"), may_be_cut(V4_UDP)[:19]):
        assert not may_be_fragmented_untrusted(packet)


# --- MSS ---


def lowered(packet: bytes, inner: int) -> bytes:
    return with_mss_lowered_untrusted(DATAGRAM_HEAD + packet, inner).removeprefix(DATAGRAM_HEAD)


@pytest.mark.parametrize(("addresses", "headers"), [(V4, 40), (V6, 60)])
@pytest.mark.parametrize("flags", [SYN, SYN_ACK, SYN | 0xC0])
@pytest.mark.parametrize("before", [b"", b"\1", b"\4\2", b"\3\3\7"])
def test_the_mss_of_a_syn_becomes_what_fits_and_its_checksum_stays_right(
    addresses: tuple[bytes, bytes], headers: int, flags: int, before: bytes
) -> None:
    for told in (1340, 1460, 8960, 0xFFFF):
        options = before + mss(told)
        packet = tcp(addresses, b"", flags=flags, options=options + bytes(-len(options) % 4))
        out = lowered(packet, 1282)
        assert_whole(out)
        at = headers + len(before)
        assert out[at : at + 4] == mss(1282 - headers)
        assert len(out) == len(packet)


@pytest.mark.parametrize("addresses", [V4, V6])
def test_everything_else_stays_as_it_is(addresses: tuple[bytes, bytes]) -> None:
    large = mss(1460)
    kept = [
        tcp(addresses, b"", flags=SYN, options=mss(1100)),
        tcp(addresses, b"", flags=SYN),
        tcp(addresses, b"", flags=ACK, options=large),
        tcp(addresses, b"", flags=SYN, options=b"\0\0\0\0" + large),  # behind the end of options
        tcp(addresses, b"", flags=SYN, options=b"\2\3\1\1" + large),  # an MSS of another length
        tcp(addresses, b"", flags=SYN, options=b"\x05\0\1\1" + large),  # an option of no length
        tcp(addresses, b"", flags=SYN, options=b"\x05\x0b\1\1" + large),  # one that goes beyond
        tcp(addresses, b"", flags=SYN, options=large)[:-1],
        udp(addresses, bytes([SYN] * 40)),
        b"",
        bytes(40),
    ]
    for packet in kept:
        assert lowered(packet, 1282) == packet
    assert lowered(tcp(addresses, b"", flags=SYN, options=large), 40) == tcp(addresses, b"", flags=SYN, options=large)


def test_a_later_fragment_is_not_taken_for_a_syn() -> None:
    packet = changed(tcp(V4, b"", flags=SYN, options=mss(1460)), 6, b"\0\1")
    assert lowered(packet, 1282) == packet


def test_a_syn_with_ip_options_is_lowered_too() -> None:
    whole = tcp(V4, b"", flags=SYN, options=mss(1460))
    packet = b"\x46" + whole[1:20] + b"\1\1\1\1" + whole[20:]
    assert lowered(packet, 1282)[44:48] == mss(1242)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([0x45, 0x4F, 0x40, 0x60]), st.integers(-1, 1500))
def test_any_packet_keeps_its_length(packet: bytes, first: int, inner: int) -> None:
    packet = bytes((first,)) + packet
    assert len(lowered(packet, inner)) == len(packet)


# --- all of it, for a session ---


class Refused:
    """A session's refusals over a path of ``mtu`` bytes of UDP payload; its search is over unless said otherwise."""

    def __init__(self, mtu: int = 1372, *, settled: bool = True) -> None:
        self.ends = Ends()
        self.ends.fate = lambda role, datagram: [self.ends.delay] if len(datagram) <= mtu else []
        if settled:
            self.ends.run(5)
        self.session = self.ends.client
        self.drops: Counter[str] = Counter()
        self.answers: list[bytes] = []
        self.said: list[str] = []
        self.refusals = Refusals(self.drops, self.answers.append, lambda kind, text: self.said.append(text))

    def refuse(self, packet: bytes, offload: bytes = NO_OFFLOAD) -> list[bytes]:
        return self.refusals.instead_untrusted(TOO_BIG, self.session, offload + packet, self.ends.now)


@pytest.mark.parametrize("addresses", [V4, V6])
@pytest.mark.parametrize("whole", [True, False])
def test_a_tcp_segment_is_cut_into_two_that_make_the_same_stream(addresses: tuple[bytes, bytes], whole: bool) -> None:
    refused = Refused()
    payload = random.Random(1).randbytes(1340)
    packet = tcp(addresses, payload, 0xFFFFFFF0, 0x19, options=b"\1\1\x08\x0a12345678", whole=whole)
    offload = NO_OFFLOAD if whole else offloaded(packet, 0, 0)[:10]
    one, two = (part.removeprefix(DATAGRAM_HEAD) for part in refused.refuse(packet, offload))
    at = 52 if addresses is V4 else 72
    for part, sequence, flags in ((one, 0xFFFFFFF0, 0x10), (two, 0xFFFFFFF0 + 1282 - at & 0xFFFFFFFF, 0x19)):
        assert_whole(part)
        assert part[at - 28 : at - 24] == sequence.to_bytes(4, "big")
        assert part[at - 19] == flags
    assert (len(one), one[at:] + two[at:]) == (1282, payload)
    assert (refused.answers, refused.drops) == ([], {})


@pytest.mark.parametrize("addresses", [V4, V6])
def test_segments_that_must_stay_whole_are_answered(addresses: tuple[bytes, bytes]) -> None:
    refused = Refused()
    payload = bytes(1340)
    segment = tcp(addresses, payload)
    kept = [
        *[tcp(addresses, payload, flags=flags) for flags in (SYN, 0x14, 0x30)],
        tcp(addresses, payload, options=bytes((1, 1, 19, 18)) + bytes(16)),
        tcp(addresses, payload, options=bytes((29, 16)) + bytes(14)),
        changed(segment, len(segment) - 1, b"\1"),  # a wrong checksum
        segment + b"\0",  # longer than it says
    ]
    for packet in kept:
        assert refused.refuse(packet) == []
    assert refused.refuse(segment, VNET_HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, 20, 6)) == []
    assert refused.drops == {"too-big": len(kept) + 1}
    assert len(refused.answers) == len(kept) + 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=150), st.tuples(st.integers(0, 1), *[st.integers(0, 80)] * 2), st.integers(0, 100))
def test_any_segment_is_cut_to_the_limit_or_left_alone(packet: bytes, header: tuple[int, ...], limit: int) -> None:
    for first in (b"\x45", b"\x60"):
        read = VNET_HEADER.pack(header[0], GSO_NONE, 0, 0, *header[1:]) + first + packet
        segments = as_super_packet_untrusted(read)
        if segments is not None:
            try:
                parts = split_untrusted(segments, limit)
            except UntrustedInputError:
                continue
            assert all(len(part) <= max(limit, len(packet) + 1) + 3 for part in parts)


@pytest.mark.parametrize("addresses", [V4, V6])
def test_what_is_too_big_is_dropped_counted_and_answered(addresses: tuple[bytes, bytes]) -> None:
    refused = Refused()
    assert refused.refuse(udp(addresses, bytes(1300))) == []
    assert refused.drops == {"too-big": 1}
    (answer,) = refused.answers
    assert icmp_of(answer)[2] == refused.session.max_inner == 1282


def test_below_1280_ipv6_is_refused_in_words_whatever_its_size() -> None:
    refused = Refused(1300)
    refused.refuse(udp(V6, b"small"))
    assert refused.drops == {"ipv6-refused": 1}
    assert icmp_of(refused.answers[0])[:2] == (1, 1)
    assert refused.said == [
        "the path to 192.0.2.1 takes packets of 1278 bytes, which leaves 1206 for inner packets: "
        "IPv6 needs 1280, and is refused"
    ]


def test_an_ipv4_packet_that_may_be_fragmented_is_and_nobody_is_told() -> None:
    refused = Refused()
    parts = refused.refuse(may_be_cut(udp(V4, bytes(3000))))
    assert len(parts) == 3
    assert max(map(len, parts)) <= 1285
    datagrams = offloaded(may_be_cut(udp(V4, bytes(2700))), GSO_UDP_L4, 1350, 6)
    assert len(refused.refuse(datagrams[10:], datagrams[:10])) == 4
    assert (refused.answers, refused.drops) == ([], {})
    assert refused.refuse(may_be_cut(ip(V4, UDP, bytes(3000), hops=1))) == []
    assert refused.drops == {"hops-over": 1}


def test_during_a_search_nobody_is_told_and_afterwards_each_flow_once_if_it_still_does_not_fit() -> None:
    refused = Refused(settled=False)
    for addresses in (V4, V6):
        for length in (1200, 1300, 1340):
            refused.refuse(udp(addresses, bytes(length)))
    refused.refuse(changed(udp(V4, bytes(1200)), 20, b"\x09"))
    assert refused.answers == []
    assert refused.drops == {"too-big": 7}
    refused.ends.run(5)
    refused.refusals.answer_late(refused.session, refused.ends.now)
    assert [icmp_of(answer)[2] for answer in refused.answers] == [1282, 1282]
    refused.refusals.answer_late(refused.session, refused.ends.now)
    assert len(refused.answers) == 2
    assert refused.session.max_inner == 1282


def test_what_is_remembered_and_what_is_answered_is_bounded() -> None:
    refused = Refused(settled=False)
    flows = [changed(udp(V4, bytes(1300)), 20, n.to_bytes(2, "big")) for n in range(1000)]
    for packet in flows:
        refused.refuse(packet)
    assert len(refused.session.unanswered) == 16
    refused.ends.run(5)
    for packet in flows:
        refused.refuse(packet)
    assert len(refused.answers) == 64
    assert refused.drops == {"too-big": 2000}
