"""Makes a device a tunnel: MTU, addresses, and routes as wg-quick(8) makes them.

A default route goes into a table of its own, which every packet without the tunnel's mark is sent to; a rule before
it consults the main table first, without its default routes (suppress_prefixlength). A rule after it refuses what has
no route there: when the device is gone, nothing leaves in the clear. The underlay socket carries the mark, so the
tunnel's own packets take the machine's real default route. Plain prefixes go into the main table, unless one of the
device's own networks covers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qre.addresses import Interface, Network
from qre.errors import InternalError, MachineError
from qre.kernel.rtnl import MAIN_TABLE, PLACEHOLDER, Link, Rtnl, Rule

#: Mark and table of the first default route: "QRE" in ASCII, well away from the numbers that people and wg-quick use.
FIRST_FWMARK = 0x515245
_FWMARKS = 256
#: Rules stand right before the kernel's own `lookup main` (32766), as ip-rule(8) places them.
_LOWEST_RULE = 32766
_NONE: Final[Mapping[int, tuple[int, ...]]] = {}


@dataclass(frozen=True)
class DeviceSpec:
    """The intended device. ``fwmark`` is 0 unless a default route needs one."""

    device: str
    addresses: tuple[Interface, ...]
    mtu: int
    allowed_ips: tuple[Network, ...] = ()
    fwmark: int = 0


def default_versions(allowed_ips: tuple[Network, ...]) -> tuple[int, ...]:
    """The IP versions that have a default route among these prefixes."""
    return tuple(sorted({prefix.version for prefix in allowed_ips if prefix.prefixlen == 0}))


def wanted_routes(spec: DeviceSpec) -> list[tuple[Network, int]]:
    """Prefix and table of each route, the most specific first."""
    routes: list[tuple[Network, int]] = []
    for prefix in sorted(set(spec.allowed_ips), key=lambda network: (-network.prefixlen, network.version, network)):
        if prefix.prefixlen == 0:
            if not spec.fwmark:
                raise InternalError(f"device {spec.device}", "a default route without a mark")
            routes.append((prefix, spec.fwmark))
        elif not any(_covers(interface.network, prefix) for interface in spec.addresses):
            routes.append((prefix, MAIN_TABLE))
    return routes


def _covers(network: Network, prefix: Network) -> bool:
    return (
        network.version == prefix.version
        and network.prefixlen <= prefix.prefixlen
        and prefix.network_address in network
    )


def choose_fwmark(rtnl: Rtnl) -> int:
    """A mark that is also the number of an unused table."""
    for fwmark in range(FIRST_FWMARK, FIRST_FWMARK + _FWMARKS):
        if not rtnl.table_in_use(fwmark):
            return fwmark
    raise MachineError("default route", "no routing table is free", "remove stale rules: see `ip rule`")


def marks_in_rules(rtnl: Rtnl) -> set[int]:
    """The marks in QRE's rules, whether or not a route exists."""
    return {rule.fwmark for rule in rtnl.rules() if rule.fwmark and rule.table == rule.fwmark}


def marks_of(rtnl: Rtnl, link: Link) -> set[int]:
    """The tables other than main with QRE's routes through the device; a table's number is its mark."""
    return {table for _, table in rtnl.routes(link) if table != MAIN_TABLE}


def ruled_versions(rtnl: Rtnl, fwmark: int) -> tuple[int, ...]:
    """The IP versions that have QRE's rules for this mark."""
    return tuple(version for version in (4, 6) if _own_rules(rtnl, version, fwmark))


def sync_device(rtnl: Rtnl, spec: DeviceSpec, previous: tuple[Interface, ...] = ()) -> None:
    """Link up with exactly these addresses, routes and rules of QRE; ``previous`` addresses are removed, too."""
    link = rtnl.link(spec.device)
    if link is None:
        raise MachineError(f"device {spec.device}", "it does not exist", "run `qre-tool up`, or start the daemon")
    rtnl.set_up(link, spec.mtu)
    sync_addresses(rtnl, link, spec, previous)
    sync_routes(rtnl, link, spec)


