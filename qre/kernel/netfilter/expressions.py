"""The words of which rules are made (libnftables-json(5)), and the commands that fill one table. Sans-IO."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any, Final

from qre.addresses import Address
from qre.kernel.netfilter.listening import Listening
from qre.kernel.udp.underlay_sockets import MARK

Command = dict[str, Any]
Expression = dict[str, Any]

#: What an IPv4 server may listen on: every address of this machine.
ANY: Final = IPv4Address(0)
RAW, MANGLE, FILTER, SRCNAT = -300, -150, 0, 99
#: Just behind the destination NAT of others (dstnat), whose rules come first.
DSTNAT: Final = -99
#: Behind every destination NAT, before the guards of SiteTcp.
BEFORE_GUARDS: Final = -97

ACCEPT: Final[Expression] = {"accept": None}
DROP: Final[Expression] = {"drop": None}


class Table:
    """Collects the commands that make and fill a table."""

    def __init__(self, family: str, name: str) -> None:
        self._place = {"family": family, "table": name}
        self.made: list[Command] = [{"add": {"table": {"family": family, "name": name}}}]

    def chain(self, name: str, kind: str = "", hook: str = "", priority: int = 0) -> None:
        """A base chain; with the name alone an empty one, which is a note."""
        based = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"} if kind else {}
        self.made.append({"add": {"chain": {**self._place, "name": name, **based}}})

    def rule(self, chain: str, *expressions: Expression) -> None:
        """Append a rule."""
        self.made.append({"add": {"rule": {**self._place, "chain": chain, "expr": list(expressions)}}})

    def counter(self, name: str, packets: int) -> None:
        """A named counter that begins with so many packets."""
        self.made.append({"add": {"counter": {**self._place, "name": name, "packets": packets, "bytes": 0}}})


def match(operator: str, left: Expression, right: object) -> Expression:
    """``left operator right``."""
    return {"match": {"op": operator, "left": left, "right": right}}


def equals(left: Expression, right: object) -> Expression:
    """``left == right``."""
    return match("==", left, right)


def payload(protocol: str, name: str) -> Expression:
    """A field of a header."""
    return {"payload": {"protocol": protocol, "field": name}}


def meta(key: str) -> Expression:
    """What the kernel knows of a packet."""
    return {"meta": {"key": key}}


def tracked(key: str, direction: str = "") -> Expression:
    """What connection tracking knows of a packet."""
    return {"ct": {"key": key, "dir": direction} if direction else {"key": key}}


def routed(result: str) -> Expression:
    """Of the route that the packet would take."""
    return {"fib": {"result": result, "flags": ["daddr", "mark"]}}


def set_to(what: Expression, value: object) -> Expression:
    """``what set value``."""
    return {"mangle": {"key": what, "value": value}}


def in_set(left: Expression, values: Sequence[object]) -> Expression:
    """``left { values }``."""
    return equals(left, {"set": list(values)})


def not_translated() -> Expression:
    """No connection whose destination was translated."""
    return equals({"&": [tracked("status"), "dnat"]}, 0)


#: What is broadcast or for a group is not forwarded by the settings of a device.
FOR_OTHERS: Final = match("!=", routed("type"), {"set": ["local", "broadcast", "multicast"]})
#: A table of QRE's answers for the packet: no guard of another one drops it.
VOUCHED_FOR: Final = set_to(meta("mark"), MARK)
NOT_VOUCHED_FOR: Final = match("!=", meta("mark"), MARK)
#: Ports of sockets that ask for none (ip_local_port_range as the kernel has it), and those below it.
_EPHEMERAL: Final = [32_768, 60_999]
_BELOW: Final = [1024, 32_767]
REPLY: Final = in_set(tracked("state"), ["established", "related"])


def header_of(version: int) -> str:
    """The name of this version's header."""
    return "ip" if version == 4 else "ip6"


def has_address(end: str, address: Address) -> Expression:
    """``end``: s, source, or d, destination."""
    return equals(payload(header_of(address.version), f"{end}addr"), str(address))


def is_one_of(left: Expression, addresses: Sequence[Address]) -> Expression:
    """``addresses``: of one version."""
    texts = list(map(str, addresses))
    return equals(left, texts[0]) if len(texts) == 1 else in_set(left, texts)


def leave_untracked(table: Table, listen: Listening, dest: tuple[Address, int] | None) -> None:
    """No connection tracking for the datagrams of a server's port, and for those between its relay and Dest. What is
    forwarded, or answers what was, is tracked: it may have to be translated (translated_apart)."""
    local, for_relay = equals(routed("type"), "local"), equals(payload("udp", "dport"), {"range": _EPHEMERAL})
    for chain, hook, ours, theirs, everywhere, relayed in (
        ("datagrams_in", "prerouting", "d", "s", [local], [for_relay]),
        ("datagrams_out", "output", "s", "d", [], []),
    ):
        table.chain(chain, "filter", hook, RAW)
        to = payload(header_of(listen.version), f"{ours}addr")
        own = everywhere if listen.everywhere else [is_one_of(to, listen.addresses)]
        table.rule(chain, *own, equals(payload("udp", f"{ours}port"), listen.port), {"notrack": None})
        if dest is not None:
            table.rule(
                chain,
                has_address(theirs, dest[0]),
                equals(payload("udp", f"{theirs}port"), dest[1]),
                *relayed,
                {"notrack": None},
            )


def translated_apart(port: int) -> list[Expression]:
    """Of datagrams that are forwarded: as from a port that neither a relay of this machine's servers has, whatever
    their Dest, nor the server's own socket, so that the answers can be told from theirs."""
    lowest, highest = _BELOW
    if lowest <= port <= highest:
        lowest, highest = (lowest, port - 1) if port - lowest > highest - port else (port + 1, highest)
    return [equals(meta("l4proto"), "udp"), {"masquerade": {"port": {"range": [lowest, highest]}}}]
