"""Plays a recorded visit over a connection in the shadow of a living Dest: what follows the client's Finished.

While it speaks, nothing is sent at other times but what was lost, and what a client that fell silent has not
acknowledged: in datagrams of the same lengths. Where it is silent, the connection's stack sends as it would. The
client's leave to switch to the data plane goes with the last datagram that it has to acknowledge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qre.quic.server.shadow_connection import ShadowConnection
from qre.quic.shadow.visit_script import VisitScript

#: A datagram that has to be acknowledged (bytes): a 1-RTT packet with a frame, and its tag.
_SHORTEST: Final = 22


class Performance:
    """``let_go`` makes the frame that lets the client switch to the data plane, for the next datagram."""

    def __init__(self, connection: ShadowConnection, script: VisitScript, let_go: Callable[[], None]) -> None:
        self._connection = connection
        self._script = script
        self._let_go = let_go
        self._may_let_go = False

    def received(self, now: float) -> None:
        """A datagram of the client has been processed: with its Finished the performance begins."""
        if self._connection.finished:
            self._script.finished(now)

    def asked(self, now: float) -> None:
        """The client's request has come, and it is answered now."""
        self._script.asked(now)

    def installed(self) -> None:
        """The client may be let go."""
        self._may_let_go = True

    def timer(self) -> float | None:
        """When to call ``datagrams`` (seconds, monotonic)."""
        if not self._script.speaks:
            return self._connection.get_timer()
        times = (self._connection.loss_timer(), self._script.next_due())
        return min((at for at in times if at is not None), default=None)

    def datagrams(self, now: float) -> list[bytes]:
        """UDP payloads to send now, in order."""
        if not self._connection.finished or self._connection.ended:
            return self._connection.send(now)
        sent = self._due(now) + self._connection.repeated(now)
        if self._script.speaks and not self._connection.must_speak:
            return sent
        if not self._script.to_be_acknowledged:
            self._go_on()
        return sent + self._connection.send(now)

    def _due(self, now: float) -> list[bytes]:
        sent = []
        self._script.arrived(self._connection.arrived, now)
        while (spoken := self._script.take(now)) is not None:
            if spoken.eliciting and not spoken.probe and not self._script.to_be_acknowledged:
                self._go_on()
            if spoken.probe:
                sent.append(self._connection.probe(spoken.length, now))
            else:
                again = max(_SHORTEST, spoken.length - spoken.ack_length + self._connection.habits.pings)
                sent.append(self._connection.speak(spoken.length, now, eliciting=spoken.eliciting, again=again))
        return sent

    def _go_on(self) -> None:
        if self._may_let_go:
            self._may_let_go = False
            self._let_go()
