"""Addresses of a translator between IPv6 and IPv4: RFC 6052's own examples, and what a network tells of its own."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.causes import Cause
from qre.errors import MachineError
from qre.visit.dest import Resolved
from qre.visit.nat64 import NAME, embedded, prefixes, translated
from qre.visit.servers import KnownServer
from qre.workers.handshake.names import addresses_of

#: RFC 6052 section 2.4: network-specific prefixes, and 192.0.2.33 behind each.
EXAMPLES = {
    "2001:db8::/32": "2001:db8:c000:221::",
    "2001:db8:100::/40": "2001:db8:1c0:2:21::",
    "2001:db8:122::/48": "2001:db8:122:c000:2:2100::",
    "2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
    "2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::",
    "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
    "64:ff9b::/96": "64:ff9b::192.0.2.33",
}
LENGTHS = (4, 5, 6, 7, 8, 12)


def prefix_of(text: str) -> bytes:
    address, _, length = text.partition("/")
    return IPv6Address(address).packed[: int(length) // 8]


@pytest.mark.parametrize("prefix", EXAMPLES)
def test_an_address_stands_behind_a_prefix_as_the_rfc_has_it(prefix: str) -> None:
    assert embedded(prefix_of(prefix), IPv4Address("192.0.2.33")) == IPv6Address(EXAMPLES[prefix])


@given(st.binary(min_size=12, max_size=12), st.sampled_from(LENGTHS), st.sampled_from(["192.0.0.170", "192.0.0.171"]))
def test_a_prefix_is_known_by_the_names_addresses(noise: bytes, length: int, known: str) -> None:
    prefix = bytearray(noise[:length])
    if length > 8:
        prefix[8] = 0
    assert bytes(prefix) in prefixes([embedded(bytes(prefix), IPv4Address(known))])


@pytest.mark.parametrize("told", ["2001:db8::1", "::", "64:ff9b::192.0.0.172", "2001:db8:0:0:ff00::192.0.0.170"])
def test_any_other_answer_tells_no_prefix(told: str) -> None:
    assert prefixes([IPv6Address(told)]) == ()


def asked(found: list[Resolved], told: list[str] | None) -> tuple[tuple[Resolved, ...], list[tuple[str, int, int]]]:
    """``told``: the addresses of the name; None: the resolver has none."""
    names: list[tuple[str, int, int]] = []

    async def lookup(host: str, port: int, family: int) -> list[Resolved]:
        names.append((host, port, family))
        if told is None:
            raise MachineError.of("cannot resolve", Cause.NAME_UNKNOWN)
        return [(socket.AF_INET6, (ip, port)) for ip in told]

    return asyncio.run(translated(found, lookup)), names


SERVER: Resolved = (socket.AF_INET, ("198.51.100.7", 443))
PUBLIC: Resolved = (socket.AF_INET, ("9.9.9.9", 443))


def test_every_ipv4_address_is_translated_by_every_prefix_in_order() -> None:
    found, names = asked(
        [SERVER, (socket.AF_INET6, ("2001:db8::9", 443)), PUBLIC],
        ["2001:db8:64::192.0.0.170", "2001:db8:64::192.0.0.171", "64:ff9b::192.0.0.170"],
    )
    assert found == (
        (socket.AF_INET6, ("2001:db8:64::c633:6407", 443)),
        (socket.AF_INET6, ("2001:db8:64::909:909", 443)),
        (socket.AF_INET6, ("64:ff9b::909:909", 443)),  # the well-known prefix has public addresses alone
    )
    assert names == [(NAME, 0, socket.AF_INET6)]


@pytest.mark.parametrize("told", [None, [], ["2001:db8::1"]])
def test_without_a_translator_there_is_nothing(told: list[str] | None) -> None:
    assert asked([SERVER], told)[0] == ()


def test_nobody_is_asked_for_an_address_of_ipv6() -> None:
    assert asked([(socket.AF_INET6, ("2001:db8::9", 443))], ["64:ff9b::192.0.0.170"]) == ((), [])


@pytest.mark.parametrize("version", [0, 4, 6])
def test_a_server_that_there_was_no_route_to_is_tried_behind_the_translator_first(version: int) -> None:
    server = KnownServer("198.51.100.7" if version != 6 else "2001:db8::9", 443, b"", b"")
    literal: Resolved = SERVER if version != 6 else (socket.AF_INET6, ("2001:db8::9", 443))
    behind: Resolved = (socket.AF_INET6, ("2001:db8:64::c633:6407", 443))
    asked: list[str] = []

    async def lookup(host: str, port: int, family: int) -> list[Resolved]:
        asked.append(host)
        return [(socket.AF_INET6, ("2001:db8:64::c000:aa", port))]

    def addresses() -> tuple[Resolved, ...]:
        return asyncio.run(addresses_of(server, version, lookup, lambda *_: None))

    assert addresses() == (literal,) and asked == []
    for cause in (Cause.NO_ANSWER, None):
        server.failed([literal], (literal,), cause)
        assert addresses() == (literal,) and asked == [], "any other failure asks nobody"
    server.failed([literal], (literal,), Cause.NO_ROUTE)
    found = addresses()
    assert found == ((behind, literal) if version == 0 else (literal,))
    assert asked == ([NAME] if version == 0 else [])
    server.answered(behind)
    assert addresses() == found, "it stays so"
    server.answered(literal)
    assert addresses() == (literal,), "there is IPv4 again"


def test_no_route_to_an_address_of_ipv6_says_nothing_of_ipv4() -> None:
    """A host with IPv4 alone does not ask for the name, although its server's IPv6 address is out of reach."""
    server, other = KnownServer("vpn.example", 443, b"", b""), (socket.AF_INET6, ("2001:db8::9", 443))
    server.failed([SERVER, other], [SERVER, other], Cause.NO_ROUTE)
    assert not server.unroutable
    server.failed([other, SERVER], [other, SERVER], Cause.NO_ROUTE)
    assert server.unroutable
