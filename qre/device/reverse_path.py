"""Whether this machine drops the server's datagrams once the default route goes into the tunnel.

They arrive on the uplink unmarked, and strict reverse-path filtering (rp_filter 1, RFC 3704) asks where an unmarked
answer would go: into the tunnel, so it drops them. Loose filtering (2) lets them in. The kernel is asked by rtnetlink
(RTM_GETNETCONF): a unit hides /proc/sys.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from qre.errors import QreError, UntrustedInputError
from qre.kernel.attributes import split_attributes_untrusted
from qre.kernel.socket import NETLINK_ROUTE, NLM_F_DUMP, NetlinkSocket

_RTM_GETNETCONF: Final = 82
_IFINDEX, _RP_FILTER = 1, 3  # NETCONFA_
_HEADER = 16 + 4  # struct nlmsghdr, and struct netconfmsg with its padding
#: The index of `all`, in place of a device's.
_ALL: Final = -1
_STRICT: Final = 1


def strict_devices(device: str) -> list[str]:
    """The devices but ``device`` whose effective rp_filter, the larger of theirs and that of `all`, is strict."""
    try:
        filters = _filters()
        devices = socket.if_nameindex()
    except (QreError, OSError):
        return []  # then no advice is given
    everywhere = filters.get(_ALL, 0)
    return sorted(
        name
        for index, name in devices
        if name not in ("lo", device) and max(everywhere, filters.get(index, 0)) == _STRICT
    )


def _filters() -> dict[int, int]:
    """IPv4's rp_filter by the device's index. Raises MachineError or UntrustedInputError."""
    request = struct.pack("=B3x", socket.AF_INET)
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        answers = netlink.exchange("reading rp_filter", _RTM_GETNETCONF, request, NLM_F_DUMP)
    found = {}
    for _, message in answers:
        numbers = dict(split_attributes_untrusted(message[_HEADER:]))
        wanted = numbers.get(_IFINDEX, b""), numbers.get(_RP_FILTER, b"")
        if any(len(each) != 4 for each in wanted):
            raise UntrustedInputError("netconf names no device and rp_filter of 32 bits each")
        index, value = (struct.unpack("=i", each)[0] for each in wanted)
        found[index] = value
    return found
