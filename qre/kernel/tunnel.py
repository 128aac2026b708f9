"""Makes a device a tunnel: MTU, addresses, and routes in the way of wg-quick(8).

The tunnel's own packets must never enter a tunnel. All of QRE's sockets carry one mark, the same for every tunnel of
the machine, and what could swallow such packets goes into a table of the device's own, which only unmarked packets
are sent to: a default route, and every prefix that may cover the other end. Rules keep the order that a single table
would have, the longest prefix first: before the table's routes of one length, the main table is asked for longer
ones. After a default route a last rule refuses what has no route there: when the device is gone, nothing leaves in
the clear. The same rules close IPv6 beside a default route of IPv4 (LeakProtection): its uplink would lead past the
tunnel. All other prefixes go into the main table, unless one of the device's own networks covers them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qre.addresses import Interface, Network, contains, default_versions, keeps_apart
from qre.errors import InternalError, MachineError
from qre.kernel.rtnl import MAIN_TABLE, PLACEHOLDER, Link, Rtnl, Rule
from qre.kernel.udp.underlay_sockets import MARK

#: The table of the first device that needs one.
FIRST_TABLE: Final = MARK
_TABLES = 256
#: Rules stand right before the kernel's own `lookup main` (32766), as ip-rule(8) places them.
_LOWEST_RULE = 32766
_NONE: Final[Mapping[int, tuple[int, ...]]] = {}


@dataclass(frozen=True)
class DeviceSpec:
    """The intended device. ``table`` is 0 unless one of its routes needs a table of its own. ``outer``: where the
    tunnel's own packets may go. ``closed``: IP versions that lead to neighbours alone."""

    device: str
    addresses: tuple[Interface, ...]
    mtu: int
    allowed_ips: tuple[Network, ...] = ()
    table: int = 0
    outer: tuple[Network, ...] = ()
    closed: tuple[int, ...] = ()


def needs_table(allowed_ips: tuple[Network, ...], outer: tuple[Network, ...]) -> bool:
    """Whether one of these prefixes has to be kept from the tunnel's own packets."""
    return bool(default_versions(allowed_ips)) or any(keeps_apart(prefix, outer) for prefix in allowed_ips)


def wanted_routes(spec: DeviceSpec) -> list[tuple[Network, int]]:
    """Prefix and table of each route, the most specific first."""
    routes: list[tuple[Network, int]] = []
    for prefix in sorted(set(spec.allowed_ips), key=lambda network: (-network.prefixlen, network.version, network)):
        if prefix.prefixlen and any(contains(interface.network, prefix) for interface in spec.addresses):
            continue
        if not keeps_apart(prefix, spec.outer):
            routes.append((prefix, MAIN_TABLE))
        elif spec.table:
            routes.append((prefix, spec.table))
        else:
            raise InternalError(f"device {spec.device}", f"no table for the route {prefix}")
    return routes


def choose_table(rtnl: Rtnl) -> int:
    """The number of an unused table."""
    for table in range(FIRST_TABLE, FIRST_TABLE + _TABLES):
        if not rtnl.table_in_use(table):
            return table
    raise MachineError("AllowedIPs", "no routing table is free", "remove stale rules: see `ip rule`")


def tables_in_rules(rtnl: Rtnl) -> set[int]:
    """The tables of QRE's rules, whether or not a route exists."""
    return {rule.table for rule in rtnl.rules() if rule.table != MAIN_TABLE}


def tables_of(rtnl: Rtnl, link: Link) -> set[int]:
    """The tables other than main with QRE's routes through the device."""
    return {table for _, table in rtnl.routes(link) if table != MAIN_TABLE}


def refusing_versions(rtnl: Rtnl, table: int) -> tuple[int, ...]:
    """The IP versions of which nothing leaves in the clear while this table's device is gone."""
    found = {rule.version for rule in rtnl.rules() if rule.table == table and rule.unreachable}
    return tuple(sorted(found))


def sync_device(rtnl: Rtnl, spec: DeviceSpec, previous: tuple[Interface, ...] = ()) -> None:
    """Link up with exactly these addresses, routes and rules of QRE; ``previous`` addresses are removed, too."""
    link = rtnl.link(spec.device)
    if link is None:
        raise MachineError(f"device {spec.device}", "it does not exist", "run `qre-tool up`, or start the daemon")
    rtnl.set_up(link, spec.mtu)
    sync_addresses(rtnl, link, spec, previous)
    sync_routes(rtnl, link, spec)


class Part(enum.StrEnum):
    """What QRE makes of a device, by the kind of request that takes it away."""

    RULES = "rules"
    LINK = "link"
    ADDRESSES = "addresses"
    ROUTES = "routes"


