"""The data path of one TUN device: TUN to UDP and back, in batches, inside an asyncio loop's reader callbacks.

Sessions do not know descriptors; this module connects them. Three rules of order: when the UDP socket is full, the
packet and the TUN device wait (the device's queue may drop); events leave after the packets that caused them; and a
device that replaces a dead one does not read its queues until it has the sessions again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from qre.addresses import Address as IpAddress
from qre.dataplane.protocol import (
    Answer,
    DataplaneReport,
    DataplaneRequest,
    NewPort,
    Refusal,
    SessionInstall,
    SessionList,
    refused,
)
from qre.dataplane.status import DeviceCounters
from qre.ends import Role
from qre.errors import MachineError, UntrustedInputError
from qre.wire.close_reason import CloseReason
from qre.workers.dataplane.client_ports import ClientPorts
from qre.workers.dataplane.early_packets import EarlyPackets, is_unicast
from qre.workers.dataplane.inner.coalesce import Buffers, Deliverer
from qre.workers.dataplane.inner.ecn import decapsulated
from qre.workers.dataplane.inner.offload import NO_OFFLOAD, VNET_HEADER_SIZE, split_untrusted
from qre.workers.dataplane.refusals import Refusals, Say
from qre.workers.dataplane.registry import Registry
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.dataplane.session.path import Address
from qre.workers.dataplane.session.session import Session
from qre.workers.dataplane.session.session_life import LifeState
from qre.workers.dataplane.underlay import UnderlaySocket

_READ_SIZE = VNET_HEADER_SIZE + 65_535
#: Packets that are sealed or opened together, and reads per callback, so that other tasks get their turn.
_BATCH = 64
_TURNS = 8
#: How long to wait for the sessions of an earlier process (seconds): until the handshake worker, which may be
#: restarting, too, lists the sessions, and then until it has installed the missing ones.
_LONGEST_SILENCE = 5.0
_LONGEST_INSTALLING = 0.25


class _Waiting(NamedTuple):
    """A packet for which its socket has no room yet; see ``UnderlaySocket.send``."""

    packet: bytes
    to: Address
    ecn: int
    source: IpAddress | None


class Device:
    """Owns the TUN descriptor, the server's UDP socket and the clients'. ``report`` takes events, ``say`` log
    lines."""

    def __init__(
        self,
        tun: int,
        marks: NumberMarks,
        report: Callable[[DataplaneReport], None],
        *,
        server_socket: int | None = None,
        ecn: int = 0,
        clock: Callable[[], float] = time.monotonic,
        say: Say = lambda kind, text: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tun = tun
        os.set_blocking(tun, False)
        self._report = report
        self._clock = clock
        self.drops: Counter[str] = Counter()
        self._marks = marks
        self.registry = Registry(marks, self.drops, os.urandom, ecn)
        self._deliverer = Deliverer(self.drops)
        self._say = say
        self._refusals = Refusals(self.drops, lambda packet: self._write([NO_OFFLOAD, packet]), say)
        self._rx_packets = self._rx_bytes = self._tx_packets = self._tx_bytes = 0
        self._ports = ClientPorts(self._client_readable, self._forget_underlay)
        self._server_socket = UnderlaySocket(server_socket, self.drops) if server_socket is not None else None
        self._early = EarlyPackets(self.drops)
        self._blocked: dict[UnderlaySocket, list[_Waiting]] = {}
        self._timers: dict[bytes, tuple[float, asyncio.TimerHandle]] = {}  # by session, and when
        self._waiting: asyncio.TimerHandle | None = None
        if marks.awaited:
            self._waiting = self._loop.call_later(_LONGEST_SILENCE, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        """Begin to read packets."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if not self._blocked:
            self._loop.add_reader(self._tun, self._tun_readable)
        if self._server_socket is not None:
            self._loop.add_reader(self._server_socket.fileno(), self._server_readable)

    def close(self) -> None:
        """Close the sessions, telling their peers, then every descriptor."""
        now = self._clock()
        for session in list(self.registry.sessions.values()):
            session.close(now, tell=True, reason=CloseReason.STOPPED)
            self._settle(session, now)
        if self._waiting is not None:
            self._waiting.cancel()
        for _, timer in self._timers.values():
            timer.cancel()
        self._loop.remove_reader(self._tun)
        self._ports.close()
        if self._server_socket is not None:
            self._forget_underlay(self._server_socket)
        os.close(self._tun)

    def _forget_underlay(self, underlay: UnderlaySocket) -> None:
        self._loop.remove_reader(underlay.fileno())
        self._loop.remove_writer(underlay.fileno())
        if self._blocked.pop(underlay, None) is not None and not self._blocked:
            self._loop.add_reader(self._tun, self._tun_readable)
        underlay.close()

    # --- requests ---

    def handle(self, request: DataplaneRequest, fds: list[int]) -> Answer:
        """Carry out a request of the handshake worker. Takes ownership of ``fds``."""
        now = self._clock()
        try:
            answer = self._handle(request, fds, now)
        finally:
            for fd in fds:
                os.close(fd)
        session = self.registry.sessions.get(getattr(request, "session_id", b""))
        if session is not None:
            self._settle(session, now)
            if self._early:
                self._transmit_early(now)
        if self._waiting is not None:
            self._sessions_are_coming(request)
        return answer

    def _sessions_are_coming(self, request: DataplaneRequest) -> None:
        """The handshake worker has listed the sessions: it installs the missing ones soon."""
        if not self._marks.awaited:
            self._begin()
        elif isinstance(request, SessionList) and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = self._loop.call_later(_LONGEST_INSTALLING, self._begin)

    def _handle(self, request: DataplaneRequest, fds: list[int], now: float) -> Answer:
        """As ``handle``; a descriptor that is used is taken out of ``fds``."""
        if isinstance(request, NewPort) or (isinstance(request, SessionInstall) and request.role is Role.CLIENT):
            if len(fds) != 1:
                return refused(request.id, Refusal.OTHER, "a client session comes with its socket")
            try:
                underlay = UnderlaySocket(fds.pop(), self.drops)
            except MachineError as error:
                return refused(request.id, Refusal.OTHER, str(error))
            answer = self.registry.answer(request, now)
            if answer.refusal is not None:
                underlay.close()
            elif isinstance(request, NewPort):
                self._ports.lend(request.session_id, request.number, underlay)
            else:
                self._ports.use(request.session_id, underlay)
            return answer
        if isinstance(request, SessionInstall) and self._server_socket is None:
            return refused(request.id, Refusal.OTHER, "a server session without a server's socket")
        return self.registry.answer(request, now)

    # --- TUN to UDP ---

    def _tun_readable(self) -> None:
        tun, now = self._tun, self._clock()
        for _ in range(_TURNS):
            waiting: dict[Session, list[bytes]] = {}
            gathered = 0
            while gathered < _BATCH:
                try:
                    read = os.read(tun, _READ_SIZE)
                except BlockingIOError:
                    break
                except OSError as error:
                    self._tun_failed(error)
                    break
                gathered += self._take(read, waiting, now)
            self._transmit_all(waiting, now)
            if gathered < _BATCH or self._blocked:
                return

    def _tun_failed(self, error: OSError) -> None:
        if error.errno in {errno.EBADFD, errno.ENODEV}:  # the device was removed on purpose
            self._loop.remove_reader(self._tun)
        self.drops["tun-failed"] += 1

    def _take(self, read: bytes, waiting: dict[Session, list[bytes]], now: float) -> int:
        """Sort one read into ``waiting``; returns its share of a batch."""
        version = read[VNET_HEADER_SIZE] >> 4 if len(read) >= VNET_HEADER_SIZE + 20 else 0
        if version == 4:
            destination = read[VNET_HEADER_SIZE + 16 : VNET_HEADER_SIZE + 20]
        elif version == 6 and len(read) >= VNET_HEADER_SIZE + 40:
            destination = read[VNET_HEADER_SIZE + 24 : VNET_HEADER_SIZE + 40]
        else:
            self.drops["malformed"] += 1
            return 1
        session = self.registry.routes.session_for(destination)
        if session is None:
            if self._server_socket is None and not self.registry.sessions and is_unicast(destination):
                self._early.put(read, now)
            else:
                self.drops["no-session"] += 1
            return 1
        try:
            plaintexts = split_untrusted(read, session.max_inner if version == 4 else session.max_inner_ipv6)
        except UntrustedInputError as error:
            plaintexts = self._refusals.instead_untrusted(error.why, session, read, now)
            if not plaintexts:
                return 1
        if session in waiting:
            waiting[session] += plaintexts
        else:
            waiting[session] = plaintexts
        return len(plaintexts)

    def _transmit_early(self, now: float) -> None:
        """A client's first session is there: what has waited for it goes."""
        waiting: dict[Session, list[bytes]] = {}
        for read in self._early.take(now):
            self._take(read, waiting, now)
        self._transmit_all(waiting, now)

    def _transmit_all(self, waiting: dict[Session, list[bytes]], now: float) -> None:
        for session, plaintexts in waiting.items():
            self._transmit(session, plaintexts, now)

    def _transmit(self, session: Session, plaintexts: list[bytes], now: float) -> None:
        packets_before, bytes_before = session.tx_packets, session.tx_bytes
        packets = session.seal_datagrams(plaintexts, now)
        if packets:
            self._tx_packets += session.tx_packets - packets_before
            self._tx_bytes += session.tx_bytes - bytes_before
            self._send(session, packets, session.peer, session.tx_ecn, now)
        self._settle(session, now)

    def _send(
        self, session: Session, packets: list[bytes], to: Address, ecn: int, now: float, new_port: bool = False
    ) -> None:
        underlay = self._underlay_of(session, new_port)
        if underlay is None:
            self.drops["no-socket"] += len(packets)
            return
        source = session.install.underlay.local_ip if session.role is Role.SERVER else None
        if underlay in self._blocked:
            self._wait(underlay, packets, to, ecn, source)
        else:
            if unsent := underlay.send(packets, to, ecn, source):
                self._wait(underlay, unsent, to, ecn, source)
            if underlay.refused:
                self.drops["too-big"] += session.refused_by_first_hop(underlay.refused, now)
                underlay.refused.clear()

    def _underlay_of(self, session: Session, new_port: bool) -> UnderlaySocket | None:
        if session.role is Role.SERVER:
            return self._server_socket
        return self._ports.socket(session.session_id, new_port=new_port)

    def _wait(
        self, underlay: UnderlaySocket, packets: list[bytes], to: Address, ecn: int, source: IpAddress | None
    ) -> None:
        """The socket is full: keep a few packets, and stop reading from TUN until there is room."""
        if not self._blocked:
            self._loop.remove_reader(self._tun)
        if underlay not in self._blocked:
            self._blocked[underlay] = []
            self._loop.add_writer(underlay.fileno(), self._writable, underlay)
        queue = self._blocked[underlay]
        room = max(4 * _BATCH - len(queue), 0)
        queue += [_Waiting(packet, to, ecn, source) for packet in packets[:room]]
        if len(packets) > room:
            self.drops["send-queue-full"] += len(packets) - room

    def _writable(self, underlay: UnderlaySocket) -> None:
        queue = self._blocked[underlay]
        while queue:
            same = queue[0][1:]
            run = next((n for n, item in enumerate(queue) if item[1:] != same), len(queue))
            unsent = underlay.send([item.packet for item in queue[:run]], *same)
            self.drops["too-big"] += len(underlay.refused)  # its session notices with the next one
            underlay.refused.clear()
            del queue[: run - len(unsent)]
            if unsent:
                return
        del self._blocked[underlay]
        self._loop.remove_writer(underlay.fileno())
        if not self._blocked:
            self._loop.add_reader(self._tun, self._tun_readable)

    # --- UDP to TUN ---

    def _client_readable(self, session_id: bytes, underlay: UnderlaySocket) -> None:
        session = self.registry.sessions.get(session_id)
        now = self._clock()
        for _ in range(_TURNS):
            batches, more = underlay.gather(_BATCH)
            for (source, ecn), datagrams in batches.items():
                if session is None or session.state is LifeState.ENDED:
                    self.drops["no-session"] += len(datagrams)
                else:
                    self._receive(session, datagrams, source, ecn, now)
            if not more:
                break
        if session is not None and session.session_id in self.registry.sessions:
            self._settle(session, now)

    def _server_readable(self) -> None:
        underlay = self._server_socket
        assert underlay is not None
        now = self._clock()
        touched: set[Session] = set()
        for _ in range(_TURNS):
            batches, more = underlay.gather(_BATCH)
            for (source, ecn), datagrams in batches.items():
                for session, own in self._by_session(datagrams):
                    touched.add(session)
                    self._receive(session, own, source, ecn, now)
            if not more:
                break
        for session in touched:
            if session.session_id in self.registry.sessions:
                self._settle(session, now)

    def _by_session(self, datagrams: list[bytes]) -> list[tuple[Session, list[bytes]]]:
        """Runs of datagrams of one routed CID."""
        by_cid, lengths = self.registry.by_cid, self.registry.cid_lengths
        runs: list[tuple[Session, list[bytes]]] = []
        last: bytes | None = None
        for datagram in datagrams:
            if last is not None and datagram.startswith(last, 1) and datagram[0] < 0x80:
                runs[-1][1].append(datagram)
                continue
            last = None
            if datagram and datagram[0] >= 0x80:
                self.drops["long-header"] += 1
                continue
            for length in lengths:
                cid = datagram[1 : 1 + length]
                session = by_cid.get(cid)
                if session is not None:
                    runs.append((session, [datagram]))
                    last = cid
                    break
            else:
                self.drops["unknown-cid"] += 1
        return runs

    def _receive(self, session: Session, datagrams: list[bytes], source: Address, ecn: int, now: float) -> None:
        held = session.state is LifeState.HELD
        plaintexts = session.open_datagrams(datagrams, source, ecn, now)
        if held and session.state is LifeState.ESTABLISHED:
            self.registry.routes.forget()
        if not plaintexts:
            return
        meant = session.ecn_of(ecn)
        if meant != ecn:
            self._say(
                "ecn", "packets arrive marked CE though the peer marks none: a device on the way sets ECN marks"
            )
        if meant:
            plaintexts = decapsulated(plaintexts, meant, self.drops)
        permits = self.registry.routes.permits
        deliverer = self._deliverer
        for buffers in deliverer.writes(plaintexts, lambda address: permits(session, address), session.mss_inner):
            self._write(buffers)
        self._rx_packets += deliverer.packets
        self._rx_bytes += deliverer.bytes
        session.rx_packets += deliverer.packets
        session.rx_bytes += deliverer.bytes

    def _write(self, buffers: Buffers) -> None:
        try:
            os.writev(self._tun, buffers)
        except OSError:  # the link is down, or the kernel refuses the packet
            self.drops["tun-refused"] += 1

    # --- time and consequences ---

    def _settle(self, session: Session, now: float) -> None:
        """After work of a session: send, report, remove ended sessions, set the timer."""
        self._ports.follow(session)
        for packet, to, ecn, new_port in session.outbox:
            self._send(session, [packet], to, ecn, now, new_port)
        session.outbox.clear()
        if session.unanswered and session.path_mtu.settled:
            self._refusals.answer_late(session, now)
        for event in session.events:
            self._report(event)
        session.events.clear()
        if session.state is LifeState.ENDED:
            self.registry.remove(session)
            self._cancel_timer(session.session_id)
            self._ports.end(session.session_id)
            return
        self._wake_for(session, now)

    def _wake_for(self, session: Session, now: float) -> None:
        """No later than its deadline; one that moves on is looked at once in vain."""
        at, session_id = session.deadline(), session.session_id
        if (known := self._timers.get(session_id)) is not None and known[0] <= at:
            return
        self._cancel_timer(session_id)
        self._timers[session_id] = at, self._loop.call_later(max(at - now, 0.0), self._timer_fired, session)

    def _cancel_timer(self, session_id: bytes) -> None:
        if (known := self._timers.pop(session_id, None)) is not None:
            known[1].cancel()

    def _timer_fired(self, session: Session) -> None:
        self._cancel_timer(session.session_id)
        now = self._clock()
        if session.deadline() <= now:
            session.handle_timer(now)
        self._settle(session, now)

    def counters(self) -> DeviceCounters:
        """Totals since the start; of the drop reasons the 64 most frequent."""
        return DeviceCounters(
            rx_packets=self._rx_packets,
            rx_bytes=self._rx_bytes,
            tx_packets=self._tx_packets,
            tx_bytes=self._tx_bytes,
            drops=dict(self.drops.most_common(64)),
        )

    def now(self) -> float:
        """Monotonic time in seconds."""
        return self._clock()
