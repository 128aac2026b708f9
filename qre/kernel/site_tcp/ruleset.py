"""The nftables table ``qre-<device>`` as a value: from what is wanted to libnftables-json(5), and back.

A TCP connection to Listen's address on one of the ports gets Dest's address as its destination (to_dest) and ours as
its source (from_us); everything else in it is Dest's, the options of the SYN-ACK, too. In both directions it leaves
with the TTL of our own datagrams (ttl). On arrival the TTL is raised first: no packet may expire here, and tell of it
by ICMP. It bears QRE's mark, so that no tunnel of this machine takes it. What connection tracking calls invalid is
dropped, as a listening socket does; otherwise our own stack would answer that the port is closed.

A device that did not forward before does now. ``ours`` drops what comes from it for others before the kernel could
answer with a redirect, and ``forward`` drops once more whatever this machine's NAT has not sent on. Only connections
whose destination was translated pass: those of our table, or of another daemon's.

The kernel tracks connections as soon as there is NAT. Where nobody else has rules, the datagrams of our port and of
the relay stay untracked, as they were (quiet).

Empty chains remember what a killed daemon could not undo: ``listen-<ip>-<port>``, and for each device that did not
forward ``forwarding-was-off-<index>``, with ``-alone`` where net.ipv4.ip_forward was on all the same. Sans-IO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Final

from qre.kernel.underlay_sockets import MARK

Command = dict[str, Any]
Expression = dict[str, Any]

PREFIX: Final = "qre-"
#: What an IPv4 server may listen on: every address of this machine.
ANY: Final = IPv4Address(0)
_FAMILY: Final = "ip"
_RAW, _MANGLE, _FILTER = -300, -150, 0
#: Just behind the destination NAT of others (dstnat), whose rules come first.
_DSTNAT, _BEHIND_DSTNAT, _SRCNAT = -99, -95, 99
#: Behind every destination NAT, before the guards of all servers.
_BEFORE_GUARDS: Final = -97
_HIGHEST_TTL: Final = 255
_LISTEN: Final = re.compile(r"listen-(\d+\.\d+\.\d+\.\d+)-(\d+)")
_WAS_OFF: Final = re.compile(r"forwarding-was-off-(\d+)(-alone)?")
_COUNTER: Final = re.compile(r"port-(\d+)")
#: Families whose chains see IPv4 packets on their way through this machine.
_SEES_IPV4: Final = ("ip", "inet")


@dataclass(frozen=True)
class Guarded:
    """A device that did not forward. ``alone``: though net.ipv4.ip_forward was on."""

    index: int
    name: str
    alone: bool


@dataclass(frozen=True)
class Face:
    """What is wanted."""

    device: str  # of the tunnel: it names the table
    listen: tuple[IPv4Address, int]
    dest: tuple[IPv4Address, int]
    ports: tuple[tuple[int, int], ...]  # of Listen's address, and the one of Dest that each leads to
    source: IPv4Address  # ours, as Dest sees it
    devices: tuple[str, ...]  # where visitors and Dest's answers come in
    guarded: tuple[Guarded, ...]  # those of them that did not forward
    ttl: int
    quiet: bool

    @property
    def table(self) -> str:
        """The name of the table."""
        return f"{PREFIX}{self.device}"


@dataclass(frozen=True)
class Record:
    """What a table of QRE's says of itself. ``was_off``: the index of a device -> whether it was off alone."""

    listen: tuple[IPv4Address, int] | None = None
    was_off: Mapping[int, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The tables of QRE's, and what stands in others."""

    records: Mapping[str, Record]
    #: base chains of others that see IPv4 packets
    others: int = 0
    #: those that drop what is forwarded, unless a rule lets it pass: ``ip filter FORWARD``
    closed: tuple[str, ...] = ()


def removal(tables: Sequence[str]) -> list[Command]:
    """Remove tables, whether they are there or not."""
    named = [{"table": {"family": _FAMILY, "name": name}} for name in tables]
    return [command for each in named for command in ({"add": each}, {"delete": each})]


def replacement(face: Face, counts: Mapping[int, int], stale: Sequence[str] = ()) -> list[Command]:
    """Make the table, or put it in place of the one that is there, in one transaction. ``counts``: connections so
    far, by port. ``stale``: further tables to remove."""
    table = _Table(face.table)
    listen, port = face.listen
    table.chain(f"listen-{listen}-{port}")
    for each in face.guarded:
        table.chain(f"forwarding-was-off-{each.index}{'-alone' if each.alone else ''}")
    if face.quiet:
        _leave_datagrams_alone(table, face)
    _send_on(table, face, counts)
    _know_replies(table, face)
    _know_ours(table, face)
    if face.guarded:
        table.chain("forward", "filter", "forward", _FILTER)
        table.rule("forward", _from_guarded(face), *_nobodys(), {"drop": None})
    table.chain("ttl", "filter", "postrouting", _MANGLE)
    for at, _ in face.ports:
        table.rule("ttl", *_ours(face, at), _set(_field("ip", "ttl"), face.ttl))
    table.chain("from_us", "nat", "postrouting", _SRCNAT)
    for at, _ in face.ports:
        table.rule("from_us", *_ours(face, at), _is(_field("ip", "daddr"), str(face.dest[0])), _snat(face.source))
    return [*removal([*stale, face.table]), {"add": {"table": {"family": _FAMILY, "name": face.table}}}, *table.made]


def read_listing(objects: Sequence[Mapping[str, Any]]) -> Listing:
    """From the answer to ``LIST_CHAINS``."""
    records: dict[str, Record] = {}
    others, closed = 0, []
    for chain in (each["chain"] for each in objects if "chain" in each):
        table, name = str(chain.get("table", "")), str(chain.get("name", ""))
        if chain.get("family") == _FAMILY and table.startswith(PREFIX):
            records[table] = _add(records.get(table, Record()), name)
        elif chain.get("family") in _SEES_IPV4 and "hook" in chain:
            others += 1
            if chain["hook"] == "forward" and chain.get("policy") == "drop":
                closed.append(f"{chain['family']} {table} {name}")
    return Listing(records, others, tuple(closed))


def _add(record: Record, chain: str) -> Record:
    if (found := _WAS_OFF.fullmatch(chain)) is not None:
        return Record(record.listen, {**record.was_off, int(found[1]): found[2] is not None})
    if (found := _LISTEN.fullmatch(chain)) is not None:
        return Record((IPv4Address(found[1]), int(found[2])), record.was_off)
    return record


LIST_CHAINS: Final[Command] = {"list": {"chains": None}}


def list_counters(table: str) -> Command:
    """Ask for the counters of a table, which must be there."""
    return {"list": {"counters": {"family": _FAMILY, "table": table}}}


def read_counts(objects: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Connections by port, from the answer to ``list_counters``."""
    counters = [each["counter"] for each in objects if "counter" in each]
    named = ((_COUNTER.fullmatch(str(each.get("name"))), each.get("packets")) for each in counters)
    return {int(found[1]): packets for found, packets in named if found is not None and isinstance(packets, int)}


class _Table:
    """Collects the commands that fill a table."""

    def __init__(self, name: str) -> None:
        self._place = {"family": _FAMILY, "table": name}
        self.made: list[Command] = []

    def chain(self, name: str, kind: str = "", hook: str = "", priority: int = 0) -> None:
        based = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"} if kind else {}
        self.made.append({"add": {"chain": {**self._place, "name": name, **based}}})

    def rule(self, chain: str, *expressions: Expression) -> None:
        self.made.append({"add": {"rule": {**self._place, "chain": chain, "expr": list(expressions)}}})

    def counter(self, name: str, packets: int) -> None:
        self.made.append({"add": {"counter": {**self._place, "name": name, "packets": packets, "bytes": 0}}})


def _leave_datagrams_alone(table: _Table, face: Face) -> None:
    """No tracking for the datagrams of our port, and for those between the relay and Dest."""
    (listen, port), (dest, dest_port) = face.listen, face.dest
    for chain, hook, ours, theirs in (
        ("datagrams_in", "prerouting", "d", "s"),
        ("datagrams_out", "output", "s", "d"),
    ):
        table.chain(chain, "filter", hook, _RAW)
        own = [] if listen == ANY else [_is(_field("ip", f"{ours}addr"), str(listen))]
        table.rule(chain, *own, _is(_field("udp", f"{ours}port"), port), {"notrack": None})
        relayed = [_is(_field("ip", f"{theirs}addr"), str(dest)), _is(_field("udp", f"{theirs}port"), dest_port)]
        table.rule(chain, *relayed, {"notrack": None})


def _send_on(table: _Table, face: Face, counts: Mapping[int, int]) -> None:
    table.chain("to_dest", "nat", "prerouting", _DSTNAT)
    for at, to in face.ports:
        table.counter(f"port-{at}", counts.get(at, 0))
        table.rule(
            "to_dest",
            _from(face.devices),
            _to_listen(face),
            _is(_field("tcp", "dport"), at),
            {"counter": f"port-{at}"},
            {"dnat": {"addr": str(face.dest[0]), "port": to}},
        )


def _know_replies(table: _Table, face: Face) -> None:
    uplinks = [each.name for each in face.guarded if not each.alone]
    if uplinks:
        table.chain("replies", "filter", "prerouting", _BEFORE_GUARDS)
        into_tunnel = _is(_routed("oifname"), face.device)
        table.rule("replies", _from(uplinks), _REPLY, into_tunnel, _set(_meta("mark"), MARK))


def _know_ours(table: _Table, face: Face) -> None:
    table.chain("ours", "filter", "prerouting", _BEHIND_DSTNAT)
    for at, to in face.ports:
        table.rule(
            "ours", *_ours(face, at), _set(_field("ip", "ttl"), _HIGHEST_TTL), _set(_meta("mark"), MARK), _ACCEPT
        )
        table.rule(
            "ours", _from(face.devices), _to_listen(face), _is(_field("tcp", "dport"), at), _INVALID, {"drop": None}
        )
        answers = [_is(_field("ip", "saddr"), str(face.dest[0])), _is(_field("tcp", "sport"), to)]
        table.rule("ours", _from(face.devices), *answers, _INVALID, {"drop": None})
    if face.guarded:
        table.rule("ours", _from_guarded(face), *_nobodys(), _FOR_OTHERS, {"drop": None})


_ACCEPT: Final[Expression] = {"accept": None}


def _match(operator: str, left: Expression, right: object) -> Expression:
    return {"match": {"op": operator, "left": left, "right": right}}


def _is(left: Expression, right: object) -> Expression:
    return _match("==", left, right)


def _field(protocol: str, name: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": name}}


def _meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def _set(what: Expression, value: int) -> Expression:
    return {"mangle": {"key": what, "value": value}}


def _snat(source: IPv4Address) -> Expression:
    return {"snat": {"addr": str(source)}}


def _from(devices: Sequence[str]) -> Expression:
    return _is(_meta("iifname"), {"set": list(devices)})


def _from_guarded(face: Face) -> Expression:
    return _from([each.name for each in face.guarded])


def _to_listen(face: Face) -> Expression:
    if face.listen[0] == ANY:
        return _is({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    return _is(_field("ip", "daddr"), str(face.listen[0]))


def _ours(face: Face, port: int) -> list[Expression]:
    """Packets, of either direction, of a connection that came to this port and has another destination now. ICMP
    errors about it, too."""
    to_listen = [] if face.listen[0] == ANY else [_is(_tracked("ip daddr", "original"), str(face.listen[0]))]
    return [
        _match("in", _tracked("status"), "dnat"),
        *to_listen,
        _is(_tracked("protocol", "original"), "tcp"),
        _is(_tracked("proto-dst", "original"), port),
    ]


def _tracked(key: str, direction: str = "") -> Expression:
    return {"ct": {"key": key, "dir": direction} if direction else {"key": key}}


def _nobodys() -> list[Expression]:
    """Neither of a connection whose destination was translated, nor a reply to a tunnel."""
    return [_is({"&": [_tracked("status"), "dnat"]}, 0), _match("!=", _meta("mark"), MARK)]


def _routed(result: str) -> Expression:
    """Of the route that the packet would take."""
    return {"fib": {"result": result, "flags": ["daddr", "mark"]}}


_INVALID: Final = _match("in", _tracked("state"), "invalid")
_REPLY: Final = _is(_tracked("state"), {"set": ["established", "related"]})
#: What is broadcast or for a group is not forwarded by this setting.
_FOR_OTHERS: Final = _match("!=", _routed("type"), {"set": ["local", "broadcast", "multicast"]})
