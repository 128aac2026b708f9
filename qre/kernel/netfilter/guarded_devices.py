"""Which devices QRE makes forward, and when that ends.

The table, with its guard, is there before a device forwards, and goes after it has stopped. Several tables may need
one device: each records that it did not forward before, and the last that goes switches it off. Not when another
program has made the whole machine a router meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from qre.kernel.netfilter.forwarding import ALL, FORWARDING, bridge_address, set_forwarding, settings_of_devices
from qre.kernel.netfilter.own_tables import Guarded, Listing, OwnTable, Record
from qre.kernel.socket import NetlinkSocket


def let_go(
    netlink: NetlinkSocket,
    listing: Listing,
    record: Record,
    *,
    kept: Collection[int] = (),
    dead: Collection[OwnTable] = (),
) -> None:
    """Switch forwarding off again where ``record`` says it was; not on devices that are ``kept``, nor where another
    table, unless ``dead``, says the same. Raises QreError."""
    forwards = settings_of_devices(netlink, FORWARDING)
    others = (each for own, each in listing.records.items() if each is not record and own not in dead)
    needed = {index for each in others for index in each.was_off}
    for index, alone in record.was_off.items():
        if index not in needed and index not in kept and forwards.get(index) and not _taken_over(alone, forwards):
            set_forwarding(netlink, index, False)


def guarded_of(
    netlink: NetlinkSocket, devices: Mapping[int, str], records: Sequence[Record], forwards: Mapping[int, int]
) -> tuple[Guarded, ...]:
    """Those of ``devices`` (index -> name) that do not forward, or do because of one of ``records``. Raises
    QreError."""
    return tuple(
        Guarded(index, name, alone, bridge_address(netlink, index))
        for index, name in devices.items()
        if (alone := _off_before(index, records, forwards)) is not None
    )


def make_forward(netlink: NetlinkSocket, guarded: Iterable[Guarded], forwards: Mapping[int, int]) -> None:
    """Their guard is in place. Raises QreError."""
    for each in guarded:
        if not forwards.get(each.index):
            set_forwarding(netlink, each.index, True)


def _taken_over(alone: bool, forwards: Mapping[int, int]) -> bool:
    """Whether another program has switched forwarding on, for all devices."""
    return not alone and bool(forwards.get(ALL))


def _off_before(index: int, records: Sequence[Record], forwards: Mapping[int, int]) -> bool | None:
    """None when the device forwards and we have no part in it; otherwise whether it was off alone."""
    for record in records:
        alone = record.was_off.get(index)
        if alone is not None and not _taken_over(alone, forwards):
            return alone
    return bool(forwards.get(ALL)) if not forwards.get(index) else None
