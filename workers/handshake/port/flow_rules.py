"""The rules of «The living site» (docs/protocol.md) as a table: a flow's state and an event determine its next state
and the effects. ``FlowTable`` follows these rows and nothing else::

    state     what happens                        becomes   effects
    -------   ---------------------------------   -------   ----------------------
    (none)    packet to our CID                   (none)    Reset
    (none)    may begin a ClientHello             WATCHED   OpenRelay, Forward
    (none)    another datagram                    RELAY     OpenRelay, Forward
    (none)    handed over by the front            SHADOW    Begin
    WATCHED   packet to our CID                   WATCHED   Reset
    WATCHED   another datagram                    WATCHED   Forward
    WATCHED   still undecided                     WATCHED   -
    WATCHED   authenticated hello                 WATCHED   Accept
    WATCHED   hello accepted                      SHADOW    Begin
    WATCHED   hello refused                       RELAY     -
    WATCHED   not authenticated                   RELAY     -
    WATCHED   too many undecided                  RELAY     -
    WATCHED   Retry from Dest                     WATCHED   ToVisitor
    WATCHED   only ACKs from Dest                 WATCHED   ToVisitor
    WATCHED   other reply from Dest               RELAY     ToVisitor
    WATCHED   Dest unreachable                    WATCHED   -
    WATCHED   removed                             (none)    CloseRelay
    RELAY     packet to our CID                   RELAY     Reset
    RELAY     another datagram                    RELAY     Forward
    RELAY     other reply from Dest               RELAY     ToVisitor
    RELAY     Dest unreachable                    (none)    -
    RELAY     removed                             (none)    CloseRelay
    SHADOW    another datagram                    SHADOW    Forward, Feed
    SHADOW    passed on by the front              SHADOW    Feed
    SHADOW    of another connection               SHADOW    Forward
    SHADOW    still undecided                     SHADOW    -
    SHADOW    not authenticated                   SHADOW    -
    SHADOW    authenticated hello                 SHADOW    Accept
    SHADOW    hello accepted                      SHADOW    Abandon, Begin
    SHADOW    hello refused                       SHADOW    -
    SHADOW    other reply from Dest               SHADOW    Mirror
    SHADOW    Retry from Dest                     SHADOW    Retried, ToVisitor
    SHADOW    reply to another connection         SHADOW    ToVisitor
    SHADOW    Dest cannot be followed             RELAY     Abandon
    SHADOW    client's Finished                   LEFT      Forward
    SHADOW    Dest is not followed                LEFT      -
    SHADOW    handshake over                      OVER      -
    SHADOW    removed                             (none)    Abandon, CloseRelay
    LEFT      another datagram                    LEFT      Feed
    LEFT      passed on by the front              LEFT      Feed
    LEFT      of another connection               LEFT      Forward
    LEFT      still undecided                     LEFT      -
    LEFT      not authenticated                   LEFT      -
    LEFT      authenticated hello                 LEFT      Accept
    LEFT      hello accepted                      SHADOW    Abandon, Begin
    LEFT      hello refused                       LEFT      -
    LEFT      reply to a visit that is over       LEFT      -
    LEFT      reply to another connection         LEFT      ToVisitor
    LEFT      handshake over                      OVER      -
    LEFT      removed                             (none)    Abandon, CloseRelay
    OVER      packet to our CID                   OVER      Reset
    OVER      may begin a ClientHello             (none)    CloseRelay
    OVER      another datagram                    OVER      -
    OVER      of another connection               OVER      Forward
    OVER      still undecided                     OVER      -
    OVER      not authenticated                   OVER      -
    OVER      authenticated hello                 OVER      Accept
    OVER      hello accepted                      SHADOW    Begin
    OVER      hello refused                       OVER      -
    OVER      reply to a visit that is over       OVER      -
    OVER      reply to another connection         OVER      ToVisitor
    OVER      only others are left                RELAY     -
    OVER      removed                             (none)    CloseRelay

A new flow over a bound stays (none) and is counted. Every failure leads to RELAY: byte for byte, in both directions,
with the ECN mark.

WATCHED: Dest receives every datagram at once, and a copy is kept until an inspector has read it, which happens when
nothing waits at the port any more, or when Dest replies, whichever is first; *still undecided*, *authenticated hello*
and *not authenticated* are its verdicts. An authenticated hello is recorded before anything of ours is sent: a
replay, or one that cannot be recorded, is *refused*. A newcomer's hello with a ticket of ours and a false binder
takes the same rows, and is never recorded: what refuses it as a site does is *accepted*; at a client's address it is
*not authenticated*. That result comes back as an event and not from a function, because recording writes a file, and
may ask a store that several servers share, which answers later: the table has no effects except those that it
returns. A Retry from Dest makes the visitor begin again, so the copies are dropped.
As long as Dest has sent only ACKs, the handshake can continue with Dest's CID and packet numbers. Any other reply
cannot be taken back: the visitor has seen it. *Dest unreachable*: the hello is read nevertheless, because Dest may be
imitated (``WhenDestIsDown``).

SHADOW: the client is ours. Dest gets its datagrams and we read them; for each of Dest's one of ours is sent. LEFT:
the client has sent Finished, or Dest is not followed at all; Dest is told that the visit is over, and its replies to
that visit are dropped. OVER: the handshake has become a session or failed; for a while datagrams for it are dropped,
because Dest does not know the connection. A first flight that is repeated from LEFT on, from any address, never gets
here where Dest would be silent as long as the session lives; elsewhere it is *of another connection*, or *may begin a
ClientHello* (``AnsweredHellos``, ``Limits.remembers_hello``). What is *of another connection* goes to Dest in all of
these states, also an unknown version to the handshake's connection ID, and Dest's *reply* to it goes back. An Initial
of one is read when a newcomer's would be (``admission``): an authenticated client that begins anew replaces the
handshake; any other sender at its address changes nothing. In OVER a possible hello starts a new flow: the row of
(none) follows, unless others use the connection to Dest. If so they keep it, and when OVER ends they are visitors as
any others. *Packet to our CID*: in a short header, at the userspace socket; packets of live sessions arrive at
another socket. *Passed on by the front*: of a shared port, which forwards the datagram to Dest itself. *Removed*:
a copy's handshake over, idle, or the longest idle where room is needed, or abandoned.

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
    Mirror,
    OpenRelay,
    Reset,
    Retried,
    ToVisitor,
)
from qre.workers.handshake.port.flow_parts import FlowState


class FlowEvent(enum.Enum):
    """What can happen to a flow."""

    OWN_CID = "packet to our CID"
    MAY_BEGIN = "may begin a ClientHello"
    DATAGRAM = "another datagram"
    FROM_FRONT = "passed on by the front"
    OTHER = "of another connection"
    UNDECIDED = "still undecided"
    OUR_HELLO = "authenticated hello"
    NOT_OURS = "not authenticated"
    ACCEPTED = "hello accepted"
    REFUSED = "hello refused"
    HANDED_OVER = "handed over by the front"
    TOO_MUCH = "too many undecided"
    RETRY = "Retry from Dest"
    ACKNOWLEDGED = "only ACKs from Dest"
    REPLY = "other reply from Dest"
    OTHER_REPLY = "reply to another connection"
    LATE_REPLY = "reply to a visit that is over"
    NO_WAY = "Dest unreachable"
    NOT_FOLLOWED = "Dest cannot be followed"
    FINISHED = "client's Finished"
    IMITATED = "Dest is not followed"
    HANDSHAKE_OVER = "handshake over"
    OTHERS_LEFT = "only others are left"
    REMOVED = "removed"

    __hash__ = object.__hash__  # see FlowState


class FlowRule(NamedTuple):
    """The next state, and the effects in their order."""

    becomes: FlowState
    effects: tuple[EffectKind, ...] = ()


#: The effects of the most frequent rows, compared by identity in ``FlowTable``.
FORWARDED: Final[tuple[EffectKind, ...]] = (Forward,)
PASSED_BACK: Final[tuple[EffectKind, ...]] = (ToVisitor,)
FED: Final[tuple[EffectKind, ...]] = (Feed,)
MIRRORED: Final[tuple[EffectKind, ...]] = (Mirror,)

_S, _E = FlowState, FlowEvent
RULES: Final[dict[tuple[FlowState, FlowEvent], FlowRule]] = {
    (_S.NONE, _E.OWN_CID): FlowRule(_S.NONE, (Reset,)),
    (_S.NONE, _E.MAY_BEGIN): FlowRule(_S.WATCHED, (OpenRelay, Forward)),
    (_S.NONE, _E.DATAGRAM): FlowRule(_S.RELAY, (OpenRelay, Forward)),
    (_S.NONE, _E.HANDED_OVER): FlowRule(_S.SHADOW, (Begin,)),
    (_S.WATCHED, _E.OWN_CID): FlowRule(_S.WATCHED, (Reset,)),
    (_S.WATCHED, _E.DATAGRAM): FlowRule(_S.WATCHED, FORWARDED),
    (_S.WATCHED, _E.UNDECIDED): FlowRule(_S.WATCHED),
    (_S.WATCHED, _E.OUR_HELLO): FlowRule(_S.WATCHED, (Accept,)),
    (_S.WATCHED, _E.ACCEPTED): FlowRule(_S.SHADOW, (Begin,)),
    (_S.WATCHED, _E.REFUSED): FlowRule(_S.RELAY),
    (_S.WATCHED, _E.NOT_OURS): FlowRule(_S.RELAY),
    (_S.WATCHED, _E.TOO_MUCH): FlowRule(_S.RELAY),
    (_S.WATCHED, _E.RETRY): FlowRule(_S.WATCHED, PASSED_BACK),
    (_S.WATCHED, _E.ACKNOWLEDGED): FlowRule(_S.WATCHED, PASSED_BACK),
    (_S.WATCHED, _E.REPLY): FlowRule(_S.RELAY, PASSED_BACK),
    (_S.WATCHED, _E.NO_WAY): FlowRule(_S.WATCHED),
    (_S.WATCHED, _E.REMOVED): FlowRule(_S.NONE, (CloseRelay,)),
    (_S.RELAY, _E.OWN_CID): FlowRule(_S.RELAY, (Reset,)),
    (_S.RELAY, _E.DATAGRAM): FlowRule(_S.RELAY, FORWARDED),
    (_S.RELAY, _E.REPLY): FlowRule(_S.RELAY, PASSED_BACK),
    (_S.RELAY, _E.NO_WAY): FlowRule(_S.NONE),
    (_S.RELAY, _E.REMOVED): FlowRule(_S.NONE, (CloseRelay,)),
    (_S.SHADOW, _E.DATAGRAM): FlowRule(_S.SHADOW, (Forward, Feed)),
    (_S.SHADOW, _E.FROM_FRONT): FlowRule(_S.SHADOW, FED),
    (_S.SHADOW, _E.OTHER): FlowRule(_S.SHADOW, FORWARDED),
    (_S.SHADOW, _E.UNDECIDED): FlowRule(_S.SHADOW),
    (_S.SHADOW, _E.NOT_OURS): FlowRule(_S.SHADOW),
    (_S.SHADOW, _E.OUR_HELLO): FlowRule(_S.SHADOW, (Accept,)),
    (_S.SHADOW, _E.ACCEPTED): FlowRule(_S.SHADOW, (Abandon, Begin)),
    (_S.SHADOW, _E.REFUSED): FlowRule(_S.SHADOW),
    (_S.SHADOW, _E.REPLY): FlowRule(_S.SHADOW, MIRRORED),
    (_S.SHADOW, _E.RETRY): FlowRule(_S.SHADOW, (Retried, ToVisitor)),
    (_S.SHADOW, _E.OTHER_REPLY): FlowRule(_S.SHADOW, PASSED_BACK),
    (_S.SHADOW, _E.NOT_FOLLOWED): FlowRule(_S.RELAY, (Abandon,)),
    (_S.SHADOW, _E.FINISHED): FlowRule(_S.LEFT, FORWARDED),
    (_S.SHADOW, _E.IMITATED): FlowRule(_S.LEFT),
    (_S.SHADOW, _E.HANDSHAKE_OVER): FlowRule(_S.OVER),
    (_S.SHADOW, _E.REMOVED): FlowRule(_S.NONE, (Abandon, CloseRelay)),
    (_S.LEFT, _E.DATAGRAM): FlowRule(_S.LEFT, FED),
    (_S.LEFT, _E.FROM_FRONT): FlowRule(_S.LEFT, FED),
    (_S.LEFT, _E.OTHER): FlowRule(_S.LEFT, FORWARDED),
    (_S.LEFT, _E.UNDECIDED): FlowRule(_S.LEFT),
    (_S.LEFT, _E.NOT_OURS): FlowRule(_S.LEFT),
    (_S.LEFT, _E.OUR_HELLO): FlowRule(_S.LEFT, (Accept,)),
    (_S.LEFT, _E.ACCEPTED): FlowRule(_S.SHADOW, (Abandon, Begin)),
    (_S.LEFT, _E.REFUSED): FlowRule(_S.LEFT),
    (_S.LEFT, _E.LATE_REPLY): FlowRule(_S.LEFT),
    (_S.LEFT, _E.OTHER_REPLY): FlowRule(_S.LEFT, PASSED_BACK),
    (_S.LEFT, _E.HANDSHAKE_OVER): FlowRule(_S.OVER),
    (_S.LEFT, _E.REMOVED): FlowRule(_S.NONE, (Abandon, CloseRelay)),
    (_S.OVER, _E.OWN_CID): FlowRule(_S.OVER, (Reset,)),
    (_S.OVER, _E.MAY_BEGIN): FlowRule(_S.NONE, (CloseRelay,)),
    (_S.OVER, _E.DATAGRAM): FlowRule(_S.OVER),
    (_S.OVER, _E.OTHER): FlowRule(_S.OVER, FORWARDED),
    (_S.OVER, _E.UNDECIDED): FlowRule(_S.OVER),
    (_S.OVER, _E.NOT_OURS): FlowRule(_S.OVER),
    (_S.OVER, _E.OUR_HELLO): FlowRule(_S.OVER, (Accept,)),
    (_S.OVER, _E.ACCEPTED): FlowRule(_S.SHADOW, (Begin,)),
    (_S.OVER, _E.REFUSED): FlowRule(_S.OVER),
    (_S.OVER, _E.LATE_REPLY): FlowRule(_S.OVER),
    (_S.OVER, _E.OTHER_REPLY): FlowRule(_S.OVER, PASSED_BACK),
    (_S.OVER, _E.OTHERS_LEFT): FlowRule(_S.RELAY),
    (_S.OVER, _E.REMOVED): FlowRule(_S.NONE, (CloseRelay,)),
}
