"""The rules of «Looking like the real thing» and RFC 9000 §5.2 as a table: a flow's state and an event determine its
next state and the effects. ``FlowTable`` follows these rows and nothing else::

    state     what happens                        becomes   effects
    -------   ---------------------------------   -------   ----------------------
    (none)    packet to our CID                   (none)    Reset
    (none)    may begin a ClientHello             PENDING   -
    (none)    another datagram                    RELAY     OpenRelay, Forward
    (none)    handed over by the front            OURS      Begin
    PENDING   packet to our CID                   PENDING   Reset
    PENDING   still undecided                     PENDING   -
    PENDING   authenticated hello                 PENDING   Accept
    PENDING   hello accepted                      OURS      Begin
    PENDING   hello refused                       RELAY     OpenRelay, ForwardHeld
    PENDING   not authenticated                   RELAY     OpenRelay, ForwardHeld
    PENDING   too many undecided                  RELAY     OpenRelay, ForwardHeld
    PENDING   hold time over                      WATCHED   OpenRelay, ForwardHeld
    PENDING   removed                             (none)    -
    WATCHED   packet to our CID                   WATCHED   Reset
    WATCHED   still undecided                     WATCHED   Forward
    WATCHED   authenticated hello                 WATCHED   Accept
    WATCHED   hello accepted                      OURS      CloseRelay, Begin
    WATCHED   hello refused                       RELAY     Forward
    WATCHED   not authenticated                   RELAY     Forward
    WATCHED   too many undecided                  RELAY     -
    WATCHED   Retry from Dest                     WATCHED   ToVisitor
    WATCHED   only ACKs from Dest                 WATCHED   ToVisitor
    WATCHED   other reply from Dest               RELAY     ToVisitor
    WATCHED   Dest unreachable                    (none)    -
    WATCHED   removed                             (none)    CloseRelay
    RELAY     packet to our CID                   RELAY     Reset
    RELAY     another datagram                    RELAY     Forward
    RELAY     other reply from Dest               RELAY     ToVisitor
    RELAY     Dest unreachable                    (none)    -
    RELAY     removed                             (none)    CloseRelay
    OURS      another datagram                    OURS      Feed
    OURS      still undecided                     OURS      -
    OURS      not authenticated                   OURS      -
    OURS      authenticated hello                 OURS      Accept
    OURS      hello accepted                      OURS      Abandon, Begin
    OURS      hello refused                       OURS      -
    OURS      handshake over                      SILENT    -
    OURS      removed                             (none)    Abandon
    SILENT    packet to our CID                   SILENT    Reset
    SILENT    may begin a ClientHello             (none)    -
    SILENT    another datagram                    SILENT    -
    SILENT    removed                             (none)    -

A new flow over a bound stays (none) and is counted. Every failure leads to RELAY. PENDING: datagrams are held back
while an inspector reads them; *still undecided*, *authenticated hello* and *not authenticated* are its verdicts. An
authenticated hello is recorded before anything is answered: a replay, or one that cannot be recorded, is *refused*.
That result comes back as an event and not from a function, because recording writes a file: the table has no effects
except those that it returns.

WATCHED: Dest has received what was held, and gets further datagrams at once; a copy of each is kept. A Retry from
Dest makes the visitor begin again, so the copies are dropped. As long as Dest has sent only ACKs, the handshake can
continue with Dest's CID and packet numbers. Any other reply cannot be taken back: the visitor has seen it. RELAY:
byte for byte, in both directions, with the ECN mark.

OURS: an Initial of another connection has an inspector of its own: an authenticated client that begins again replaces
the handshake; any other sender at its address changes nothing. SILENT: the handshake has become a session or failed;
for a while datagrams are dropped, because Dest does not know the connection. A possible hello starts a new flow: the
row of (none) follows. *Packet to our CID*: in a short header, at the userspace socket; packets of live sessions
arrive at another socket. *Removed*: idle, or the longest idle where room is needed, or abandoned.

A combination without a row cannot happen.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from qre.workers.handshake.port.flow_effects import (
    Abandon,
    Accept,
    Begin,
    CloseRelay,
    EffectKind,
    Feed,
    Forward,
    ForwardHeld,
    OpenRelay,
    Reset,
    ToVisitor,
)
from qre.workers.handshake.port.flow_parts import FlowState


class FlowEvent(enum.Enum):
    """What can happen to a flow."""

    OWN_CID = "packet to our CID"
    MAY_BEGIN = "may begin a ClientHello"
    DATAGRAM = "another datagram"
    UNDECIDED = "still undecided"
    OUR_HELLO = "authenticated hello"
    NOT_OURS = "not authenticated"
    ACCEPTED = "hello accepted"
    REFUSED = "hello refused"
    HANDED_OVER = "handed over by the front"
    TOO_MUCH = "too many undecided"
    DELAY_OVER = "hold time over"
    RETRY = "Retry from Dest"
    ACKNOWLEDGED = "only ACKs from Dest"
    REPLY = "other reply from Dest"
    NO_WAY = "Dest unreachable"
    HANDSHAKE_OVER = "handshake over"
    REMOVED = "removed"

    __hash__ = object.__hash__  # see FlowState


class FlowRule(NamedTuple):
    """The next state, and the effects in their order."""

    becomes: FlowState
    effects: tuple[EffectKind, ...] = ()


#: The effects of the most frequent rows, compared by identity in ``FlowTable.datagram``.
FORWARDED: Final[tuple[EffectKind, ...]] = (Forward,)
PASSED_BACK: Final[tuple[EffectKind, ...]] = (ToVisitor,)
FED: Final[tuple[EffectKind, ...]] = (Feed,)

_S, _E = FlowState, FlowEvent
RULES: Final[dict[tuple[FlowState, FlowEvent], FlowRule]] = {
    (_S.NONE, _E.OWN_CID): FlowRule(_S.NONE, (Reset,)),
    (_S.NONE, _E.MAY_BEGIN): FlowRule(_S.PENDING),
    (_S.NONE, _E.DATAGRAM): FlowRule(_S.RELAY, (OpenRelay, Forward)),
    (_S.NONE, _E.HANDED_OVER): FlowRule(_S.OURS, (Begin,)),
    (_S.PENDING, _E.OWN_CID): FlowRule(_S.PENDING, (Reset,)),
    (_S.PENDING, _E.UNDECIDED): FlowRule(_S.PENDING),
    (_S.PENDING, _E.OUR_HELLO): FlowRule(_S.PENDING, (Accept,)),
    (_S.PENDING, _E.ACCEPTED): FlowRule(_S.OURS, (Begin,)),
    (_S.PENDING, _E.REFUSED): FlowRule(_S.RELAY, (OpenRelay, ForwardHeld)),
    (_S.PENDING, _E.NOT_OURS): FlowRule(_S.RELAY, (OpenRelay, ForwardHeld)),
    (_S.PENDING, _E.TOO_MUCH): FlowRule(_S.RELAY, (OpenRelay, ForwardHeld)),
    (_S.PENDING, _E.DELAY_OVER): FlowRule(_S.WATCHED, (OpenRelay, ForwardHeld)),
    (_S.PENDING, _E.REMOVED): FlowRule(_S.NONE),
    (_S.WATCHED, _E.OWN_CID): FlowRule(_S.WATCHED, (Reset,)),
    (_S.WATCHED, _E.UNDECIDED): FlowRule(_S.WATCHED, FORWARDED),
    (_S.WATCHED, _E.OUR_HELLO): FlowRule(_S.WATCHED, (Accept,)),
    (_S.WATCHED, _E.ACCEPTED): FlowRule(_S.OURS, (CloseRelay, Begin)),
    (_S.WATCHED, _E.REFUSED): FlowRule(_S.RELAY, FORWARDED),
    (_S.WATCHED, _E.NOT_OURS): FlowRule(_S.RELAY, FORWARDED),
    (_S.WATCHED, _E.TOO_MUCH): FlowRule(_S.RELAY),
    (_S.WATCHED, _E.RETRY): FlowRule(_S.WATCHED, PASSED_BACK),
    (_S.WATCHED, _E.ACKNOWLEDGED): FlowRule(_S.WATCHED, PASSED_BACK),
    (_S.WATCHED, _E.REPLY): FlowRule(_S.RELAY, PASSED_BACK),
    (_S.WATCHED, _E.NO_WAY): FlowRule(_S.NONE),
    (_S.WATCHED, _E.REMOVED): FlowRule(_S.NONE, (CloseRelay,)),
    (_S.RELAY, _E.OWN_CID): FlowRule(_S.RELAY, (Reset,)),
    (_S.RELAY, _E.DATAGRAM): FlowRule(_S.RELAY, FORWARDED),
    (_S.RELAY, _E.REPLY): FlowRule(_S.RELAY, PASSED_BACK),
    (_S.RELAY, _E.NO_WAY): FlowRule(_S.NONE),
    (_S.RELAY, _E.REMOVED): FlowRule(_S.NONE, (CloseRelay,)),
    (_S.OURS, _E.DATAGRAM): FlowRule(_S.OURS, FED),
    (_S.OURS, _E.UNDECIDED): FlowRule(_S.OURS),
    (_S.OURS, _E.NOT_OURS): FlowRule(_S.OURS),
    (_S.OURS, _E.OUR_HELLO): FlowRule(_S.OURS, (Accept,)),
    (_S.OURS, _E.ACCEPTED): FlowRule(_S.OURS, (Abandon, Begin)),
    (_S.OURS, _E.REFUSED): FlowRule(_S.OURS),
    (_S.OURS, _E.HANDSHAKE_OVER): FlowRule(_S.SILENT),
    (_S.OURS, _E.REMOVED): FlowRule(_S.NONE, (Abandon,)),
    (_S.SILENT, _E.OWN_CID): FlowRule(_S.SILENT, (Reset,)),
    (_S.SILENT, _E.MAY_BEGIN): FlowRule(_S.NONE),
    (_S.SILENT, _E.DATAGRAM): FlowRule(_S.SILENT),
    (_S.SILENT, _E.REMOVED): FlowRule(_S.NONE),
}
