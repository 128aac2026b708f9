"""The nftables table of SiteTcp as a value: from what is wanted to libnftables-json(5), and back.

A TCP connection to Listen's address on one of the ports gets Dest's address as its destination (to_dest) and ours as
its source (from_us); everything else in it is Dest's, the options of the SYN-ACK, too. In both directions it leaves
with the TTL of our own datagrams (ttl). On arrival the TTL is raised first: no packet may expire here, and tell of it
by ICMP. It bears QRE's mark, so that no tunnel of this machine takes it. What connection tracking calls invalid is
dropped, as a listening socket does; otherwise our own stack would answer that the port is closed.

A device that did not forward before does now. ``ours`` drops what comes from it for others before the kernel could
answer with a redirect, and ``forward`` drops once more whatever this machine's NAT has not sent on. Only connections
whose destination was translated pass; what a table of Forward vouches for; and replies to the tunnel (replies):
whoever makes this machine a router sees the tunnel routed at once, and not only when the guard is gone. Until then no
packet from the tunnel is forwarded, and nothing is a reply. An uplink that was off though the machine is a router
stays closed to them, too.

Each version of IP has a table of its own. Over IPv6 the machine is a router already, so nothing is guarded there. A
neighbour whose packets leave by the device that they came in by is not told to go to Dest himself (no_redirect); over
IPv4 the kernel drops redirects about what was translated.

The kernel tracks connections as soon as there is NAT. Where nobody else has rules, the datagrams of our port and of
the relay stay untracked, as they were (quiet). Sans-IO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qre.addresses import Address
from qre.kernel.netfilter.expressions import (
    ACCEPT,
    BEFORE_GUARDS,
    DROP,
    DSTNAT,
    FILTER,
    FOR_OTHERS,
    MANGLE,
    NOT_VOUCHED_FOR,
    REPLY,
    SRCNAT,
    VOUCHED_FOR,
    Command,
    Expression,
    Table,
    equals,
    has_address,
    header_of,
    in_set,
    is_one_of,
    leave_untracked,
    match,
    meta,
    not_translated,
    payload,
    routed,
    set_to,
    tracked,
)
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import SITE_TCP, Guarded, OwnTable, arrived_at, note, removal, table_of

_BEHIND_DSTNAT: Final = -95
_HIGHEST_TTL: Final = 255
#: Of a redirect: the destination that it is about, in bits from the ICMPv6 header on (RFC 4861 §4.5).
_REDIRECTED: Final = {"payload": {"base": "th", "offset": 192, "len": 128}}
_COUNTER: Final = re.compile(r"port-(\d+)")


@dataclass(frozen=True)
class Face:
    """What is wanted."""

    device: str  # of the tunnel: it names the table
    listen: Listening
    dest: tuple[Address, int]
    ports: tuple[tuple[int, int], ...]  # of Listen's address, and the one of Dest that each leads to
    source: Address  # ours, as Dest sees it
    devices: tuple[str, ...]  # where visitors and Dest's answers come in
    guarded: tuple[Guarded, ...]  # those of them that did not forward
    ttl: int
    quiet: bool

    @property
    def version(self) -> int:
        """Of IP, which Listen, Dest and ``source`` have in common."""
        return self.listen.version

    @property
    def table(self) -> OwnTable:
        """The table."""
        return table_of(SITE_TCP[self.version], self.device)

    @property
    def lifetime(self) -> Expression:
        """How many hops a packet may still go."""
        return payload("ip", "ttl") if self.version == 4 else payload("ip6", "hoplimit")


def replacement(face: Face, counts: Mapping[int, int], stale: Sequence[OwnTable] = ()) -> list[Command]:
    """Make the table, or put it in place of the one that is there, in one transaction. ``counts``: connections so
    far, by port. ``stale``: further tables to remove."""
    table = Table(*face.table)
    note(table, face.listen, face.guarded)
    if face.quiet:
        leave_untracked(table, face.listen, face.dest)
    _send_on(table, face, counts)
    _know_replies(table, face)
    _know_ours(table, face)
    if face.guarded:
        table.chain("forward", "filter", "forward", FILTER)
        for arrived in arrived_at(face.guarded):
            table.rule("forward", *arrived, not_translated(), NOT_VOUCHED_FOR, DROP)
    if face.version == 6:
        table.chain("no_redirect", "filter", "output", FILTER)
        redirect = equals(payload("icmpv6", "type"), "nd-redirect")
        table.rule("no_redirect", redirect, equals(_REDIRECTED, f"0x{face.dest[0].packed.hex()}"), DROP)
    table.chain("ttl", "filter", "postrouting", MANGLE)
    for at, _ in face.ports:
        table.rule("ttl", *_ours(face, at), set_to(face.lifetime, face.ttl))
    table.chain("from_us", "nat", "postrouting", SRCNAT)
    for at, _ in face.ports:
        to_dest = has_address("d", face.dest[0])
        table.rule("from_us", *_ours(face, at), to_dest, {"snat": {"addr": str(face.source)}})
    return [*removal([*stale, face.table]), *table.made]


def list_counters(table: OwnTable) -> Command:
    """Ask for the counters of a table, which must be there."""
    return {"list": {"counters": {"family": table.family, "table": table.name}}}


def read_counts(objects: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Connections by port, from the answer to ``list_counters``."""
    counters = [each["counter"] for each in objects if "counter" in each]
    named = ((_COUNTER.fullmatch(str(each.get("name"))), each.get("packets")) for each in counters)
    return {int(found[1]): packets for found, packets in named if found is not None and isinstance(packets, int)}


