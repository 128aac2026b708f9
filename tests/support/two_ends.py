"""Both ends of a tunnel after its handshake, in memory: session tables and data planes, which may die at any moment.

Nothing of the product is replaced: the handshake workers' ``Sessions`` over real memfds, the data planes' registries,
sessions and number marks. Only the network, the clock and the deaths are made here. Every packet's (key, number) is
remembered, so that a number used twice under one key is seen.
"""

from __future__ import annotations

import dataclasses
import heapq
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from qre.dataplane.protocol import Answer, DataplaneReport, DataplaneRequest, underlay_of
from qre.ends import Role
from qre.quic.handed_over import HandedOver, session_id
from qre.reality.cid import cid_key, reset_token, routed_cid
from qre.supervisor.parent.process_settings import empty_memfd
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.protection import derive
from qre.workers.dataplane.registry import Registry
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.dataplane.session.packets import Packets
from qre.workers.dataplane.session.sending import OutgoingPacket
from qre.workers.dataplane.session.session_life import LifeState
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.secrets import SIZE, SecretsStore
from qre.workers.handshake.sessions.session_state import (
    CidsChanged,
    Confirmed,
    Event,
    Installed,
    Lost,
    Orphaned,
    OrphanEnded,
    Settings,
)

ADDRESS = {Role.CLIENT: ("192.0.2.2", 40_000), Role.SERVER: ("192.0.2.1", 443)}
PRIVATE_KEY = bytes(range(32))
OTHER = {Role.CLIENT: Role.SERVER, Role.SERVER: Role.CLIENT}


def handed_over_pair(seed: int = 0, *, unchanged_cid: bool = False) -> dict[Role, HandedOver]:
    """What both ends of one handshake hand over."""
    rng = random.Random(seed)
    client_secret, server_secret = rng.randbytes(32), rng.randbytes(32)
    key = cid_key(PRIVATE_KEY)
    cid = routed_cid(key, rng.randbytes)
    common: dict[str, Any] = {
        "session_id": session_id(client_secret),
        "routed_cid": cid,
        "client_cid": b"",
        "key_epoch": 0,
        "peer_idle_ms": 30_000,
        "peer_ack_delay_exponent": 3,
        "peer_max_ack_delay_ms": 25,
        "peer_max_udp_payload": 1472,
        "addresses": (ip_interface("10.77.0.2/32"),),
        "short_id": rng.randbytes(8),
    }
    hp = {"client": derive(client_secret).hp, "server": derive(server_secret).hp}
    return {
        Role.CLIENT: HandedOver(
            tx_secret=client_secret,
            rx_secret=server_secret,
            tx_hp_key=hp["client"],
            rx_hp_key=hp["server"],
            reset_token=reset_token(key, cid),
            retire_sequence=None if unchanged_cid else 0,
            **common,
        ),
        Role.SERVER: HandedOver(
            tx_secret=server_secret,
            rx_secret=client_secret,
            tx_hp_key=hp["server"],
            rx_hp_key=hp["client"],
            reset_token=None,
            next_cid_sequence=1 if unchanged_cid else 2,
            **common,
        ),
    }


