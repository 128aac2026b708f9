"""Whether a visitor receives what is sent to its address (RFC 9000 §8.1), as far as an observer between can tell.

Dest takes our address for that of every visitor, and a token that it gave to one is good for all. So what it sends
to an address that has proved nothing is bounded here: whoever forges a source address gets its owner three times
what he sent himself. Where Dest ``overshoots``, as it does with every visitor of its own, one more datagram goes to
who began with what may begin a connection: a site that falls silent one datagram earlier could be told. A visitor
proves its address when it uses a connection ID that Dest chose in this flow, which came in an answer. A flow that
begins with a short header is a connection that moved: what Dest sends it in packets with short headers is bounded by
Dest's own path validation (§8.2), all else as for anybody. Its first long header begins another connection, of which
Dest validates nothing, and from there on everything counts.
"""

from __future__ import annotations

from typing import Final

from qre.wire.packet import is_long, is_short, long_header_destination_cid, long_header_source_cid

AMPLIFICATION: Final = 3
#: A first datagram has so many bytes at least (RFC 9000 §14.1); one beyond the bound has so many at most.
_LEAST_FIRST, _MOST_BEYOND = 1200, 1500
#: Connection IDs of Dest's in one flow: that of its Retry, and that of the handshake.
_MAX_CIDS: Final = 4


class AddressProof:
    """Of one flow. ``proven``: nothing is counted any more."""

    __slots__ = ("_cids", "_moved", "_received", "_returned", "_visits", "proven")

    def __init__(self) -> None:
        self.proven = False
        self._moved: bool | None = None  # it has sent short headers alone; None: nothing at all
        self._visits = False  # its first datagram may begin a connection
        self._received = self._returned = 0  # bytes
        self._cids: tuple[bytes, ...] = ()

    def visitor_spoke(self, data: bytes) -> None:
        """A datagram of the visitor."""
        short = is_short(data)
        if self._moved is None:
            self._visits = not short and len(data) >= _LEAST_FIRST
        self._moved = short and self._moved is not False
        if not self._cids:
            pass  # Dest has chosen none yet
        elif short:
            self.proven = any(data.startswith(cid, 1) for cid in self._cids)
        elif long_header_destination_cid(data) in self._cids:
            self.proven = True
        self._received += len(data)

    def is_free(self, data: bytes, segment: int) -> bool:
        """Whether these datagrams of Dest, of ``segment`` bytes each, go to the visitor uncounted."""
        return self.proven or (
            bool(self._moved) and not any(is_long(data[at : at + 1]) for at in range(0, len(data), segment))
        )

    def may_answer(self, data: bytes, overshoots: bool = False) -> bool:
        """Whether a datagram of Dest may go to the visitor. ``overshoots``: see ``habits``."""
        if self._moved and is_short(data):
            return True
        left = AMPLIFICATION * self._received - self._returned
        beyond = overshoots and self._visits and left > 0 and len(data) <= _MOST_BEYOND
        if len(data) > left and not beyond:
            return False
        self._returned += len(data)
        cid = long_header_source_cid(data)
        if cid and cid not in self._cids and len(self._cids) < _MAX_CIDS:
            self._cids = *self._cids, cid
        return True
