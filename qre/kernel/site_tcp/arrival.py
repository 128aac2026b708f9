"""What the rules of nftables do with a stranger's datagram that comes in for a port of this machine: read, not tried.

A rule may depend on what nobody knows beforehand: a rate, a set that changes, an extension of iptables. A match is
therefore true, false or unknown (None), and a chain has all the ends that it may have. The rules of iptables-nft are
seen, those of iptables-legacy are not. The input is libnftables-json(5), filled by other programs: nothing in it is
trusted, and what is not understood is unknown. Sans-IO.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from qre.kernel.netfilter.expressions import ANY, Command

LIST_RULES: Final[Command] = {"list": {"ruleset": None}}
_SEES_IPV4: Final = ("ip", "inet")
#: In the order in which a packet for this machine passes them.
_HOOKS: Final = ("prerouting", "input")
_STRANGER: Final = object()  # somebody's address, which no rule names
_UNKNOWN: Final = object()
#: Statements that neither end anything nor match anything.
_NEUTRAL: Final = ("counter", "log", "mangle", "notrack", "ct helper", "ct timeout", "ct expectation", "comment")
_OTHER_PROTOCOLS: Final = ("tcp", "icmp", "icmpv6", "sctp", "dccp", "ah", "esp", "comp", "udplite", "ip6", "arp")
_KNOWN_META: Final = {"l4proto": ("udp", 17), "nfproto": ("ipv4", 2), "protocol": ("ip", 0x0800)}

#: True, False, or unknown.
Matched = bool | None


class End(enum.Enum):
    """What may become of the datagram at a rule, or in a chain."""

    ACCEPT = enum.auto()
    DROP = enum.auto()
    NEXT = enum.auto()  # the next rule is asked
    LEAVE = enum.auto()  # the chain ends, and decides nothing
    UNKNOWN = enum.auto()


@dataclass(frozen=True)
class Datagram:
    """What is known of it. ``device``: where it comes in; empty: unknown. ``address``: ours; ANY: unknown."""

    device: str
    address: IPv4Address
    port: int


@dataclass(frozen=True)
class Arrival:
    """``dropped``: it never arrives; ``doubtful``: the rules alone do not tell. ``chain``: which one decides, as
    ``inet filter input``."""

    dropped: bool = False
    doubtful: bool = False
    chain: str = ""


def arrival(objects: Sequence[Mapping[str, Any]], datagram: Datagram) -> Arrival:
    """From the answer to ``LIST_RULES``."""
    rules = _Rules(objects, datagram)
    doubtful = Arrival()
    for chain in rules.base_chains():
        ends = rules.ends(_place(chain, "name"))
        if End.LEAVE in ends:
            ends = ends - {End.LEAVE} | {End.DROP if chain.get("policy") == "drop" else End.ACCEPT}
        name = " ".join(map(str, _place(chain, "name")))
        if ends == {End.DROP}:
            return Arrival(dropped=True, chain=name)
        if ends != {End.ACCEPT} and not doubtful.doubtful:
            doubtful = Arrival(doubtful=True, chain=name)
    return doubtful


_Place = tuple[str, str, str]
_Ends = frozenset[End]


def _place(thing: Mapping[str, Any], name: str) -> _Place:
    return str(thing.get("family")), str(thing.get("table")), str(thing.get(name))


class _Rules:
    def __init__(self, objects: Sequence[Mapping[str, Any]], datagram: Datagram) -> None:
        self._datagram = datagram
        self._chains = list(_of_kind(objects, "chain"))
        self._sets = {_place(each, "name"): each for each in _of_kind(objects, "set")}
        self._rules: dict[_Place, list[Any]] = {}
        for rule in _of_kind(objects, "rule"):
            self._rules.setdefault(_place(rule, "chain"), []).append(rule.get("expr"))
        self._ends: dict[_Place, _Ends] = {}

    def base_chains(self) -> list[Mapping[str, Any]]:
        """Those that see the datagram, in its order."""
        seen = [
            each
            for each in self._chains
            if each.get("family") in _SEES_IPV4 and each.get("hook") in _HOOKS and each.get("type") != "nat"
        ]
        return sorted(seen, key=lambda each: (_HOOKS.index(each["hook"]), _number(each.get("prio")) or 0))

    def ends(self, place: _Place) -> _Ends:
        """All that may become of it in this chain."""
        if place not in self._ends:
            self._ends[place] = frozenset({End.UNKNOWN})  # for a chain that leads to itself
            self._ends[place] = self._chain(place)
        return self._ends[place]

    def _chain(self, place: _Place) -> _Ends:
        found: set[End] = set()
        for expressions in self._rules.get(place, []):
            ends = self._rule(place, expressions)
            found |= ends - {End.NEXT}
            if End.NEXT not in ends:
                return frozenset(found)
        return frozenset(found | {End.LEAVE})

    def _rule(self, place: _Place, expressions: object) -> _Ends:
        certain = True
        for kind, value in _statements(expressions):
            if kind in _NEUTRAL:
                continue
            if kind == "match":
                matched = self._match(place, value)
                if matched is False:
                    break
                certain = certain and matched is True
            elif (verdict := self._verdict(place, kind, value)) is not None:
                return verdict if certain else verdict | {End.NEXT}
            else:
                certain = False
        return frozenset({End.NEXT})

    def _verdict(self, place: _Place, kind: str, value: Any) -> _Ends | None:
        """What a statement decides; None when it decides nothing, or is not known."""
        match kind:
            case "accept":
                return frozenset({End.ACCEPT})
            case "drop" | "reject":
                return frozenset({End.DROP})
            case "return":
                return frozenset({End.LEAVE})
            case "continue":
                return frozenset({End.NEXT})
            case "jump" | "goto" if isinstance(value, dict):
                ends = self.ends((*place[:2], str(value.get("target"))))
                return ends - {End.LEAVE} | {End.NEXT} if kind == "jump" and End.LEAVE in ends else ends
            case "vmap" if isinstance(value, dict):
                return self._verdict_map(place, value)
            case "queue":
                return frozenset({End.UNKNOWN})
        return None

    def _verdict_map(self, place: _Place, value: Mapping[str, Any]) -> _Ends:
        found: set[End] = set()
        for pair in _elements(value.get("data")):
            if not isinstance(pair, list) or len(pair) != 2:
                return frozenset({End.UNKNOWN})
            matched = self._match(place, {"op": "==", "left": value.get("key"), "right": pair[0]})
            if matched is not False:
                for kind, target in _statements([pair[1]]):
                    found |= self._verdict(place, kind, target) or {End.UNKNOWN}
            if matched is True:
                return frozenset(found)
        return frozenset(found | ({End.UNKNOWN} if isinstance(value.get("data"), str) else {End.NEXT}))

    def _match(self, place: _Place, match: Any) -> Matched:
        if not isinstance(match, dict):
            return None
        left, right, operator = self._value(match.get("left")), match.get("right"), match.get("op")
        if left is _UNKNOWN or operator not in ("==", "in", "!="):
            return None
        if left is False:
            return False  # a header that a datagram does not have
        equal = self._is(place, left, right)
        return equal if equal is None or operator != "!=" else not equal

    def _value(self, left: Any) -> Any:
        """What the datagram has there; False for a header that it does not have."""
        kind, value = next(_statements([left]), ("", None))
        field = value.get("field" if kind == "payload" else "key") if isinstance(value, dict) else None
        if kind == "meta" and field in ("iifname", "iif"):
            return self._datagram.device or _UNKNOWN
        if kind == "meta":
            return _KNOWN_META.get(str(field), _UNKNOWN)
        if kind == "ct" and field == "state":
            return ("new",)
        if kind == "fib" and isinstance(value, dict) and value.get("result") == "type":
            return ("local",) if "daddr" in (value.get("flags") or ()) else _UNKNOWN
        if kind == "payload" and isinstance(value, dict):
            return self._payload(str(value.get("protocol")), str(field))
        return _UNKNOWN

    def _payload(self, protocol: str, field: str) -> Any:
        if protocol in _OTHER_PROTOCOLS:
            return False
        match protocol, field:
            case "udp" | "th", "dport":
                return self._datagram.port
            case "ip", "protocol":
                return _KNOWN_META["l4proto"]
            case "ip", "saddr":
                return _STRANGER
            case "ip", "daddr" if self._datagram.address != ANY:
                return self._datagram.address
        return _UNKNOWN

    def _is(self, place: _Place, value: Any, right: Any) -> Matched:
        if isinstance(right, str) and right.startswith("@"):
            named = self._sets.get((*place[:2], right[1:]))
            if named is None or value is _STRANGER or named.get("flags") not in (None, ["constant"], ["interval"]):
                return None
            return self._is(place, value, {"set": named.get("elem", [])})
        if isinstance(right, list) or (isinstance(right, dict) and "set" in right):
            found = [self._is(place, value, each) for each in _elements(right)]
            return True if True in found else None if None in found else False
        return _is_one(value, right)


def _is_one(value: Any, right: Any) -> Matched:
    if isinstance(right, dict) and isinstance(right.get("elem"), dict):  # with a timeout, or a comment
        right = right["elem"].get("val")
    if isinstance(value, IPv4Address) or value is _STRANGER:
        return _is_address(value, right)
    if isinstance(right, dict):
        return _is_between(value, right.get("range"))
    if isinstance(value, tuple):
        return right in value
    if isinstance(value, str) and isinstance(right, str) and right.endswith("*"):
        return value.startswith(right[:-1])
    return bool(value == right)


def _is_between(value: Any, ends: Any) -> Matched:
    numbers = [_number(each) for each in (value, *(ends if isinstance(ends, list) else ()))]
    if len(numbers) != 3 or None in numbers:
        return None
    number, low, high = numbers
    return low <= number <= high  # type: ignore[operator]


def _is_address(value: Any, right: Any) -> Matched:
    """An address, or that of a stranger: no rule that names some addresses means it, and 0.0.0.0/0 does."""
    if isinstance(right, dict) and isinstance(right.get("prefix"), dict):
        right = f"{right['prefix'].get('addr')}/{right['prefix'].get('len')}"
    ends = right.get("range") if isinstance(right, dict) else [right, right]
    try:
        low, high = (IPv4Network(str(each), strict=False) for each in ends or ())
    except ValueError:
        return None
    if value is _STRANGER:
        return not low.prefixlen
    return bool(low.network_address <= value <= high.broadcast_address)


def _of_kind(objects: Sequence[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    return (each[kind] for each in objects if isinstance(each, dict) and isinstance(each.get(kind), dict))


def _statements(expressions: object) -> Iterator[tuple[str, Any]]:
    """Kind and value of each: objects with one member."""
    for each in expressions if isinstance(expressions, list) else ():
        if isinstance(each, dict) and len(each) == 1:
            yield next(iter(each.items()))
        else:
            yield ("?", each)


def _elements(values: Any) -> list[Any]:
    """Of a list, or of an anonymous set."""
    found = values.get("set") if isinstance(values, dict) else values
    return found if isinstance(found, list) else [found] if found is not None and found is not values else []


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
