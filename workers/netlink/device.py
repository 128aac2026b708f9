"""What makes a device a tunnel: MTU, addresses, routes as wg-quick(8) makes them, and nothing else of ours.

A default route goes into a table of its own, which every packet without the tunnel's mark is sent to; a rule before
it lets the main table answer first, but for its default routes (suppress_prefixlength). A rule behind it refuses what
finds nothing there: when the device is gone, nothing leaves in the clear. The underlay socket carries the mark, so
the tunnel's own packets take the machine's real default route. Plain prefixes go into the main table, unless one of
the device's own networks covers them.
"""

from __future__ import annotations

from dataclasses import dataclass

from qre.config.model import Interface, Network
from qre.errors import InternalError, MachineError
from qre.workers.netlink.rtnl import MAIN_TABLE, Link, Rtnl, Rule

#: Mark and table of the first default route: "QRE" in ASCII, well away from the numbers that people and wg-quick use.
FIRST_FWMARK = 0x515245
_FWMARKS = 256
#: Rules stand right before the kernel's own `lookup main` (32766), as ip-rule(8) places them.
_LOWEST_RULE = 32766


@dataclass(frozen=True)
class DeviceSpec:
    """What a device shall be. ``fwmark`` is 0 unless a default route needs one."""

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
    """A mark that is also the number of a table nobody uses."""
    for fwmark in range(FIRST_FWMARK, FIRST_FWMARK + _FWMARKS):
        if not rtnl.table_in_use(fwmark):
            return fwmark
    raise MachineError("default route", "no routing table is free", "remove stale rules: see `ip rule`")


def sync_device(rtnl: Rtnl, spec: DeviceSpec, previous: tuple[Interface, ...] = ()) -> None:
    """Link up with exactly these addresses, routes and rules of ours; ``previous`` addresses go too.

    New things are added before old ones go, so an unchanged tunnel never stands without its address.
    """
    link = rtnl.link(spec.device)
    if link is None:
        raise MachineError(f"device {spec.device}", "it does not exist", "run `qre-tool up`, or start the daemon")
    rtnl.set_up(link, spec.mtu)
    sync_addresses(rtnl, link, spec, previous)
    sync_routes(rtnl, link, spec)


def sync_addresses(rtnl: Rtnl, link: Link, spec: DeviceSpec, previous: tuple[Interface, ...] = ()) -> None:
    """The device has these addresses, and no other of ours."""
    present = rtnl.addresses(link)
    kept = {entry.interface for entry in present if entry.ours}
    for interface in spec.addresses:
        if interface not in kept:
            rtnl.put_address(link, interface)
    for entry in present:
        if (entry.ours or entry.interface in previous) and entry.interface not in spec.addresses:
            rtnl.delete_address(link, entry.interface)
    # The kernel takes an IPv4 address's secondaries with it; without promote_secondaries ours may have gone that way.
    left = {entry.interface for entry in rtnl.addresses(link)}
    for interface in spec.addresses:
        if interface not in left:
            rtnl.put_address(link, interface)


def sync_routes(rtnl: Rtnl, link: Link, spec: DeviceSpec) -> None:
    """The routes and rules for AllowedIPs, and no other of ours."""
    wanted = wanted_routes(spec)
    present = rtnl.routes(link)
    for prefix, table in wanted:
        if (prefix, table) not in present:
            rtnl.add_route(link, prefix, table)
    for version in default_versions(spec.allowed_ips):
        _put_rules(rtnl, version, spec.fwmark)
    for version in {4, 6}.difference(default_versions(spec.allowed_ips)):
        if spec.fwmark:
            delete_rules(rtnl, spec.fwmark, (version,))
    for prefix, table in sorted(present - set(wanted), key=str):
        rtnl.delete_route(link, prefix, table)
        if table not in (MAIN_TABLE, spec.fwmark):
            delete_rules(rtnl, table, (prefix.version,))


def _put_rules(rtnl: Rtnl, version: int, fwmark: int) -> None:
    """All of them, at the highest neighbouring free priorities; nothing when they are there."""
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
    """What a default route wants. The first tells whose the others are: it comes before them, and goes last."""
    return [
        Rule(version, priority, fwmark, fwmark),
        Rule(version, priority + 1, 0, fwmark),
        Rule(version, priority - 1, MAIN_TABLE),
    ]


def _own_rules(rtnl: Rtnl, version: int, fwmark: int) -> list[Rule]:
    """Those that are there."""
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


def clear_device(rtnl: Rtnl, device: str, fwmark: int, previous: tuple[Interface, ...] = ()) -> None:
    """Take away the rules, routes and addresses of ours; no error for what is gone, the device included."""
    if fwmark:
        delete_rules(rtnl, fwmark)
    link = rtnl.link(device)
    if link is None:
        return
    for prefix, table in sorted(rtnl.routes(link), key=str):
        rtnl.delete_route(link, prefix, table)
        if table != MAIN_TABLE:
            delete_rules(rtnl, table)
    for entry in rtnl.addresses(link):
        if entry.ours or entry.interface in previous:
            rtnl.delete_address(link, entry.interface)
