"""A client's attempt as a table: state and event determine the next state and the effects. ``ClientHandshake``
performs these rows and nothing else::

    to the tunnel: GREETING, HURRYING, PROVEN, ASKING, GRANTED, READY
    at the site: VISITING, LEAVING
    not over: GREETING, HURRYING, PROVEN, ASKING, GRANTED, READY, VISITING, LEAVING, CLOSING

    state           what happens                 becomes    effects
    -------------   --------------------------   --------   -------------------------------------------
    GREETING        early data may be sent       HURRYING   request early
    GREETING        the proof is valid           PROVEN     new deadline, report proven
    HURRYING        the proof is valid           ASKING     new deadline, report proven
    PROVEN          a tunnel is possible         ASKING     request the tunnel
    ASKING          the tunnel is granted        GRANTED    report granted, plan the icon
    GRANTED         the icon is due              GRANTED    request the icon
    GRANTED         nothing is outstanding       READY      no deadline, report ready
    READY           the session is handed over   OVER       stop sending
    GREETING        the proof is missing         VISITING   new deadline, report not recognised
    HURRYING        the proof is missing         VISITING   new deadline, report not recognised
    VISITING        the page can be requested    VISITING   request the page
    VISITING        the page has arrived         LEAVING    no deadline, linger, plan the icon
    LEAVING         the icon is due              LEAVING    request the icon
    LEAVING         the pause is over            CLOSING    report the site, close
    VISITING        the deadline has passed      CLOSING    report the site, close
    GREETING        the deadline has passed      CLOSING    report no answer, close
    HURRYING        the deadline has passed      CLOSING    report no answer, close
    PROVEN          the deadline has passed      CLOSING    report unfinished, close
    ASKING          the deadline has passed      CLOSING    report unfinished, close
    GRANTED         the deadline has passed      CLOSING    report unfinished, close
    to the tunnel   the peer closed              OVER       report the end, stop sending, report closed
    at the site     the peer closed              OVER       report the site, stop sending, report closed
    to the tunnel   the stack must close         CLOSING    report the end
    at the site     the stack must close         CLOSING    report the site
    to the tunnel   a step failed                CLOSING    report failure, close
    at the site     a step failed                CLOSING    report failure, close
    to the tunnel   close()                      CLOSING    close
    at the site     close()                      CLOSING    close
    CLOSING         the CLOSE is sent            OVER       stop sending, report closed
    not over        abandon()                    OVER       stop sending, report closed

GREETING lasts until TLS is complete, and so does HURRYING, in which a client that comes back has sent its request as
early data. Then either the server has proved itself, or its certificate chain is valid for
ServerName (a probe accepts any chain): it is the site, and is visited as a browser would, «/» and a pause. Any other
certificate has made TLS fail, which *report the end* explains. A request follows
Finished by a moment, as a browser's.

*Nothing is outstanding*: the server's last frame has arrived. It is NEW_CONNECTION_ID with the routed connection ID,
and is acknowledged, as is everything that was sent; or a PING when the server's handshake CID is the routed one.
Every state except READY and LEAVING has a deadline; a site that does not answer is left when it has passed. A browser
requests the icon of a page a moment after it, on its first visit, and a server that answers as its site waits for it.
CLOSING: a CLOSE is to be sent, which the stack makes itself after *the stack must close*. From OVER on, nothing is
sent.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from qre.causes import Cause
from qre.quic.handshake_events import (
    ClientEvent,
    Closed,
    HandOverReady,
    HandshakeFailed,
    NotRecognised,
    Proven,
)


class AttemptState(enum.Enum):
    """How far an attempt is."""

    GREETING = enum.auto()
    HURRYING = enum.auto()
    PROVEN = enum.auto()
    ASKING = enum.auto()
    GRANTED = enum.auto()
    READY = enum.auto()
    VISITING = enum.auto()
    LEAVING = enum.auto()
    CLOSING = enum.auto()
    OVER = enum.auto()


class AttemptEvent(enum.Enum):
    """What can happen to an attempt."""

    EARLY = "early data may be sent"
    PROOF = "the proof is valid"
    TUNNEL_POSSIBLE = "a tunnel is possible"
    GRANT = "the tunnel is granted"
    ALL_DONE = "nothing is outstanding"
    HAND_OVER = "the session is handed over"
    NO_PROOF = "the proof is missing"
    PAGE_POSSIBLE = "the page can be requested"
    PAGE_HERE = "the page has arrived"
    ICON_DUE = "the icon is due"
    LINGERED = "the pause is over"
    DEADLINE = "the deadline has passed"
    ENDED_BY_PEER = "the peer closed"
    ENDED_BY_STACK = "the stack must close"
    FAILURE = "a step failed"
    CLOSE = "close()"
    SENT = "the CLOSE is sent"
    ABANDON = "abandon()"


class AttemptEffect(enum.Enum):
    """What ``ClientHandshake`` performs."""

    NEW_DEADLINE = "new deadline"
    NO_DEADLINE = "no deadline"
    LINGER = "linger"
    ASK_EARLY = "request early"
    ASK_TUNNEL = "request the tunnel"
    ASK_PAGE = "request the page"
    PLAN_ICON = "plan the icon"
    ASK_ICON = "request the icon"
    TELL_PROVEN = "report proven"
    TELL_NOT_RECOGNISED = "report not recognised"
    TELL_GRANTED = "report granted"
    TELL_READY = "report ready"
    TELL_SITE = "report the site"
    TELL_NO_ANSWER = "report no answer"
    TELL_UNFINISHED = "report unfinished"
    TELL_END = "report the end"
    TELL_FAILURE = "report failure"
    TELL_CLOSED = "report closed"
    CLOSE = "close"
    SILENCE = "stop sending"


class AttemptRule(NamedTuple):
    """The next state, and the effects in their order."""

    becomes: AttemptState
    effects: tuple[AttemptEffect, ...]


_S, _E, _DO = AttemptState, AttemptEvent, AttemptEffect
#: States that share a row, by the name that they have there.
GROUPS: Final[dict[str, tuple[AttemptState, ...]]] = {
    "to the tunnel": (_S.GREETING, _S.HURRYING, _S.PROVEN, _S.ASKING, _S.GRANTED, _S.READY),
    "at the site": (_S.VISITING, _S.LEAVING),
    "not over": tuple(state for state in _S if state is not _S.OVER),
}
_TUNNEL, _SITE = GROUPS["to the tunnel"], GROUPS["at the site"]


def _rows(
    states: tuple[AttemptState, ...], event: AttemptEvent, becomes: AttemptState, *effects: AttemptEffect
) -> dict[tuple[AttemptState, AttemptEvent], AttemptRule]:
    return {(state, event): AttemptRule(becomes, effects) for state in states}


ATTEMPT_RULES: Final[dict[tuple[AttemptState, AttemptEvent], AttemptRule]] = (
    _rows((_S.GREETING,), _E.EARLY, _S.HURRYING, _DO.ASK_EARLY)
    | _rows((_S.GREETING,), _E.PROOF, _S.PROVEN, _DO.NEW_DEADLINE, _DO.TELL_PROVEN)
    | _rows((_S.HURRYING,), _E.PROOF, _S.ASKING, _DO.NEW_DEADLINE, _DO.TELL_PROVEN)
    | _rows((_S.PROVEN,), _E.TUNNEL_POSSIBLE, _S.ASKING, _DO.ASK_TUNNEL)
    | _rows((_S.ASKING,), _E.GRANT, _S.GRANTED, _DO.TELL_GRANTED, _DO.PLAN_ICON)
    | _rows((_S.GRANTED,), _E.ICON_DUE, _S.GRANTED, _DO.ASK_ICON)
    | _rows((_S.GRANTED,), _E.ALL_DONE, _S.READY, _DO.NO_DEADLINE, _DO.TELL_READY)
    | _rows((_S.READY,), _E.HAND_OVER, _S.OVER, _DO.SILENCE)
    | _rows((_S.GREETING, _S.HURRYING), _E.NO_PROOF, _S.VISITING, _DO.NEW_DEADLINE, _DO.TELL_NOT_RECOGNISED)
    | _rows((_S.VISITING,), _E.PAGE_POSSIBLE, _S.VISITING, _DO.ASK_PAGE)
    | _rows((_S.VISITING,), _E.PAGE_HERE, _S.LEAVING, _DO.NO_DEADLINE, _DO.LINGER, _DO.PLAN_ICON)
    | _rows((_S.LEAVING,), _E.ICON_DUE, _S.LEAVING, _DO.ASK_ICON)
    | _rows((_S.LEAVING,), _E.LINGERED, _S.CLOSING, _DO.TELL_SITE, _DO.CLOSE)
    | _rows((_S.VISITING,), _E.DEADLINE, _S.CLOSING, _DO.TELL_SITE, _DO.CLOSE)
    | _rows((_S.GREETING, _S.HURRYING), _E.DEADLINE, _S.CLOSING, _DO.TELL_NO_ANSWER, _DO.CLOSE)
    | _rows((_S.PROVEN, _S.ASKING, _S.GRANTED), _E.DEADLINE, _S.CLOSING, _DO.TELL_UNFINISHED, _DO.CLOSE)
    | _rows(_TUNNEL, _E.ENDED_BY_PEER, _S.OVER, _DO.TELL_END, _DO.SILENCE, _DO.TELL_CLOSED)
    | _rows(_SITE, _E.ENDED_BY_PEER, _S.OVER, _DO.TELL_SITE, _DO.SILENCE, _DO.TELL_CLOSED)
    | _rows(_TUNNEL, _E.ENDED_BY_STACK, _S.CLOSING, _DO.TELL_END)
    | _rows(_SITE, _E.ENDED_BY_STACK, _S.CLOSING, _DO.TELL_SITE)
    | _rows((*_TUNNEL, *_SITE), _E.FAILURE, _S.CLOSING, _DO.TELL_FAILURE, _DO.CLOSE)
    | _rows((*_TUNNEL, *_SITE), _E.CLOSE, _S.CLOSING, _DO.CLOSE)
    | _rows((_S.CLOSING,), _E.SENT, _S.OVER, _DO.SILENCE, _DO.TELL_CLOSED)
    | _rows(GROUPS["not over"], _E.ABANDON, _S.OVER, _DO.SILENCE, _DO.TELL_CLOSED)
)

#: What is looked for after every step, each in the states that have a row for it.
LOOKED_FOR: Final = (
    AttemptEvent.EARLY,
    AttemptEvent.TUNNEL_POSSIBLE,
    AttemptEvent.ALL_DONE,
    AttemptEvent.PAGE_POSSIBLE,
    AttemptEvent.PAGE_HERE,
    AttemptEvent.ICON_DUE,
)
#: What is reported in the words of the table.
WORDS: Final[dict[AttemptEffect, ClientEvent]] = {
    AttemptEffect.TELL_PROVEN: Proven(),
    AttemptEffect.TELL_NOT_RECOGNISED: NotRecognised(),
    AttemptEffect.TELL_READY: HandOverReady(),
    AttemptEffect.TELL_NO_ANSWER: HandshakeFailed("no answer in time", cause=Cause.NO_ANSWER),
    AttemptEffect.TELL_UNFINISHED: HandshakeFailed(
        "the server did not finish the handshake in time", cause=Cause.UNFINISHED
    ),
    AttemptEffect.TELL_CLOSED: Closed(),
}
