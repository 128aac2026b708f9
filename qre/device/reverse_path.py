"""Whether this machine drops the server's datagrams once the default route goes into the tunnel.

They arrive on the uplink unmarked, and strict reverse-path filtering (rp_filter 1, RFC 3704) asks where an unmarked
answer would go: into the tunnel, so it drops them. Loose filtering (2) lets them in. The kernel is asked by rtnetlink
(RTM_GETNETCONF): a unit hides /proc/sys.
"""

from __future__ import annotations

import socket
from typing import Final

from qre.errors import QreError
from qre.kernel.netfilter.forwarding import ALL, RP_FILTER, settings_of_devices
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket

_STRICT: Final = 1


def strict_devices(device: str) -> list[str]:
    """The devices but ``device`` whose effective rp_filter, the larger of theirs and that of `all`, is strict."""
    try:
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            filters = settings_of_devices(netlink, RP_FILTER)
        devices = socket.if_nameindex()
    except (QreError, OSError):
        return []  # then no advice is given
    everywhere = filters.get(ALL, 0)
    return sorted(
        name
        for index, name in devices
        if name not in ("lo", device) and max(everywhere, filters.get(index, 0)) == _STRICT
    )
