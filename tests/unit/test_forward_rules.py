"""Forward: the nftables table that lets a tunnel's packets pass, what others' rules say, and the key."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from qre.config.normalise import profile_values
from qre.config.profile import profile_from_values
from qre.ends import Forward
from qre.errors import UserError
from qre.kernel.forward.forward_rules import Passage, replacement
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import Closed, Guarded, OwnTable, Record, let_through, read_listing, removal
from qre.kernel.udp.underlay_sockets import MARK
from tests.support.profiles import SERVER

PASSAGE = Passage(
    device="qre0",
    mode=Forward.NAT,
    guarded=(Guarded(2, "eth0", False), Guarded(3, "eth1", True)),
    tunnel=(Guarded(7, "qre0", False),),
    ipv6=False,
    listen=Listening((IPv4Address("192.0.2.1"),), 443),
    dest=(IPv4Address("198.51.100.7"), 443),
    quiet=True,
)
ROUTE = replace(PASSAGE, mode=Forward.ROUTE)


def added(passage: Passage, kind: str) -> list[dict[str, Any]]:
    return [each["add"][kind] for each in replacement(passage) if kind in each.get("add", {})]


def rules(passage: Passage, chain: str) -> list[str]:
    return [str(rule["expr"]) for rule in added(passage, "rule") if rule["chain"] == chain]


def drops(passage: Passage, chain: str) -> list[str]:
    return [rule for rule in rules(passage, chain) if rule.endswith("{'drop': None}]")]


def test_everything_is_in_one_table_which_takes_the_place_of_the_old_one_in_one_transaction() -> None:
    table = OwnTable("inet", "qre-qre0")
    assert replacement(PASSAGE)[:2] == removal([table])
    for kind in ("chain", "rule"):
        assert {(each["family"], each["table"]) for each in added(PASSAGE, kind)} == {table}


def test_the_table_says_itself_which_devices_did_not_forward() -> None:
    listing = read_listing([{"chain": each} for each in added(PASSAGE, "chain")])
    assert listing.records == {OwnTable("inet", "qre-qre0"): Record(None, {7: False, 2: False, 3: True})}
    assert listing.closed == ()


def test_only_with_nat_are_addresses_translated_and_replies_alone_let_in() -> None:
    datagrams, out = rules(PASSAGE, "out")
    assert f"'right': {MARK}" in datagrams and f"'right': {MARK}" in out, "qre.ko's own are not translated"
    assert "'udp'" in datagrams and "{'masquerade': {'port': {'range': [1024, 32767]}}}" in datagrams
    for port, left in ((51820, [1024, 32767]), (8443, [8444, 32767]), (30_000, [1024, 29_999])):
        datagrams, _ = rules(replace(PASSAGE, listen=Listening((IPv4Address(0),), port)), "out")
        assert f"{{'range': {left}}}" in datagrams
    assert "'masquerade'" in out and "'right': 'qre0'" in out
    assert rules(ROUTE, "out") == []
    assert len(drops(PASSAGE, "forward")) == 2 and len(drops(ROUTE, "forward")) == 1
    vouched = [rule for rule in rules(PASSAGE, "pass") if f"'value': {MARK}" in rule]
    assert len(vouched) == 2 and "established" in vouched[0] and "dnat" in vouched[1]
    (routed,) = [rule for rule in rules(ROUTE, "pass") if f"'value': {MARK}" in rule]
    assert "established" not in routed


@pytest.mark.parametrize("passage", [PASSAGE, ROUTE])
def test_an_uplink_that_did_not_forward_passes_nothing_but_the_tunnels(passage: Passage) -> None:
    assert rules(passage, "pass")[-1].endswith("{'drop': None}]") and "['eth0', 'eth1']" in rules(passage, "pass")[-1]
    assert "['eth0', 'eth1']" in drops(passage, "forward")[0]


def test_of_a_bridge_only_what_is_its_own_is_dropped() -> None:
    bridge = Guarded(2, "br0", False, "02:00:00:00:00:07")
    beside = replace(PASSAGE, guarded=(bridge, Guarded(3, "eth1", True)))
    for chain in ("pass", "forward"):
        of_eth1, of_br0 = [rule for rule in drops(beside, chain) if "'br0'" in rule or "'eth1'" in rule]
        assert "br0" not in of_eth1 and "'ether'" not in of_eth1
        assert "02:00:00:00:00:07" in of_br0 and "eth1" not in of_br0
    assert len(drops(replace(PASSAGE, guarded=(bridge,)), "forward")) == 2


def test_a_router_stays_one() -> None:
    router = replace(ROUTE, guarded=(), tunnel=())
    assert drops(router, "forward") == []
    assert [rule for rule in drops(router, "pass") if "169.254.0.0" not in rule] == []


def test_ipv6_is_refused_where_the_machine_does_not_forward_it() -> None:
    refused = [rule for rule in rules(PASSAGE, "pass") if "'reject'" in rule]
    assert len(refused) == 1 and "no-route" in refused[0] and "'ipv6'" in refused[0]
    assert not any("'reject'" in rule for rule in rules(replace(PASSAGE, ipv6=True), "pass"))


def test_datagrams_stay_untracked_only_with_nat_and_where_nobody_else_has_rules() -> None:
    assert "notrack" in str(replacement(PASSAGE))
    assert "notrack" not in str(replacement(replace(PASSAGE, quiet=False)))
    assert "'daddr'" in str(replacement(replace(PASSAGE, dest=None)))  # Dest is not known yet


# --- the rules of others ---


def rule(key: str, device: str, *before: dict[str, Any]) -> dict[str, Any]:
    matched = {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": device}}
    return {"rule": {"expr": [*before, matched, {"counter": {"packets": 1, "bytes": 2}}, {"accept": None}]}}


def test_a_chain_lets_the_tunnel_pass_when_rules_accept_both_ways_whatever_it_is() -> None:
    both = [rule("iifname", "qre0"), rule("oifname", "qre0")]
    assert let_through([{"metainfo": {}}, *both], "qre0")
    assert not let_through(both, "qre1")
    assert not let_through(both[:1], "qre0")
    only_tcp = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}
    assert not let_through([rule("iifname", "qre0", only_tcp), both[1]], "qre0")
    assert not let_through([{"rule": {"expr": None}}, {"rule": {}}, {"rule": {"expr": ["accept"]}}], "qre0")


def test_the_users_rules_belong_into_dockers_own_chain_for_them() -> None:
    chains = [
        {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"},
        {"family": "ip", "table": "filter", "name": "DOCKER-USER"},
        {"family": "inet", "table": "f", "name": "fwd", "hook": "forward", "policy": "drop"},
    ]
    docker, other = read_listing([{"chain": each} for each in chains]).closed
    assert (docker.place, other.place) == ("DOCKER-USER", "fwd")
    assert docker == Closed("ip", "filter", "FORWARD", ("FORWARD", "DOCKER-USER"))


# --- the key ---


@pytest.mark.parametrize("mode", Forward)
def test_the_key_is_one_of_three(mode: Forward) -> None:
    profile = profile_from_values("qre0", given() | {"Forward": mode.value})
    assert profile.server is not None and profile.server.forward is mode
    assert profile_values(profile).get("Forward") == (None if mode is Forward.OFF else mode.value)


@pytest.mark.parametrize("text", ["on", "NAT66", "", "nat route"])
def test_anything_else_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UserError, match="Forward") as caught:
        profile_from_values("qre0", given() | {"Forward": text})
    assert "nat" in str(caught.value)


def given() -> dict[str, str | list[str]]:
    return dict(line.split(" = ", 1) for line in SERVER.splitlines() if " = " in line)
