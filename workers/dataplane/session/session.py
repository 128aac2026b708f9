"""One established session: QUIC v1 packets of the 1-RTT number space, without sockets or clocks.

RFC 9000 §9, §10, §12.3, §13, §17.3.1; RFC 9001 §5, §6; RFC 9221; RFC 9484. Plaintexts go in and out as they stand in
a packet: ``DATAGRAM_HEAD`` and an IP packet. The caller looks at ``events``, ``outbox`` and ``state`` after every
call, and calls ``handle_timer`` at ``deadline()``.

Rules: a number is used once, after it was reserved; the receive mark is written before plaintexts are returned;
nothing that was not authenticated changes the state (a stateless reset, which holds a secret of its own, apart).

    held ── first packet at or above the base ──► established ── close() or an error of the peer ──► closing ──► ended
                                                       └──────── idle, peer's close, reset, limit ─────────────► ended
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from qre.dataplane.protocol import (
    CONFIRM_TIMEOUT,
    DataplaneReport,
    FrameFate,
    FrameReceived,
    KeyPhaseChanged,
    KeyPhaseConfirmed,
    LossReason,
    PeerMoved,
    Refusal,
    RekeyDue,
    SessionConfirmed,
    SessionInstall,
    SessionLost,
    SessionRefusedError,
    SessionUpdate,
)
from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.wire import overhead
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import (
    FRAME_ENCODING_ERROR,
    H3_NO_ERROR,
    KEY_UPDATE_ERROR,
    PROTOCOL_VIOLATION,
    ConnectionClose,
    encode_frame,
)
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.session.acks import Acks
from qre.workers.dataplane.session.closing import Closing
from qre.workers.dataplane.session.key_updates import KeyUpdates
from qre.workers.dataplane.session.keyphase import OLD_KEYS_LIMIT
from qre.workers.dataplane.session.liveness import Liveness
from qre.workers.dataplane.session.marks import Mark
from qre.workers.dataplane.session.packets import LimitReachedError, Opened, Packets
from qre.workers.dataplane.session.path import Address, Moves
from qre.workers.dataplane.session.path_mtu import SEARCHES, PathMtu
from qre.workers.dataplane.session.payload import PING, Payload, Sender, issued_by, parse_payload_untrusted
from qre.workers.dataplane.session.recovery import MAX_CONTROLS, Control, Recovery

_NEVER = float("inf")
#: Less than any packet's length.
_NO_IPV6 = -1


class State(enum.StrEnum):
    HELD = "held"
    ESTABLISHED = "established"
    CLOSING = "closing"
    ENDED = "ended"


class Session:
    """One end of a session. ``random`` gives bytes for PATH_CHALLENGE; ``drops`` counts packets by reason."""

    def __init__(
        self,
        install: SessionInstall,
        mark: Mark,
        now: float,
        drops: Counter[str],
        random: Callable[[int], bytes],
    ) -> None:
        self.install = install
        self.session_id = install.session_id
        self.role = install.role
        self.peer: Address = (install.underlay.peer_ip, install.underlay.peer_port)
        self.events: list[DataplaneReport] = []
        self.outbox: list[tuple[bytes, Address]] = []
        self.state = State.HELD if install.held else State.ESTABLISHED
        self.confirmed = install.role is Role.SERVER and not install.held
        self.created = now
        self.last_receive: float | None = None
        self.rx_packets = self.rx_bytes = self.tx_packets = self.tx_bytes = 0
        self.drops = drops
        self._mark = mark
        self.packets = Packets(install, mark, drops)
        self.phases = self.packets.phases
        self.recovery = Recovery(install.max_ack_delay_ms / 1000, install.ack_delay_exponent)
        self.keys = KeyUpdates(self.packets, mark, self.recovery)
        self._packet_overhead = overhead.packet_overhead(len(self.packets.tx_cid))
        self.path_mtu = PathMtu(SEARCHES[self.role], min(install.max_datagram_payload, overhead.MAX_UDP_PAYLOAD))
        #: The largest inner packet that is sent; of IPv6, where none may be, it is negative.
        self.max_inner = self.max_inner_ipv6 = 0
        #: The largest inner packet that the MSS of delivered SYNs may lead to: more than ``max_inner`` while that is
        #: only the beginning of a search, for a connection keeps its MSS.
        self.mss_inner = 0
        #: Inner packets (beginning, length) that were too big during a search, by flow: to be answered at its end.
        self.unanswered: dict[bytes, tuple[bytes, int]] = {}
        self._set_limits()
        self._liveness = Liveness(install, now)
        self._acks = Acks(now)
        self._rekey_asked = -1
        #: No routed CID has a higher sequence number.
        self._issued = max(install.cid_sequence, 1)
        self._moves = Moves(self._packet_overhead, random)
        self._closing = Closing(b"", 0.0)
        if self.confirmed:
            self.path_mtu.begin(now)
            self._set_limits()
        if self.role is Role.CLIENT:
            self._ping(now)

    # --- transmit ---

    def seal_datagrams(self, plaintexts: list[bytes], now: float) -> list[bytes]:
        """Packets for these plaintexts (``DATAGRAM_HEAD`` + IP packet each), an ACK riding along when one is due."""
        if self.state is not State.ESTABLISHED:
            self.drops["held" if self.state is State.HELD else "closing"] += len(plaintexts)
            return []
        size = sum(map(len, plaintexts)) - len(DATAGRAM_HEAD) * len(plaintexts)
        count = len(plaintexts)
        if self._acks.may_ride_along(now):
            ack = self._take_ack(now)
            last = ack + plaintexts[-1]
            room = len(plaintexts[0]) if count > 1 else self.max_inner + len(DATAGRAM_HEAD)
            plaintexts = [*plaintexts[:-1], last] if len(last) <= room else [*plaintexts, ack]
        packets = self._seal(plaintexts)
        if packets:
            self.tx_packets += count
            self.tx_bytes += size
            self._liveness.sent(now)
            self.recovery.sent_batch(self.packets.next_number - 1, now)
            if self.path_mtu.watching:
                self.path_mtu.sent_last(packets, self.packets.next_number, now, self.recovery.pto)
        return packets

    def _seal(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        """Packets; none when the session has just ended for its packet limit. Old keys are asked to be replaced."""
        try:
            packets = self.packets.seal(plaintexts)
        except LimitReachedError:
            self._end(LossReason.LIMIT)
            return []
        if self.packets.used > self.packets.rekey_after and self._rekey_asked != self.phases.epoch:
            self._rekey_asked = self.phases.epoch
            self.events.append(RekeyDue(session_id=self.session_id, key_epoch=self.phases.epoch))
        return packets

    def _send_frames(self, frames: bytes, to: Address | None = None, size: int = 0) -> int:
        """Put one packet with ``frames``, padded to a datagram of ``size``, into the outbox; its length."""
        padding = size - len(frames) - self._packet_overhead
        packets = self._seal([frames + bytes(padding)] if padding > 0 else [frames])
        for packet in packets:
            self.outbox.append((packet, to or self.peer))
            return len(packet)
        return 0

    def _send_control(self, control: Control, now: float) -> None:
        if self._send_frames(control.frames):
            self.recovery.sent_control(control, self.packets.next_number - 1, now)
            self._liveness.sent(now)

    def send_frames(self, request: int, frames: bytes, now: float) -> None:
        """FrameSend: send these frames until they are acknowledged or given up. Raises SessionRefusedError."""
        if self.state is not State.ESTABLISHED:
            raise SessionRefusedError(Refusal.CLOSING, f"the session is {self.state}")
        if len(self.recovery.controls) >= MAX_CONTROLS:
            raise SessionRefusedError(Refusal.NO_ROOM, "too many frames are in flight")
        issued = issued_by(frames, self.path_mtu.base - self._packet_overhead)
        self._issued = max([self._issued, *issued])
        self._send_control(Control(frames, request), now)

    def _take_ack(self, now: float) -> bytes:
        """The ACK frame of everything received."""
        return self._acks.take(self.packets.received.ack_ranges(), now)

    # --- receive ---

    def open_datagrams(self, datagrams: Sequence[bytes], source: Address, ecn: int, now: float) -> list[bytes]:
        """Open short-header packets that came together from ``source`` with one connection ID and ECN codepoint.

        The plaintexts to deliver: ``DATAGRAM_HEAD`` + IP packet each, not yet checked.
        """
        if self.state is State.CLOSING:
            self.drops["closing"] += len(datagrams)
            if self._closing.received():
                self.outbox.append((self._closing.packet, self.peer))
            return []
        if self.role is Role.CLIENT and source != self.peer:
            self.drops["wrong-address"] += len(datagrams)
            return []
        try:
            opened = self.packets.open(datagrams, now + min(3 * self.recovery.pto, OLD_KEYS_LIMIT))
        except LimitReachedError:
            self._end(LossReason.LIMIT)
            return []
        if opened.reset:
            self._end(LossReason.RESET)
        elif opened.new and (not opened.follow or self._follow()):
            self._opened(opened, source, sum(map(len, datagrams)), ecn, now)
        return opened.datagrams

    def _follow(self) -> bool:
        """The peer began a key phase; ours begins before anything is acknowledged (RFC 9001 §6.2)."""
        try:
            self.keys.follow()
        except SessionRefusedError:
            self._end(LossReason.LIMIT)  # rather no session than a key twice
            return False
        self.events.append(KeyPhaseChanged(session_id=self.session_id, key_epoch=self.phases.epoch))
        return True

    def _opened(self, opened: Opened, source: Address, size: int, ecn: int, now: float) -> None:
        """Account for a batch that held authentic and new packets, and do what their frames ask."""
        self.last_receive = now
        self._liveness.received(now)
        if self.state is State.HELD:
            self.state = State.ESTABLISHED
            self._confirm(now)
        eliciting, newest = bool(opened.datagrams), not opened.probing
        for plaintext, first, epoch, highest in opened.others:
            frames = self._read_frames(plaintext, first, epoch, source, now)
            if frames is None:
                return
            opened.datagrams += frames.datagrams
            eliciting = eliciting or frames.eliciting
            newest = newest or (highest and not frames.probing_only)
        self._acks.received(opened.new, ecn, now)
        if source != self.peer:
            self._moves.came_from(source, size, newest, now, self.recovery.pto, self._send_frames)
        if eliciting:
            self._acks.elicited(now)
            if opened.out_of_order or ecn == 3:  # §13.2.1: at once
                self._send_frames(self._take_ack(now))

    def _read_frames(self, plaintext: bytes, first: int, epoch: int, source: Address, now: float) -> Payload | None:
        """Everything but the plain DATAGRAM. None when the session ended over it."""
        if first & 0x18:
            self._violated(PROTOCOL_VIOLATION, now)
            return None
        try:
            frames = parse_payload_untrusted(plaintext, self._sender())
        except UntrustedInputError:
            self._violated(FRAME_ENCODING_ERROR if plaintext else PROTOCOL_VIOLATION, now)
            return None
        if frames.error:
            self._violated(frames.error, now)
            return None
        for ack in frames.acks:
            try:
                done = self.recovery.acknowledged(ack, self.packets.next_number, now)
            except UntrustedInputError:
                self._violated(PROTOCOL_VIOLATION, now)
                return None
            if not self._acknowledged(ack.ranges[0][1], done, epoch, now):
                return None
            self.path_mtu.acknowledged(ack.ranges, now, self.recovery.smoothed)
            self._set_limits()
        if frames.close is not None:
            self._end(LossReason.CLOSED, frames.close)
            return None
        for data in frames.challenges[-1:]:
            self._moves.challenged(data, source, source == self.peer, self._send_frames)
        for data in frames.responses:
            self._path_answered(data, now)
        if frames.passed:
            self.events.append(FrameReceived(session_id=self.session_id, frames=b"".join(frames.passed)))
        if frames.unknown_datagrams:
            self.drops["unknown-context"] += frames.unknown_datagrams
        return frames

    def _sender(self) -> Sender:
        return Sender(
            client=self.role is Role.SERVER,
            gives_cids=bool(self.packets.tx_cid),
            takes_cids=bool(self.packets.rx_cid_length),
            issued=self._issued,
        )

    def _acknowledged(self, largest: int, done: list[Control], epoch: int, now: float) -> bool:
        phases = self.phases
        if largest >= phases.first_sent:
            if epoch < phases.epoch:  # RFC 9001 §6.2: acknowledged under older keys than it was sent with
                self._violated(KEY_UPDATE_ERROR, now)
                return False
            if phases.confirmed_at is None:
                phases.confirmed_at = now
        if not self.confirmed and largest >= PACKET_NUMBER_BASE:
            self._confirm(now)
        for control in done:
            if control.request is not None:
                self.events.append(FrameFate(session_id=self.session_id, id=control.request, acknowledged=True))
        return True

    def _confirm(self, now: float) -> None:
        self.confirmed = True
        self.events.append(SessionConfirmed(session_id=self.session_id))
        self.path_mtu.begin(now)
        self._set_limits()

    # --- the path, its MTU, keys ---

    def _set_limits(self) -> None:
        """After ``path_mtu`` may have changed."""
        path_mtu, around = self.path_mtu, self._packet_overhead + len(DATAGRAM_HEAD)
        self.max_inner = path_mtu.size - around
        refused = path_mtu.settled and self.max_inner < overhead.MIN_MTU_IPV6
        self.max_inner_ipv6 = _NO_IPV6 if refused else self.max_inner
        self.mss_inner = (path_mtu.size if path_mtu.settled else path_mtu.largest) - around

    def _probe(self, now: float) -> None:
        size = self.path_mtu.due(now)
        self._set_limits()
        if size == 0:
            self._ping(now)
        elif size is not None and self._send_frames(PING, size=size):
            number = self.packets.next_number - 1
            self.path_mtu.sent(number, size, now, self.recovery.pto)
            self.recovery.sent_batch(number, now)
            self._liveness.sent(now)

    def refused_by_first_hop(self, lengths: Sequence[int], now: float) -> int:
        """Datagrams of these lengths were longer than the MTU of the device that they were to leave by; how many of
        them were no probes."""
        probes = sum(self.path_mtu.refused(length, now) for length in lengths)
        self._set_limits()
        return len(lengths) - probes

    def _path_answered(self, data: bytes, now: float) -> None:
        address = self._moves.answered(data)
        if address is None:
            return
        if address[0] != self.peer[0]:  # another port is a NAT's work: the path is the same (RFC 9000 §9.4)
            self.path_mtu.begin(now)
            self._set_limits()
        self.peer = address
        moved = replace(self.install.underlay, peer_ip=address[0], peer_port=address[1])
        self.events.append(PeerMoved(session_id=self.session_id, underlay=moved))

    def update(self, update: SessionUpdate, now: float) -> None:
        """SessionUpdate. Raises SessionRefusedError, and nothing has changed."""
        if self.state not in {State.ESTABLISHED, State.HELD}:
            raise SessionRefusedError(Refusal.CLOSING, f"the session is {self.state}", self.phases.epoch)
        self.keys.update(update, now, self._ping, may_ping=self.state is State.ESTABLISHED)

    def _ping(self, now: float) -> None:
        self._send_control(Control(PING, None), now)

    # --- end ---

    def _end(self, reason: LossReason, error: int = 0) -> None:
        if self.state is State.ENDED:
            return
        if self.state is not State.CLOSING:
            self.events.append(SessionLost(session_id=self.session_id, reason=reason, error_code=error))
        self._finish()

    def _finish(self) -> None:
        self.state = State.ENDED
        self._mark.release()

    def _violated(self, error: int, now: float) -> None:
        """The peer broke QUIC inside an authenticated packet."""
        self.drops["malformed"] += 1
        self.events.append(SessionLost(session_id=self.session_id, reason=LossReason.PROTOCOL, error_code=error))
        self._close(encode_frame(ConnectionClose(error, application=False)), now)

    def close(self, now: float, *, tell: bool) -> None:
        """SessionDelete: with ``tell``, CONNECTION_CLOSE (H3_NO_ERROR) is sent and stays ready for three PTO."""
        if self.state is State.ENDED or self.state is State.CLOSING:
            return
        if tell:
            self._close(encode_frame(ConnectionClose(H3_NO_ERROR, application=True)), now)
        else:
            self._finish()

    def _close(self, frame: bytes, now: float) -> None:
        if self._send_frames(frame):
            self.state = State.CLOSING
            self._closing = Closing(self.outbox[-1][0], now + 3 * self.recovery.pto)

    # --- time ---

    def deadline(self) -> float:
        """When ``handle_timer`` wants to be called."""
        if self.state is State.CLOSING:
            return self._closing.until
        if self.state is State.ENDED:
            return _NEVER
        soonest = self._liveness.expires(self.recovery.pto)
        if not self.confirmed:
            soonest = min(soonest, self.created + CONFIRM_TIMEOUT)
        if self.state is State.ESTABLISHED:
            soonest = min(soonest, self._acks.deadline())
        soonest = min(soonest, self.keys.deadline())
        control = self.recovery.deadline()
        if control is not None:
            soonest = min(soonest, control)
        elif self.state is State.ESTABLISHED:
            soonest = min(soonest, self._liveness.keepalive_at())
        soonest = min(soonest, self._moves.deadline())
        if self.state is State.ESTABLISHED:
            soonest = min(soonest, self.path_mtu.deadline())
        return soonest

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self.state is State.CLOSING:
            if now >= self._closing.until:
                self._finish()
            return
        if self.state is State.ENDED:
            return
        if not self.confirmed and now >= self.created + CONFIRM_TIMEOUT:
            self._end(LossReason.UNCONFIRMED)
            return
        if now >= self._liveness.expires(self.recovery.pto):
            self._end(LossReason.IDLE)
            return
        if now >= self._acks.deadline() and self.state is State.ESTABLISHED:
            self._send_frames(self._take_ack(now))
        if self.keys.handle_timer(now):
            self.events.append(KeyPhaseConfirmed(session_id=self.session_id, key_epoch=self.phases.epoch))
        self._moves.handle_timer(now, self.recovery.pto, self._send_frames)
        if self.state is State.ESTABLISHED:
            self._probe(now)
        again, lost = self.recovery.due(now)
        for control in lost:
            assert control.request is not None
            self.events.append(FrameFate(session_id=self.session_id, id=control.request, acknowledged=False))
        for control in again:
            self._send_control(control, now)
        if not self.recovery.controls and self.state is State.ESTABLISHED and now >= self._liveness.keepalive_at():
            self._ping(now)
