"""Whether the peer of a client's session in qre.ko answers: a PING where data goes out and none comes in.

qre.ko counts what it receives, not what its peer acknowledges, and a path may be closed in one direction only. But it
reports the fate of a frame that it was asked to send (FRAME_FATE), and repeats it until then. So nothing is asked
while data comes in. Sans-IO: ``now`` is monotonic, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from qre.dataplane.protocol import FrameFate
from qre.dataplane.status import SessionStatus
from qre.wire.frames import Ping, encode_frame
from qre.workers.netlink.kernel_sessions import ESTABLISHED

PING: Final = encode_frame(Ping())
#: The numbers of these frames: far above those of the handshake worker.
_FIRST: Final = 1 << 62
#: Between two PINGs that were answered (seconds).
_INTERVAL: Final = 4.0
#: A PING whose fate was not reported by then has none: its event was lost (seconds).
_FORGOTTEN: Final = 60.0


@dataclass
class _Seen:
    """A session as it was last looked at. ``number``: of the PING under way, 0: none."""

    sent: int
    received: int
    number: int = 0
    asked_at: float = 0.0
    quiet_until: float = 0.0


class PathProbe:
    """All sessions of a client, most often one."""

    def __init__(self) -> None:
        self._seen: dict[bytes, _Seen] = {}
        self._next = _FIRST

    def look(self, status: SessionStatus, now: float) -> int | None:
        """The number of a PING to send in this session now; None: nothing is to be asked."""
        seen = self._seen.get(status.session_id)
        if seen is None or status.rx_packets != seen.received:
            quiet = seen.quiet_until if seen is not None else now + _INTERVAL
            self._seen[status.session_id] = _Seen(status.tx_packets, status.rx_packets, quiet_until=quiet)
            return None
        if seen.number and now - seen.asked_at > _FORGOTTEN:
            seen.number = 0
        if seen.number or status.tx_packets == seen.sent or now < seen.quiet_until:
            return None
        self._next += 1
        seen.sent, seen.number, seen.asked_at = status.tx_packets, self._next, now
        return self._next

    def settled(self, fate: FrameFate) -> bool:
        """Whether the fate is that of a PING of ours. One that was given up has had no answer either."""
        seen = self._seen.get(fate.session_id)
        if fate.id >= _FIRST and seen is not None and seen.number == fate.id and fate.acknowledged:
            seen.number, seen.quiet_until = 0, seen.asked_at + _INTERVAL
        return fate.id >= _FIRST

    def unanswered_ms(self, session_id: bytes, now: float) -> int | None:
        """How long the PING under way has been without an answer; None when there is none."""
        seen = self._seen.get(session_id)
        return round((now - seen.asked_at) * 1000) if seen is not None and seen.number else None

    def look_at(
        self, sessions: Sequence[SessionStatus], now: float, ping: Callable[[bytes, int], None]
    ) -> tuple[SessionStatus, ...]:
        """The same with what PINGs say; ``ping`` is called with the session and the number of each that is due."""
        present = {status.session_id for status in sessions}
        self._seen = {session_id: seen for session_id, seen in self._seen.items() if session_id in present}
        for status in sessions:
            number = self.look(status, now) if status.state == ESTABLISHED else None
            if number is not None:
                ping(status.session_id, number)
        return tuple(
            msgspec.structs.replace(each, unanswered_ms=self.unanswered_ms(each.session_id, now)) for each in sessions
        )

    def events_lost(self) -> None:
        """The fate of a PING may be among them: ask again."""
        for seen in self._seen.values():
            seen.number = 0
