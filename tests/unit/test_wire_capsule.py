"""CONNECT-IP's capsules: what is encoded parses back, and any bytes parse or raise the one exception."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.addresses import Network
from qre.errors import UntrustedInputError
from qre.wire.capsule import (
    CapsuleType,
    RequestedAddress,
    encode_addresses,
    encode_capsule,
    encode_routes,
    parse_addresses_untrusted,
    parse_request_untrusted,
    parse_routes_untrusted,
    read_capsule_untrusted,
)
from tests.support.untrusted import read_or_refused

ADDRESSES = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: ip_interface(str(ip_interface((address, length)).network))
    )
)
ENTRIES = st.lists(st.builds(RequestedAddress, st.integers(0, 2**62 - 1), ADDRESSES), max_size=8)


@settings(max_examples=50)
@given(ENTRIES)
def test_addresses_come_back_as_they_were_sent(entries: list[RequestedAddress]) -> None:
    capsule = read_capsule_untrusted(encode_addresses(CapsuleType.ADDRESS_REQUEST, entries) + b"more", 4096)
    assert capsule is not None
    kind, value, length = capsule
    assert (kind, parse_addresses_untrusted(value)) == (CapsuleType.ADDRESS_REQUEST, tuple(entries))
    assert length == len(encode_addresses(CapsuleType.ADDRESS_REQUEST, entries))


@settings(max_examples=50)
@given(st.lists(ADDRESSES.map(lambda interface: interface.network), max_size=8))
def test_routes_come_back_in_the_order_that_the_rfc_wants(routes: list[Network]) -> None:
    capsule = read_capsule_untrusted(encode_routes(routes), 4096)
    assert capsule is not None
    found = parse_routes_untrusted(capsule[1])
    assert set(found) == {route for route in routes if not any(is_inside(route, other) for other in routes)}
    assert [route.version for route in found] == sorted(route.version for route in found)


def is_inside(one: Network, other: Network) -> bool:
    return (
        one != other
        and one.version == other.version
        and one.network_address in other
        and (one.prefixlen > other.prefixlen)
    )


def test_a_route_inside_another_is_not_told_twice() -> None:
    told = read_capsule_untrusted(encode_routes(map(ip_network, ("10.1.0.0/16", "::/0", "10.0.0.0/8", "::/1"))), 99)
    assert told is not None
    assert parse_routes_untrusted(told[1]) == tuple(map(ip_network, ("10.0.0.0/8", "::/0")))


def route(version: int, first: int, last: int, protocol: int = 0) -> bytes:
    size = 4 if version == 4 else 16
    return bytes([version]) + first.to_bytes(size, "big") + last.to_bytes(size, "big") + bytes([protocol])


@pytest.mark.parametrize(
    "value",
    [
        route(6, 0, 1) + route(4, 0, 1),
        route(4, 8, 15, 6) + route(4, 16, 31),
        route(4, 16, 31) + route(4, 0, 15),
        route(4, 0, 16) + route(4, 16, 31),
        route(4, 0, 15) + route(4, 0, 15),
        route(4, 0, 15, 17) + route(4, 8, 8, 17),  # also where they are for a protocol that is left out
    ],
)
def test_routes_that_overlap_or_are_out_of_order_are_refused(value: bytes) -> None:
    with pytest.raises(UntrustedInputError, match="overlap"):
        parse_routes_untrusted(value)


def test_the_same_addresses_may_stand_under_several_protocols_and_versions() -> None:
    value = route(4, 0, 15) + route(4, 16, 31) + route(4, 0, 15, 6) + route(4, 0, 15, 17) + route(6, 0, 15)
    assert parse_routes_untrusted(value) == tuple(map(ip_network, ("0.0.0.0/28", "0.0.0.16/28", "::/124")))


def request(*numbers: int) -> bytes:
    return b"".join(bytes([number, 4, 10, 0, 0, number, 32]) for number in numbers)


def test_requests_are_told_apart_by_their_numbers() -> None:
    assert [entry.request_id for entry in parse_request_untrusted(request(3, 1, 2))] == [3, 1, 2]
    assert parse_addresses_untrusted(request(0, 0)) == (
        RequestedAddress(0, ip_interface("10.0.0.0/32")),
        RequestedAddress(0, ip_interface("10.0.0.0/32")),
    )
    assert parse_addresses_untrusted(b"") == ()
    for value in (b"", request(0), request(1, 0), request(1, 2, 1)):
        with pytest.raises(UntrustedInputError, match="request"):
            parse_request_untrusted(value)


def test_an_address_has_no_bits_beyond_its_prefix() -> None:
    assert parse_addresses_untrusted(b"\x01\x04\x0a\x00\x00\x00\x18")
    for value in (b"\x01\x04\x0a\x00\x00\x01\x18", b"\x01\x06" + bytes(15) + b"\x01\x00"):
        with pytest.raises(UntrustedInputError, match="beyond its prefix"):
            parse_addresses_untrusted(value)


def test_a_range_that_is_no_prefix_becomes_several() -> None:
    value = bytes([4, 10, 0, 0, 1, 10, 0, 0, 4, 0])
    assert parse_routes_untrusted(value) == tuple(map(ip_network, ("10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32")))


def test_ranges_that_become_too_many_prefixes_are_refused() -> None:
    """Two prefixes for each bit: 120 ranges in a capsule of 4 KB would be 14,000."""
    value, first = b"", 1
    for count in range(1, 121):
        last = first + (1 << 100) - 2
        value += b"\x06" + first.to_bytes(16, "big") + last.to_bytes(16, "big") + b"\x00"
        first = last + 3
        if count == 5:
            assert len(parse_routes_untrusted(value)) >= 500
    with pytest.raises(UntrustedInputError, match="too many prefixes"):
        parse_routes_untrusted(value)


def test_a_route_for_one_protocol_is_left_out() -> None:
    assert parse_routes_untrusted(bytes([4, 10, 0, 0, 0, 10, 0, 0, 255, 17])) == ()


def test_an_incomplete_capsule_waits_and_a_long_one_is_refused() -> None:
    whole = encode_capsule(2, bytes(100))
    assert all(read_capsule_untrusted(whole[:cut], 100) is None for cut in range(len(whole)))
    with pytest.raises(UntrustedInputError):
        read_capsule_untrusted(encode_capsule(2, bytes(101))[:4], 100)


@pytest.mark.parametrize(
    "value",
    [b"\x01", b"\x01\x05\x00", b"\x01\x04\x0a\x00\x00\x01", b"\x01\x04\x0a\x00\x00\x01\x21", b"\x01\x06" + bytes(15)],
)
def test_a_broken_address_is_refused(value: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        parse_addresses_untrusted(value)


@pytest.mark.parametrize(
    "value", [b"\x04" + bytes(8), b"\x04\x0a\x00\x00\x02\x0a\x00\x00\x01\x00", b"\x07" + bytes(9)]
)
def test_a_broken_route_is_refused(value: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        parse_routes_untrusted(value)


def read_any(data: bytes) -> object:
    return read_capsule_untrusted(data, 64)


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_any_bytes_parse_or_raise_the_one_exception(data: bytes) -> None:
    for parse in (parse_addresses_untrusted, parse_request_untrusted, parse_routes_untrusted, read_any):
        found = read_or_refused(parse, data)
        assert found is None or isinstance(found, tuple)
