"""What ``check`` examines of this machine's own firewall: whether the datagrams of clients get in at all.

The rules of nftables (and of iptables-nft) are read as root; nothing is sent, for what this machine sends to itself
passes other rules than what comes from outside.
"""

from __future__ import annotations

from qre.addresses import Address, ipv4_of_listen
from qre.cli.check.findings import AS_ROOT, Finding, Findings, YesNo
from qre.config.model import Profile
from qre.errors import QreError
from qre.kernel.capabilities import require_capabilities
from qre.kernel.netfilter.firewall import Firewall
from qre.kernel.netfilter.forwarding import name_of
from qre.kernel.site_tcp.arrival import LIST_RULES, Datagram, arrival
from qre.kernel.site_tcp.site_face import way_in
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket

_NAME = "firewall"
_INSTEAD = "a tunnel works wherever the rules let it in"


def firewall(loaded: Profile) -> Findings:
    """For a server's profile."""
    assert loaded.listen is not None
    addresses, port = ipv4_of_listen(loaded.listen.addresses), loaded.listen.port
    if not addresses:
        seen = f"Listen is {loaded.listen}, and rules are read for IPv4"
        yield Finding(_NAME, YesNo.UNKNOWN, seen, f"see `nft list ruleset` for UDP {port}", _INSTEAD)
        return
    try:
        require_capabilities("nftables", ["CAP_NET_ADMIN"])
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            datagrams = [Datagram(_device(netlink, each), each, port) for each in addresses]
        objects = Firewall("SiteTcp").run([LIST_RULES])
    except QreError as error:
        yield Finding(_NAME, YesNo.UNKNOWN, str(error), error.remedy or AS_ROOT, _INSTEAD)
        return
    found, datagram = max(
        ((arrival(objects, each), each) for each in datagrams), key=lambda it: (it[0].dropped, it[0].doubtful)
    )
    to = f"{datagram.address}:{port}" if len(addresses) > 1 and (found.dropped or found.doubtful) else f"{port}"
    what = f"UDP {to}{f' that comes in by {datagram.device}' if datagram.device else ''}"
    remedy = f"let it pass there, as with `udp dport {port} accept`, or `ufw allow {port}/udp`"
    if found.dropped:
        yield Finding(_NAME, YesNo.NO, f"the chain {found.chain} drops {what}: no client gets in", remedy)
    elif found.doubtful:
        seen = f"whether the chain {found.chain} lets {what} pass depends on more than its rules"
        yield Finding(_NAME, YesNo.UNKNOWN, seen, f"see `nft list ruleset`; {remedy}", _INSTEAD)
    else:
        yield Finding(_NAME, YesNo.YES, f"nothing in nftables drops {what}", instead=_INSTEAD)


def _device(netlink: NetlinkSocket, address: Address) -> str:
    """The one by which datagrams to there come in; empty when it is not known."""
    index = way_in(netlink, address)
    return (name_of(netlink, index) if index is not None else None) or ""
