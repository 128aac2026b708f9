"""Why a client's connection ended, for its events: in words, and as a cause where that is known.

What anybody can send before the handshake is complete is told, never trusted.
"""

from __future__ import annotations

from qre.causes import Cause, of_alert
from qre.quic.connection import Ending
from qre.wire.close_reason import CloseReason, close_words, reason_of


def cause_of(ending: Ending) -> Cause | None:
    """What an alert of the other end says, which anybody can make before the handshake is complete; or its reason."""
    if ending.by_us:
        return None
    if ending.alert is None:
        return Cause.TWIN if reason_of(ending.error_code) is CloseReason.TWIN else None
    return of_alert(ending.alert)


def words_of(ending: Ending) -> str:
    """The reason of a failure."""
    if ending.reason == "Idle timeout":
        return "the server stopped answering"
    if ending.by_us:
        return f"the server broke the protocol ({ending.reason or hex(ending.error_code)})"
    if ending.alert is not None:
        return f"the server closed the connection (TLS alert {ending.alert})"
    said = close_words(ending.error_code)
    return f"the server closed the connection: {said}" if said else "the server closed the connection"
