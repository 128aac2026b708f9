"""A table of our own that is kept as it is wanted, and taken back with everything that it stands for."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from qre.errors import MachineError
from qre.kernel.netfilter.firewall import Firewall
from qre.kernel.netfilter.guarded_devices import let_go
from qre.kernel.netfilter.own_tables import LIST_CHAINS, Listing, OwnTable, Record, read_listing, removal
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket

#: What a table was made from.
Content = TypeVar("Content")


class KeptTable(ABC, Generic[Content]):
    """What was found before is in the table itself, so whoever comes after a killed daemon can undo it."""

    #: The configuration key that asks for it, for errors.
    key: ClassVar[str]

    def __init__(self, table: OwnTable) -> None:
        self.table = table
        self._firewall: Firewall | None = None
        self._applied: Content | None = None
        self._off = False

    def present(self) -> bool:
        """Whether there is a table, perhaps of a killed daemon. Raises QreError."""
        return self.table in self._listing().records

    def undo(self) -> None:
        """Take everything back; no error for what is gone. Raises QreError."""
        listing = self._listing()
        record = self._own(listing)
        if record is None:
            return
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            let_go(netlink, listing, record)
        if self.table in listing.records:
            self._nft.run(removal([self.table]))
        self._applied = None

    @staticmethod
    @abstractmethod
    def _noted(content: Content) -> Record:
        """What a table of this content would say of what was found."""

    def stay_off(self) -> None:
        """It is not wanted: nftables is asked once, and then left alone."""
        if not self._off:
            with contextlib.suppress(MachineError):  # without it there is nothing to undo
                self.undo()
        self._off = True

    @property
    def _nft(self) -> Firewall:
        if self._firewall is None:
            self._firewall = Firewall(self.key)
        return self._firewall

    def _listing(self) -> Listing:
        return read_listing(self._nft.run([LIST_CHAINS]))

    def _own(self, listing: Listing) -> Record | None:
        """What our table says; when somebody has removed it, what we know ourselves."""
        record = listing.records.get(self.table)
        if record is None and self._applied is not None:
            return self._noted(self._applied)
        return record
