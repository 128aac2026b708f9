"""A whole handshake in memory: the real code of both ends, without network, clock or loss.

For ``session-plan``, and for the capture of a valid client. The virtual clock starts at 0 and goes on
with every datagram's flight and every timer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final, TextIO

from qre.addresses import Interface, Network
from qre.config.model import ClientSettings, ServerSettings
from qre.dest_profile import DestProfile
from qre.errors import InternalError, PeerError
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.quic.handed_over import HandedOver
from qre.quic.handshake_events import HandOverReady, HandshakeFailed, ManInTheMiddle
from qre.quic.in_memory.lone_server import Address, Grant, LoneServer

#: Seconds of the virtual clock: a datagram's way from end to end, and the whole.
FLIGHT_TIME: Final = 0.01
TIME_LIMIT: Final = 20.0


@dataclass(frozen=True)
class SentDatagram:
    """A datagram that was sent at ``time`` of the virtual clock."""

    time: float
    by_client: bool
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """Both ends' view of the session, and the datagrams between them."""

    server: HandedOver
    client: HandedOver
    datagrams: tuple[SentDatagram, ...]


class InMemoryHandshake:
    """``site``: whose recorded flight the server plays. ``grant`` answers a short id's request for addresses;
    ``routes`` are advertised with the answer. ``key_log`` gets every secret of the client's (NSS key log format)."""

    def __init__(
        self,
        *,
        server: ServerSettings,
        site: DestProfile | None = None,
        client: ClientSettings,
        addresses: tuple[Interface, ...],
        grant: Grant,
        routes: tuple[Network, ...],
        routed_cid_len: int,
        server_address: Address,
        client_address: Address,
        unix_time: int,
        fingerprint: Fingerprint,
        random: Random,
        key_log: TextIO | None = None,
    ) -> None:
        self._server_address = server_address
        self._client_address = client_address
        self._unix_time = unix_time
        self._now = 0.0
        self._sent: list[SentDatagram] = []
        self._server_state: HandedOver | None = None
        self._client_state: HandedOver | None = None
        self._server = LoneServer(
            settings=server,
            site=site,
            client=client_address,
            grant=grant,
            routes=routes,
            routed_cid_len=routed_cid_len,
            random=random.randbytes,
        )
        self._client = ClientHandshake(
            server_name=client.server_name,
            public_key=client.public_key,
            short_id=client.short_id,
            addresses=addresses,
            fingerprint=fingerprint,
            trust=TrustStore([], "nothing: there is no site in memory"),
            unix_time=unix_time,
            now=self._now,
            random=random,
            key_log=key_log,
        )

    def run(self) -> Plan:
        """Raises UserError when the two configurations do not fit, PeerError when one end refused the other."""
        self._client.connect(self._server_address, self._now)
        while self._now < TIME_LIMIT:
            on_their_way = self._collect()
            if self._server_state is not None and self._client_state is not None:
                return Plan(self._server_state, self._client_state, tuple(self._sent))
            if on_their_way:
                self._now += FLIGHT_TIME
                for datagram in on_their_way:
                    self._deliver(datagram)
            self._wait(idle=not on_their_way)
        raise InternalError("handshake", "it did not finish in memory")

    def _collect(self) -> list[SentDatagram]:
        """Handle events, collect what both ends want to send now, handle events again."""
        self._client_events()
        sent = [] if self._client_state else self._client.datagrams_to_send(self._now)
        found = [SentDatagram(self._now, True, data) for data in sent]
        self._client_events()
        if self._server_state is None and self._server.install_due is not None:
            self._server_state = self._server.install_due
            self._server.session_installed()
        found += [SentDatagram(self._now, False, data) for data in self._server.datagrams_to_send(self._now)]
        self._sent += found
        return found

    def _deliver(self, datagram: SentDatagram) -> None:
        if not datagram.by_client:
            if self._client_state is None:
                self._client.datagram_received(datagram.data, self._server_address, self._now)
        else:
            self._server.datagram_received(datagram.data, self._client_address, self._now, self._unix_time)

    def _wait(self, idle: bool) -> None:
        """Run timers that are due; with nothing on its way, go on to the next one."""
        timers = [self._client.timer() if self._client_state is None else None, self._server.timer()]
        if idle:
            moments = [moment for moment in timers if moment is not None]
            if not moments:
                raise InternalError("handshake", "it stalled in memory")
            self._now = max(self._now, min(moments)) + 1e-6  # later: rounding would re-arm at exactly its time
        if self._client_state is None:
            self._client.handle_timer(self._now)
        self._server.handle_timer(self._now)

    def _client_events(self) -> None:
        while (event := self._client.next_event()) is not None:
            match event:
                case HandOverReady():
                    self._client_state = self._client.hand_over(self._now)
                case HandshakeFailed(reason=reason) | ManInTheMiddle(detail=reason):
                    raise PeerError("client", reason)
