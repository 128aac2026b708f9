"""Puts the table of ``forward_rules`` in place, keeps it as it is wanted, and takes everything back.

What was found is in the table itself, so whoever comes after a killed daemon can undo it: the next daemon, its
clean-up, `down`. Which devices forward meanwhile: ``netfilter/guarded_devices``. What another firewall drops is
named, and its rules are never changed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from qre.addresses import Address
from qre.ends import Forward
from qre.errors import QreError
from qre.kernel.forward.forward_rules import Passage, replacement
from qre.kernel.netfilter.forwarding import (
    FORWARDING,
    devices_with_addresses,
    forwards_ipv6,
    hear_no_advertisements,
    index_of,
    name_of,
    settings_of_devices,
)
from qre.kernel.netfilter.guarded_devices import guarded_of, let_go, make_forward
from qre.kernel.netfilter.kept_table import KeptTable
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import (
    FORWARD,
    Closed,
    Listing,
    Record,
    let_through,
    list_rules,
    table_of,
)
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket

_LOOPBACK: Final = "lo"
_NO_DEVICE: Final = "its device is gone"
_NO_UPLINK: Final = "no other device has an IPv4 address"


@dataclass(frozen=True)
class WantedWay:
    """What a server's configuration asks for; ``dest`` where its relay goes, once that is known."""

    device: str
    mode: Forward
    listen: Listening
    dest: tuple[Address, int] | None = None


@dataclass(frozen=True)
class ForwardState:
    """What is so. ``why``: why nothing is forwarded; ``closed``: what drops forwarded packets unless a rule lets them
    pass."""

    why: str = ""
    uplinks: tuple[str, ...] = ()
    ipv6: bool = False
    closed: tuple[Closed, ...] = ()


@dataclass(frozen=True)
class IPv6:
    """``deaf``: uplinks that hear router advertisements only while the machine does not forward."""

    forwarded: bool
    deaf: tuple[str, ...]


class Forwarder(KeptTable[Passage]):
    """The table of one tunnel's device."""

    key = "Forward"

    def __init__(self, device: str) -> None:
        super().__init__(table_of(FORWARD, device))

    def look(self, wanted: WantedWay) -> ForwardState:
        """Compare what is with what is wanted, and mend it. When it cannot be had, nothing of it stays."""
        if wanted.mode is Forward.OFF:
            self.stay_off()
            return ForwardState()
        self._off = False
        try:
            return self._look(wanted)
        except (QreError, OSError) as error:
            with contextlib.suppress(QreError, OSError):
                self.undo()
            return ForwardState(why=str(error))

    def closed(self) -> tuple[Closed, ...]:
        """Chains of others that drop what is forwarded, and let the tunnel's packets not pass by a rule of their own.
        Raises QreError."""
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            return self._closed(self._listing(), ipv6=forwards_ipv6(netlink))

    def ipv6(self) -> IPv6:
        """How this machine forwards IPv6, which QRE does not change. Raises QreError."""
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            uplinks = _uplinks(netlink, self._listing(), index_of(netlink, self.table.device))
            deaf = hear_no_advertisements(netlink)
            return IPv6(forwards_ipv6(netlink), tuple(name for index, name in uplinks.items() if index in deaf))

    def _closed(self, listing: Listing, *, ipv6: bool) -> tuple[Closed, ...]:
        chains = listing.closed if ipv6 else listing.closed_to(4)
        device = self.table.device
        return tuple(each for each in chains if not let_through(self._nft.run([list_rules(each)]), device))

    @staticmethod
    def _noted(content: Passage) -> Record:
        return Record(None, {each.index: each.alone for each in (*content.tunnel, *content.guarded)})

    def _look(self, wanted: WantedWay) -> ForwardState:
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            listing = self._listing()
            tunnel = index_of(netlink, wanted.device)
            uplinks = _uplinks(netlink, listing, tunnel)
            if tunnel is None or not uplinks:
                self.undo()
                return ForwardState(why=_NO_DEVICE if tunnel is None else _NO_UPLINK)
            ipv6 = forwards_ipv6(netlink)
            self._put(netlink, wanted, listing, {tunnel: wanted.device}, uplinks, ipv6)
        closed = self._closed(listing, ipv6=ipv6)
        return ForwardState(uplinks=tuple(sorted(uplinks.values())), ipv6=ipv6, closed=closed)

    def _put(
        self,
        netlink: NetlinkSocket,
        wanted: WantedWay,
        listing: Listing,
        tunnel: dict[int, str],
        uplinks: dict[int, str],
        ipv6: bool,
    ) -> None:
        forwards = settings_of_devices(netlink, FORWARDING)
        own = self._own(listing)
        records = [*listing.records.values(), *filter(None, [own])]
        passage = Passage(
            device=wanted.device,
            mode=wanted.mode,
            guarded=guarded_of(netlink, uplinks, records, forwards),
            tunnel=guarded_of(netlink, tunnel, records, forwards),
            ipv6=ipv6,
            listen=wanted.listen,
            dest=wanted.dest,
            quiet=listing.quiet(4) and (not ipv6 or listing.quiet(6)),
        )
        if own is not None:
            let_go(netlink, listing, own, kept=tunnel | uplinks)
        if self.table not in listing.records or passage != self._applied:
            self._nft.run(replacement(passage))
            self._applied = passage
        make_forward(netlink, (*passage.tunnel, *passage.guarded), forwards)


def _uplinks(netlink: NetlinkSocket, listing: Listing, tunnel: int | None) -> dict[int, str]:
    """The devices by which this machine reaches others, by index: those with IPv4 addresses. Not the tunnels of its
    servers, which have forwarding of their own."""
    servers = {own.device for own in listing.records}
    named = {index: name_of(netlink, index) for index in devices_with_addresses(netlink) if index != tunnel}
    return {
        index: name for index, name in sorted(named.items()) if name and name != _LOOPBACK and name not in servers
    }
