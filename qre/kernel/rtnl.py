"""rtnetlink(7) as far as QRE needs it: links, addresses, routes, rules; typed values in, typed values out.

What QRE makes carries the protocol number ``PROTOCOL`` (addresses: IFA_PROTO, routes: rtm_protocol, rules:
FRA_PROTOCOL), so that only these are ever replaced or deleted: what a hook or an administrator added to the device
stays. This module has single operations; ``qre.kernel.tunnel`` combines them.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from typing import Any, Self

from qre.addresses import Interface, Network
from qre.kernel.attributes import encode_attribute
from qre.kernel.socket import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkRefusedError,
    NetlinkSocket,
)


@contextmanager
def _only_what_is_named() -> Iterator[None]:
    """``pyroute2`` itself loads all of that library, 12 MB in every process: its modules can be had without it."""
    name = "pyroute2"
    spec = find_spec(name) if name not in sys.modules else None
    if spec is None:
        yield
        return
    sys.modules[name] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[name]  # whoever wants the whole gets it


with _only_what_is_named():
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

#: "Q": marks what QRE made (see /etc/iproute2/rt_protos for the numbers of others).
PROTOCOL = 0x51
MAIN_TABLE = 254
#: The dummy address of RFC 7600: an IPv4 device that has it, and no other, still has its routes.
PLACEHOLDER = ipaddress.ip_interface("192.0.0.8/32")
#: Of a route that stands in for one of the kernel's while addresses change: used by QRE alone, worse than all others.
BRIDGE_METRIC = 0x51524500

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
CLASSES = {
    RTM_NEWLINK: ifinfmsg,
    RTM_DELLINK: ifinfmsg,
    RTM_NEWADDR: ifaddrmsg,
    RTM_NEWROUTE: rtmsg,
    RTM_NEWRULE: fibmsg,
}

_IFF_UP = 0x1
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_HOST = 0, 253, 254
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_CHOSEN_FLAGS = _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE  # the others are the kernel's, or of addresses that it makes
_RTN_UNICAST = 1
_RT_TABLE_UNSPEC, _RT_TABLE_COMPAT = 0, 252
_FR_ACT_TO_TABLE, _FR_ACT_UNREACHABLE = 1, 7
_FIB_RULE_INVERT = 0x2
_NOT_SUPPRESSED = 1 << 31  # as an unsigned number: the kernel says -1
_ADDR_GEN_MODE_NONE = 1
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_NESTED = 0x8000
_IFLA_AF_SPEC, _IFLA_INET_CONF, _PROMOTE_SECONDARIES = 26, 1, 20
#: Error numbers that mean "gone already", by operation.
_GONE = (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT, errno.ENXIO)


@dataclass(frozen=True)
class Link:
    """One network device."""

    index: int
    name: str
    kind: str  # "tun", "veth", …; empty for hardware
    alias: str
    up: bool
    mtu: int
    has_ipv6: bool  # IPv6 is enabled on it


@dataclass(frozen=True)
class AssignedAddress:
    """An address that a device has; ``ours``: QRE put it there. ``flags``: those that who put it there chose."""

    interface: Interface
    ours: bool
    flags: int = 0


@dataclass(frozen=True)
class Rule:
    """One policy rule (ip-rule(8)): which packets look into ``table``, or are unreachable.

    With ``fwmark``: packets with this mark, or with ``inverted`` all others; without, every packet. ``suppress``: a
    route whose prefix is not longer than this does not count.
    """

    version: int
    priority: int
    table: int
    fwmark: int = 0
    inverted: bool = False
    suppress: int | None = None
    unreachable: bool = False


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


class Rtnl:
    """Operations on the links of this network namespace."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, CLASSES)

    @property
    def port_id(self) -> int:
        """What the kernel's notifications of our requests carry."""
        return self._netlink.port_id

    def close(self) -> None:
        """Close the netlink socket; what was set stays."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- links ---

    def link(self, name: str) -> Link | None:
        """The device of this name, or None."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        try:
            found = self._netlink.request(f"reading device {name}", message, RTM_GETLINK)
        except NetlinkRefusedError as error:
            if error.code in _GONE:
                return None
            raise
        return _link(found[0]) if found else None

    def links(self) -> list[Link]:
        """Every device of the namespace."""
        found = self._netlink.request("listing devices", ifinfmsg(), RTM_GETLINK, NLM_F_DUMP)
        return [_link(message) for message in found]

    def set_alias(self, link: Link, alias: str) -> None:
        """Set IFLA_IFALIAS, by which the owner of a link is recognised."""
        self._set_link(f"naming {link.name}", link.index, [("IFLA_IFALIAS", alias)])

    def set_up(self, link: Link, mtu: int) -> None:
        """Link up with this MTU. The kernel gives it no link-local address: nothing but the user's packets
        may enter a tunnel, so no router solicitations either (wireguard does the same)."""
        if link.has_ipv6:
            self._keep_own_addresses(link)
        self._set_link(f"setting up {link.name}", link.index, [("IFLA_MTU", mtu)], flags=_IFF_UP)
        if not link.has_ipv6 and (found := self.link(link.name)) is not None and found.has_ipv6:
            # The MTU was too small for IPv6: the device has it only now, and an address of the kernel's with it.
            self._keep_own_addresses(found)
            for entry in self.addresses(found):
                if entry.interface.ip.is_link_local and not entry.ours:
                    self.delete_address(found, entry.interface)

    def _keep_own_addresses(self, link: Link) -> None:
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]}
        self._set_link(f"setting up {link.name}", link.index, [("IFLA_AF_SPEC", {"attrs": [("AF_INET6", mode)]})])

    def set_down(self, link: Link) -> None:
        """Clear IFF_UP; the kernel removes the link's routes."""
        self._set_link(f"setting {link.name} down", link.index, [], change=_IFF_UP)

    def _set_link(
        self, what: str, index: int, attributes: list[tuple[str, Any]], *, flags: int = 0, change: int = 0
    ) -> None:
        message = ifinfmsg()
        message["index"] = index
        message["flags"] = flags
        message["change"] = flags | change
        message["attrs"] = attributes
        self._netlink.request(what, message, RTM_NEWLINK)

    def delete_link(self, link: Link) -> None:
        """Remove the device; no error when it is gone."""
        message = ifinfmsg()
        message["index"] = link.index
        self._unless_gone(f"deleting {link.name}", message, RTM_DELLINK)

    # --- addresses ---

    def addresses(self, link: Link) -> list[AssignedAddress]:
        """The addresses of a device."""
        message = ifaddrmsg()
        message["index"] = link.index
        answers = self._netlink.request(f"listing addresses of {link.name}", message, RTM_GETADDR, NLM_F_DUMP)
        found = []
        for answer in answers:
            if answer["index"] != link.index:
                continue
            text = answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")
            interface = ipaddress.ip_interface(f"{text}/{answer['prefixlen']}")
            flags = (answer.get_attr("IFA_FLAGS") or 0) & _CHOSEN_FLAGS
            found.append(AssignedAddress(interface, answer.get_attr("IFA_PROTO") == PROTOCOL, flags))
        return found

    def put_address(self, link: Link, interface: Interface) -> None:
        """Add the address and mark it as QRE's; no error when it exists. It can be used at once (nodad)."""
        self.put_back(link, AssignedAddress(interface, True, _IFA_F_NODAD if interface.version == 6 else 0))

    def put_back(self, link: Link, address: AssignedAddress) -> None:
        """Add an address as ``addresses`` told of it; no error when it exists."""
        message = _address_message(link, address.interface, ours=address.ours)
        message["attrs"].append(("IFA_FLAGS", address.flags))
        self._put_address(link, address.interface, message)

    def put_placeholder(self, link: Link) -> None:
        """Add an IPv4 address that is never chosen as a source and creates no route."""
        message = _address_message(link, PLACEHOLDER)
        message["scope"] = _RT_SCOPE_HOST
        message["attrs"].append(("IFA_FLAGS", _IFA_F_NOPREFIXROUTE))
        self._put_address(link, PLACEHOLDER, message)

    def _put_address(self, link: Link, interface: Interface, message: Any) -> None:
        what = f"adding {interface} to {link.name}"
        self._netlink.request(what, message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)

    def keep_secondaries(self, link: Link) -> None:
        """Set promote_secondaries: deleting an IPv4 address no longer deletes the others of its network."""
        value = encode_attribute(_PROMOTE_SECONDARIES, struct.pack("=I", 1))
        for kind in (_IFLA_INET_CONF, socket.AF_INET, _IFLA_AF_SPEC):
            value = encode_attribute(kind | _NESTED, value)
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, link.index, 0, 0) + value
        self._netlink.exchange(f"setting up {link.name}", RTM_NEWLINK, body)

    def delete_address(self, link: Link, interface: Interface) -> None:
        """Succeeds when the address is gone already."""
        self._unless_gone(f"deleting {interface} from {link.name}", _address_message(link, interface), RTM_DELADDR)

    # --- routes ---

    def routes(self, link: Link) -> set[tuple[Network, int]]:
        """Prefix and table of each route of ours through the device, bridges apart."""
        return {(prefix, table) for prefix, table, metric in self._routes(link) if metric != BRIDGE_METRIC}

    def bridges(self, link: Link) -> set[Network]:
        """The prefixes of the bridges through the device."""
        return {prefix for prefix, _, metric in self._routes(link) if metric == BRIDGE_METRIC}

    def _routes(self, link: Link) -> set[tuple[Network, int, int]]:
        found: set[tuple[Network, int, int]] = set()
        for version in (4, 6):
            message = rtmsg()
            message["family"] = _family(version)
            message["attrs"] = [("RTA_OIF", link.index)]
            answers = self._netlink.request(f"listing routes of {link.name}", message, RTM_GETROUTE, NLM_F_DUMP)
            for answer in answers:
                if answer["proto"] == PROTOCOL and answer.get_attr("RTA_OIF") == link.index:
                    metric = answer.get_attr("RTA_PRIORITY") or 0
                    found.add((_prefix(answer, version), _table(answer), metric))
        return found

    def table_in_use(self, table: int) -> bool:
        """Whether any route or rule of either family uses this table."""
        if any(rule.table == table for rule in self.rules(ours=False)):
            return True
        for version in (4, 6):
            message = rtmsg()
            message["family"] = _family(version)
            message["attrs"] = [("RTA_TABLE", table)]
            try:
                answers = self._netlink.request(f"listing table {table}", message, RTM_GETROUTE, NLM_F_DUMP)
            except NetlinkRefusedError as error:
                if error.code in _GONE:  # strict checking: a table that was never used does not exist
                    continue
                raise
            if any(_table(answer) == table for answer in answers):
                return True
        return False

    def add_route(self, link: Link, prefix: Network, table: int) -> None:
        """Add the route; refused when there is one for this prefix, perhaps of another device."""
        self._netlink.request(
            f"routing {prefix} to {link.name}",
            _route_message(link, prefix, table),
            RTM_NEWROUTE,
            NLM_F_CREATE | NLM_F_EXCL,
        )

    def add_bridge(self, link: Link, prefix: Network) -> None:
        """Add a second route for a network of the device, beside the kernel's; no error when it exists."""
        message = _route_message(link, prefix, MAIN_TABLE, BRIDGE_METRIC)
        self._netlink.request(f"routing {prefix} to {link.name}", message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)

    def delete_bridge(self, link: Link, prefix: Network) -> None:
        """Undo ``add_bridge``; succeeds when the route is gone already."""
        message = _route_message(link, prefix, MAIN_TABLE, BRIDGE_METRIC)
        self._unless_gone(f"deleting route {prefix} of {link.name}", message, RTM_DELROUTE)

    def delete_route(self, link: Link, prefix: Network, table: int) -> None:
        """Succeeds when the route is gone already."""
        self._unless_gone(
            f"deleting route {prefix} of {link.name}", _route_message(link, prefix, table), RTM_DELROUTE
        )

    # --- rules ---

    def rules(self, *, ours: bool = True) -> list[Rule]:
        """The policy rules; by default only those of QRE."""
        found = []
        for version in (4, 6):
            message = fibmsg()
            message["family"] = _family(version)
            try:
                answers = self._netlink.request("listing rules", message, RTM_GETRULE, NLM_F_DUMP)
            except NetlinkRefusedError as error:
                if error.code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                    continue  # a kernel without this family, or without policy routing
                raise
            for answer in answers:
                if ours and answer.get_attr("FRA_PROTOCOL") != PROTOCOL:
                    continue
                found.append(_rule(answer, version))
        return found

    def add_rule(self, rule: Rule) -> None:
        """Adds a duplicate when the same rule exists."""
        self._netlink.request(
            f"adding the rule for table {rule.table}", _rule_message(rule), RTM_NEWRULE, NLM_F_CREATE
        )

    def delete_rule(self, rule: Rule) -> None:
        """Succeeds when the rule is gone already."""
        self._unless_gone(f"deleting the rule for table {rule.table}", _rule_message(rule), RTM_DELRULE)

    def _unless_gone(self, what: str, message: Any, kind: int) -> None:
        try:
            self._netlink.request(what, message, kind)
        except NetlinkRefusedError as error:
            if error.code not in _GONE:
                raise


