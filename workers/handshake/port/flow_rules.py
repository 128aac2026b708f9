"""The rules of «Looking like the real thing» and RFC 9000 §5.2 as a table: a flow's state and what happens to it give
its next state and the effects. ``FlowTable`` does what stands here and nothing else::

    state     what happens                        becomes   effects
    -------   ---------------------------------   -------   ----------------------
    (none)    a CID of ours                       (none)    Reset
    (none)    may begin a ClientHello             PENDING   -
    (none)    another datagram                    RELAY     OpenRelay, Forward
    (none)    handed over by the front            OURS      Begin
    PENDING   a CID of ours                       PENDING   Reset
    PENDING   still undecided                     PENDING   -
    PENDING   a hello of ours                     PENDING   Accept
    PENDING   it is accepted                      OURS      Begin
    PENDING   it is refused                       RELAY     OpenRelay, ForwardHeld
    PENDING   no hello of ours                    RELAY     OpenRelay, ForwardHeld
    PENDING   too much is undecided               RELAY     OpenRelay, ForwardHeld
    PENDING   the delay is over                   WATCHED   OpenRelay, ForwardHeld
    PENDING   removed                             (none)    -
    WATCHED   a CID of ours                       WATCHED   Reset
    WATCHED   still undecided                     WATCHED   Forward
    WATCHED   a hello of ours                     WATCHED   Accept
    WATCHED   it is accepted                      OURS      CloseRelay, Begin
    WATCHED   it is refused                       RELAY     Forward
    WATCHED   no hello of ours                    RELAY     Forward
    WATCHED   too much is undecided               RELAY     -
    WATCHED   a Retry of Dest                     WATCHED   ToVisitor
    WATCHED   Dest acknowledges, and no more      WATCHED   ToVisitor
    WATCHED   another reply of Dest               RELAY     ToVisitor
    WATCHED   no way to Dest                      (none)    -
    WATCHED   removed                             (none)    CloseRelay
    RELAY     a CID of ours                       RELAY     Reset
    RELAY     another datagram                    RELAY     Forward
    RELAY     another reply of Dest               RELAY     ToVisitor
    RELAY     no way to Dest                      (none)    -
    RELAY     removed                             (none)    CloseRelay
    OURS      another datagram                    OURS      Feed
    OURS      still undecided                     OURS      -
    OURS      no hello of ours                    OURS      -
    OURS      a hello of ours                     OURS      Accept
    OURS      it is accepted                      OURS      Abandon, Begin
    OURS      it is refused                       OURS      -
    OURS      the handshake is over               SILENT    -
    OURS      removed                             (none)    Abandon
    SILENT    a CID of ours                       SILENT    Reset
    SILENT    may begin a ClientHello             (none)    -
    SILENT    another datagram                    SILENT    -
    SILENT    removed                             (none)    -

A newcomer over a bound stays (none), and is counted. Whatever fails takes the RELAY path. PENDING: an inspector looks
at what comes, which is held back; *still undecided*, *a hello of ours* and *no hello of ours* are its verdicts. A
hello of ours is asked about before anything is answered: one that was seen before, or cannot be remembered, is
*refused*. That answer comes back as an event and is not asked of a function, because remembering writes a file: the
table has no effects but those it returns.

WATCHED: Dest has seen what was held, and sees what comes from here on at once; all of it is kept, too. A Retry of
Dest's makes the visitor begin again, so what was kept is forgotten. What Dest only acknowledged the handshake can
take over, with its CID and packet numbers. After anything else the visitor has seen Dest's own words, which cannot be
taken back. RELAY: byte for byte, both ways, with the ECN mark.

OURS: an Initial of another connection is looked at by an inspector of its own: a client that began again replaces
the handshake when it proves to be ours, and anybody else who sends from its address does no harm. SILENT: the
handshake has become a session or failed; what still comes is dropped for a while, for Dest never heard of it. A hello
there is a newcomer's: the row of (none) is next. *A CID of ours* is one in a short header; a live session's packets
have a socket of their own. *Removed*: idle, or the longest idle where room is needed, or given up.

What stands in no row cannot happen.
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

    OWN_CID = "a CID of ours"
    MAY_BEGIN = "may begin a ClientHello"
    DATAGRAM = "another datagram"
    UNDECIDED = "still undecided"
    OUR_HELLO = "a hello of ours"
    NOT_OURS = "no hello of ours"
    ACCEPTED = "it is accepted"
    REFUSED = "it is refused"
    HANDED_OVER = "handed over by the front"
    TOO_MUCH = "too much is undecided"
    DELAY_OVER = "the delay is over"
    RETRY = "a Retry of Dest"
    ACKNOWLEDGED = "Dest acknowledges, and no more"
    REPLY = "another reply of Dest"
    NO_WAY = "no way to Dest"
    HANDSHAKE_OVER = "the handshake is over"
    REMOVED = "removed"

    __hash__ = object.__hash__  # see FlowState


class FlowRule(NamedTuple):
    """Where a flow goes, and what is to be done, in this order."""

    becomes: FlowState
    effects: tuple[EffectKind, ...] = ()


#: The rows of every day: what they are made of is known without looking, see ``FlowTable.datagram``.
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