@dataclass
class End:
    """One end; ``kill_handshake`` and ``kill_dataplane`` are SIGKILLs followed by a restart."""

    role: Role
    settings: Settings
    rng: random.Random
    now: float
    events: list[Event] = field(default_factory=list)
    delivered: list[bytes] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    outbox: list[OutgoingPacket] = field(default_factory=list)
    #: What the data plane refuses that it would take otherwise: the answer, or None.
    refuse: Callable[[DataplaneRequest], Answer | None] = lambda request: None

    def __post_init__(self) -> None:
        self.secrets_fd, self.marks_fd = empty_memfd("session_secrets"), empty_memfd("number_marks")
        self._waiting: list[DataplaneReport] = []
        self._marks: NumberMarks | None = None
        self._start_dataplane()
        self._start_handshake()

    def close(self) -> None:
        self.store.close()
        os.close(self.secrets_fd)
        os.close(self.marks_fd)

    # --- deaths ---

    def _start_dataplane(self) -> None:
        self.registry = Registry(NumberMarks(self.marks_fd), self.drops, os.urandom)
        self._waiting.clear()

    def _start_handshake(self) -> None:
        self.store = SecretsStore(self.secrets_fd)
        cids = RoutedCids(PRIVATE_KEY, 20, self.rng.randbytes) if self.role is Role.SERVER else None
        self.sessions = Sessions(self.store, self.role, self.settings, self.rng, cids)
        records, self.damaged = self.store.load()
        self.sessions.restore(records)
        self.sessions.connected(self.now)

    def kill_handshake(self, *, requests_done: int = 0) -> None:
        """``requests_done`` of its last requests still reach the data plane; no answer reaches it."""
        for outgoing in list(self.sessions.outbox)[:requests_done]:
            self.registry.answer(outgoing.request, self.now)
            self._collect()
        self.store.close()
        self._start_handshake()

    def lose_secrets(self) -> None:
        """The whole daemon is killed, and nobody kept its memfd; only the kernel's data plane goes on then."""
        os.pwrite(self.secrets_fd, bytes(SIZE), 0)
        self.kill_handshake()

    def kill_dataplane(self) -> None:
        self._start_dataplane()
        self.sessions.connected(self.now)

    # --- work ---

    def pump(self) -> None:
        """Let requests, answers and reports flow until there are none."""
        for _ in range(1000):
            self._collect()
            if self._waiting:
                self.sessions.received(self._waiting.pop(0), self.now)
            elif self.sessions.outbox:
                outgoing = self.sessions.outbox.popleft()
                answer = self.refuse(outgoing.request) or self.registry.answer(outgoing.request, self.now)
                self._collect()
                self._waiting.append(self._as_the_kernel_tells(answer) if self.settings.in_kernel else answer)
            else:
                break
        else:
            raise AssertionError("the ends never come to rest")
        self.events += self.sessions.events
        self.sessions.events.clear()

    def _as_the_kernel_tells(self, answer: Answer) -> Answer:
        """qre.ko's marks say whose a session is: it may outlive whoever knows."""
        marks = []
        for mark in answer.sessions:
            install = self.registry.sessions[mark.session_id].install
            fields = {"short_id": install.short_id, "addresses": install.allowed_ips}
            marks.append(replace(mark, connection_ids=(install.connection_id,), **fields))
        return replace(answer, sessions=tuple(marks))

    def _collect(self) -> None:
        for session in list(self.registry.sessions.values()):
            self.outbox += session.outbox
            session.outbox.clear()
            self._waiting += session.events
            session.events.clear()
            if session.state is LifeState.ENDED:
                self.registry.remove(session)

    def transmit(self, *inner: bytes) -> None:
        for session in self.registry.sessions.values():
            packets = session.seal_datagrams([DATAGRAM_HEAD + packet for packet in inner], self.now)
            self.outbox += [OutgoingPacket(packet, session.peer) for packet in packets]

    def receive(self, packet: bytes, source: tuple[str, int]) -> None:
        for session in list(self.registry.sessions.values()):
            self.delivered += [text[3:] for text in session.open_datagrams([packet], source, 0, self.now)]

    def timer(self) -> float:
        times = [session.deadline() for session in self.registry.sessions.values()]
        own = self.sessions.timer()
        return min([*times, float("inf") if own is None else own])

    def handle_timers(self) -> None:
        for session in list(self.registry.sessions.values()):
            if session.deadline() <= self.now:
                session.handle_timer(self.now)
        own = self.sessions.timer()
        if own is not None and own <= self.now:
            self.sessions.handle_timer(self.now)

    # --- what happened ---

    def said(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def epoch(self) -> int:
        (record,) = self.sessions.records()
        return record.key_epoch

    @property
    def dataplane_epoch(self) -> int:
        (mark,) = self.registry.marks()
        return mark.key_epoch


class TwoEnds:
    """``interval`` is RekeyInterval in seconds. Use it as a context manager."""

    def __init__(
        self,
        *,
        interval: float = 2.0,
        seed: int = 0,
        rekey_after: int = 1 << 22,
        unchanged_cid: bool = False,
        in_kernel: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.delay = 0.01
        self.loss = 0.0
        settings = Settings(int(interval * 1000), 30_000, 0, rekey_after, (), in_kernel)
        self.ends = {role: End(role, settings, random.Random(self.rng.random()), self.now) for role in Role}
        self._flying: list[tuple[float, int, Role, bytes]] = []
        self._count = 0
        self._states = handed_over_pair(seed, unchanged_cid=unchanged_cid)
        #: (transmit key, packet number) -> how often it was used
        self.used: Counter[tuple[bytes, int]] = Counter()

    @property
    def client(self) -> End:
        return self.ends[Role.CLIENT]

    @property
    def server(self) -> End:
        return self.ends[Role.SERVER]

    def __enter__(self) -> TwoEnds:
        real, used = Packets.seal, self.used

        def seal(packets: Packets, plaintexts: Sequence[bytes]) -> list[bytes]:
            first = packets.next_number
            sealed = real(packets, plaintexts)
            for number in range(first, packets.next_number):
                used[packets.phases.keys.tx_key, number] += 1
            return sealed

        self._watch = patch.object(Packets, "seal", seal)  # the real one, watched
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.stop()
        for end in self.ends.values():
            end.close()

    def shake_hands_again(self, seed: int, short_id: bytes | None = None) -> TwoEnds:
        """The client comes back: another session of the same short id, unless it is told otherwise."""
        short_id = short_id or self._states[Role.CLIENT].short_id
        states = handed_over_pair(seed).items()
        self._states = {role: dataclasses.replace(state, short_id=short_id) for role, state in states}
        return self.install()

    def install(self) -> TwoEnds:
        """As at the end of a handshake: the server's held session first."""
        for role in (Role.SERVER, Role.CLIENT):
            end, peer = self.ends[role], ADDRESS[OTHER[role]]
            end.pump()
            own = ADDRESS[role]
            underlay = underlay_of((own[0], own[1]), (peer[0], peer[1]))
            end.sessions.install(self._states[role], underlay, socket_number=1 if role is Role.CLIENT else 0)
            self._settle()
        return self

    def run(self, seconds: float) -> TwoEnds:
        end_at = self.now + seconds
        self._settle()
        while True:
            arrival = self._flying[0][0] if self._flying else float("inf")
            at = min(arrival, *(end.timer() for end in self.ends.values()))
            if at > end_at:
                break
            self._move(max(self.now, at))
            if arrival <= at:
                _, _, role, packet = heapq.heappop(self._flying)
                self.ends[OTHER[role]].receive(packet, ADDRESS[role])
            else:
                for end in self.ends.values():
                    end.handle_timers()
            self._settle()
        self._move(end_at)
        return self

    def talk(self, seconds: float, every: float = 0.05) -> None:
        """Packets both ways, all the time."""
        for _ in range(int(seconds / every)):
            for end in self.ends.values():
                end.transmit(os.urandom(40))
            self._settle()
            self.run(every)

    def _move(self, now: float) -> None:
        self.now = now
        for end in self.ends.values():
            end.now = now

    def _settle(self) -> None:
        for role, end in self.ends.items():
            end.pump()
            for packet, *_ in end.outbox:
                if self.rng.random() >= self.loss:
                    self._count += 1
                    heapq.heappush(self._flying, (self.now + self.delay, self._count, role, packet))
            end.outbox.clear()

    def assert_in_step(self) -> None:
        """Both ends and both layers of each agree, and no number was used twice under a key."""
        epochs = {end.dataplane_epoch for end in self.ends.values()}
        assert max(epochs) - min(epochs) <= 1, epochs
        for end in self.ends.values():
            assert end.epoch == end.dataplane_epoch
        assert max(self.used.values()) == 1

    def assert_works(self) -> None:
        """A packet each way arrives."""
        for role, end in self.ends.items():
            text = os.urandom(40)
            end.transmit(text)
            self._settle()
            self.run(0.2)
            assert text in self.ends[OTHER[role]].delivered, f"from the {role}"


__all__ = ["CidsChanged", "Confirmed", "End", "Installed", "Lost", "OrphanEnded", "Orphaned", "TwoEnds"]
