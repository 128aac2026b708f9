"""Several servers of a client: the keys of its profile, and the order in which they are tried."""

from __future__ import annotations

import random

import pytest

from qre.config.model import HostPort, Profile
from qre.config.normalise import profile_values, to_file
from qre.config.profile import profile_from_values
from qre.ends import EndpointOrder
from qre.errors import UserError
from qre.visit.servers import KnownServer, Servers
from tests.support.config_parsers import parse_profile
from tests.support.profiles import CLIENT, PUBLIC_KEY

OTHER_KEY = "AQEB" * 10 + "AQE="


def parsed(**values: str) -> Profile:
    texts = dict(line.split(" = ", 1) for line in CLIENT.splitlines() if " = " in line)
    return profile_from_values("qre0", texts | values)


def test_each_server_has_its_key_and_short_id_in_the_order_of_endpoint() -> None:
    profile = parsed(
        Endpoint="192.0.2.1:443, vpn.example.org:8443",
        RealityPublicKey=f"{PUBLIC_KEY}, {OTHER_KEY}",
        RealityShortId="0123456789abcdef, 11",
        EndpointOrder="random",
    )
    assert profile.client is not None and profile.endpoint == HostPort("192.0.2.1", 443)
    (other,) = profile.other_servers
    assert (other.endpoint, other.public_key[:2], other.short_id) == (
        HostPort("vpn.example.org", 8443),
        b"\1\1",
        b"\x11" + bytes(7),
    )
    assert {str(network) for network in profile.outer} == {"192.0.2.1/32", "0.0.0.0/0", "::/0"}
    assert profile_values(profile)["Endpoint"] == ["192.0.2.1:443", "vpn.example.org:8443"]
    again = parse_profile(to_file(profile).encode(), "qre0", "qre0.conf")
    assert again == profile
    assert PUBLIC_KEY not in repr(profile) and repr(other) == "ServerPlace(endpoint=vpn.example.org:8443)"


def test_one_key_and_one_short_id_are_those_of_a_server_with_several_addresses() -> None:
    profile = parsed(Endpoint="192.0.2.1:443, 192.0.2.2:443")
    assert profile.client is not None
    assert [each.public_key for each in profile.other_servers] == [profile.client.public_key]
    assert profile_values(profile)["RealityPublicKey"] == [PUBLIC_KEY]
    assert parse_profile(to_file(profile).encode(), "qre0", "qre0.conf") == profile


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"RealityPublicKey": f"{PUBLIC_KEY}, {OTHER_KEY}"}, "there are 2, and 1 in Endpoint"),
        ({"Endpoint": "a.example:1, b.example:2, c.example:3", "RealityShortId": "00, 11"}, "there are 2, and 3"),
        ({"Endpoint": "a.example:1, a.example:1"}, "is given twice"),
        ({"Endpoint": "a.example:1,"}, "an entry of the list is empty"),
        ({"Endpoint": ", ".join(f"a.example:{port}" for port in range(1, 10))}, "9 entries are more than 8"),
        ({"EndpointOrder": "fastest"}, "is not one of listed, random"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, str], why: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(**values)
    assert why in str(caught.value) and PUBLIC_KEY not in str(caught.value)


# --- the order ---


def known(*hosts: str) -> list[KnownServer]:
    return [KnownServer(host, 443, bytes(32), bytes(8)) for host in hosts]


def names(servers: list[KnownServer]) -> str:
    return "".join(each.host for each in servers)


def test_a_silent_server_is_tried_last_and_the_client_goes_back_to_those_before_it() -> None:
    servers = Servers(random.Random(1))
    a, b, c = known("a", "b", "c")
    servers.use([a, b, c], EndpointOrder.LISTED)
    assert servers.first is a
    assert names(servers.after(None)) == "abc"
    assert (names(servers.after(a)), names(servers.after(b)), names(servers.after(c))) == ("bca", "cab", "abc")
    assert (names(servers.before(a)), names(servers.before(b)), names(servers.before(c))) == ("", "a", "ab")
    assert servers.before(None) == [], "a session of an earlier process may be anybody's"


def test_at_random_every_order_occurs_and_nobody_goes_back() -> None:
    seen = set()
    for seed in range(100):
        servers = Servers(random.Random(seed))
        servers.use(known("a", "b", "c"), EndpointOrder.RANDOM)
        seen.add(names(servers.after(None)))
        assert all(servers.before(each) == [] for each in servers.after(None))
    assert len(seen) == 6


def test_a_reload_keeps_what_is_known_of_the_same_places() -> None:
    servers = Servers(random.Random(1))
    (a,) = known("a")
    a.addresses = ((2, ("192.0.2.1", 443)),)
    servers.use([a], EndpointOrder.LISTED)
    servers.use(known("b", "a"), EndpointOrder.LISTED)
    fresh, kept = servers.after(None)
    assert (fresh.addresses, kept.addresses) == ((), a.addresses)
    assert names(servers.after(a)) == "ba", "what has gone on is found by its place"
    assert servers.now(a) is kept, "with the keys that are configured now"
    servers.use(known("c", "d"), EndpointOrder.LISTED)
    assert servers.now(a) is servers.now(None) is servers.first


def test_where_an_earlier_process_had_its_session_is_where_the_name_was() -> None:
    """A name beyond the tunnel does not resolve while there is none."""
    servers = Servers(random.Random(1))
    (named,), (numeric,) = known("vpn.example"), known("192.0.2.1")
    other = KnownServer("other.example", 8443, bytes(32), bytes(8))
    servers.use([numeric, named, other], EndpointOrder.LISTED)
    servers.was_at("192.0.2.7", 443)
    assert (numeric.addresses, named.addresses) == ((), ((2, ("192.0.2.7", 443)),))
    servers.was_at("192.0.2.8", 443)
    assert named.addresses == ((2, ("192.0.2.7", 443)),), "the confirmed session comes first"
    servers.use(known("a.example", "b.example"), EndpointOrder.LISTED)
    servers.was_at("192.0.2.7", 443)
    assert [each.addresses for each in servers.after(None)] == [(), ()], "it may be either's"
