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
    Underlay,
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
    NewConnectionId,
    PathResponse,
    encode_ack,
    encode_frame,
    frames_untrusted,
)
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.session.keyphase import OLD_KEYS_LIMIT
from qre.workers.dataplane.session.marks import Mark
from qre.workers.dataplane.session.packets import LimitReachedError, Opened, Packets
from qre.workers.dataplane.session.path import PADDED, Address, Candidate
from qre.workers.dataplane.session.path_mtu import SEARCHES, PathMtu
from qre.workers.dataplane.session.payload import PING, Payload, Sender, parse_payload_untrusted
from qre.workers.dataplane.session.recovery import MAX_CONTROLS, Control, Recovery

#: We tell no max_ack_delay and no ack_delay_exponent in our transport parameters, so the defaults hold (25 ms, 3).
ACK_DELAY = 0.020
_ACK_EXPONENT = 3
#: With traffic to ride on, an ACK goes along this often.
_PIGGYBACK_INTERVAL = 0.005
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
        self._random = random
        self._mark = mark
        self.packets = Packets(install, mark, drops)
        self.phases = self.packets.phases
        self.recovery = Recovery(install.max_ack_delay_ms / 1000, install.ack_delay_exponent)
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
        self._idle = install.idle_timeout_ms / 1000
        self._idle_base = now
        self._sent_since_receive = False
        self._last_sent = now
        self._keepalive = bool(install.keepalive_ms) or self.role is Role.CLIENT
        self._ack_since: float | None = None  # when the oldest unacknowledged ack-eliciting packet came
        self._ack_sent = 0.0
        self._largest_at = now
        self._ecn = [0, 0, 0]  # ECT(0), ECT(1), CE: the order of an ACK frame
        self._epoch_announced = -1  # of KeyPhaseConfirmed
        self._rekey_asked = -1
        #: No routed CID has a higher sequence number.
        self._issued = max(install.cid_sequence, 1)
        self._candidate: Candidate | None = None
        self._close_packet = b""
        self._closing_until = 0.0
        self._closing_received = 0
        if self.confirmed:
            self.path_mtu.begin(now)
            self._set_limits()
        if self.role is Role.CLIENT:
            self._send_control(Control(PING, None), now)

    # --- transmit ---

    def seal_datagrams(self, plaintexts: list[bytes], now: float) -> list[bytes]:
        """Packets for these plaintexts (``DATAGRAM_HEAD`` + IP packet each), an ACK riding along when one is due."""
        if self.state is not State.ESTABLISHED:
            self.drops["held" if self.state is State.HELD else "closing"] += len(plaintexts)
            return []
        size = sum(map(len, plaintexts)) - len(DATAGRAM_HEAD) * len(plaintexts)
        count = len(plaintexts)
        if self._ack_since is not None and now - self._ack_sent >= _PIGGYBACK_INTERVAL:
            ack = self._take_ack(now)
            last = ack + plaintexts[-1]
            room = len(plaintexts[0]) if count > 1 else self.max_inner + len(DATAGRAM_HEAD)
            plaintexts = [*plaintexts[:-1], last] if len(last) <= room else [*plaintexts, ack]
        packets = self._seal(plaintexts)
        if packets:
            self.tx_packets += count
            self.tx_bytes += size
            self._sent_eliciting(now)
            self.recovery.sent_batch(self.packets.next_number - 1, now)
            if self.path_mtu.watching:
                self._watch(packets, now)
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

    def _sent_eliciting(self, now: float) -> None:
        self._last_sent = now
        if not self._sent_since_receive:  # §10.1: the first one since a packet came restarts the idle timer
            self._sent_since_receive = True
            self._idle_base = now

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
            self._sent_eliciting(now)

    def send_frames(self, request: int, frames: bytes, now: float) -> None:
        """FrameSend: send these frames until they are acknowledged or given up. Raises SessionRefusedError."""
        if self.state is not State.ESTABLISHED:
            raise SessionRefusedError(Refusal.CLOSING, f"the session is {self.state}")
        if len(self.recovery.controls) >= MAX_CONTROLS:
            raise SessionRefusedError(Refusal.NO_ROOM, "too many frames are in flight")
        if not frames:
            raise SessionRefusedError(Refusal.OTHER, "no frames")
        if len(frames) > self.path_mtu.base - self._packet_overhead:
            raise SessionRefusedError(Refusal.OTHER, "the frames are too long for one packet")
        try:
            issued = [frame.sequence for frame in frames_untrusted(frames) if isinstance(frame, NewConnectionId)]
        except UntrustedInputError as error:
            raise SessionRefusedError(Refusal.OTHER, str(error)) from error
        self._issued = max([self._issued, *issued])
        self._send_control(Control(frames, request), now)

    def _take_ack(self, now: float) -> bytes:
        """The ACK frame of everything received."""
        self._ack_since, self._ack_sent = None, now
        delay = int(max(now - self._largest_at, 0.0) * 1e6) >> _ACK_EXPONENT
        return encode_ack(self.packets.received.ack_ranges(), delay, self._ecn if any(self._ecn) else ())

    # --- receive ---

    def open_datagrams(self, datagrams: Sequence[bytes], source: Address, ecn: int, now: float) -> list[bytes]:
        """Open short-header packets that came together from ``source`` with one connection ID and ECN codepoint.

        The plaintexts to deliver: ``DATAGRAM_HEAD`` + IP packet each, not yet checked.
        """
        if self.state is State.CLOSING:
            self._receive_while_closing(len(datagrams))
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
        phases = self.phases
        assert phases.next_keys is not None
        try:
            self._mark.advance(phases.epoch + 1, phases.next_keys.tx_key, self.packets.next_number)
        except SessionRefusedError:
            self._end(LossReason.LIMIT)  # rather no session than a key twice
            return False
        phases.follow(self.packets.next_number)
        self.events.append(KeyPhaseChanged(session_id=self.session_id, key_epoch=phases.epoch))
        return True

    def _opened(self, opened: Opened, source: Address, size: int, ecn: int, now: float) -> None:
        """Account for a batch that held authentic and new packets, and do what their frames ask."""
        self.last_receive = self._idle_base = now
        self._sent_since_receive = False
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
        self._largest_at = now
        if ecn:
            self._ecn[(1, 0, 2)[ecn - 1]] += opened.new
        if source != self.peer:
            self._came_from_elsewhere(source, size, newest, now)
        if eliciting:
            self._ack_since = now if self._ack_since is None else self._ack_since
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
            self._answer_challenge(data, source)
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

    # --- the path's MTU ---

    def _set_limits(self) -> None:
        """After ``path_mtu`` may have changed."""
        path_mtu, around = self.path_mtu, self._packet_overhead + len(DATAGRAM_HEAD)
        self.max_inner = path_mtu.size - around
        refused = path_mtu.settled and self.max_inner < overhead.MIN_MTU_IPV6
        self.max_inner_ipv6 = _NO_IPV6 if refused else self.max_inner
        self.mss_inner = (path_mtu.size if path_mtu.settled else path_mtu.largest) - around

    def _watch(self, packets: list[bytes], now: float) -> None:
        """Perhaps the fate of the longest of these packets, the last ones sent, says something about the path."""
        longest = max(map(len, packets))
        if self.path_mtu.wants(longest, now):
            place = next(place for place, packet in enumerate(packets) if len(packet) == longest)
            number = self.packets.next_number - len(packets) + place
            self.path_mtu.sent(number, longest, now, self.recovery.pto)

    def _probe(self, now: float) -> None:
        size = self.path_mtu.due(now)
        self._set_limits()
        if size == 0:
            self._send_control(Control(PING, None), now)
        elif size is not None and self._send_frames(PING, size=size):
            number = self.packets.next_number - 1
            self.path_mtu.sent(number, size, now, self.recovery.pto)
            self.recovery.sent_batch(number, now)
            self._sent_eliciting(now)

    def refused_by_first_hop(self, lengths: Sequence[int], now: float) -> int:
        """Datagrams of these lengths were longer than the MTU of the device that they were to leave by; how many of
        them were no probes."""
        probes = sum(self.path_mtu.refused(length, now) for length in lengths)
        self._set_limits()
        return len(lengths) - probes

    # --- the peer's address ---

    def _answer_challenge(self, data: bytes, source: Address) -> None:
        frame = encode_frame(PathResponse(data))
        candidate = self._candidate
        if source == self.peer:
            self._send_frames(frame, source, PADDED)
        elif candidate is not None and candidate.address == source:
            self._send_probe(candidate, frame)

    def _send_probe(self, candidate: Candidate, frame: bytes) -> None:
        bare = len(frame) + self._packet_overhead
        if candidate.allowance() >= bare:
            candidate.sent += self._send_frames(frame, candidate.address, min(PADDED, candidate.allowance()))

    def _came_from_elsewhere(self, source: Address, size: int, newest: bool, now: float) -> None:
        candidate = self._candidate
        if candidate is None or (candidate.address != source and newest):
            candidate = self._candidate = Candidate(source, now, self.recovery.pto)
        if candidate.address != source:
            return
        candidate.received += size
        if newest and not candidate.challenges:
            self._challenge(candidate, now)

    def _challenge(self, candidate: Candidate, now: float) -> None:
        frame = candidate.challenge(self._random(8), now, self.recovery.pto)
        if frame is not None:
            self._send_probe(candidate, frame)

    def _path_answered(self, data: bytes, now: float) -> None:
        candidate = self._candidate
        if candidate is None or not candidate.answered_by(data):
            return
        self._candidate = None
        if candidate.address[0] != self.peer[0]:  # another port is a NAT's work: the path is the same (RFC 9000 §9.4)
            self.path_mtu.begin(now)
            self._set_limits()
        self.peer = candidate.address
        underlay = self.install.underlay
        moved = Underlay(
            local_ip=underlay.local_ip,
            local_port=underlay.local_port,
            peer_ip=self.peer[0],
            peer_port=self.peer[1],
        )
        self.events.append(PeerMoved(session_id=self.session_id, underlay=moved))

    # --- keys ---

    def update(self, update: SessionUpdate, now: float) -> None:
        """SessionUpdate. Raises SessionRefusedError, and nothing has changed."""
        epoch = self.phases.epoch
        if self.state not in {State.ESTABLISHED, State.HELD}:
            raise SessionRefusedError(Refusal.CLOSING, f"the session is {self.state}", epoch)
        if update.key_epoch == epoch:
            self._learn_next(update)
        elif update.key_epoch == epoch + 1:
            self._begin_next(update, now)
        else:
            refusal = Refusal.EPOCH_BEHIND if update.key_epoch < epoch else Refusal.OTHER
            raise SessionRefusedError(refusal, f"key epoch {update.key_epoch} does not follow {epoch}", epoch)

    def _learn_next(self, update: SessionUpdate) -> None:
        """The keys of this epoch once more, and those after it."""
        phases = self.phases
        if update.keys != phases.keys:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other keys than those of this key epoch", phases.epoch)
        if phases.next_keys is not None and update.next_keys not in {None, phases.next_keys}:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other next keys than those installed", phases.epoch)
        phases.learn_next(update.next_keys)
        self.packets.next_number = self._first_after(update)

    def _begin_next(self, update: SessionUpdate, now: float) -> None:
        phases = self.phases
        if phases.next_keys is not None and update.keys != phases.next_keys:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other keys than the next ones installed", phases.epoch)
        if not self.may_update(now):
            if phases.confirmed_at is None and not self.recovery.controls and self.state is State.ESTABLISHED:
                self._send_control(Control(PING, None), now)  # something that the peer must acknowledge
            raise SessionRefusedError(Refusal.NOT_CONFIRMED, "not confirmed", phases.epoch)
        self._mark.advance(update.key_epoch, update.keys.tx_key, self._first_after(update))
        self.packets.next_number = self._first_after(update)
        phases.initiate(update.keys, update.next_keys, self.packets.next_number)
        # So that the new phase is seen and confirmed without traffic.
        self._send_control(Control(PING, None), now)

    def _first_after(self, update: SessionUpdate) -> int:
        return max(self.packets.next_number, update.packet_number)

    def may_update(self, now: float) -> bool:
        """RFC 9001 §6.1 and §6.5: the current phase was acknowledged, three PTO ago."""
        confirmed_at = self.phases.confirmed_at
        return confirmed_at is not None and now >= confirmed_at + 3 * self.recovery.pto

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
            self._close_packet = self.outbox[-1][0]
            self.state = State.CLOSING
            self._closing_until = now + 3 * self.recovery.pto

    def _receive_while_closing(self, count: int) -> None:
        """§10.2.1: the same packet again, ever more rarely."""
        self.drops["closing"] += count
        self._closing_received += 1
        if self._closing_received & (self._closing_received - 1) == 0:
            self.outbox.append((self._close_packet, self.peer))

    # --- time ---

    def deadline(self) -> float:
        """When ``handle_timer`` wants to be called."""
        if self.state is State.CLOSING:
            return self._closing_until
        if self.state is State.ENDED:
            return _NEVER
        soonest = self._idle_base + max(self._idle, 3 * self.recovery.pto)
        if not self.confirmed:
            soonest = min(soonest, self.created + CONFIRM_TIMEOUT)
        if self._ack_since is not None and self.state is State.ESTABLISHED:
            soonest = min(soonest, self._ack_since + ACK_DELAY)
        phases = self.phases
        if phases.rx_previous is not None:
            soonest = min(soonest, phases.previous_until)
        if phases.confirmed_at is not None and self._epoch_announced != phases.epoch:
            soonest = min(soonest, phases.confirmed_at + 3 * self.recovery.pto)
        control = self.recovery.deadline()
        if control is not None:
            soonest = min(soonest, control)
        elif self._keepalive and self.state is State.ESTABLISHED:
            soonest = min(soonest, self._keepalive_at())
        if self._candidate is not None:
            soonest = min(soonest, self._candidate.next_at, self._candidate.expires)
        if self.state is State.ESTABLISHED:
            soonest = min(soonest, self.path_mtu.deadline())
        return soonest

    def _keepalive_at(self) -> float:
        """Half of the idle time without a packet, or the keepalive interval without sending one."""
        heard = self.last_receive if self.last_receive is not None else self.created
        at = heard + self._idle / 2 if self.role is Role.CLIENT else _NEVER
        if self.install.keepalive_ms:
            at = min(at, self._last_sent + self.install.keepalive_ms / 1000)
        return at

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self.state is State.CLOSING:
            if now >= self._closing_until:
                self._finish()
            return
        if self.state is State.ENDED:
            return
        if not self.confirmed and now >= self.created + CONFIRM_TIMEOUT:
            self._end(LossReason.UNCONFIRMED)
            return
        if now >= self._idle_base + max(self._idle, 3 * self.recovery.pto):
            self._end(LossReason.IDLE)
            return
        if self._ack_since is not None and now >= self._ack_since + ACK_DELAY and self.state is State.ESTABLISHED:
            self._send_frames(self._take_ack(now))
        self._handle_key_timers(now)
        if self._candidate is not None and now >= self._candidate.expires:
            self._candidate = None
        if self._candidate is not None and now >= self._candidate.next_at:
            self._challenge(self._candidate, now)
        if self.state is State.ESTABLISHED:
            self._probe(now)
        again, lost = self.recovery.due(now)
        for control in lost:
            assert control.request is not None
            self.events.append(FrameFate(session_id=self.session_id, id=control.request, acknowledged=False))
        for control in again:
            self._send_control(control, now)
        if (
            self._keepalive
            and not self.recovery.controls
            and self.state is State.ESTABLISHED
            and now >= self._keepalive_at()
        ):
            self._send_control(Control(PING, None), now)

    def _handle_key_timers(self, now: float) -> None:
        phases = self.phases
        if phases.rx_previous is not None and now >= phases.previous_until:
            phases.rx_previous = None
        if self._epoch_announced != phases.epoch and self.may_update(now):
            self._epoch_announced = phases.epoch
            self.events.append(KeyPhaseConfirmed(session_id=self.session_id, key_epoch=phases.epoch))