def sync_addresses(rtnl: Rtnl, link: Link, spec: DeviceSpec, previous: tuple[Interface, ...] = ()) -> None:
    """Give the device exactly these addresses of QRE. Old ones are removed first, then new ones added.

    Meanwhile the tunnel keeps its routes, and an address that stays is never absent:

    - With its last IPv4 address a device loses every IPv4 route, and its other addresses go with the first of their
      network. A placeholder and promote_secondaries prevent that.
    - With the last address of a network its own route goes. A bridge with a high metric stands in for it until
      ``sync_routes`` is done, which may have to route a part of it.

    What cannot be avoided: streams from a removed address break, and so do packets that need a source while there is
    none.
    """
    present = [entry for entry in rtnl.addresses(link) if entry.interface != PLACEHOLDER]
    ours = {entry.interface for entry in present if entry.ours}
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
        if interface not in ours or interface not in left:
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
    for version in default_versions(spec.allowed_ips):
        put_rules(rtnl, version, spec.fwmark)
    for version in {4, 6}.difference(default_versions(spec.allowed_ips)):
        if spec.fwmark:
            delete_rules(rtnl, spec.fwmark, (version,))
    for prefix, table in sorted(present - set(wanted), key=str):
        rtnl.delete_route(link, prefix, table)
        if table not in (MAIN_TABLE, spec.fwmark):
            delete_rules(rtnl, table, (prefix.version,))
    for prefix in rtnl.bridges(link):
        rtnl.delete_bridge(link, prefix)


def put_rules(rtnl: Rtnl, version: int, fwmark: int) -> None:
    """Add all rules at the highest neighbouring free priorities, unless they exist."""
    if len(_own_rules(rtnl, version, fwmark)) == len(_rules(version, 0, fwmark)):
        return
    delete_rules(rtnl, fwmark, (version,))
    taken = {rule.priority for rule in rtnl.rules(ours=False) if rule.version == version}
    for priority in range(_LOWEST_RULE - 2, 2, -1):
        if taken.isdisjoint((priority - 1, priority, priority + 1)):
            for rule in _rules(version, priority, fwmark):
                rtnl.add_rule(rule)
            return
    raise MachineError("default route", "no priority is free for its rules", "remove stale rules: see `ip rule`")


def _rules(version: int, priority: int, fwmark: int) -> list[Rule]:
    """The rules of a default route. The first identifies the others: it is added first and removed last."""
    return [
        Rule(version, priority, fwmark, fwmark),
        Rule(version, priority + 1, 0, fwmark),
        Rule(version, priority - 1, MAIN_TABLE),
    ]


def _own_rules(rtnl: Rtnl, version: int, fwmark: int) -> list[Rule]:
    """Those that exist."""
    present = [rule for rule in rtnl.rules() if rule.version == version]
    found = []
    for rule in present:
        if rule.table == rule.fwmark == fwmark:
            found += [other for other in _rules(version, rule.priority, fwmark) if other in present]
    return found


def delete_rules(rtnl: Rtnl, fwmark: int, versions: tuple[int, ...] = (4, 6)) -> None:
    """Remove our rules for this table, however many there are."""
    for version in versions:
        for rule in reversed(_own_rules(rtnl, version, fwmark)):
            rtnl.delete_rule(rule)


def clear_device(
    rtnl: Rtnl,
    device: str,
    fwmark: int,
    previous: tuple[Interface, ...] = (),
    kept: Mapping[int, tuple[int, ...]] = _NONE,
) -> None:
    """Remove QRE's rules, routes and addresses; no error for what is gone, the device included.

    ``kept``: the IP versions whose rules stay, by mark.
    """
    marks = {fwmark} if fwmark else set()
    link = rtnl.link(device)
    if link is not None:
        marks |= marks_of(rtnl, link)
    for mark in sorted(marks):
        delete_rules(rtnl, mark, tuple({4, 6}.difference(kept.get(mark, ()))))
    if link is None:
        return
    for prefix, table in sorted(rtnl.routes(link), key=str):
        rtnl.delete_route(link, prefix, table)
    for prefix in rtnl.bridges(link):
        rtnl.delete_bridge(link, prefix)
    for entry in rtnl.addresses(link):
        if entry.ours or entry.interface in previous:
            rtnl.delete_address(link, entry.interface)
