"""Which tables are QRE's, what they record, and what stands in others. Sans-IO.

A table is named ``qre-<device>``; its family says what it is for. Empty chains are its notes, and remember what a
killed daemon could not undo: for each address ``listen-<ip>-<port>``, with 32 hexadecimal digits for IPv6, and for
each device that did not forward ``forwarding-was-off-<index>``, with ``-alone`` where net.ipv4.ip_forward was on all
the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, NamedTuple

from qre.kernel.netfilter.expressions import Command, Expression, Table, equals, in_set, meta, payload
from qre.kernel.netfilter.listening import Listening

PREFIX: Final = "qre-"
#: Of the tables that pass TCP to Dest, by version of IP, and of those that forward a tunnel's packets.
SITE_TCP: Final = {4: "ip", 6: "ip6"}
FORWARD: Final = "inet"
_LISTEN: Final = re.compile(r"listen-(?:(\d+\.\d+\.\d+\.\d+)|([0-9a-f]{32}))-(\d+)")
_WAS_OFF: Final = re.compile(r"forwarding-was-off-(\d{1,10})(-alone)?")
_DOCKERS: Final = "DOCKER-USER"
#: Families whose chains see packets of a version on their way through this machine.
_SEES: Final = {4: ("ip", "inet"), 6: ("ip6", "inet")}

LIST_CHAINS: Final[Command] = {"list": {"chains": None}}


class OwnTable(NamedTuple):
    """A table of QRE's."""

    family: str
    name: str

    @property
    def device(self) -> str:
        """The tunnel's device."""
        return self.name.removeprefix(PREFIX)


def table_of(family: str, device: str) -> OwnTable:
    """The table of a tunnel's device."""
    return OwnTable(family, f"{PREFIX}{device}")


@dataclass(frozen=True)
class Guarded:
    """A device that did not forward. ``alone``: though net.ipv4.ip_forward was on. ``bridge``: a bridge's link-layer
    address."""

    index: int
    name: str
    alone: bool
    bridge: str = ""


def arrived_at(devices: Sequence[Guarded]) -> list[list[Expression]]:
    """What came to one of them, as alternatives. What goes from one port of a bridge to another is not the bridge's,
    but is seen as if it were where br_netfilter is on."""
    others = [each.name for each in devices if not each.bridge]
    return [
        *([[in_set(meta("iifname"), others)]] if others else []),
        *(
            [equals(meta("iifname"), each.name), equals(payload("ether", "daddr"), each.bridge)]
            for each in devices
            if each.bridge
        ),
    ]


@dataclass(frozen=True)
class Record:
    """What a table of QRE's says of itself. ``was_off``: the index of a device -> whether it was off alone."""

    listen: Listening | None = None
    was_off: Mapping[int, bool] = field(default_factory=dict)


class Closed(NamedTuple):
    """A chain that drops what is forwarded, unless a rule lets it pass. ``beside``: the chains of its table."""

    family: str
    table: str
    chain: str
    beside: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The chain for the user's own rules: Docker keeps one."""
        return _DOCKERS if _DOCKERS in self.beside else self.chain

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


@dataclass(frozen=True)
class Listing:
    """The tables of QRE's, and what stands in others."""

    records: Mapping[OwnTable, Record]
    #: families of the base chains of others that see packets
    others: tuple[str, ...] = ()
    closed: tuple[Closed, ...] = ()

    def closed_to(self, version: int) -> tuple[Closed, ...]:
        """Those that packets of this version of IP meet."""
        return tuple(each for each in self.closed if each.family in _SEES[version])

    def quiet(self, version: int) -> bool:
        """Whether nobody else has chains that see packets of this version."""
        return not set(self.others) & set(_SEES[version])


def note(table: Table, listen: Listening | None, guarded: Sequence[Guarded]) -> None:
    """Write a table's record."""
    if listen is not None:
        for address in listen.addresses:
            table.chain(f"listen-{address if address.version == 4 else address.packed.hex()}-{listen.port}")
    for each in guarded:
        table.chain(f"forwarding-was-off-{each.index}{'-alone' if each.alone else ''}")


def removal(tables: Sequence[OwnTable]) -> list[Command]:
    """Remove tables, whether they are there or not."""
    named = [{"table": {"family": family, "name": name}} for family, name in tables]
    return [command for each in named for command in ({"add": each}, {"delete": each})]


def read_listing(objects: Sequence[Mapping[str, Any]]) -> Listing:
    """From the answer to ``LIST_CHAINS``."""
    records: dict[OwnTable, Record] = {}
    beside: dict[tuple[str, str], list[str]] = {}
    others: list[str] = []
    closed = []
    for chain in (each["chain"] for each in objects if "chain" in each):
        family, table, name = (str(chain.get(key, "")) for key in ("family", "table", "name"))
        if family in (*SITE_TCP.values(), FORWARD) and table.startswith(PREFIX):
            own = OwnTable(family, table)
            records[own] = _add(records.get(own, Record()), name)
            continue
        beside.setdefault((family, table), []).append(name)
        if not any(family in seeing for seeing in _SEES.values()) or "hook" not in chain:
            continue
        others.append(family)
        if chain["hook"] == "forward" and chain.get("policy") == "drop":
            closed.append(Closed(family, table, name))
    return Listing(
        records, tuple(others), tuple(each._replace(beside=tuple(beside[each.family, each.table])) for each in closed)
    )


def _add(record: Record, chain: str) -> Record:
    if (found := _WAS_OFF.fullmatch(chain)) is not None:
        return Record(record.listen, {**record.was_off, int(found[1]): found[2] is not None})
    if (found := _LISTEN.fullmatch(chain)) is not None:
        address = ip_address(found[1]) if found[1] else IPv6Address(bytes.fromhex(found[2]))
        before = record.listen.addresses if record.listen is not None else ()
        return Record(Listening((*before, address), int(found[3])), record.was_off)
    return record


def list_rules(closed: Closed) -> Command:
    """Ask for the rules of the chain's table."""
    return {"list": {"table": {"family": closed.family, "name": closed.table}}}


def let_through(objects: Sequence[Mapping[str, Any]], device: str) -> bool:
    """Whether rules accept what comes from the device and what goes to it, whatever else it is; from the answer to
    ``list_rules``."""
    accepted = {
        key
        for rule in (each["rule"] for each in objects if "rule" in each)
        for key in ("iifname", "oifname")
        if _only_accepts(rule.get("expr"), key, device)
    }
    return accepted == {"iifname", "oifname"}


def _only_accepts(expressions: Any, key: str, device: str) -> bool:
    if not isinstance(expressions, list):
        return False
    telling = [each for each in expressions if isinstance(each, dict) and "counter" not in each]
    wanted = {"op": "==", "left": {"meta": {"key": key}}, "right": device}
    return telling == [{"match": wanted}, {"accept": None}]
