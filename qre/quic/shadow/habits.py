"""What a Dest does that no visit of ours shows: only a client that falls silent, or a repeated hello, brings it out.

It is known of the stacks that were measured: Caddy 2.11 (quic-go), gtlsserver (ngtcp2) and aioquic 1.7. The order in
which a stack writes its transport parameters (RFC 9000 §18) tells which one it is; nothing depends on their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_GREASE_STEP, _GREASE_REST = 31, 27  # RFC 9000 §18.1
#: quic-go begins with a GREASE parameter and goes on with these.
_QUIC_GO: Final = (0x05, 0x06, 0x07, 0x04, 0x08, 0x09, 0x01, 0x03)

#: TLS decrypt_error (51) as an error of QUIC (RFC 9001 §4.8).
_DECRYPT_ERROR: Final = 0x0133


@dataclass(frozen=True)
class Habits:
    """``at_a_timeout``: datagrams that are sent at each probe timeout (RFC 9002 §6.2.4). ``pings``: what is repeated
    has a PING besides. ``remembers_hello``: the connection ID that a client's first Initials go to stays the
    connection's as long as this lives; else a repeated first flight begins another connection. ``false_binder``: the
    error of the CLOSE, alone in an Initial, that a ticket with another binder than its key's gets (RFC 8446 §4.2.11);
    None: not known. ``overshoots``: of the bound before an address is validated (RFC 9000 §8.1) it asks whether it is
    reached, not how much is left: the last datagram goes beyond it. ``handshake_times``: the first probe timeout of a
    handshake without an answer, and after how long it is given up (seconds), where Initial and Handshake packets are
    repeated apart; None: not known."""

    at_a_timeout: int = 2
    pings: bool = False
    remembers_hello: bool = True
    false_binder: int | None = None
    overshoots: bool = False
    handshake_times: tuple[float, float] | None = None


_OF_QUIC_GO: Final = Habits(
    remembers_hello=False, false_binder=_DECRYPT_ERROR, overshoots=True, handshake_times=(0.2, 5.0)
)
_OF_AIOQUIC: Final = Habits(at_a_timeout=1, pings=True)
#: ngtcp2's; others are taken for alike.
_OF_OTHERS: Final = Habits()


def habits_of(parameters: Sequence[int]) -> Habits:
    """Those of a Dest that writes its transport parameters (ids) in this order; empty: as Caddy, which is imitated
    where nothing is known."""
    order = tuple(parameters)
    if not order or (order[0] % _GREASE_STEP == _GREASE_REST and order[1 : 1 + len(_QUIC_GO)] == _QUIC_GO):
        return _OF_QUIC_GO
    if all(earlier < later for earlier, later in pairwise(order)):
        return _OF_AIOQUIC
    return _OF_OTHERS
