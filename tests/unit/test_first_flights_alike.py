"""Everything that varies in a first flight varies as in Chromium's: its samples and ours may be of one kind.

Flights of ours against 132 of Chromium's, and of clients that come back, half of them with a token, against those of
Chromium that resumed. The seeds are fixed: what is unlikely here is a change of ours, and no accident.
"""

from __future__ import annotations

import random as randomness
from functools import cache
from ipaddress import ip_interface

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.resumption.held_ticket import HeldTicket
from qre.visit.visitor_files import load_fingerprint
from tests.support.browser_flights import FirstFlight, compare, features, first_flight, recorded
from tests.support.pair import NAME, SERVER, SHORT_ID, TRUST, UNIX_TIME
from tests.support.tcpdump import Datagram

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
FLIGHTS = 300
#: Of all things together: samples of one kind are less alike once in so many runs.
UNLIKELY = 0.05
TICKET = HeldTicket(
    identity=bytes(156),
    secret=bytes(32),
    age_add=7,
    lifetime=86_400,
    received_ms=UNIX_TIME * 1000,
    early_data=True,
    parameters=b"",
    round_trip_us=900,
)


def flight(seed: int, held: HeldTicket | None) -> FirstFlight:
    handshake = ClientHandshake(
        server_name=NAME,
        public_key=KEY.public_key().public_bytes_raw(),
        short_id=SHORT_ID,
        addresses=(ip_interface("10.0.0.2/24"),),
        fingerprint=load_fingerprint(),
        trust=TRUST,
        unix_time=UNIX_TIME,
        now=0.0,
        random=randomness.Random(seed),
        ticket=held,
        round_trip_us=held.round_trip_us if held is not None else 0,
    )
    handshake.connect(SERVER, 0.0)
    sent = handshake.datagrams_to_send(0.0)[:2]
    return first_flight([Datagram(0.0, ("", 0), SERVER, 0, True, data) for data in sent])


@cache
def flights(*, comes_back: bool) -> tuple[FirstFlight, ...]:
    return tuple(flight(seed, ticket(seed) if comes_back else None) for seed in range(FLIGHTS))


def ticket(seed: int) -> HeldTicket:
    """Every second one has a token, as long as Caddy's."""
    return msgspec.structs.replace(TICKET, token=bytes(90 + seed // 2 % 2) if seed % 2 else b"")


@pytest.mark.parametrize(
    ("name", "comes_back"), [("first-flights", False), ("first-flights-back", True)], ids=["fresh", "back"]
)
def test_what_varies_varies_as_the_browsers(name: str, comes_back: bool) -> None:
    alike = compare(features(flights(comes_back=comes_back)), recorded(name))
    print({each: round(p, 4) for each, p in alike.items()})
    assert min(alike.values()) > UNLIKELY / len(alike), alike


def test_a_difference_would_be_seen() -> None:
    """One PING more in each packet, an even CRYPTO frame, another place of one extension."""
    ours, browsers = features(flights(comes_back=False)), recorded("first-flights")
    for name, changed in (
        ("PINGs of packet 1", [value + 1.5 for value in ours["PINGs of packet 1"]]),
        ("length of a CRYPTO frame", [170.0] * 500),
        ("place of extension 51", [value // 2 for value in ours["place of extension 51"]]),
    ):
        assert compare(ours | {name: changed}, browsers)[name] < UNLIKELY / len(browsers)
