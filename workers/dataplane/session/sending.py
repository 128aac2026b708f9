"""What a session sends, and how it ends: RFC 9000 §10.2, §13.2, §13.4, §14; RFC 9001 §6.6. No sockets or clocks.

The base of ``session.Session``: it consumes numbers and keys, puts packets into the outbox, sets their ECN codepoint,
and watches them for the path's MTU. A plaintext is the payload of a packet: ``DATAGRAM_HEAD`` and an IP packet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from qre.dataplane.protocol import (
    DataplaneReport,
    LossReason,
    RekeyDue,
    SessionConfirmed,
    SessionInstall,
    SessionLost,
)
from qre.ends import Role
from qre.wire import overhead
from qre.wire.ack_policy import BROWSER, AckPolicy
from qre.wire.close_reason import CloseReason, close_frames
from qre.wire.datagram import DATAGRAM_HEAD, MAX_IDENTIFIER, MAX_SPLIT, SPLIT_CONTEXT, in_two
from qre.wire.frames import ConnectionClose, encode_ack, encode_frame
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.inner.ecn import CE, ECT0, NOT_ECT
from qre.workers.dataplane.session.marks import Mark
from qre.workers.dataplane.session.packets import LimitReachedError, Packets
from qre.workers.dataplane.session.path import Address
from qre.workers.dataplane.session.path_ecn import EcnState, PathEcn
from qre.workers.dataplane.session.path_mtu import SEARCHES, PathMtu
from qre.workers.dataplane.session.payload import PING
from qre.workers.dataplane.session.recovery import Control, Recovery
from qre.workers.dataplane.session.session_life import LIFE_RULES, LifeEffect, LifeEvent, LifeState

#: A server's (seconds). Our transport parameters name no max_ack_delay or ack_delay_exponent: the defaults apply
#: (25 ms, 3).
ACK_DELAY = 0.020
#: A client's ACK frames for one batch of packets at most.
_MOST_ACKS = 6
#: A client's handshake has counted so many packets that ask for an ACK, about.
_BEFORE = 8
_ACK_EXPONENT = 3
#: What is farther back has been acknowledged before; so the frame stays short.
_LONGEST_RANGE = (1 << 14) - 1
#: With outgoing traffic, an ACK is added to a packet this often (seconds).
_PIGGYBACK_INTERVAL = 0.005
#: So many packets without any answer are more than a loss.
UNANSWERED = 3
#: Shorter than any packet.
_NO_IPV6 = -1


class OutgoingPacket(NamedTuple):
    """A packet to send, and its ECN codepoint."""

    packet: bytes
    to: Address
    ecn: int = NOT_ECT
    new_port: bool = False  # from the socket that is being tried


class Sending:
    """``drops`` counts packets by reason; ``ecn`` is the codepoint that Dest's packets have."""

    def __init__(self, install: SessionInstall, mark: Mark, now: float, drops: Counter[str], ecn: int) -> None:
        self.install = install
        self.session_id = install.session_id
        self.role = install.role
        self.peer: Address = (str(install.underlay.peer_ip), install.underlay.peer_port)
        self.events: list[DataplaneReport] = []
        self.outbox: list[OutgoingPacket] = []
        self.state = LifeState.HELD if install.held else LifeState.ESTABLISHED
        self.confirmed = install.role is Role.SERVER and not install.held
        self.tx_packets = self.tx_bytes = 0
        self.drops = drops
        self.mark = mark
        self.packets = Packets(install, mark, drops)
        self.phases = self.packets.phases
        self.recovery = Recovery(
            install.max_ack_delay_ms / 1000, install.ack_delay_exponent, self.packets.next_number
        )
        #: A site whose packets arrive marked CE sends ECT(0): only such packets are marked.
        self.path_ecn = PathEcn(ECT0 if ecn == CE else ecn)
        #: The ECN codepoint of the packets that were sealed last.
        self.tx_ecn = NOT_ECT
        self.path_mtu = PathMtu(SEARCHES[self.role], min(install.max_datagram_payload, overhead.MAX_UDP_PAYLOAD))
        #: The largest inner packet that is sent whole (bytes); negative for IPv6 when the path is too narrow for it.
        self.max_inner = self.max_inner_ipv6 = 0
        #: The largest that is sent in two datagrams; 0: none is.
        self.max_in_two = 0
        self._splits = install.splits and install.role is Role.CLIENT
        #: Of the last packet in two. Another block of numbers, after a restart, begins elsewhere.
        self._identifier = (self.packets.next_number >> 16) * 40_503 & MAX_IDENTIFIER
        #: The largest inner packet that the MSS of delivered SYNs allows: more than ``max_inner`` at the beginning of
        #: a search, because a connection keeps its MSS.
        self.mss_inner = 0
        #: Inner packets (beginning, length) that were too big during a search, by flow; answered at its end.
        self.unanswered: dict[bytes, tuple[bytes, int]] = {}
        self._idle_base = now
        self._sent_since_receive = False
        self._last_sent = now
        self._unanswered = 0  # ack-eliciting packets since the last new acknowledgement
        self._unanswered_since = now
        self._strays, self._strays_since = 0, now
        self._marked_in_a_row = 0  # packets received with CE since one without
        self._ack_policy = AckPolicy(BROWSER, _BEFORE) if self.role is Role.CLIENT else None
        self._ack_since: float | None = None  # when the oldest unacknowledged ack-eliciting packet arrived
        self._ack_sent = 0.0
        self._largest_at = now
        self._ecn = [0, 0, 0]  # received ECT(0), ECT(1), CE: the order of an ACK frame
        self._rekey_asked = -1
        self._close_packet = OutgoingPacket(b"", self.peer)
        self._closing_until = 0.0
        self._closing_received = 0
        self.set_limits()

    def unanswered_ms(self, now: float) -> int:
        """For how long what was sent has had no answer. A packet or two may be lost, and are not repeated."""
        return int((now - self._unanswered_since) * 1000) if self._unanswered >= UNANSWERED else 0

    @property
    def packet_overhead(self) -> int:
        """The bytes of a packet to the peer besides its frames."""
        return overhead.packet_overhead(len(self.packets.tx_cid))

    # --- packets ---

    def seal_datagrams(self, plaintexts: list[bytes], now: float) -> list[bytes]:
        """Packets for these plaintexts (``DATAGRAM_HEAD`` + IP packet each), with an ACK when one is due; ``tx_ecn``
        is their ECN codepoint. No packets unless the session is established."""
        if self.state is not LifeState.ESTABLISHED:
            self.drops["held" if self.state is LifeState.HELD else "closing"] += len(plaintexts)
            return []
        count = whole = len(plaintexts)
        size = sum(map(len, plaintexts)) - len(DATAGRAM_HEAD) * count
        if self._splits:
            parts = sum(plaintext[len(DATAGRAM_HEAD) - 1] == SPLIT_CONTEXT for plaintext in plaintexts)
            whole, size = count - parts // 2, size - parts * overhead.SPLIT_HEAD_LENGTH
        if self._ack_since is not None and now - self._ack_sent >= _PIGGYBACK_INTERVAL:
            ack = self._take_ack(now)
            last = ack + plaintexts[-1]
            room = len(plaintexts[0]) if count > 1 else self.max_inner + len(DATAGRAM_HEAD)
            plaintexts = [*plaintexts[:-1], last] if len(last) <= room else [*plaintexts, ack]
        packets = self._seal(plaintexts, now)
        if packets:
            self.tx_packets += whole
            self.tx_bytes += size
            self._sent_eliciting(now, count)
            self.recovery.sent_batch(self.packets.next_number - 1, now)
            if self.path_mtu.watching:
                self._watch(packets, now)
        return packets

    def _seal(self, plaintexts: Sequence[bytes], now: float, *, brief: bool = False) -> list[bytes]:
        """Packets to the peer; none when the packet limit has just ended the session. ``brief``: with numbers as
        short as they may be."""
        first = self.packets.next_number
        try:
            if brief:
                # Who uses the session has had the first packet of it, which asks for no ACK.
                arrived = max(self.recovery.largest_acked, PACKET_NUMBER_BASE if self.confirmed else -1)
                packets = [self.packets.seal_brief(each, arrived) for each in plaintexts]
            else:
                packets = self.packets.seal(plaintexts)
        except LimitReachedError:
            self.end(LossReason.LIMIT)
            return []
        ecn = self.path_ecn
        if ecn.state is EcnState.TESTING:
            self.tx_ecn = ecn.mark(first, len(packets), now, 3 * self.recovery.pto)
        else:
            self.tx_ecn = ecn.settled
        if self.packets.used > self.packets.rekey_after and self._rekey_asked != self.phases.epoch:
            self._ask_for_keys()
        return packets

    def _ask_for_keys(self) -> None:
        self._rekey_asked = self.phases.epoch
        self.events.append(RekeyDue(session_id=self.session_id, key_epoch=self.phases.epoch))

    def _sent_eliciting(self, now: float, count: int = 1) -> None:
        self._last_sent = now
        if self._unanswered == 0:
            self._unanswered_since = now
        self._unanswered += count
        if not self._sent_since_receive:  # §10.1: the first one since a packet was received restarts the idle timer
            self._sent_since_receive = True
            self._idle_base = now

    def put_frames(self, frames: bytes, now: float, size: int = 0, *, brief: bool = False) -> int:
        """Put one packet to the peer into the outbox, padded to a datagram of ``size`` bytes or the peer's maximum. A
        client's is shorter if it is ``brief``. Its length; 0 when none was sent."""
        padded = min(size, self.install.max_datagram_payload) - self.packet_overhead
        brief = brief and self.role is Role.CLIENT
        for packet in self._seal([frames.ljust(padded, b"\0")], now, brief=brief):
            self.outbox.append(OutgoingPacket(packet, self.peer, self.tx_ecn))
            return len(packet)
        return 0

    def put_frames_elsewhere(
        self, frames: bytes, to: Address, cid: bytes, size: int, *, new_port: bool = False
    ) -> int:
        """The same to an address other than the peer's, or to that from a ``new_port``: with connection ID ``cid``,
        without an ECN codepoint."""
        padded = min(size, self.install.max_datagram_payload) - overhead.packet_overhead(len(cid))
        number = self.packets.next_number
        try:
            packet = self.packets.seal_for(cid, frames.ljust(padded, b"\0"))
        except LimitReachedError:
            self.end(LossReason.LIMIT)
            return 0
        self.path_ecn.skip(number)
        self.outbox.append(OutgoingPacket(packet, to, new_port=new_port))
        return len(packet)

    def _skip_number(self) -> None:
        """Leave one packet number out."""
        try:
            self.path_ecn.skip(self.packets.skip_number())
        except LimitReachedError:
            self.end(LossReason.LIMIT)
        else:
            self.recovery.packets_skipped += 1

    def send_control(self, frames: bytes, now: float, request: int | None = None) -> None:
        """Send these frames until they are acknowledged; those of a FrameSend (``request``) are given up in time."""
        self._send_again(Control(frames, request), now)

    def _send_again(self, control: Control, now: float) -> None:
        if self.put_frames(control.frames, now, brief=control.request is None):
            self.recovery.sent_control(control, self.packets.next_number - 1, now)
            self._sent_eliciting(now)

    def _acknowledge(self, count: int, now: float, *, at_once: bool) -> None:
        """So many packets that ask for an ACK have arrived together. A client sends as many ACKs as a browser, which
        reads them one by one; a server one when ``at_once``, else one when it is due."""
        self._ack_since = now if self._ack_since is None else self._ack_since
        policy = self._ack_policy
        due = 0 if policy is None else min(policy.arrived(count), _MOST_ACKS)
        if not due and not at_once:
            return
        if policy is None or at_once:
            self.put_frames(self._take_ack(now), now, brief=True)
            return
        waiting = policy.waiting  # what has come behind the last one that is acknowledged at once
        for later in range(due - 1, -1, -1):
            self.put_frames(self._take_ack(now, later * policy.every + waiting), now, brief=True)
        if waiting:
            policy.waiting, self._ack_since = waiting, now

    def _ack_due_at(self) -> float:
        """When what has not been acknowledged has to be; infinity: nothing waits."""
        if self._ack_since is None:
            return float("inf")
        policy = self._ack_policy
        return self._ack_since + (ACK_DELAY if policy is None else policy.delay(self.recovery.round_trip))

    def _take_ack(self, now: float, without: int = 0) -> bytes:
        """The ACK frame for everything received but the last packets; none is due then."""
        self._ack_since, self._ack_sent = None, now
        if self._ack_policy is not None:
            self._ack_policy.sent()
        delay = int(max(now - self._largest_at, 0.0) * 1e6) >> _ACK_EXPONENT
        (first, last), *others = self.packets.received.ack_ranges()
        ranges = [(max(first, last - _LONGEST_RANGE), max(first, last - without)), *others]
        return encode_ack(ranges, delay, self._ecn if any(self._ecn) else ())

    # --- the path's MTU ---

    def set_limits(self) -> None:
        """Recompute the limits of inner packets; call it when ``path_mtu`` or the connection ID may have changed."""
        path_mtu, around, usual = self.path_mtu, self.packet_overhead + len(DATAGRAM_HEAD), self.install.usual_payload
        self.max_inner = min(path_mtu.size, usual) - around
        self.mss_inner = min(path_mtu.size if path_mtu.settled else path_mtu.largest, usual) - around
        if self._splits:
            self.max_inner_ipv6 = self.max_inner
            self.max_in_two = min(2 * (self.max_inner - overhead.SPLIT_HEAD_LENGTH), MAX_SPLIT)
        else:
            self.max_inner_ipv6 = path_mtu.size - around
            if path_mtu.settled and self.max_inner_ipv6 < overhead.MIN_MTU_IPV6:
                self.max_inner_ipv6 = _NO_IPV6

    def carries(self, version: int) -> int:
        """The largest inner packet of this IP version that is sent, in one datagram or in two."""
        return max(self.max_in_two, self.max_inner if version == 4 else self.max_inner_ipv6)

    def in_two(self, packet: bytes) -> list[bytes]:
        """The plaintexts of an inner packet above ``max_inner``, of ``max_in_two`` bytes at most."""
        self._identifier = (self._identifier + 1) & MAX_IDENTIFIER
        return in_two(packet, self._identifier, self.max_inner - overhead.SPLIT_HEAD_LENGTH)

    def _watch(self, packets: list[bytes], now: float) -> None:
        """Watch the longest of these packets, the last ones sent, when its fate tells something about the path."""
        longest = max(map(len, packets))
        if self.path_mtu.wants(longest, now):
            place = next(place for place, packet in enumerate(packets) if len(packet) == longest)
            number = self.packets.next_number - len(packets) + place
            self.path_mtu.sent(number, longest, now, self.recovery.pto)

    def _probe(self, now: float) -> None:
        size = self.path_mtu.due(now)
        self.set_limits()
        if size == 0:
            self.send_control(PING, now)
        elif size is not None and self.put_frames(PING, now, size):
            number = self.packets.next_number - 1
            self.path_mtu.sent(number, size, now, self.recovery.pto)
            self.recovery.sent_batch(number, now)
            self._sent_eliciting(now)

    def refused_by_first_hop(self, lengths: Sequence[int], now: float) -> int:
        """Datagrams of these lengths exceeded the MTU of the outgoing device; how many of them were not probes."""
        probes = sum(self.path_mtu.refused(length, now) for length in lengths)
        self.set_limits()
        return len(lengths) - probes

    # --- life: the table and its effects ---

    def _happens(
        self, event: LifeEvent, now: float = 0.0, reason: LossReason = LossReason.PROTOCOL, error: int = 0
    ) -> None:
        """Effects that set a timer need ``now``; a loss needs ``reason`` and ``error``."""
        rule = LIFE_RULES[self.state, event]
        self.state = rule.becomes
        for effect in rule.effects:
            match effect:
                case LifeEffect.CONFIRM:
                    self._confirm(now)
                case LifeEffect.TELL_LOST:
                    self.events.append(SessionLost(session_id=self.session_id, reason=reason, error_code=error))
                case LifeEffect.KEEP_CLOSE:
                    self._close_packet = self.outbox[-1]
                    self._closing_until = now + 3 * self.recovery.pto
                case LifeEffect.ANSWER_RARELY:
                    self._closing_received += 1
                    if self._closing_received & (self._closing_received - 1) == 0:
                        self.outbox.append(self._close_packet)
                case LifeEffect.RELEASE:
                    self.mark.release()

    @property
    def _closed(self) -> bool:
        return self.state in {LifeState.CLOSING, LifeState.ENDED}

    def _confirm(self, now: float) -> None:
        self.confirmed = True
        self.events.append(SessionConfirmed(session_id=self.session_id))
        self.path_mtu.begin(now, self.recovery.smoothed)
        if self.role is Role.CLIENT:
            self.path_mtu.proven(overhead.BROWSER_UDP_PAYLOAD, 0.0, now)  # its hello
        self.set_limits()

    def path_proven(self, size: int, ago: float, now: float) -> None:
        """A UDP payload of ``size`` bytes that left here ``ago`` seconds ago has arrived: the handshake's."""
        self.path_mtu.proven(size, ago, now)
        self.set_limits()

    def end(self, reason: LossReason, error: int = 0) -> None:
        """End the session at once, without a CLOSE; only the handshake worker is told."""
        if self.state is not LifeState.ENDED:
            self._happens(LifeEvent.OVER, reason=reason, error=error)

    def violated(self, error: int, now: float) -> None:
        """The peer violated QUIC in an authenticated packet: close with this error code (RFC 9000 §20.1)."""
        if self._closed:
            return
        self.drops["malformed"] += 1
        self._happens(LifeEvent.BROKEN, reason=LossReason.PROTOCOL, error=error)
        self._close(encode_frame(ConnectionClose(error, application=False)), now)

    def close(self, now: float, *, tell: bool, reason: CloseReason | None = None) -> None:
        """SessionDelete. With ``tell``, a CONNECTION_CLOSE is sent with ``reason``, and answers packets for three
        PTO."""
        if self._closed:
            return
        if tell:
            self._close(close_frames(reason, self.role), now)
        else:
            self._happens(LifeEvent.DROPPED)

    def _close(self, frame: bytes, now: float, *, brief: bool = False) -> None:
        if self.put_frames(frame, now, brief=brief):  # otherwise no packet number was left, and the session has ended
            self._happens(LifeEvent.SEALED, now)

    def _receive_while_closing(self, count: int) -> None:
        self.drops["closing"] += count
        self._happens(LifeEvent.BATCH)

    def closing_over(self, now: float) -> None:
        """End a closing session once three PTO have passed."""
        if now >= self._closing_until:
            self._happens(LifeEvent.TIME_UP)
