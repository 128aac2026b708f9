"""IP addresses that have received what Dest sent them, in a flow before.

A site answers a visitor that comes back with a token (RFC 9000 §8.1.3) without a bound, and its first flight with the
page that 0-RTT asks for is longer than three times what the visitor has sent. The tokens of sites are bound to the
visitor's address; to Dest that is ours, so here the address itself is remembered, as long as sites take tokens.
Whoever forges the source of a recent visitor gets it what Dest sends for a token; without one that is three times.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_MOST: Final = 16_384
#: Seconds: quic-go takes a token for a day.
_LASTING: Final = 86_400.0


class ProvenAddresses:
    """The last ones that proved themselves; times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._since: OrderedDict[str, float] = OrderedDict()

    def add(self, ip: str, now: float) -> None:
        """``ip`` has proved itself; it takes the place of the one that did longest ago."""
        self._since.pop(ip, None)
        self._since[ip] = now
        if len(self._since) > _MOST:
            self._since.popitem(last=False)

    def has(self, ip: str, now: float) -> bool:
        """Whether ``ip`` has proved itself lately."""
        since = self._since.get(ip)
        return since is not None and now - since < _LASTING
