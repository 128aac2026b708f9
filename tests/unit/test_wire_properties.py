"""Every codec of the wire: what is written is read back, and any bytes parse or raise the one exception."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.wire import overhead
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.number import MAX_PACKET_NUMBER, decode_number, encode_number
from qre.wire.packet import (
    PacketType,
    build_long_header,
    build_short_header,
    is_initial,
    is_long,
    is_short,
    long_header_destination_cid,
    packets_untrusted,
    parse_header_untrusted,
)
from qre.wire.protection import Protection
from qre.wire.varint import MAX_VARINT, encode_varint, read_varint_untrusted
from tests.fuzz import fuzz_wire
from tests.support.wire_codecs import encoded_length, largest_inner_of_payload, outer_length

cids = st.binary(max_size=20)
numbers = st.integers(0, MAX_PACKET_NUMBER)


@given(st.integers(0, MAX_VARINT), st.binary(max_size=4))
def test_a_varint_is_read_back(value: int, rest: bytes) -> None:
    encoded = encode_varint(value)
    assert read_varint_untrusted(encoded + rest) == (value, len(encoded))


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_a_varint_out_of_range_is_not_written(value: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        encode_varint(value)


@given(numbers, st.integers(0, 1 << 20))
def test_a_packet_number_is_recovered_while_it_is_near_the_expected_one(number: int, behind: int) -> None:
    largest = max(number - behind - 1, 0)
    length = encoded_length(number, largest if largest < number else None) if number - largest < 1 << 31 else 4
    truncated = int.from_bytes(encode_number(number, length), "big")
    assert decode_number(truncated, length, largest + 1) == number


@given(cids, cids, st.binary(min_size=1, max_size=4), st.binary(max_size=30), st.binary(min_size=20, max_size=80))
def test_a_long_header_is_read_back(dcid: bytes, scid: bytes, number: bytes, token: bytes, body: bytes) -> None:
    header = build_long_header(PacketType.INITIAL, dcid, scid, number, len(number) + len(body), token)
    parsed = parse_header_untrusted(header + body, short_cid_length=0)
    assert (parsed.destination_cid, parsed.source_cid, parsed.token) == (dcid, scid, token)
    assert parsed.number_offset == len(header) - len(number)
    assert parsed.end == len(header) + len(body)


@given(cids, numbers, st.binary(min_size=4, max_size=200), st.integers(0, 1), st.binary(min_size=32, max_size=32))
def test_what_is_protected_is_unprotected(cid: bytes, number: int, payload: bytes, phase: int, secret: bytes) -> None:
    protection = Protection(secret)
    header = build_short_header(cid, encode_number(number, 4), key_phase=phase)
    packet = protection.protect(header, number, payload)
    assert protection.unprotect_untrusted(packet, 1 + len(cid), number) == (header, number, payload)


@given(st.binary(min_size=60, max_size=90), st.integers(0, 719))
def test_one_flipped_bit_is_not_authentic(payload: bytes, bit: int) -> None:
    protection = Protection(bytes(32))
    packet = bytearray(protection.protect(build_short_header(b"", b"\0\0\0\1"), 1, payload))
    packet[bit // 8 % len(packet)] ^= 1 << bit % 8
    with pytest.raises(UntrustedInputError):
        protection.unprotect_untrusted(bytes(packet), 1, 1)


@given(st.binary(max_size=120), st.integers(0, 20))
def test_any_bytes_are_packets_or_refused(data: bytes, cid_length: int) -> None:
    try:
        for header in packets_untrusted(data, short_cid_length=cid_length):
            assert header.start < header.end <= len(data)
            assert header.number_offset <= header.end
    except UntrustedInputError:
        pass


@given(st.binary(max_size=20), st.integers(0, 25))
def test_any_bytes_are_a_varint_or_refused(data: bytes, at: int) -> None:
    try:
        value, end = read_varint_untrusted(data, at)
        assert 0 <= value <= MAX_VARINT
        assert at < end <= len(data)
    except UntrustedInputError:
        pass


def test_the_overhead_is_what_the_documentation_says() -> None:
    assert overhead.quic_overhead() == 44
    assert len(DATAGRAM_HEAD) == overhead.DATAGRAM_HEAD
    assert overhead.quic_overhead(7) == overhead.packet_overhead(7) + len(DATAGRAM_HEAD)
    assert largest_inner_of_payload(overhead.MAX_UDP_PAYLOAD) == overhead.largest_inner(overhead.ETHERNET_MTU)
    assert overhead.largest_inner(1500) == 1428
    assert overhead.largest_inner(1500, ip_header=overhead.IPV6_HEADER) == 1408
    assert outer_length(1380) == 1452
    assert largest_inner_of_payload(1250) == 1206


@given(
    cids, cids, st.sampled_from([kind for kind in PacketType if kind.value < 3]), st.binary(min_size=20, max_size=30)
)
def test_a_glance_at_a_header_agrees_with_the_parser(dcid: bytes, scid: bytes, kind: PacketType, body: bytes) -> None:
    long = build_long_header(kind, dcid, scid, b"\0", 1 + len(body)) + body
    assert (is_long(long), is_short(long), is_initial(long)) == (True, False, kind is PacketType.INITIAL)
    assert long_header_destination_cid(long) == dcid
    short = build_short_header(dcid, b"\0") + body
    assert (is_long(short), is_short(short), is_initial(short)) == (False, True, False)


def test_an_empty_datagram_has_no_header() -> None:
    assert not is_long(b"") and not is_short(b"") and not is_initial(b"")
    assert long_header_destination_cid(b"") == b""


def test_a_short_fuzzing_run_finds_nothing() -> None:
    assert fuzz_wire.main(4000, seed=7) == 0
