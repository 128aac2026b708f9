"""Plays a recorded visit over a connection in the shadow of a living Dest: what follows the client's Finished.

While it speaks, nothing is sent at other times but what was lost, and what a client that fell silent has not
acknowledged: in datagrams of the same lengths. Where it is silent, the connection's stack sends as it would. The
client's leave to switch to the data plane goes with the last datagram that it has to acknowledge, which waits for the
session a little. Where the session comes later, the leave has the length of that datagram when it is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from qre.dest_profile import LONGEST
from qre.quic.server.shadow_connection import ShadowConnection
from qre.quic.shadow.visit_script import VisitScript

#: A datagram that has to be acknowledged (bytes): a 1-RTT packet with a frame, and its tag.
_SHORTEST: Final = 22
#: How long the last datagram waits for a session that is being installed, at most (seconds).
_WAITS: Final = 0.1


class Performance:
    """``let_go`` makes the frame that lets the client switch to the data plane, for the next datagram."""

    def __init__(self, connection: ShadowConnection, script: VisitScript, let_go: Callable[[], None]) -> None:
        self._connection = connection
        self._script = script
        self._let_go = let_go
        self._may_let_go = False
        self._waits_until = -math.inf  # for the session, the last datagram
        self._repeated_length = _SHORTEST  # of the last datagram that had to be acknowledged

    def received(self, now: float) -> None:
        """A datagram of the client has been processed: with its Finished the performance begins."""
        if self._connection.finished:
            self._script.finished(now)

    @property
    def icon(self) -> str:
        """The path of the page's icon, which the client is to request before it is let go; empty: it is not to."""
        return self._script.icon

    def asked(self, now: float, *, icon: bool) -> None:
        """The client's request has come, and it is answered now. ``icon``: it offers to request the page's icon."""
        self._script.asked(now, icon=icon)

    def asked_icon(self, now: float) -> None:
        """The client's request of the icon has come, and it is answered now."""
        if not self._script.icon_asked:
            self._script.asked_icon(now)
            self._waits_until = now + LONGEST  # until it is known when the session can be installed

    def everything_acknowledged(self) -> bool:
        """Whether the session may be installed: the client's acknowledgements do not come here from then on. The
        request of an icon says that all before it has arrived, and what answers it must not wait for news."""
        if self._script.icon:
            return self._script.icon_asked and not self._script.waits_for_news
        return self._connection.everything_acknowledged()

    def installing(self, now: float) -> None:
        """The session is being installed."""
        self._waits_until = now + _WAITS

    def installed(self) -> None:
        """The client may be let go."""
        self._may_let_go = True
        self._waits_until = -math.inf
        self._script.hears_no_more()

    def timer(self) -> float | None:
        """When to call ``datagrams`` (seconds, monotonic)."""
        if not self._script.speaks:
            return self._connection.get_timer()
        due = self._script.next_due()
        if due is not None and self._waits(due):
            due = self._waits_until
        times = (self._connection.loss_timer(), due)
        return min((at for at in times if at is not None), default=None)

    def datagrams(self, now: float) -> list[bytes]:
        """UDP payloads to send now, in order."""
        if not self._connection.finished or self._connection.ended:
            return self._connection.send(now)
        sent = self._due(now) + self._connection.repeated(now)
        if self._script.speaks and not self._connection.must_speak:
            return sent
        if not self._script.to_be_acknowledged and self._go_on():
            sent.append(self._connection.speak(self._repeated_length, now, eliciting=True))
        return sent + self._connection.send(now)

    def _due(self, now: float) -> list[bytes]:
        sent = []
        self._script.arrived(self._connection.arrived, now)
        while not self._waits(now) and (spoken := self._script.take(now)) is not None:
            if spoken.eliciting and not spoken.probe and not self._script.to_be_acknowledged:
                self._go_on()
            if spoken.probe:
                sent.append(self._connection.probe(spoken.length, now))
            else:
                again = max(_SHORTEST, spoken.length - spoken.ack_length + self._connection.habits.pings)
                self._repeated_length = again if spoken.eliciting else self._repeated_length
                sent.append(self._connection.speak(spoken.length, now, eliciting=spoken.eliciting, again=again))
        return sent

    def _waits(self, now: float) -> bool:
        return now < self._waits_until and self._script.last_to_be_acknowledged

    def _go_on(self) -> bool:
        """Whether the client is let go now."""
        if not self._may_let_go:
            return False
        self._may_let_go = False
        self._let_go()
        return True
