"""SiteTcp without a kernel: what is written becomes ports, ports become rules, and a listing says what was found."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from qre.config.values import show_site_tcp
from qre.errors import UserError
from qre.kernel.netfilter.expressions import ANY
from qre.kernel.netfilter.firewall import refusal
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import Guarded, OwnTable, Record, read_listing, removal
from qre.kernel.site_tcp.ruleset import (
    Face,
    read_counts,
    replacement,
)
from qre.kernel.site_tcp.site_face import Wanted
from qre.kernel.udp.underlay_sockets import MARK
from tests.support.config_parsers import global_from_values

LISTEN, DEST, OURS = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7"), IPv4Address("192.0.2.9")
FACE = Face(
    device="qre0",
    listen=Listening((LISTEN,), 8443),
    dest=(DEST, 443),
    ports=((8443, 443), (80, 80)),
    source=OURS,
    devices=("eth0", "eth1"),
    guarded=(Guarded(3, "eth1", False),),
    ttl=64,
    quiet=True,
)
OVER_IPV6 = replace(
    FACE,
    listen=Listening((IPv6Address("2001:db8::1"),), 8443),
    dest=(IPv6Address("2001:db8:5::7"), 443),
    source=IPv6Address("2001:db8::9"),
    guarded=(),
)


# --- the key ---


@pytest.mark.parametrize(
    ("text", "ports"),
    [("auto", None), ("AUTO", None), ("off", ()), ("443,80", (443, 80)), ("443", (443,)), (" 1 , 65535", (1, 65535))],
)
def test_the_key_is_auto_off_or_ports(text: str, ports: tuple[int, ...] | None) -> None:
    assert global_from_values({"SiteTcp": text}).site_tcp == ports


@pytest.mark.parametrize("text", ["0", "65536", "443,443", "443,,80", "https", "auto,80", "", "-1", "1,2," * 8 + "3"])
def test_anything_else_is_refused_and_the_words_say_what_to_write(text: str) -> None:
    with pytest.raises(UserError) as caught:
        global_from_values({"SiteTcp": text})
    assert "SiteTcp" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["auto", "off", "443,80"])
def test_it_is_shown_as_it_is_written(text: str) -> None:
    assert show_site_tcp(global_from_values({"SiteTcp": text}).site_tcp) == text


@pytest.mark.parametrize(
    ("ports", "chosen"),
    [
        (None, ((8443, 443), (80, 80))),
        ((), ()),
        ((443, 8443, 8443), ((443, 443), (8443, 443))),
    ],
)
def test_listens_port_leads_to_dests_and_another_to_the_same(
    ports: tuple[int, ...] | None, chosen: tuple[tuple[int, int], ...]
) -> None:
    assert Wanted("qre0", Listening((LISTEN,), 8443), ports, IPv6Address("::1"), 443, 64).chosen() == chosen


# --- the rules ---


def added(face: Face, kind: str, **counts: int) -> list[dict[str, Any]]:
    commands = replacement(face, {int(port[1:]): count for port, count in counts.items()})
    return [each["add"][kind] for each in commands if kind in each.get("add", {})]


def rules(face: Face, chain: str) -> list[str]:
    return [str(rule["expr"]) for rule in added(face, "rule") if rule["chain"] == chain]


def test_everything_is_in_our_own_table_and_the_old_one_goes_in_the_same_transaction() -> None:
    commands = replacement(FACE, {}, [OwnTable("ip", "qre-dead")])
    assert commands[:4] == removal([OwnTable("ip", "qre-dead"), OwnTable("ip", "qre-qre0")])
    assert [next(iter(each)) for each in commands[4:]] == ["add"] * (len(commands) - 4)
    for kind in ("chain", "rule", "counter"):
        assert {(each["family"], each["table"]) for each in added(FACE, kind)} == {("ip", "qre-qre0")}


def test_each_port_is_counted_and_led_to_its_port_of_dest() -> None:
    https, http = rules(FACE, "to_dest")
    assert "'counter': 'port-8443'" in https and "{'dnat': {'addr': '198.51.100.7', 'port': 443}}" in https
    assert "'counter': 'port-80'" in http and "{'dnat': {'addr': '198.51.100.7', 'port': 80}}" in http
    assert all("192.0.2.1" in rule and "{'set': ['eth0', 'eth1']}" in rule for rule in (https, http))
    assert [each["packets"] for each in added(FACE, "counter", p80=7)] == [0, 7]


def test_the_destination_nat_of_others_comes_first() -> None:
    (chain,) = [each for each in added(FACE, "chain") if each["name"] == "to_dest"]
    assert chain["prio"] > -100


def test_dest_sees_our_address_and_both_sides_our_ttl() -> None:
    assert all("{'snat': {'addr': '192.0.2.9'}}" in rule for rule in rules(FACE, "from_us"))
    assert all("'value': 64}" in rule for rule in rules(FACE, "ttl"))
    assert len(rules(FACE, "ttl")) == len(rules(FACE, "from_us")) == len(FACE.ports)


def test_what_did_not_forward_drops_all_that_is_not_translated_and_nothing_else_is_guarded() -> None:
    (forward,) = rules(FACE, "forward")
    assert "{'set': ['eth1']}" in forward and forward.endswith("{'drop': None}]")
    assert "{'set': ['eth1']}" in rules(FACE, "ours")[-1]
    open_already = replace(FACE, guarded=())
    assert rules(open_already, "forward") == []
    assert not any("fib" in rule for rule in rules(open_already, "ours"))


def test_replies_to_the_tunnel_pass_the_guard_but_not_where_the_uplink_was_off_in_a_router() -> None:
    (replies,) = rules(FACE, "replies")
    assert "{'set': ['eth1']}" in replies and "'oifname'" in replies and "'right': 'qre0'" in replies
    assert "{'set': ['established', 'related']}" in replies and f"'value': {MARK}" in replies
    for guard in (rules(FACE, "forward")[-1], rules(FACE, "ours")[-1]):
        assert f"{{'op': '!=', 'left': {{'meta': {{'key': 'mark'}}}}, 'right': {MARK}}}" in guard
    priority = {each["name"]: each["prio"] for each in added(FACE, "chain") if "prio" in each}
    assert priority["to_dest"] < priority["replies"] < priority["ours"]
    for guarded in ((), (Guarded(3, "eth1", True),)):
        assert rules(replace(FACE, guarded=guarded), "replies") == []


def test_datagrams_stay_untracked_only_where_nobody_else_has_rules() -> None:
    untracked = [rule for chain in ("datagrams_in", "datagrams_out") for rule in rules(FACE, chain)]
    assert len(untracked) == 4
    assert all("notrack" in rule for rule in untracked)
    assert not any("notrack" in str(each) for each in replacement(replace(FACE, quiet=False), {}))


def test_a_server_on_every_address_asks_whether_the_destination_is_local() -> None:
    everywhere = replace(FACE, listen=Listening((ANY,), 443))
    assert all("fib" in rule and "0.0.0.0" not in rule for rule in rules(everywhere, "to_dest"))
    assert "0.0.0.0" not in str(added(everywhere, "rule"))


def test_of_several_addresses_each_is_passed_and_noted_and_no_other() -> None:
    other = IPv4Address("192.0.2.2")
    several = replace(FACE, listen=Listening((LISTEN, other), 8443))
    both = "{'set': ['192.0.2.1', '192.0.2.2']}"
    for chain in ("to_dest", "ours", "ttl", "from_us", "datagrams_in", "datagrams_out"):
        one = "".join(rules(FACE, chain))
        assert "".join(rules(several, chain)) == one.replace(repr(str(LISTEN)), both) != one
    (record,) = read_listing(listed(several)).records.values()
    assert record.listen == several.listen
    assert all(each.meets(record.listen) for each in (FACE.listen, several.listen, Listening((other,), 8443)))
    assert not any(each.meets(record.listen) for each in (Listening((OURS,), 8443), Listening((LISTEN,), 443)))


def test_over_ipv6_it_is_another_table_with_the_same_rules() -> None:
    """And one more: a redirect to Dest would tell a neighbour of it."""
    assert {(each["family"], each["table"]) for each in added(OVER_IPV6, "rule")} == {("ip6", "qre-qre0")}
    ipv4 = replace(FACE, guarded=())
    for chain in ("to_dest", "ours", "ttl", "from_us", "datagrams_in", "datagrams_out"):
        translated = "".join(rules(OVER_IPV6, chain))
        for old, new in (
            ("2001:db8::1", str(LISTEN)),
            ("2001:db8:5::7", str(DEST)),
            ("2001:db8::9", str(OURS)),
            ("'field': 'hoplimit'", "'field': 'ttl'"),
            ("ip6", "ip"),
        ):
            translated = translated.replace(old, new)
        assert translated == "".join(rules(ipv4, chain)) != ""
    (redirect,) = rules(OVER_IPV6, "no_redirect")
    assert "'nd-redirect'" in redirect and "'0x20010db8000500000000000000000007'" in redirect
    assert rules(FACE, "no_redirect") == []


# --- what a listing says ---


def listed(face: Face) -> list[dict[str, Any]]:
    return [{"metainfo": {}}, *({"chain": each} for each in added(face, "chain"))]


def test_a_table_says_itself_what_it_found() -> None:
    face = replace(FACE, guarded=(Guarded(3, "eth1", False), Guarded(4, "eth2", True)))
    listing = read_listing(listed(face))
    assert listing.records == {OwnTable("ip", "qre-qre0"): Record(Listening((LISTEN,), 8443), {3: False, 4: True})}
    assert (listing.others, listing.closed) == ((), ())
    over_ipv6 = read_listing(listed(OVER_IPV6))
    assert over_ipv6.records == {
        OwnTable("ip6", "qre-qre0"): Record(Listening((IPv6Address("2001:db8::1"),), 8443), {})
    }


def test_the_chains_of_others_are_counted_and_those_that_drop_are_named() -> None:
    others = [
        {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"},
        {"family": "inet", "table": "f", "name": "in", "hook": "input", "policy": "accept"},
        {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"},
        {"family": "inet", "table": "f", "name": "not a base chain"},
    ]
    listing = read_listing([{"chain": each} for each in others])
    assert (listing.records, listing.others) == ({}, ("ip", "inet", "ip6"))
    assert [str(each) for each in listing.closed] == ["ip filter FORWARD", "ip6 filter FORWARD"]
    assert [str(each) for each in listing.closed_to(4)] == ["ip filter FORWARD"]
    assert [str(each) for each in listing.closed_to(6)] == ["ip6 filter FORWARD"]
    alone = read_listing([{"chain": others[2]}])
    assert (alone.quiet(4), alone.quiet(6)) == (True, False)


def test_counters_are_read_by_port() -> None:
    named = [("port-443", 3), ("port-80", 0), ("port-x", 9), ("others", 9)]
    assert read_counts([{"counter": {"name": name, "packets": count}} for name, count in named]) == {443: 3, 80: 0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("internal:0:0-0: Error: Could not process rule: Operation not permitted\n\n", "CAP_NET_ADMIN"),
        ("internal:0:0-0: Error: cache initialization failed: Operation not permitted\n", "CAP_NET_ADMIN"),
        ("internal:0:0-0: Error: Could not process rule: No such file or directory\n", "has no NAT by nftables"),
        ("internal:0:0-0: Error: Could not process rule: Operation not supported\n", "has no NAT by nftables"),
        ("Error: " + "x" * 500, "see `nft list ruleset`"),
        ("", "it failed"),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(words: str, said: str) -> None:
    error = refusal("SiteTcp", words)
    assert said in str(error)
    assert error.remedy
    assert "\n" not in str(error)
    assert len(str(error)) < 300
