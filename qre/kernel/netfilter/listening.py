"""Where a server listens over one version of IP, as rules have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from qre.addresses import Address


@dataclass(frozen=True)
class Listening:
    """``addresses``: at least one, of one version."""

    addresses: tuple[Address, ...]
    port: int

    @property
    def version(self) -> int:
        """Of IP."""
        return self.addresses[0].version

    @property
    def everywhere(self) -> bool:
        """Whether it is every address of this machine."""
        return self.addresses[0].is_unspecified

    def meets(self, other: Self) -> bool:
        """Whether one of the addresses is the other's, too, with the same port."""
        return self.port == other.port and not set(self.addresses).isdisjoint(other.addresses)