def _send_on(table: Table, face: Face, counts: Mapping[int, int]) -> None:
    table.chain("to_dest", "nat", "prerouting", DSTNAT)
    for at, to in face.ports:
        table.counter(f"port-{at}", counts.get(at, 0))
        table.rule(
            "to_dest",
            in_set(meta("iifname"), face.devices),
            _to_listen(face),
            equals(payload("tcp", "dport"), at),
            {"counter": f"port-{at}"},
            {"dnat": {"addr": str(face.dest[0]), "port": to}},
        )


def _know_replies(table: Table, face: Face) -> None:
    uplinks = [each.name for each in face.guarded if not each.alone]
    if uplinks:
        table.chain("replies", "filter", "prerouting", BEFORE_GUARDS)
        into_tunnel = equals(routed("oifname"), face.device)
        table.rule("replies", in_set(meta("iifname"), uplinks), REPLY, into_tunnel, VOUCHED_FOR)


def _know_ours(table: Table, face: Face) -> None:
    table.chain("ours", "filter", "prerouting", _BEHIND_DSTNAT)
    from_outside = in_set(meta("iifname"), face.devices)
    for at, to in face.ports:
        highest = set_to(face.lifetime, _HIGHEST_TTL)
        table.rule("ours", *_ours(face, at), highest, VOUCHED_FOR, ACCEPT)
        table.rule("ours", from_outside, _to_listen(face), equals(payload("tcp", "dport"), at), _INVALID, DROP)
        answers = [has_address("s", face.dest[0]), equals(payload("tcp", "sport"), to)]
        table.rule("ours", from_outside, *answers, _INVALID, DROP)
    for arrived in arrived_at(face.guarded):
        table.rule("ours", *arrived, not_translated(), NOT_VOUCHED_FOR, FOR_OTHERS, DROP)


def _to_listen(face: Face) -> Expression:
    if face.listen.everywhere:
        return equals({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    return is_one_of(payload(header_of(face.version), "daddr"), face.listen.addresses)


def _ours(face: Face, port: int) -> list[Expression]:
    """Packets, of either direction, of a connection that came to this port and has another destination now. ICMP
    errors about it, too."""
    first = tracked(f"{header_of(face.version)} daddr", "original")
    to_listen = [] if face.listen.everywhere else [is_one_of(first, face.listen.addresses)]
    return [
        match("in", tracked("status"), "dnat"),
        *to_listen,
        equals(tracked("protocol", "original"), "tcp"),
        equals(tracked("proto-dst", "original"), port),
    ]


_INVALID: Final = match("in", tracked("state"), "invalid")
