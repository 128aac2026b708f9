"""Addresses in messages: typed at both ends, checked when they are read."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Network

import msgspec
import pytest

from qre.addresses import Address, Interface, Network
from qre.structs import Struct, decoder, encoder, plain


class Places(Struct, frozen=True, kw_only=True):
    host: Address
    own: tuple[Interface, ...] = ()
    networks: tuple[Network, ...] = ()


def test_addresses_of_either_family_arrive_as_what_they_were() -> None:
    places = Places(
        host=IPv6Address("2001:db8::1"),
        own=(IPv4Interface("10.77.0.1/24"),),
        networks=(IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8")),
    )
    assert decoder(Places).decode(encoder().encode(places)) == places
    assert plain(places) == {
        "host": "2001:db8::1",
        "own": ["10.77.0.1/24"],
        "networks": ["10.0.0.0/8", "fd00::/8"],
    }


@pytest.mark.parametrize(
    "field",
    [
        {"networks": ["10.0.0.0/33"]},
        {"networks": ["10.0.0.1/8"]},
        {"networks": [7]},
        {"networks": ["1" * 50]},
        {"host": "vpn.example"},
        {"host": "192.0.2.1/32"},
        {"own": ["10.77.0.1/x"]},
    ],
)
def test_what_is_no_address_is_refused(field: dict[str, object]) -> None:
    data = msgspec.msgpack.encode({"host": "192.0.2.1"} | field)
    with pytest.raises(msgspec.ValidationError):
        decoder(Places).decode(data)


def test_nothing_else_is_written_in_text() -> None:
    with pytest.raises(NotImplementedError):
        encoder().encode(object())
