"""Which way packets go, and whether a device forwards: asked and set by rtnetlink, for a unit hides /proc/sys.

IPv4's settings of a device are attributes of its link (IFLA_AF_SPEC, AF_INET, IFLA_INET_CONF), so that forwarding is
switched on one device, with CAP_NET_ADMIN, and net.ipv4.ip_forward stays as it is.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from qre.addresses import Address
from qre.errors import UntrustedInputError
from qre.kernel.attributes import encode_attribute, split_attributes_untrusted
from qre.kernel.rtnl import RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from qre.kernel.socket import NLM_F_DUMP, NetlinkRefusedError, NetlinkSocket

_RTM_GETNETCONF: Final = 82
_HEADER: Final = 16  # struct nlmsghdr
_NETCONF: Final = _HEADER + 4  # struct netconfmsg with its padding
#: The index of `all`, in place of a device's, and of what new devices get.
ALL: Final = -1
_NETCONFA_IFINDEX: Final = 1
RP_FILTER, FORWARDING = 3, 2  # NETCONFA_
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_MARK = 1, 4, 7, 16
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_TYPE: Final = _HEADER + 7  # of a route
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 18, 1
_IFLA_AF_SPEC, _IFLA_INET_CONF, _IPV4_DEVCONF_FORWARDING = 26, 1, 1
_NESTED: Final = 0x8000
_IFLA_PROTINFO, _IFLA_INET6_CONF, _DEVCONF_ACCEPT_RA = 12, 2, 3


@dataclass(frozen=True)
class Way:
    """How this machine reaches an address. ``local``: it is its own."""

    index: int
    source: Address
    local: bool


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def way_to(netlink: NetlinkSocket, address: Address, mark: int) -> Way | None:
    """For packets with this mark; None when there is no way. Raises MachineError or UntrustedInputError."""
    asked = _ROUTE.pack(_family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    asked += encode_attribute(_RTA_DST, address.packed) + encode_attribute(_RTA_MARK, struct.pack("=I", mark))
    try:
        answers = netlink.exchange(f"the route to {address}", RTM_GETROUTE, asked)
    except NetlinkRefusedError:
        return None  # no route, or one that refuses
    for kind, message in answers:
        found = dict(split_attributes_untrusted(message[_HEADER + _ROUTE.size :]))
        index, source = found.get(_RTA_OIF, b""), found.get(_RTA_PREFSRC, b"")
        if kind != RTM_NEWROUTE or message[_TYPE] not in (_RTN_UNICAST, _RTN_LOCAL):
            continue
        if len(index) == 4 and len(source) == len(address.packed):
            return Way(int(struct.unpack("=i", index)[0]), ip_address(source), message[_TYPE] == _RTN_LOCAL)
    return None


def device_with(netlink: NetlinkSocket, address: Address) -> int | None:
    """The index of the device that has this address; None when none has. Raises as ``way_to``."""
    asked = _ADDRESS.pack(_family(address), 0, 0, 0, 0)
    for kind, message in netlink.exchange("listing addresses", RTM_GETADDR, asked, NLM_F_DUMP):
        found = dict(split_attributes_untrusted(message[_HEADER + _ADDRESS.size :]))
        if kind == RTM_NEWADDR and found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS)) == address.packed:
            return int(_ADDRESS.unpack_from(message, _HEADER)[4])
    return None


def devices_with_addresses(netlink: NetlinkSocket) -> set[int]:
    """The indices of the devices that have an IPv4 address. Raises as ``way_to``."""
    asked = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
    answers = netlink.exchange("listing addresses", RTM_GETADDR, asked, NLM_F_DUMP)
    whole = _HEADER + _ADDRESS.size
    return {
        int(_ADDRESS.unpack_from(message, _HEADER)[4])
        for kind, message in answers
        if kind == RTM_NEWADDR and len(message) >= whole
    }


def index_of(netlink: NetlinkSocket, name: str) -> int | None:
    """The index of a device; None when there is none of this name. Raises as ``way_to``."""
    asked = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + encode_attribute(_IFLA_IFNAME, name.encode() + b"\0")
    try:
        answers = netlink.exchange("finding a device", RTM_GETLINK, asked)
    except NetlinkRefusedError:
        return None
    found = (message for kind, message in answers if kind == RTM_NEWLINK and len(message) >= _HEADER + _LINK.size)
    return next((int(_LINK.unpack_from(message, _HEADER)[2]) for message in found), None)


def name_of(netlink: NetlinkSocket, index: int) -> str | None:
    """The name of a device; None when it is gone. Raises as ``way_to``."""
    name = _link(netlink, index).get(_IFLA_IFNAME, b"")
    return name.rstrip(b"\0").decode(errors="surrogateescape") or None


def bridge_address(netlink: NetlinkSocket, index: int) -> str:
    """The link-layer address of a bridge; empty for any other device. Raises as ``way_to``."""
    link = _link(netlink, index)
    kind = dict(split_attributes_untrusted(link.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"")
    return link.get(_IFLA_ADDRESS, b"").hex(":") if kind.rstrip(b"\0") == b"bridge" else ""


def _link(netlink: NetlinkSocket, index: int) -> dict[int, bytes]:
    try:
        answers = netlink.exchange("reading a device", RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))
    except NetlinkRefusedError:
        return {}
    found = (message for kind, message in answers if kind == RTM_NEWLINK)
    return next((dict(split_attributes_untrusted(message[_HEADER + _LINK.size :])) for message in found), {})


def settings_of_devices(netlink: NetlinkSocket, which: int, family: int = socket.AF_INET) -> dict[int, int]:
    """IPv4's or IPv6's setting ``which`` (FORWARDING, RP_FILTER) by the device's index, and that of ALL. Raises
    MachineError or UntrustedInputError."""
    asked = struct.pack("=B3x", family)
    found = {}
    for _, message in netlink.exchange("reading the devices' settings", _RTM_GETNETCONF, asked, NLM_F_DUMP):
        numbers = dict(split_attributes_untrusted(message[_NETCONF:]))
        wanted = numbers.get(_NETCONFA_IFINDEX, b""), numbers.get(which, b"")
        if any(len(each) != 4 for each in wanted):
            raise UntrustedInputError("netconf names no device and setting of 32 bits each")
        index, value = (struct.unpack("=i", each)[0] for each in wanted)
        found[index] = value
    return found


def forwards_ipv6(netlink: NetlinkSocket) -> bool:
    """Whether this machine forwards IPv6: there is one switch for all devices. Raises QreError."""
    try:
        return bool(settings_of_devices(netlink, FORWARDING, socket.AF_INET6).get(ALL))
    except NetlinkRefusedError:
        return False  # a kernel without IPv6


def set_forwarding(netlink: NetlinkSocket, index: int, on: bool) -> None:
    """Of IPv4, on this device alone. Raises NetlinkRefusedError."""
    value = encode_attribute(_IPV4_DEVCONF_FORWARDING, struct.pack("=I", on))
    for kind in (_IFLA_INET_CONF, socket.AF_INET, _IFLA_AF_SPEC):
        value = encode_attribute(kind | _NESTED, value)
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + value
    netlink.exchange(f"switching forwarding {'on' if on else 'off'}", RTM_NEWLINK, body)


def hear_no_advertisements(netlink: NetlinkSocket) -> set[int]:
    """The indices of devices that hear IPv6's router advertisements only while they do not forward (accept_ra = 1).
    Raises MachineError or UntrustedInputError."""
    found = set()
    asked = _LINK.pack(socket.AF_INET6, 0, 0, 0, 0)
    for kind, message in netlink.exchange("reading IPv6's settings", RTM_GETLINK, asked, NLM_F_DUMP):
        if kind != RTM_NEWLINK or len(message) < _HEADER + _LINK.size:
            continue
        link = dict(split_attributes_untrusted(message[_HEADER + _LINK.size :]))
        inner = dict(split_attributes_untrusted(link.get(_IFLA_PROTINFO, b"")))
        numbers = inner.get(_IFLA_INET6_CONF, b"")
        if numbers[4 * _DEVCONF_ACCEPT_RA :][:4] == struct.pack("=i", 1):
            found.add(int(_LINK.unpack_from(message, _HEADER)[2]))
    return found