def _link(message: Any) -> Link:
    information = message.get_attr("IFLA_LINKINFO")
    specific = message.get_attr("IFLA_AF_SPEC")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        kind=(information.get_attr("IFLA_INFO_KIND") if information else None) or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        up=bool(message["flags"] & _IFF_UP),
        mtu=message.get_attr("IFLA_MTU") or 0,
        has_ipv6=bool(specific) and specific.get_attr("AF_INET6") is not None,
    )


def _address_message(link: Link, interface: Interface, *, ours: bool = True) -> Any:
    message = ifaddrmsg()
    message["family"] = _family(interface.version)
    message["prefixlen"] = interface.network.prefixlen
    message["index"] = link.index
    text = str(interface.ip)
    message["attrs"] = [("IFA_LOCAL", text), ("IFA_ADDRESS", text), ("IFA_PROTO", PROTOCOL if ours else 0)]
    return message


def _route_message(link: Link, prefix: Network, table: int, metric: int = 0) -> Any:
    message = rtmsg()
    message["family"] = _family(prefix.version)
    message["dst_len"] = prefix.prefixlen
    message["table"] = table if table < 256 else _RT_TABLE_COMPAT
    message["proto"] = PROTOCOL
    message["scope"] = _RT_SCOPE_LINK if prefix.version == 4 else _RT_SCOPE_UNIVERSE
    message["type"] = _RTN_UNICAST
    attributes: list[tuple[str, Any]] = [("RTA_OIF", link.index), ("RTA_TABLE", table)]
    if prefix.prefixlen:
        attributes.append(("RTA_DST", str(prefix.network_address)))
    if metric:
        attributes.append(("RTA_PRIORITY", metric))
    message["attrs"] = attributes
    return message


