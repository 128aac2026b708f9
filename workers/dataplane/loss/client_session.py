"""A client's session: what its peer does not acknowledge is repeated, tried from another port, and given up.

Its first packet has nothing but PADDING, when and as long as a browser acknowledges what came last of the handshake,
and lets the server send; an inner packet that is due sooner does the same. From then on the session has *begun*: it
carries packets, and hears nothing as a browser does, whose handshake is confirmed by then. It is *confirmed* when the
server's data plane was heard, which takes until the PING where nothing is to be carried.

RFC 9002 §6.2, RFC 9000 §9 and §10.2; the times are ``silence``'s, the trial of a port is ``port_trial``'s. A packet
with user data is never sent again: a PING of its length stands for it. Before each repeat at a probe timeout one
packet number is left out, as Chromium does: no packet ever has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from qre.dataplane.giving_up import FAREWELL, RoundTrip
from qre.dataplane.protocol import LossReason, PortUse, SessionBegun, SessionInstall, SessionSilent
from qre.ends import Role
from qre.wire.frames import Ack, encode_ack
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.overhead import BROWSER_UDP_PAYLOAD
from qre.workers.dataplane.inner.ecn import NOT_ECT
from qre.workers.dataplane.loss.port_trial import PortTrial
from qre.workers.dataplane.loss.silence import NEVER, Silence
from qre.workers.dataplane.session.marks import Mark
from qre.workers.dataplane.session.packets import Opened
from qre.workers.dataplane.session.path import Address
from qre.workers.dataplane.session.payload import PING, Payload
from qre.workers.dataplane.session.session import Session
from qre.workers.dataplane.session.session_life import LifeEvent, LifeState

#: From the installation to the first packet (seconds): a browser's delay (``qre.wire.ack_policy.BROWSER``), less what
#: the hand-over takes.
FIRST_PACKET_AFTER: Final = 0.022
#: An ACK frame of a browser's, with ECN counts; its number has one byte, ours four (RFC 9000 §17.1).
_AS_AN_ACK: Final = bytes(6)
#: As long as the ACK of the last packet is, as a rule.
_LAST_ACK: Final = bytes(1 + 4 + 4 + 1 + 1)
#: A server that has said nothing until then is asked (seconds): the first packet may be lost.
ASKS_AFTER: Final = 2.5


class ClientSession(Session):
    """See ``Session``."""

    def __init__(
        self,
        install: SessionInstall,
        mark: Mark,
        now: float,
        drops: Counter[str],
        random: Callable[[int], bytes],
        ecn: int = NOT_ECT,
    ) -> None:
        super().__init__(install, mark, now, drops, random, ecn)
        self.recovery.repeats_in_time = False
        self._silence = Silence()
        self._trial = PortTrial(self, random)
        self._told_silent = False
        self._first_at = now + FIRST_PACKET_AFTER
        self._asks_at = now + ASKS_AFTER
        if self.packets.next_number != PACKET_NUMBER_BASE:  # it goes on after a restart
            self.send_control(PING, now)

    @property
    def port_use(self) -> PortUse | None:
        """The port that it has moved to."""
        return self._trial.used

    @property
    def lent(self) -> int:
        """The number of the socket that is being tried; 0: none is."""
        return self._trial.number

    def new_port(self, number: int, now: float) -> None:
        """NewPort: socket ``number`` is lent. Raises SessionRefusedError when none is wanted."""
        self._trial.lend(number, now)

    # --- what is sent, and what comes back ---

    def _round_trip(self) -> RoundTrip:
        recovery = self.recovery
        return RoundTrip(recovery.smoothed, recovery.variation, recovery.pto)

    def _sent_eliciting(self, now: float, count: int = 1) -> None:
        super()._sent_eliciting(now, count)
        self._silence.sent(self.packets.next_number - 1, now, self._round_trip)
        self._begin(now)

    def _begin(self, now: float) -> None:
        """From our first packet on the server may send, and its session is installed already."""
        if self.begun:
            return
        self.begun, self._first_at = True, NEVER
        if self.packets.next_number == PACKET_NUMBER_BASE:
            self.put_frames(_AS_AN_ACK, now, brief=True)
        if self.state is LifeState.ESTABLISHED:
            self.events.append(SessionBegun(session_id=self.session_id))

    def _opened(self, opened: Opened, source: Address, size: int, ecn: int, now: float) -> None:
        """Who sends has heard from us."""
        if not self.confirmed:
            self._confirm(now)
        super()._opened(opened, source, size, ecn, now)

    def seal_datagrams(self, plaintexts: list[bytes], now: float) -> list[bytes]:
        """See ``Sending.seal_datagrams``."""
        packets = super().seal_datagrams(plaintexts, now)
        if packets:
            asking = len(plaintexts)  # an ACK may have a packet to itself, behind them
            last = self.packets.next_number - 1 - (len(packets) - asking)
            self._silence.sent_data(last, (len(packets[0]), len(packets[asking - 1])), now)
        return packets

    def _largest_heard(self, ack: Ack) -> int:
        """That the packets of a trial arrive says nothing about the path in use."""
        return self._trial.largest_heard(ack)

    def _heard_newer(self, now: float) -> None:
        super()._heard_newer(now)
        self._silence.acknowledged(self.recovery.largest_heard, now, self._round_trip())
        self._trial.heard()
        self._tell_silence(silent=False)

    def _read_frames(self, plaintext: bytes, first: int, epoch: int, now: float) -> Payload | None:
        frames = super()._read_frames(plaintext, first, epoch, now)
        if frames is not None and frames.issued:
            self._trial.cid_issued(now)
        return frames

    def _path_answered(self, data: bytes, now: float) -> None:
        if self._trial.answered(data, now, silent=self._silence.degraded):
            self._silence.begin_path(now, self._round_trip())
            self._tell_silence(silent=False)
        else:
            super()._path_answered(data, now)

    def _tell_silence(self, *, silent: bool) -> None:
        if self._told_silent is not silent:
            self._told_silent = silent
            self.events.append(SessionSilent(session_id=self.session_id, silent=silent))

    # --- time ---

    def _unconfirmed_until(self) -> float:
        """A silence ends when a browser's does."""
        under_way = self.begun and self._silence.gives_up_at != NEVER
        return NEVER if under_way else super()._unconfirmed_until()

    def deadline(self) -> float:
        """See ``Session.deadline``."""
        soonest = super().deadline()
        if self.state is not LifeState.ESTABLISHED:
            return soonest
        silence = self._silence
        soonest = min(soonest, silence.repeat_at(self.recovery.pto), self._first_at)
        if not self.confirmed:
            soonest = min(soonest, self._asks_at)
        if not self._told_silent:
            soonest = min(soonest, silence.tell_at)
        if self.begun:
            soonest = min(soonest, silence.degraded_at, silence.last_repeat_at, silence.gives_up_at)
        return min(soonest, self._trial.deadline())

    def handle_timer(self, now: float) -> None:
        """See ``Session.handle_timer``."""
        super().handle_timer(now)
        if self.state is not LifeState.ESTABLISHED:
            return
        if now >= self._first_at:
            self._begin(now)
        if not self.confirmed and now >= self._asks_at:
            self._asks_at = NEVER
            if not self._unanswered:
                self.send_control(PING, now)
        silence = self._silence
        if self.begun and now >= silence.gives_up_at:
            self._give_up(now)
            return
        if now >= silence.repeat_at(self.recovery.pto):
            self._skip_number()
            silence.repeats += 1
            self._repeat(now)
        if self.begun and now >= silence.last_repeat_at:
            silence.last_repeat_at = NEVER
            self._repeat(now)
        if self.begun and now >= silence.degraded_at:
            silence.degraded_at = NEVER
            self._trial.begin(now)
        if self.state is LifeState.ESTABLISHED:
            self._trial.handle_timer(now)
            if now >= silence.tell_at:
                self._tell_silence(silent=True)

    def _repeat(self, now: float) -> None:
        """Whatever of the unanswered went out longest ago: frames as they were, or a PING as long as user data, where
        a hello is as long."""
        if self.state is not LifeState.ESTABLISHED:
            return
        silence, recovery = self._silence, self.recovery
        control = min(recovery.controls, key=lambda control: control.sent_at, default=None)
        if control is not None and control.sent_at < silence.data_at:
            self._send_again(control, now)
            return
        size = min(silence.data_size, BROWSER_UDP_PAYLOAD) if silence.data_at != NEVER else 0
        if self.put_frames(PING, now, size, brief=not size):
            recovery.sent_batch(self.packets.next_number - 1, now)
            self._sent_eliciting(now)
            if size:
                silence.data_at = now

    def _give_up(self, now: float) -> None:
        """Nothing comes back: the CLOSE of a browser, with its ACK, which is as short here without ECN counts; or as
        much PADDING, where nothing but the handshake was received."""
        self._happens(LifeEvent.UNANSWERED, reason=LossReason.UNANSWERED)
        ack = _LAST_ACK
        for first, last in self.packets.received.ack_ranges()[:1]:
            delay = int(max(now - self._largest_at, 0.0) * 1e6) >> 3
            ack = encode_ack([(max(first, last - 63), last)], delay)
        self._close(ack + FAREWELL, now, brief=True)


def new_session(
    install: SessionInstall,
    mark: Mark,
    now: float,
    drops: Counter[str],
    random: Callable[[int], bytes],
    ecn: int = NOT_ECT,
) -> Session:
    """One of either role."""
    kind = ClientSession if install.role is Role.CLIENT else Session
    return kind(install, mark, now, drops, random, ecn)