def missing(rtnl: Rtnl, link: Link, spec: DeviceSpec) -> list[tuple[Part, str]]:
    """What of the intended device is not there, in words; what is there beyond it is not looked at."""
    lost = [
        (Part.RULES, f"rules -{wanted.version} of table {wanted.table}")
        for wanted in wanted_rules(spec)
        if not rules_complete(rtnl, wanted)
    ]
    if not link.up:
        lost.append((Part.LINK, "link up"))
    if link.mtu != spec.mtu:
        lost.append((Part.LINK, f"MTU {spec.mtu}"))
    addresses = {entry.interface for entry in rtnl.addresses(link)}
    lost += [(Part.ADDRESSES, f"address {each}") for each in spec.addresses if each not in addresses]
    routes = rtnl.routes(link)
    lost += [(Part.ROUTES, f"route {route[0]}") for route in wanted_routes(spec) if route not in routes]
    return lost


def restore(rtnl: Rtnl, link: Link, spec: DeviceSpec) -> MachineError | None:
    """Make the device as intended; what cannot be put back keeps nothing else from it. Returns the first error."""

    def put_all_rules() -> None:
        for wanted in wanted_rules(spec):
            put_rules(rtnl, wanted)

    first = None
    for deed in (
        put_all_rules,  # before all else: without them packets leave in the clear
        lambda: rtnl.set_up(link, spec.mtu),
        lambda: sync_addresses(rtnl, link, spec),
        lambda: sync_routes(rtnl, link, spec),
    ):
        try:
            deed()
        except MachineError as error:
            first = first or error
    return first


def sync_addresses(rtnl: Rtnl, link: Link, spec: DeviceSpec, previous: tuple[Interface, ...] = ()) -> None:
    """Give the device exactly these addresses of QRE. Old ones are removed first, then new ones added. One that
    somebody else put there stays theirs.

    Meanwhile the tunnel keeps its routes, and an address that stays is never absent:

    - With its last IPv4 address a device loses every IPv4 route, and its other addresses go with the first of their
      network. A placeholder and promote_secondaries prevent that.
    - With the last address of a network its own route goes. A bridge with a high metric stands in for it until
      ``sync_routes`` is done, which may have to route a part of it.

    What cannot be avoided: streams from a removed address break, and so do packets that need a source while there is
    none.
    """
    present = [entry for entry in rtnl.addresses(link) if entry.interface != PLACEHOLDER]
    going = [
        entry.interface
        for entry in present
        if (entry.ours or entry.interface in previous) and entry.interface not in spec.addresses
    ]
    for network in {interface.network for interface in going}:
        if 0 < network.prefixlen < network.max_prefixlen:
            rtnl.add_bridge(link, network)
    _delete_addresses(rtnl, link, going, [entry.interface for entry in present])
    left = {entry.interface for entry in rtnl.addresses(link)}
    for interface in spec.addresses:
        if interface not in left:
            rtnl.put_address(link, interface)
    if PLACEHOLDER in left:
        rtnl.delete_address(link, PLACEHOLDER)


def _delete_addresses(rtnl: Rtnl, link: Link, going: list[Interface], present: list[Interface]) -> None:
    """Delete secondaries first. A device that is left without an IPv4 address gets the placeholder."""
    if any(interface.version == 4 for interface in going):
        rtnl.keep_secondaries(link)
        if all(interface in going for interface in present if interface.version == 4):
            rtnl.put_placeholder(link)
    for interface in reversed(going):
        rtnl.delete_address(link, interface)


def sync_routes(rtnl: Rtnl, link: Link, spec: DeviceSpec) -> None:
    """Set the routes and rules for AllowedIPs, and remove all others of QRE."""
    wanted = wanted_routes(spec)
    present = rtnl.routes(link)
    for prefix, table in wanted:
        if (prefix, table) not in present:
            rtnl.add_route(link, prefix, table)
    sets = wanted_rules(spec)
    for each in sets:
        put_rules(rtnl, each)
    if spec.table:
        delete_rules(rtnl, spec.table, tuple({4, 6}.difference(each.version for each in sets)))
    for prefix, table in sorted(present - set(wanted), key=str):
        rtnl.delete_route(link, prefix, table)
        if table not in (MAIN_TABLE, spec.table):
            delete_rules(rtnl, table, (prefix.version,))
    for prefix in rtnl.bridges(link):
        rtnl.delete_bridge(link, prefix)


@dataclass(frozen=True)
class RuleSet:
    """The rules of one version for one table: ``lengths`` are those of the table's prefixes, the longest first;
    ``refuse``: what none of them routes is unreachable."""

    version: int
    table: int
    lengths: tuple[int, ...]
    refuse: bool

    def placed(self, priority: int) -> list[Rule]:
        """The rules from this priority on, in the order in which they are asked."""
        version, table, rules = self.version, self.table, list[Rule]()

        def add(table: int, fwmark: int = 0, *, suppress: int | None = None, **kind: bool) -> None:
            rules.append(Rule(version, priority + len(rules), table, fwmark, suppress=suppress, **kind))

        for length in self.lengths:
            add(MAIN_TABLE, suppress=length)
            add(table, MARK, inverted=True, suppress=length - 1 if length else None)
        if self.refuse:
            add(table, MARK, inverted=True, unreachable=True)
        # outer packets, even when somebody removes the kernel's own rule for the main table
        add(MAIN_TABLE, MARK)
        return rules


