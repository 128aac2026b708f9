"""Whether packets pass, from what both data planes count: «connected» alone says that a handshake once succeeded.

An ack-eliciting packet is acknowledged within some 25 ms and a round trip (RFC 9000 §13.2.1). A session that has sent
several without any acknowledgement for seconds is therefore *silent*, whatever is in the way: a firewall that
appeared, a path that is down, a peer that has lost the session. Where the data plane does not tell what was
acknowledged (qre.ko on a server), several packets since the last one received count instead.
Sans-IO: ``now`` is monotonic, in seconds. It must never take an idle session for a silent one, nor a packet or two
that are lost.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from qre.dataplane.status import DeviceCounters, SessionStatus
from qre.ends import Role
from qre.wire.overhead import BASE_UDP_PAYLOAD, path_mtu

#: How long what was sent may be unanswered before the session is silent (seconds).
SILENCE: Final = 5.0
#: The time over which losses are counted (seconds), and how many at least are worth a word.
WINDOW: Final = 10.0
_LEAST: Final = 10
#: So many packets since the last one received are more than acknowledgements, or a loss.
_ASKING: Final = 3
#: Ages are read with this error (seconds).
_BLUR: Final = 0.05


class Health(enum.StrEnum):
    """What the packets of a session say."""

    IDLE = "idle"  # nothing was sent that would be answered
    FLOWS = "flows"  # what was sent is answered
    SILENT = "silent"  # it is not
    LOSSY = "lossy"  # a quarter of it is lost, or more


class Judgement(NamedTuple):
    """``unanswered``: seconds for which something sent has had no answer. ``words``: empty when all is well."""

    health: Health
    unanswered: float
    words: str


class SessionHealth:
    """One session, looked at every few seconds."""

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._data = self._number = 0  # sent when a packet was last received
        self._before = 0  # packets of data sent, when it was last looked at
        self._asked_at: float | None = None
        self._counts: deque[tuple[float, int, int]] = deque()  # when, acknowledged, lost

    def look(self, status: SessionStatus, now: float) -> Judgement:
        """Judge by these counters and those seen before."""
        sent, self._before = status.tx_packets - self._before, status.tx_packets
        if status.unanswered_ms is None:
            return self._by_arrivals(status, now)
        unanswered = status.unanswered_ms / 1000
        if unanswered >= SILENCE:
            return _silent(unanswered)
        return self._losses(status, now) or Judgement(Health.FLOWS if sent else Health.IDLE, unanswered, "")

    def _by_arrivals(self, status: SessionStatus, now: float) -> Judgement:
        age = status.last_receive_ms if status.last_receive_ms is not None else status.age_ms
        heard_at = now - age / 1000
        if self._heard_at is None or heard_at > self._heard_at + _BLUR:
            answered = self._asked_at is not None or status.tx_packets > self._data
            self._heard_at, self._asked_at = heard_at, None
            self._data, self._number = status.tx_packets, status.tx_packet_number
            return Judgement(Health.FLOWS if answered else Health.IDLE, 0.0, "")
        if self._asked_at is None and status.tx_packet_number >= self._number + _ASKING:
            self._asked_at = now
        if self._asked_at is None:
            return Judgement(Health.IDLE, 0.0, "")
        unanswered = now - self._asked_at
        if unanswered < SILENCE:
            return Judgement(Health.FLOWS, unanswered, "")
        return _silent(unanswered)

    def _losses(self, status: SessionStatus, now: float) -> Judgement | None:
        acknowledged, lost = status.tx_acknowledged, status.tx_lost
        if acknowledged is None or lost is None:
            return None
        self._counts.append((now, acknowledged, lost))
        while len(self._counts) > 2 and self._counts[1][0] <= now - WINDOW:
            self._counts.popleft()
        _, before, gone = self._counts[0]
        arrived, missing = acknowledged - before, lost - gone
        smallest = path_mtu(BASE_UDP_PAYLOAD, status.endpoint)
        # Each loss draws a PING, and that is acknowledged: where all data is lost, half of all packets arrive.
        if missing < _LEAST or missing * 3 <= arrived:
            return None
        words = f"{missing} of the last {missing + arrived} packets were lost"
        if status.path_mtu is not None and status.path_mtu <= smallest:
            words += f"; the path may carry less than {smallest} bytes"
        return Judgement(Health.LOSSY, 0.0, words)


def _silent(unanswered: float) -> Judgement:
    return Judgement(Health.SILENT, unanswered, f"nothing has come back for {unanswered:.0f} s")


class TrafficHealth:
    """All sessions of a device."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._sessions: dict[bytes, SessionHealth] = {}
        self._drops: deque[tuple[float, int, int]] = deque()  # when, dropped as congested, delivered
        self.judgements: dict[bytes, Judgement] = {}
        #: For STATUS and the log; empty when all is well.
        self.words = ""

    def look(self, sessions: Iterable[SessionStatus], counters: DeviceCounters | None, now: float) -> None:
        """Judge every session anew."""
        listed = {session.session_id: session for session in sessions if session.state == "established"}
        self._sessions = {each: self._sessions.get(each) or SessionHealth() for each in listed}
        self.judgements = {each: self._sessions[each].look(status, now) for each, status in listed.items()}
        ill = [judged for judged in self.judgements.values() if judged.words]
        self.words = "; ".join(filter(None, (self._said(ill), self._congested(counters, now))))

    def _said(self, ill: list[Judgement]) -> str:
        if not ill:
            return ""
        worst = max(ill, key=lambda judged: (judged.unanswered, judged.words))
        return worst.words if self._role is Role.CLIENT else f"{worst.words} ({len(ill)} of {len(self._sessions)})"

    def _congested(self, counters: DeviceCounters | None, now: float) -> str:
        """RFC 6040 §4.2: a packet that knows no ECN and arrives marked CE is dropped, as a router would have."""
        if counters is None:
            return ""
        self._drops.append((now, counters.drops.get("congestion", 0), counters.rx_packets))
        while len(self._drops) > 2 and self._drops[1][0] <= now - WINDOW:
            self._drops.popleft()
        _, dropped, delivered = self._drops[0]
        dropped, delivered = self._drops[-1][1] - dropped, self._drops[-1][2] - delivered
        if dropped <= 0 or dropped < delivered:
            return ""
        why = "arrived marked as congested (ECN CE) and were dropped: something on the way marks them"
        return f"{dropped} packets {why}"
