"""ShadowPair: a real client and a real ServerHandshake in memory, with a living Dest behind the server.

Dest is a site on stock aioquic (``StockSite``). The server's port is played as its worker does it: the client's
datagrams go on to Dest until the handshake follows it no more; Dest's come back through ``dest_spoke``. What Dest
sent and what the client got instead are kept side by side.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from aioquic import tls

from qre.ends import LIKE_DEST
from qre.quic.server.coming_back import TicketKeeper
from qre.quic.server.inspector import Authenticated, Undecided
from qre.quic.server.shadow_connection import Mirrored, NotFollowed, NotOfThisConnection
from qre.wire.packet import long_header_source_cid
from tests.support.pair import CLIENT, UNIX_TIME, Pair, Path
from tests.support.stock_site import StockSite


@dataclass
class ShadowPair(Pair):
    """``dest_path``: between the server and Dest."""

    dest_path: Path = field(default_factory=lambda: Path(delay=0.003))
    site: StockSite = field(default_factory=lambda: StockSite(suites=[tls.CipherSuite.AES_128_GCM_SHA256]))
    #: Dest's datagrams in the order in which they came, and what was sent for each.
    mirrored: list[tuple[bytes, tuple[bytes, ...]]] = field(default_factory=list)
    farewells: list[bytes] = field(default_factory=list)
    passed: int = 0
    routed_cid_len: int = LIKE_DEST
    joins: bool = True
    keeper: TicketKeeper | None = None
    followed: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._behind: list[tuple[float, int, bool, bytes]] = []  # the wire between the server and Dest

    def _post(self, to_dest: bool, datagram: bytes) -> None:
        path = self.dest_path
        for _ in range(1 + (self.chance.random() < path.duplicate)):
            if self.chance.random() < path.loss:
                continue
            delay = path.delay * (1 + 3 * self.chance.random() * (self.chance.random() < path.reorder))
            self._count += 1
            heapq.heappush(self._behind, (self.now + delay, self._count, to_dest, datagram))

    def _pump(self) -> None:
        super()._pump()
        for datagram in self.site.datagrams_to_send(self.now):
            self._post(False, datagram)

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        if by_client and (self.server is None or self.server.following):
            self._post(True, datagram)
        super()._deliver(by_client, datagram)
        if by_client and self.server is not None and not self.server.following and not self.farewells:
            self.farewells.append(self.server.farewell(b""))
            self._post(True, self.farewells[0])

    def _inspect(self, datagram: bytes) -> None:
        self._first_flight.append(datagram)
        verdict = self._inspector.datagram_received(datagram, UNIX_TIME * 1000)
        assert verdict is not Undecided.STRANGER
        if isinstance(verdict, Authenticated):
            self.server = self.server_kind(
                authenticated=verdict,
                private_key=self.private_key.private_bytes_raw(),
                dest=self.dest,
                routed_cid_len=self.routed_cid_len,
                peer=CLIENT,
                now=self.now,
                random=self.chance.randbytes,
                client_cid=long_header_source_cid(datagram),
                joins=self.joins,
                keeper=self.keeper,
            )
            for earlier in self._first_flight:
                self.server.datagram_received(earlier, CLIENT, self.now)
            self.server.prepare()

    def _moments(self) -> list[float]:
        moments = super()._moments()
        if self._behind:
            moments.append(self._behind[0][0])
        timer = self._site_timer()
        return moments if timer is None else [*moments, timer]

    def _site_timer(self) -> float | None:
        connection = self.site.connection
        return None if connection is None or connection._close_at is None else connection.get_timer()

    def _happen(self) -> None:
        super()._happen()
        self._behind_happens()

    def _behind_happens(self) -> None:
        """What is due between the server and Dest."""
        while self._behind and self._behind[0][0] <= self.now:
            _, _, to_dest, datagram = heapq.heappop(self._behind)
            if to_dest:
                self.site.datagram_received(datagram, self.now)
            else:
                self._dest_spoke(datagram)
        if self._site_timer() is not None:
            assert self.site.connection is not None
            self.site.connection.handle_timer(self.now)

    def _dest_spoke(self, datagram: bytes) -> None:
        if self.server is None or not self.server.following:
            return
        match self.server.dest_spoke(datagram, self.now):
            case Mirrored(datagrams):
                self.mirrored.append((datagram, datagrams))
                self._send(False, list(datagrams))
                self.server.prepare()
            case NotOfThisConnection():
                self.passed += 1
                self._send(False, [datagram])
            case NotFollowed(_, withheld):
                self.followed = False
                self._send(False, [*withheld, datagram])
