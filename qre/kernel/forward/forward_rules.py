"""The nftables table of Forward as a value: from what is wanted to libnftables-json(5). Sans-IO.

Packets from the tunnel pass; with ``nat`` they leave with this machine's address (out). Packets to the tunnel pass
with ``route``; with ``nat`` only replies do, and what somebody's destination NAT sends there. The MSS of TCP
connections is that of the narrower route.

An uplink that did not forward before does now. ``pass`` drops what comes from it for others than the tunnel before
the kernel could answer with a redirect, and ``forward`` drops it once more. What may pass bears QRE's mark, so that
the guards of SiteTcp let it through, too. Where the machine forwarded before, its packets are left alone.

IPv6 is forwarded where net.ipv6.conf.all.forwarding is on. It is never switched on here: there is one switch for the
whole machine, and with it router advertisements go unheard. Where it is off, clients are told that there is no route
and use IPv4, instead of waiting for silence.

Link-local addresses of IPv4 are not reached through a router (RFC 3927, 7): behind one of them, clouds hand out the
secrets of their machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qre.addresses import Address
from qre.ends import Forward
from qre.kernel.netfilter.expressions import (
    BEFORE_GUARDS,
    DROP,
    FILTER,
    FOR_OTHERS,
    NOT_VOUCHED_FOR,
    REPLY,
    SRCNAT,
    VOUCHED_FOR,
    Command,
    Expression,
    Table,
    equals,
    in_set,
    leave_untracked,
    match,
    meta,
    not_translated,
    payload,
    routed,
    set_to,
    tracked,
    translated_apart,
)
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import FORWARD, Guarded, OwnTable, arrived_at, note, removal, table_of

_LINK_LOCAL: Final = {"prefix": {"addr": "169.254.0.0", "len": 16}}
_NO_ROUTE: Final[Expression] = {"reject": {"type": "icmpv6", "expr": "no-route"}}
_IPV4, _IPV6 = equals(meta("nfproto"), "ipv4"), equals(meta("nfproto"), "ipv6")
_NO_REPLY: Final = match("!=", tracked("state"), {"set": ["established", "related"]})
_SYN: Final = match("in", payload("tcp", "flags"), "syn")
_CLAMP: Final = set_to({"tcp option": {"name": "maxseg", "field": "size"}}, {"rt": {"key": "mtu"}})


@dataclass(frozen=True)
class Passage:
    """What is wanted."""

    device: str  # the tunnel's
    mode: Forward  # not OFF
    guarded: tuple[Guarded, ...]  # uplinks that did not forward
    tunnel: tuple[Guarded, ...]  # the tunnel's device, if it did not: its packets need no guard
    ipv6: bool  # this machine forwards it
    listen: Listening
    dest: tuple[Address, int] | None
    quiet: bool  # QRE's own datagrams stay untracked

    @property
    def table(self) -> OwnTable:
        """The table."""
        return table_of(FORWARD, self.device)


def replacement(passage: Passage) -> list[Command]:
    """Make the table, or put it in place of the one that is there, in one transaction."""
    table = Table(*passage.table)
    note(table, None, (*passage.tunnel, *passage.guarded))
    nat = passage.mode is Forward.NAT
    if nat and passage.quiet:
        leave_untracked(table, passage.listen, passage.dest)
    from_tunnel, to_tunnel = (equals(meta(key), passage.device) for key in ("iifname", "oifname"))
    _arriving(table, passage, from_tunnel)
    table.chain("forward", "filter", "forward", FILTER)
    for dropped in _guarded(passage):
        table.rule("forward", *dropped, DROP)
    if nat:
        from_elsewhere = match("!=", meta("iifname"), passage.device)
        table.rule("forward", to_tunnel, from_elsewhere, _NO_REPLY, not_translated(), DROP)
    for way in (from_tunnel, to_tunnel):
        table.rule("forward", way, _SYN, _CLAMP)
    table.chain("quiet", "filter", "output", FILTER)  # clients of one tunnel have no shorter way to each other
    table.rule("quiet", to_tunnel, equals(payload("icmp", "type"), "redirect"), DROP)
    if nat:
        table.chain("out", "nat", "postrouting", SRCNAT)
        elsewhere = match("!=", meta("oifname"), passage.device)
        inner = (from_tunnel, elsewhere, NOT_VOUCHED_FOR)  # qre.ko's own datagrams come from the tunnel's device, too
        table.rule("out", *inner, *translated_apart(passage.listen.port))
        table.rule("out", *inner, {"masquerade": None})
    return [*removal([passage.table]), *table.made]


def _arriving(table: Table, passage: Passage, from_tunnel: Expression) -> None:
    table.chain("pass", "filter", "prerouting", BEFORE_GUARDS)
    table.rule("pass", from_tunnel, equals(payload("ip", "daddr"), _LINK_LOCAL), FOR_OTHERS, DROP)
    if not passage.ipv6:
        table.rule("pass", from_tunnel, _IPV6, FOR_OTHERS, _NO_ROUTE)
    if not passage.guarded:
        return
    from_uplinks = in_set(meta("iifname"), [each.name for each in passage.guarded])
    into_tunnel = equals(routed("oifname"), passage.device)
    vouched = [[]] if passage.mode is Forward.ROUTE else [[REPLY], [match("in", tracked("status"), "dnat")]]
    for which in vouched:
        table.rule("pass", from_uplinks, _IPV4, *which, into_tunnel, VOUCHED_FOR)
    for dropped in _guarded(passage):
        table.rule("pass", *dropped, FOR_OTHERS, DROP)


def _guarded(passage: Passage) -> list[list[Expression]]:
    """What comes from an uplink that did not forward, and is nobody's, as alternatives."""
    translated = [not_translated()] if passage.mode is Forward.NAT else []
    return [[*arrived, _IPV4, NOT_VOUCHED_FOR, *translated] for arrived in arrived_at(passage.guarded)]