def _rule(answer: Any, version: int) -> Rule:
    suppress = answer.get_attr("FRA_SUPPRESS_PREFIXLEN")
    return Rule(
        version,
        answer.get_attr("FRA_PRIORITY") or 0,
        answer.get_attr("FRA_TABLE") or answer["table"],
        answer.get_attr("FRA_FWMARK") or 0,
        inverted=bool(answer["flags"] & _FIB_RULE_INVERT),
        suppress=None if suppress is None or suppress >= _NOT_SUPPRESSED else suppress,
        unreachable=answer["action"] == _FR_ACT_UNREACHABLE,
    )


def _rule_message(rule: Rule) -> Any:
    message = fibmsg()
    message["family"] = _family(rule.version)
    message["table"] = rule.table if rule.table < 256 else _RT_TABLE_UNSPEC
    message["action"] = _FR_ACT_UNREACHABLE if rule.unreachable else _FR_ACT_TO_TABLE
    attributes: list[tuple[str, Any]] = [
        ("FRA_TABLE", rule.table),
        ("FRA_PRIORITY", rule.priority),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    if rule.inverted:
        message["flags"] = _FIB_RULE_INVERT
    if rule.fwmark:
        attributes += [("FRA_FWMARK", rule.fwmark), ("FRA_FWMASK", 0xFFFFFFFF)]
    if rule.suppress is not None:
        attributes.append(("FRA_SUPPRESS_PREFIXLEN", rule.suppress))
    message["attrs"] = attributes
    return message


def _table(message: Any) -> int:
    return int(message.get_attr("RTA_TABLE") or message["table"])


def _prefix(message: Any, version: int) -> Network:
    text = message.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")
    return ipaddress.ip_network(f"{text}/{message['dst_len']}")
