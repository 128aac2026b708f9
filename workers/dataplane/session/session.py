"""One established session: QUIC v1 packets of the 1-RTT number space, without sockets or clocks.

RFC 9000 §9, §10, §12.3, §13, §17.3.1; RFC 9001 §5, §6; RFC 9221; RFC 9484. Sending is in ``sending.py``, the peer's
addresses in ``paths.py``; this module receives, serves the handshake worker's requests, and handles timers. A
plaintext is the payload of a packet: ``DATAGRAM_HEAD`` and an IP packet. The caller checks ``events``, ``outbox`` and
``state`` after every call, and calls ``handle_timer`` at ``deadline()``.

Rules: a number is used once, after it was reserved; the receive mark is written before plaintexts are returned; only
authenticated packets change the state, except a stateless reset, which has a secret of its own. The life of a session
is the table in ``session_life``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from qre.dataplane.protocol import (
    CONFIRM_TIMEOUT,
    MAX_STRAY,
    FrameFate,
    FrameReceived,
    KeyPhaseChanged,
    KeyPhaseConfirmed,
    LossReason,
    PortUse,
    Refusal,
    SessionInstall,
    SessionRefusedError,
    SessionUpdate,
    Stray,
)
from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.wire import overhead
from qre.wire.frames import (
    FRAME_ENCODING_ERROR,
    KEY_UPDATE_ERROR,
    PROTOCOL_VIOLATION,
    Ack,
    NewConnectionId,
    frames_untrusted,
)
from qre.workers.dataplane.inner.ecn import CE, ECT0, ECT1, NOT_ECT
from qre.workers.dataplane.inner.joining import Joiner
from qre.workers.dataplane.session.keyphase import OLD_KEYS_LIMIT
from qre.workers.dataplane.session.marks import Mark
from qre.workers.dataplane.session.packets import LimitReachedError, Opened
from qre.workers.dataplane.session.path import Address
from qre.workers.dataplane.session.paths import Paths
from qre.workers.dataplane.session.payload import IDLE_PING, PING, Payload, Sender, parse_payload_untrusted
from qre.workers.dataplane.session.recovery import Control
from qre.workers.dataplane.session.sending import Sending
from qre.workers.dataplane.session.session_life import LifeEvent, LifeState
from qre.workers.dataplane.session.wiping import wipe_install, wipe_keys

_COUNT_OF = {ECT0: 0, ECT1: 1, CE: 2}
_NEVER = float("inf")
#: So many packets in a row marked CE are no congestion: a device on the way marks them all (RFC 9000 §13.4.2.2).
ALL_MARKED = 16
#: Packets of others that are passed on, a second and session.
STRAYS_PER_SECOND = 500


class Session(Sending):
    """One end of a session. ``random`` makes the bytes of a PATH_CHALLENGE; ``drops`` counts packets by reason;
    ``ecn`` is the codepoint that Dest's packets have."""

    def __init__(
        self,
        install: SessionInstall,
        mark: Mark,
        now: float,
        drops: Counter[str],
        random: Callable[[int], bytes],
        ecn: int = NOT_ECT,
    ) -> None:
        super().__init__(install, mark, now, drops, ecn)
        self.paths = Paths(self, random)
        self._joiner = Joiner(drops, allowed=install.splits and self.role is Role.SERVER)
        self.created = now
        self.last_receive: float | None = None
        self.rx_packets = self.rx_bytes = 0
        #: The connection ID that packets to a client must have; a server's session was found by its own.
        self._own_cid = install.client_connection_id if self.role is Role.CLIENT else b""
        self._idle = install.idle_timeout_ms / 1000
        self._keepalive = bool(install.keepalive_ms) or self.role is Role.CLIENT
        self._epoch_announced = -1  # of KeyPhaseConfirmed
        #: A client's first packet has left; a server's session begins when it is used.
        self.begun = False
        #: No routed CID has a higher sequence number.
        self._issued = max(install.cid_sequence, 1)
        if self.confirmed:
            self.path_mtu.begin(now, self.recovery.smoothed)
            self.set_limits()

    @property
    def port_use(self) -> PortUse | None:
        """The port that it has moved to; a server's never moves."""
        return None

    @property
    def lent(self) -> int:
        """The number of the socket that is being tried; 0: none is."""
        return 0

    def cid_issued(self, sequence: int) -> None:
        """A connection ID with this sequence number leads here: the peer may retire it."""
        self._issued = max(self._issued, sequence)

    def send_frames(self, request: int, frames: bytes, now: float) -> None:
        """FrameSend: send these frames until they are acknowledged or given up. Raises SessionRefusedError."""
        if self.state is not LifeState.ESTABLISHED:
            raise SessionRefusedError(Refusal.CLOSING, f"the session is {self.state}")
        if not self.recovery.has_room:
            raise SessionRefusedError(Refusal.NO_ROOM, "too many frames are in flight")
        if not frames:
            raise SessionRefusedError(Refusal.OTHER, "there are no frames")
        if len(frames) > self.path_mtu.base - self.packet_overhead:
            raise SessionRefusedError(Refusal.OTHER, "the frames are too long for one packet")
        try:
            issued = [frame.sequence for frame in frames_untrusted(frames) if isinstance(frame, NewConnectionId)]
        except UntrustedInputError as error:
            raise SessionRefusedError(Refusal.OTHER, str(error)) from error
        self._issued = max([self._issued, *issued])
        self.send_control(frames, now, request)

    # --- receive ---

    def open_datagrams(self, datagrams: Sequence[bytes], source: Address, ecn: int, now: float) -> list[bytes]:
        """Open short-header packets that arrived together from ``source`` with one connection ID and ECN codepoint.

        Returns the plaintexts to deliver: ``DATAGRAM_HEAD`` + IP packet each, not yet checked.
        """
        if self.state is LifeState.CLOSING:
            self._receive_while_closing(len(datagrams))
            return []
        if self.state is LifeState.ENDED:
            self.drops["closing"] += len(datagrams)
            return []
        if self.role is Role.CLIENT and source != self.peer:
            self.drops["wrong-address"] += len(datagrams)
            return []
        if self._own_cid:
            datagrams = self._ours(datagrams)
            if not datagrams:
                return []
        old_keys_until = now + min(3 * self.recovery.pto, OLD_KEYS_LIMIT)
        try:
            opened = self.packets.open(datagrams, old_keys_until, resets=source == self.peer)
        except LimitReachedError:
            self.end(LossReason.LIMIT)
            return []
        if opened.unreadable and source != self.peer:
            self._pass_on(opened.unreadable, source, ecn, now)
        if opened.reset:
            self.end(LossReason.RESET)
        elif opened.new and (not opened.follow or self._follow()):
            self._opened(opened, source, sum(map(len, datagrams)), ecn, now)
        return self._joiner.whole_untrusted(opened.datagrams, now)

    def _pass_on(self, datagrams: Sequence[bytes], source: Address, ecn: int, now: float) -> None:
        """From elsewhere, and no key opens them: a stranger's; within a budget, because anybody can send such."""
        if now >= self._strays_since + 1.0:
            self._strays_since, self._strays = now, 0
        for data in datagrams:
            if len(data) > MAX_STRAY or self._strays >= STRAYS_PER_SECOND:
                self.drops["stray"] += 1
                continue
            self._strays += 1
            ip, port = source
            self.events.append(Stray(session_id=self.session_id, ip=ip, port=port, ecn=ecn, data=bytes(data)))

    def ecn_of(self, arrived: int) -> int:
        """What the ECN codepoint of a packet that arrived means for the packet inside. CE is no sign of congestion
        where the peer marks nothing (a server that does is seen to), or where all packets have it."""
        marks = self.role is Role.CLIENT and any(self._ecn[:2]) and self._marked_in_a_row < ALL_MARKED
        return arrived if arrived != CE or marks else NOT_ECT

    def _ours(self, datagrams: Sequence[bytes]) -> list[bytes]:
        """The datagrams with the client's connection ID; one without it may be a stateless reset."""
        ours = [datagram for datagram in datagrams if datagram.startswith(self._own_cid, 1)]
        if len(ours) != len(datagrams):
            others = [datagram for datagram in datagrams if not datagram.startswith(self._own_cid, 1)]
            if any(self.packets.is_reset(datagram) for datagram in others):
                self.end(LossReason.RESET)
                return []
            self.drops["unknown-cid"] += len(others)
        return ours

    def _follow(self) -> bool:
        """The peer began a key phase: begin ours before anything is acknowledged (RFC 9001 §6.2). False: it ended."""
        phases = self.phases
        assert phases.next_keys is not None
        try:
            self.mark.advance(phases.epoch + 1, phases.next_keys.tx_key, self.packets.next_number)
        except SessionRefusedError:
            self.end(LossReason.LIMIT)  # better no session than a key used twice
            return False
        phases.follow(self.packets.next_number)
        self.events.append(KeyPhaseChanged(session_id=self.session_id, key_epoch=phases.epoch))
        return True

    def _opened(self, opened: Opened, source: Address, size: int, ecn: int, now: float) -> None:
        """Account for a batch with new authentic packets, and process their frames."""
        self.last_receive = self._idle_base = now
        self._sent_since_receive = False
        if self.state is LifeState.HELD:
            self._happens(LifeEvent.USED, now)
        eliciting, newest = len(opened.datagrams), not opened.probing
        asked: list[tuple[bytes, int]] = []  # PATH_CHALLENGEs, and the size of each one's datagram
        for plaintext, first, epoch, highest in opened.others:
            frames = self._read_frames(plaintext, first, epoch, now)
            if frames is None:
                return
            asked += [(data, self._datagram_size(plaintext, first)) for data in frames.challenges[-1:]]
            opened.datagrams += frames.datagrams
            eliciting += frames.eliciting
            newest = newest or (highest and not frames.probing_only)
        self._largest_at = now
        self._marked_in_a_row = self._marked_in_a_row + opened.new if ecn == CE else 0
        if ecn:
            self._ecn[_COUNT_OF[ecn]] += opened.new
        if source != self.peer:
            self.paths.from_elsewhere(source, size, newest, asked, now)
        else:
            for data, _ in asked:
                self.paths.answer(data, now)
        if eliciting and self.state is LifeState.ESTABLISHED:
            self._acknowledge(eliciting, now, at_once=opened.out_of_order or ecn == CE)  # §13.2.1

    def _datagram_size(self, plaintext: bytes, first: int) -> int:
        """The size of the packet with this plaintext and unmasked first byte."""
        around = overhead.packet_overhead(self.packets.rx_cid_length) - overhead.NUMBER
        return len(plaintext) + around + (first & 0x03) + 1

    def _read_frames(self, plaintext: bytes, first: int, epoch: int, now: float) -> Payload | None:
        """Process a payload that is not a single DATAGRAM frame. None when it ended the session."""
        if first & 0x18:
            self.violated(PROTOCOL_VIOLATION, now)
            return None
        try:
            frames = parse_payload_untrusted(plaintext, self._sender())
        except UntrustedInputError:
            self.violated(FRAME_ENCODING_ERROR if plaintext else PROTOCOL_VIOLATION, now)
            return None
        if frames.error:
            self.violated(frames.error, now)
            return None
        for ack in frames.acks:
            if not self._ack_received(ack, epoch, now):
                return None
        if frames.close is not None:
            self.end(LossReason.CLOSED, frames.close)
            return None
        for data in frames.responses:
            self._path_answered(data, now)
        for issued in frames.issued:
            if not self.paths.issued(issued, now):
                return None
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

    def _ack_received(self, ack: Ack, epoch: int, now: float) -> bool:
        """Process an ACK frame. False when it ended the session."""
        recovery, following = self.recovery, self.packets.next_number
        before, heard_before = recovery.largest_acked, recovery.largest_heard
        try:
            done = recovery.acknowledged(ack, self._largest_heard(ack), following, now)
        except UntrustedInputError:
            self.violated(PROTOCOL_VIOLATION, now)
            return False
        if recovery.largest_heard > heard_before:
            self._heard_newer(now)
        if recovery.largest_acked > before and self.path_ecn.codepoint:
            self.path_ecn.acknowledged(ack, before, following)
        if not self._acknowledged(ack.ranges[0][1], done, epoch, now):
            return False
        self.path_mtu.acknowledged(ack.ranges, now, self.recovery.smoothed)
        self.set_limits()
        return True

    def _largest_heard(self, ack: Ack) -> int:
        """The largest acknowledged number of the path in use; -1: none is."""
        return ack.ranges[0][1]

    def _heard_newer(self, now: float) -> None:
        """An ACK frame has a larger number of the path in use than there was until then."""
        self._unanswered = 0

    def _path_answered(self, data: bytes, now: float) -> None:
        """PATH_RESPONSE."""
        self.paths.answered(data, now)

    def _acknowledged(self, largest: int, done: list[Control], epoch: int, now: float) -> bool:
        phases = self.phases
        if largest >= phases.first_sent:
            if epoch < phases.epoch:  # RFC 9001 §6.2: acknowledged under older keys than it was sent with
                self.violated(KEY_UPDATE_ERROR, now)
                return False
            if phases.confirmed_at is None:
                phases.confirmed_at = now
        for control in done:
            if control.request is not None:
                self.events.append(FrameFate(session_id=self.session_id, id=control.request, acknowledged=True))
        return True

    # --- keys ---

    def update(self, update: SessionUpdate, now: float) -> None:
        """SessionUpdate. Raises SessionRefusedError without having changed anything."""
        epoch = self.phases.epoch
        if self.state not in {LifeState.ESTABLISHED, LifeState.HELD}:
            raise SessionRefusedError(Refusal.CLOSING, f"the session is {self.state}", epoch)
        if update.key_epoch == epoch:
            self._learn_next(update)
        elif update.key_epoch == epoch + 1:
            self._begin_next(update, now)
        else:
            refusal = Refusal.EPOCH_BEHIND if update.key_epoch < epoch else Refusal.OTHER
            raise SessionRefusedError(refusal, f"key epoch {update.key_epoch} does not follow {epoch}", epoch)

    def forget_keys(self) -> None:
        """The session has ended, and nothing is opened or sealed any more."""
        wipe_keys(self.phases.keys, self.phases.next_keys)
        wipe_install(self.install)

    def _learn_next(self, update: SessionUpdate) -> None:
        """The update repeats the keys of this epoch and brings those of the next."""
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
            if phases.confirmed_at is None and not self.recovery.controls and self.state is LifeState.ESTABLISHED:
                self.send_control(PING, now)  # for the peer to acknowledge
            raise SessionRefusedError(Refusal.NOT_CONFIRMED, "not confirmed yet by the peer", phases.epoch)
        self.mark.advance(update.key_epoch, update.keys.tx_key, self._first_after(update))
        self.packets.next_number = self._first_after(update)
        phases.initiate(update.keys, update.next_keys, self.packets.next_number)
        # Lets the peer see and confirm the new phase without traffic.
        self.send_control(PING, now)

    def _first_after(self, update: SessionUpdate) -> int:
        return max(self.packets.next_number, update.packet_number)

    def may_update(self, now: float) -> bool:
        """Whether the current phase was acknowledged at least three PTO ago (RFC 9001 §6.1, §6.5)."""
        confirmed_at = self.phases.confirmed_at
        return confirmed_at is not None and now >= confirmed_at + 3 * self.recovery.pto

    # --- time ---

    def deadline(self) -> float:
        """The monotonic time at which to call ``handle_timer``; infinity after the end."""
        if self.state is LifeState.CLOSING:
            return self._closing_until
        if self.state is LifeState.ENDED:
            return _NEVER
        soonest = self._idle_base + max(self._idle, 3 * self.recovery.pto)
        soonest = min(soonest, self._unconfirmed_until())
        phases = self.phases
        if phases.rx_previous is not None:
            soonest = min(soonest, phases.previous_until)
        if phases.confirmed_at is not None and self._epoch_announced != phases.epoch:
            soonest = min(soonest, phases.confirmed_at + 3 * self.recovery.pto)
        control = self.recovery.deadline()
        if control is not None:
            soonest = min(soonest, control)
        elif self._keepalive and self.state is LifeState.ESTABLISHED:
            soonest = min(soonest, self._keepalive_at())
        if self.state is LifeState.ESTABLISHED:
            own = self._ack_due_at(), self.path_mtu.deadline(), self.paths.deadline()
            soonest = min(soonest, *own)
        return soonest

    def _unconfirmed_until(self) -> float:
        """When a session whose peer was never heard ends."""
        return _NEVER if self.confirmed else self.created + CONFIRM_TIMEOUT

    def _keepalive_at(self) -> float:
        """When a PING is due: half of the idle time without receiving, or the keepalive interval without sending."""
        heard = self.last_receive if self.last_receive is not None else self.created
        at = heard + self._idle / 2 if self.role is Role.CLIENT else _NEVER
        if self.install.keepalive_ms:
            at = min(at, self._last_sent + self.install.keepalive_ms / 1000)
        return at

    def handle_timer(self, now: float) -> None:
        """Send and end what is due at ``now``."""
        if self.state is LifeState.CLOSING:
            self.closing_over(now)
            return
        if self.state is LifeState.ENDED:
            return
        if now >= self._unconfirmed_until():
            self.end(LossReason.UNCONFIRMED)
            return
        if now >= self._idle_base + max(self._idle, 3 * self.recovery.pto):
            self.end(LossReason.IDLE)
            return
        if now >= self._ack_due_at() and self.state is LifeState.ESTABLISHED:
            self.put_frames(self._take_ack(now), now, brief=True)
        self._handle_key_timers(now)
        if self.state is LifeState.ESTABLISHED:
            self.paths.handle_timer(now)
        if self._closed:
            return
        if self.state is LifeState.ESTABLISHED:
            self._probe(now)
        again, lost = self.recovery.due(now)
        for control in lost:
            assert control.request is not None
            self.events.append(FrameFate(session_id=self.session_id, id=control.request, acknowledged=False))
        for control in again:
            self._send_again(control, now)
        if (
            self._keepalive
            and not self.recovery.controls
            and self.state is LifeState.ESTABLISHED
            and now >= self._keepalive_at()
        ):
            self.send_control(IDLE_PING, now)

    def _handle_key_timers(self, now: float) -> None:
        phases = self.phases
        if phases.rx_previous is not None and now >= phases.previous_until:
            phases.rx_previous = None
        if self._epoch_announced != phases.epoch and self.may_update(now):
            self._epoch_announced = phases.epoch
            self.events.append(KeyPhaseConfirmed(session_id=self.session_id, key_epoch=phases.epoch))
