"""Pair: a real ClientHandshake and a real ServerHandshake in memory, on a virtual clock.

The path between them delays, loses, duplicates and reorders datagrams by a seed. Nothing of the product is
replaced. What the two ends send is kept, so that tests can look at it as somebody on the path would.
"""

from __future__ import annotations

import heapq
import random as randomness
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.addresses import Interface
from qre.dest_profile import DestProfile
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.handed_over import HandedOver
from qre.quic.handshake_events import ClientEvent, HandOverReady
from qre.quic.server.connect_ip import AddressesRequested
from qre.quic.server.inspector import Authenticated, HelloInspector, Undecided
from qre.quic.server.server_handshake import InstallNow, ServerEvent, ServerHandshake
from qre.visit.visitor_files import load_fingerprint

NAME = "site.example"
CLIENT = ("192.0.2.2", 50_000)
SERVER = ("192.0.2.1", 443)
SHORT_ID = bytes.fromhex("0123456789abcdef")
ADDRESSES: tuple[Interface, ...] = (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64"))
UNIX_TIME = 1_790_000_000

#: Made once: authorities are of no interest to a pair whose proof is right.
TRUST = TrustStore([], "nothing")


@dataclass(frozen=True)
class Path:
    """What the path does to a datagram, with which probability; delays in seconds, one way; ``mtu``: UDP payload."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.01
    mtu: int = 1500


@dataclass
class Pair:
    """Call ``run``; then look at ``client_state``, ``server_state`` and what was sent."""

    seed: int = 0
    path: Path = field(default_factory=Path)
    dest: DestProfile | None = None
    private_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    now: float = 1000.0
    server_kind: Callable[..., ServerHandshake] = ServerHandshake
    client_state: HandedOver | None = None
    server_state: HandedOver | None = None
    client_events: list[ClientEvent] = field(default_factory=list)
    server_events: list[ServerEvent] = field(default_factory=list)
    #: (by the client, datagram), in the order of sending
    sent: list[tuple[bool, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = randomness.Random(self.seed)
        self._wire: list[tuple[float, int, bool, bytes]] = []
        self._count = 0
        self.client = ClientHandshake(
            server_name=NAME,
            public_key=self.private_key.public_key().public_bytes_raw(),
            short_id=SHORT_ID,
            addresses=ADDRESSES,
            fingerprint=load_fingerprint(),
            trust=TRUST,
            unix_time=UNIX_TIME,
            now=self.now,
            random=randomness.Random(self.chance.random()),
        )
        self.server: ServerHandshake | None = None
        self._inspector = HelloInspector(
            server_name=NAME, private_key=self.private_key, short_ids=[SHORT_ID], max_time_diff_ms=60_000
        )
        self._first_flight: list[bytes] = []

    def run(self, limit: float = 30.0) -> Self:
        """Until both ends have handed over, or ``limit`` virtual seconds have passed."""
        self.client.connect(SERVER, self.now)
        end = self.now + limit
        while self.now < end and not (self.client_state and self.server_state):
            self._pump()
            if not self._step():
                break
        return self

    @property
    def complete(self) -> bool:
        return self.client_state is not None and self.server_state is not None

    def _pump(self) -> None:
        """Let both ends say what they have to say now. A client sends first, as ``qre.visit.exchange`` does."""
        self._send(True, self.client.datagrams_to_send(self.now) if self.client_state is None else [])
        self._client_events()
        if self.server is not None:
            self._server_events(self.server)
            self._send(False, self.server.datagrams_to_send(self.now))
            self._server_events(self.server)

    def _client_events(self) -> None:
        while (event := self.client.next_event()) is not None:
            self.client_events.append(event)
            if isinstance(event, HandOverReady):
                self.client_state = self.client.hand_over(self.now)

    def _server_events(self, server: ServerHandshake) -> None:
        while (event := server.next_event()) is not None:
            self.server_events.append(event)
            if isinstance(event, AddressesRequested):
                server.grant(event.addresses, ())
            elif isinstance(event, InstallNow):
                self.server_state = server.hand_over_state()
                server.session_installed()

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            self.sent.append((by_client, datagram))
            copies = 1 + (self.chance.random() < self.path.duplicate)
            for _ in range(copies):
                if self.chance.random() < self.path.loss or len(datagram) > self.path.mtu:
                    continue
                delay = self.path.delay
                if self.chance.random() < self.path.reorder:
                    delay *= 1 + 3 * self.chance.random()
                self._count += 1
                heapq.heappush(self._wire, (self.now + delay, self._count, by_client, datagram))

    def _step(self) -> bool:
        """To the next moment at which something happens, if there is one."""
        moments = self._moments()
        if not moments:
            return False
        # A hair past: stock's rounding re-arms a timer at exactly its time.
        self.now = max(self.now, min(moments)) + 1e-6
        self._happen()
        return True

    def _moments(self) -> list[float]:
        timers = [self.client.timer() if self.client_state is None else None]
        timers.append(self.server.timer() if self.server is not None else None)
        return [moment for moment in timers if moment is not None] + [at for at, *_ in self._wire[:1]]

    def _happen(self) -> None:
        while self._wire and self._wire[0][0] <= self.now:
            _, _, by_client, datagram = heapq.heappop(self._wire)
            self._deliver(by_client, datagram)
        if self.client_state is None:
            self.client.handle_timer(self.now)
        if self.server is not None:
            self.server.handle_timer(self.now)

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        if not by_client:
            if self.client_state is None:
                self.client.datagram_received(datagram, SERVER, self.now)
        elif self.server is not None:
            self.server.datagram_received(datagram, CLIENT, self.now)
        else:
            self._inspect(datagram)

    def _inspect(self, datagram: bytes) -> None:
        self._first_flight.append(datagram)
        verdict = self._inspector.datagram_received(datagram, UNIX_TIME * 1000)
        if isinstance(verdict, Authenticated):
            self.server = self.server_kind(
                authenticated=verdict,
                private_key=self.private_key.private_bytes_raw(),
                dest=self.dest,
                routed_cid_len=20,
                peer=CLIENT,
                now=self.now,
                random=self.chance.randbytes,
            )
            for earlier in self._first_flight:
                self.server.datagram_received(earlier, CLIENT, self.now)
        elif verdict is Undecided.STRANGER:
            raise AssertionError("the server took its own client for a stranger")