def wanted_rules(spec: DeviceSpec) -> list[RuleSet]:
    """One set for each IP version that needs rules."""
    sets = []
    routes = wanted_routes(spec)
    whole = {*default_versions(spec.allowed_ips), *spec.closed}
    for version in (4, 6):
        lengths = {prefix.prefixlen for prefix, table in routes if table != MAIN_TABLE and prefix.version == version}
        if version in whole:
            lengths.add(0)
        if lengths:
            sets.append(RuleSet(version, spec.table, tuple(sorted(lengths, reverse=True)), version in whole))
    return sets


def closed_rules(version: int, table: int) -> RuleSet:
    """The rules of a default route: without a device they let nothing out in the clear."""
    return RuleSet(version, table, (0,), refuse=True)


def rules_complete(rtnl: Rtnl, wanted: RuleSet) -> bool:
    """Whether exactly these rules exist, one behind the other."""
    present = own_rules(rtnl, wanted.version, wanted.table)
    return bool(present) and present == wanted.placed(present[0].priority)


def put_rules(rtnl: Rtnl, wanted: RuleSet) -> None:
    """Add all rules at the highest neighbouring free priorities, unless they exist; then remove what was left of
    earlier ones, so that there is no moment without."""
    if rules_complete(rtnl, wanted):
        return
    before = own_rules(rtnl, wanted.version, wanted.table)
    taken = {rule.priority for rule in rtnl.rules(ours=False) if rule.version == wanted.version}
    count = len(wanted.placed(0))
    for first in range(_LOWEST_RULE - count, 1, -1):
        if taken.isdisjoint(range(first, first + count)):
            break
    else:
        raise MachineError("AllowedIPs", "no priority is free for their rules", "remove stale rules: see `ip rule`")
    for rule in _identified_first(wanted.placed(first)):
        rtnl.add_rule(rule)
    _remove(rtnl, before)
    _remove(rtnl, _strays(rtnl, wanted.version))


def _identified_first(rules: list[Rule]) -> list[Rule]:
    """Those that name the table before those that only stand beside them, which are stray as long as they do not."""
    return sorted(rules, key=lambda rule: rule.table == MAIN_TABLE)


def _remove(rtnl: Rtnl, rules: list[Rule]) -> None:
    for rule in reversed(_identified_first(rules)):
        rtnl.delete_rule(rule)


def own_rules(rtnl: Rtnl, version: int, table: int) -> list[Rule]:
    """Those of this table that exist, by priority."""
    present = [rule for rule in rtnl.rules() if rule.version == version]
    return [rule for rule in present if rule.table == table or table in _beside(rule, present)]


def _beside(rule: Rule, present: list[Rule]) -> set[int]:
    """The tables that a rule for the main table belongs to: it stands right before or behind one of theirs."""
    if rule.table != MAIN_TABLE:
        return set()
    at = rule.priority + 1 if rule.suppress is not None else rule.priority - 1
    return {other.table for other in present if other.priority == at} - {MAIN_TABLE}


def _strays(rtnl: Rtnl, version: int) -> list[Rule]:
    """Rules of QRE that stood beside another one which somebody has removed. They change nothing."""
    present = [rule for rule in rtnl.rules() if rule.version == version]
    return [rule for rule in present if rule.table == MAIN_TABLE and not _beside(rule, present)]


def delete_rules(rtnl: Rtnl, table: int, versions: tuple[int, ...] = (4, 6)) -> None:
    """Remove our rules for this table, however many there are."""
    for version in versions:
        _remove(rtnl, own_rules(rtnl, version, table))


def clear_device(
    rtnl: Rtnl,
    device: str,
    table: int,
    previous: tuple[Interface, ...] = (),
    kept: Mapping[int, tuple[int, ...]] = _NONE,
) -> None:
    """Remove QRE's rules, routes and addresses; no error for what is gone, the device included.

    ``kept``: the IP versions whose rules stay, by table.
    """
    tables = {table} if table else set()
    link = rtnl.link(device)
    if link is not None:
        tables |= tables_of(rtnl, link)
    for each in sorted(tables):
        delete_rules(rtnl, each, tuple({4, 6}.difference(kept.get(each, ()))))
    if link is None:
        return
    for prefix, where in sorted(rtnl.routes(link), key=str):
        rtnl.delete_route(link, prefix, where)
    for prefix in rtnl.bridges(link):
        rtnl.delete_bridge(link, prefix)
    for entry in rtnl.addresses(link):
        if entry.ours or entry.interface in previous:
            rtnl.delete_address(link, entry.interface)
