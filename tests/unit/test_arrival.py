"""Rules of a firewall, as other programs have filled them: whatever stands there, there is an answer."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qre.kernel.site_tcp.arrival import Arrival, Datagram, arrival

DATAGRAM = Datagram("eth0", IPv4Address("192.0.2.1"), 443)
PLACE = {"family": "inet", "table": "f"}
BASE = {"chain": PLACE | {"name": "in", "hook": "input", "type": "filter", "prio": 0, "policy": "drop"}}

WORDS = st.sampled_from(
    ["match", "left", "right", "op", "==", "!=", "in", "payload", "protocol", "field", "udp", "dport", "ip", "saddr",
     "daddr", "meta", "key", "iifname", "ct", "state", "set", "range", "prefix", "addr", "len", "elem", "val", "vmap",
     "data", "jump", "goto", "target", "accept", "drop", "return", "limit", "xt", "@open", "eth0", "eth*", "10.0.0.0",
     "fib", "result", "type", "flags", "queue"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 500) | WORDS | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(ANYTHING, max_size=4), ANYTHING)
def test_any_rule_has_an_answer(expressions: list[Any], other: Any) -> None:
    rule = {"rule": PLACE | {"chain": "in", "expr": expressions}}
    odd = [{"rule": other}, {"chain": other}, {"set": other}, other if isinstance(other, dict) else {}]
    found = arrival([BASE, rule, *odd], DATAGRAM)
    assert isinstance(found, Arrival)
    assert not (found.dropped and found.doubtful)


def test_what_is_not_understood_is_doubtful_and_chains_that_lead_to_each_other_end() -> None:
    unknown = {"rule": PLACE | {"chain": "in", "expr": [{"xt": {"type": "match", "name": "bpf"}}, {"accept": None}]}}
    assert arrival([BASE, unknown], DATAGRAM) == Arrival(doubtful=True, chain="inet f in")
    ring = {"rule": PLACE | {"chain": "in", "expr": [{"jump": {"target": "in"}}]}}
    assert arrival([BASE, ring], DATAGRAM).doubtful


def test_without_a_known_device_a_rule_for_one_is_doubtful() -> None:
    match = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}
    rule = {"rule": PLACE | {"chain": "in", "expr": [match, {"accept": None}]}}
    assert arrival([BASE, rule], DATAGRAM) == Arrival()
    assert arrival([BASE, rule], Datagram("", IPv4Address(0), 443)).doubtful
