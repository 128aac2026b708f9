"""Two ends of a session for tests of the data plane: installations that fit each other, and a pair in memory."""

from __future__ import annotations

import hashlib
import heapq
import hmac
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from qre.dataplane.protocol import DataplaneReport, SessionInstall, SessionKeys, SessionUpdate, underlay_of
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.workers.dataplane.loss.client_session import new_session
from qre.workers.dataplane.session.marks import SIZE, NumberMarks
from qre.workers.dataplane.session.payload import PING
from qre.workers.dataplane.session.session import Session

Event = TypeVar("Event")

CLIENT_ADDRESS, SERVER_ADDRESS = ("192.0.2.2", 40_000), ("192.0.2.1", 443)
ROUTED_CID = bytes(range(0x20, 0x34))


def material(seed: str, label: str, size: int) -> bytes:
    """Key material that both ends compute."""
    return hmac.digest(hashlib.sha256(seed.encode()).digest(), label.encode(), "sha256")[:size]


def keys_of(role: Role, epoch: int, seed: str = "seed") -> SessionKeys:
    """The keys of ``epoch`` as this end holds them."""
    ends = ("client", "server") if role is Role.CLIENT else ("server", "client")
    (tx_key, rx_key), (tx_iv, rx_iv) = (
        tuple(material(seed, f"{end} {kind} {epoch}", size) for end in ends)
        for kind, size in (("key", 16), ("iv", 12))
    )
    return SessionKeys(tx_key=tx_key, rx_key=rx_key, tx_iv=tx_iv, rx_iv=rx_iv)


def install_of(role: Role, seed: str = "seed", **changes: Any) -> SessionInstall:
    """An installation; both roles of one seed fit together."""
    ends = ("client", "server") if role is Role.CLIENT else ("server", "client")
    epoch = changes.get("key_epoch", 0)
    own, peer = (CLIENT_ADDRESS, SERVER_ADDRESS) if role is Role.CLIENT else (SERVER_ADDRESS, CLIENT_ADDRESS)
    values: dict[str, Any] = {
        "id": 1,
        "session_id": material(seed, "id", 32),
        "role": role,
        "connection_id": ROUTED_CID,
        "keys": keys_of(role, epoch, seed),
        "next_keys": keys_of(role, epoch + 1, seed),
        "tx_hp_key": material(seed, f"{ends[0]} hp", 16),
        "rx_hp_key": material(seed, f"{ends[1]} hp", 16),
        "underlay": underlay_of((own[0], own[1]), (peer[0], peer[1])),
        "held": role is Role.SERVER,
    }
    return SessionInstall(**(values | changes))


def update_of(install: SessionInstall, epoch: int, seed: str = "seed", **changes: Any) -> SessionUpdate:
    """The SessionUpdate that brings ``epoch``."""
    values: dict[str, Any] = {
        "id": 2,
        "session_id": install.session_id,
        "keys": keys_of(install.role, epoch, seed),
        "next_keys": keys_of(install.role, epoch + 1, seed),
        "key_epoch": epoch,
    }
    return SessionUpdate(**(values | changes))


def marks_memfd() -> int:
    fd = os.memfd_create("marks", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


def fresh_marks() -> NumberMarks:
    fd = marks_memfd()
    try:
        return NumberMarks(fd)
    finally:
        os.close(fd)


class Ends:
    """A client's and a server's session in memory, with a network of its own between them.

    ``fate`` decides what becomes of a datagram (who sent it, its bytes): the delay of each copy that arrives.
    ``ecn``: what both ends' packets should bear; the network leaves marks as they are. ``of_client``: changes of the
    client's installation alone.
    """

    def __init__(
        self, seed: str = "seed", *, ecn: int = 0, of_client: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        self.now = 100.0
        self.drops: dict[Role, Counter[str]] = {role: Counter() for role in Role}
        self.sessions: dict[Role, Session] = {}
        self.delivered: dict[Role, list[bytes]] = {role: [] for role in Role}
        self.events: dict[Role, list[DataplaneReport]] = {role: [] for role in Role}
        self.sent: list[tuple[Role, bytes]] = []
        self.delay = 0.01
        self.fate: Callable[[Role, bytes], list[float]] = lambda role, datagram: [self.delay]
        self._flying: list[tuple[float, int, Role, bytes, int]] = []
        self._count = 0
        for role in (Role.SERVER, Role.CLIENT):
            own = (of_client or {}) if role is Role.CLIENT else {}
            install = install_of(role, seed, **changes | own)
            mark = fresh_marks().claim(
                install.session_id, install.key_epoch, install.keys.tx_key, install.packet_number
            )
            self.sessions[role] = new_session(install, mark, self.now, self.drops[role], os.urandom, ecn)
            self.take(role)

    @property
    def client(self) -> Session:
        return self.sessions[Role.CLIENT]

    @property
    def server(self) -> Session:
        return self.sessions[Role.SERVER]

    def take(self, role: Role) -> None:
        """Collect what a session wants to send and to say."""
        session = self.sessions[role]
        for packet, _, ecn, _ in session.outbox:
            self.send(role, [packet], ecn)
        session.outbox.clear()
        self.events[role] += session.events
        session.events.clear()

    def send(self, role: Role, packets: list[bytes], ecn: int = 0) -> None:
        for packet in packets:
            self.sent.append((role, packet))
            for delay in self.fate(role, packet):
                self._count += 1
                heapq.heappush(self._flying, (self.now + delay, self._count, role, packet, ecn))

    def transmit(self, role: Role, *inner: bytes) -> None:
        """Inner packets of ``role`` into the tunnel."""
        packets = self.sessions[role].seal_datagrams([DATAGRAM_HEAD + packet for packet in inner], self.now)
        self.send(role, packets, self.sessions[role].tx_ecn)
        self.take(role)

    def receive(self, role: Role, packet: bytes, ecn: int = 0) -> list[bytes]:
        """``packet`` arrives at ``role`` now."""
        source = SERVER_ADDRESS if role is Role.CLIENT else CLIENT_ADDRESS
        inner = [text[3:] for text in self.sessions[role].open_datagrams([packet], source, ecn, self.now)]
        self.delivered[role] += inner
        self.take(role)
        return inner

    def run(self, seconds: float) -> None:
        """Let time pass: datagrams arrive, timers fire."""
        end = self.now + seconds
        while True:
            arrival = self._flying[0][0] if self._flying else math.inf
            timers = {role: session.deadline() for role, session in self.sessions.items()}
            at = min(arrival, *timers.values())
            if at > end:
                break
            self.now = max(self.now, at)
            if arrival <= at:
                _, _, role, packet, ecn = heapq.heappop(self._flying)
                self.receive(Role.SERVER if role is Role.CLIENT else Role.CLIENT, packet, ecn)
                continue
            for role, due in timers.items():
                if due <= at:
                    self.sessions[role].handle_timer(self.now)
                    self.take(role)
        self.now = end

    def establish(self) -> None:
        """Until both are confirmed, by something that the client says."""
        self.client.send_control(PING, self.now)
        self.take(Role.CLIENT)
        self.run(0.5)
        assert self.client.confirmed
        assert self.server.confirmed

    def said(self, role: Role, kind: type[Event]) -> list[Event]:
        """The events of this kind."""
        return [event for event in self.events[role] if isinstance(event, kind)]
