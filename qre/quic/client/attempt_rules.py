"""A client's attempt as a table: its state and what happens to it give the next state and the effects.
``ClientHandshake`` does what stands here and nothing else::

    to the tunnel: GREETING, PROVEN, ASKING, GRANTED, READY
    at the site: VISITING, LEAVING
    not over: GREETING, PROVEN, ASKING, GRANTED, READY, VISITING, LEAVING, CLOSING

    state           what happens                 becomes    effects
    -------------   --------------------------   --------   -------------------------------------------
    GREETING        the proof is right           PROVEN     new deadline, tell proven
    PROVEN          a tunnel is possible         ASKING     ask for the tunnel
    ASKING          the tunnel is granted        GRANTED    tell granted
    GRANTED         nothing is outstanding       READY      no deadline, tell ready
    READY           it is handed over            OVER       fall silent
    GREETING        the proof is not there       VISITING   new deadline, tell not recognised
    VISITING        the page may be asked for    VISITING   ask for the page
    VISITING        the page is here             LEAVING    no deadline, linger
    LEAVING         the moment is over           CLOSING    tell of the site, close
    VISITING        the deadline is over         CLOSING    tell of the site, close
    GREETING        the deadline is over         CLOSING    tell no answer, close
    PROVEN          the deadline is over         CLOSING    tell unfinished, close
    ASKING          the deadline is over         CLOSING    tell unfinished, close
    GRANTED         the deadline is over         CLOSING    tell unfinished, close
    to the tunnel   the peer ended it            OVER       tell the end, fall silent, tell closed
    at the site     the peer ended it            OVER       tell of the site, fall silent, tell closed
    to the tunnel   the stack must end it        CLOSING    tell the end
    at the site     the stack must end it        CLOSING    tell of the site
    to the tunnel   it failed                    CLOSING    tell failure, close
    at the site     it failed                    CLOSING    tell failure, close
    to the tunnel   close()                      CLOSING    close
    at the site     close()                      CLOSING    close
    CLOSING         the CLOSE is sent            OVER       fall silent, tell closed
    not over        abandon()                    OVER       fall silent, tell closed

GREETING lasts until TLS is complete. Then the server has proved itself, or the chain is good for ServerName (of a
probe, whatever the chain): it is the site, which is visited as a browser would, «/» and a moment. A certificate that
is neither has made TLS fail, which is *tell the end*'s to say. Requests wait until the handshake is confirmed.

*Nothing is outstanding*: the server's last frame is here and acknowledged, and so is everything of ours. The last
frame is NEW_CONNECTION_ID with the routed connection ID, or a PING when the server's handshake CID is the routed one.
A deadline stands over every state but READY and LEAVING; a site that does not answer is left when it is over.
CLOSING: a CLOSE is to be sent, which the stack makes itself where *it must end it*. From OVER on nothing is sent.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class AttemptState(enum.Enum):
    """Where an attempt is."""

    GREETING = enum.auto()
    PROVEN = enum.auto()
    ASKING = enum.auto()
    GRANTED = enum.auto()
    READY = enum.auto()
    VISITING = enum.auto()
    LEAVING = enum.auto()
    CLOSING = enum.auto()
    OVER = enum.auto()


class AttemptEvent(enum.Enum):
    """What can happen to it."""

    PROOF = "the proof is right"
    TUNNEL_POSSIBLE = "a tunnel is possible"
    GRANT = "the tunnel is granted"
    ALL_DONE = "nothing is outstanding"
    HAND_OVER = "it is handed over"
    NO_PROOF = "the proof is not there"
    PAGE_POSSIBLE = "the page may be asked for"
    PAGE_HERE = "the page is here"
    LINGERED = "the moment is over"
    DEADLINE = "the deadline is over"
    ENDED_BY_PEER = "the peer ended it"
    ENDED_BY_STACK = "the stack must end it"
    FAILURE = "it failed"
    CLOSE = "close()"
    SENT = "the CLOSE is sent"
    ABANDON = "abandon()"


class AttemptEffect(enum.Enum):
    """What ``ClientHandshake`` does then."""

    NEW_DEADLINE = "new deadline"
    NO_DEADLINE = "no deadline"
    LINGER = "linger"
    ASK_TUNNEL = "ask for the tunnel"
    ASK_PAGE = "ask for the page"
    TELL_PROVEN = "tell proven"
    TELL_NOT_RECOGNISED = "tell not recognised"
    TELL_GRANTED = "tell granted"
    TELL_READY = "tell ready"
    TELL_SITE = "tell of the site"
    TELL_NO_ANSWER = "tell no answer"
    TELL_UNFINISHED = "tell unfinished"
    TELL_END = "tell the end"
    TELL_FAILURE = "tell failure"
    TELL_CLOSED = "tell closed"
    CLOSE = "close"
    SILENCE = "fall silent"


class AttemptRule(NamedTuple):
    """Where an attempt goes, and what is done, in this order."""

    becomes: AttemptState
    effects: tuple[AttemptEffect, ...]


_S, _E, _DO = AttemptState, AttemptEvent, AttemptEffect
#: States that share a row, by the name that they have there.
GROUPS: Final[dict[str, tuple[AttemptState, ...]]] = {
    "to the tunnel": (_S.GREETING, _S.PROVEN, _S.ASKING, _S.GRANTED, _S.READY),
    "at the site": (_S.VISITING, _S.LEAVING),
    "not over": tuple(state for state in _S if state is not _S.OVER),
}
_TUNNEL, _SITE = GROUPS["to the tunnel"], GROUPS["at the site"]


def _rows(
    states: tuple[AttemptState, ...], event: AttemptEvent, becomes: AttemptState, *effects: AttemptEffect
) -> dict[tuple[AttemptState, AttemptEvent], AttemptRule]:
    return {(state, event): AttemptRule(becomes, effects) for state in states}


ATTEMPT_RULES: Final[dict[tuple[AttemptState, AttemptEvent], AttemptRule]] = (
    _rows((_S.GREETING,), _E.PROOF, _S.PROVEN, _DO.NEW_DEADLINE, _DO.TELL_PROVEN)
    | _rows((_S.PROVEN,), _E.TUNNEL_POSSIBLE, _S.ASKING, _DO.ASK_TUNNEL)
    | _rows((_S.ASKING,), _E.GRANT, _S.GRANTED, _DO.TELL_GRANTED)
    | _rows((_S.GRANTED,), _E.ALL_DONE, _S.READY, _DO.NO_DEADLINE, _DO.TELL_READY)
    | _rows((_S.READY,), _E.HAND_OVER, _S.OVER, _DO.SILENCE)
    | _rows((_S.GREETING,), _E.NO_PROOF, _S.VISITING, _DO.NEW_DEADLINE, _DO.TELL_NOT_RECOGNISED)
    | _rows((_S.VISITING,), _E.PAGE_POSSIBLE, _S.VISITING, _DO.ASK_PAGE)
    | _rows((_S.VISITING,), _E.PAGE_HERE, _S.LEAVING, _DO.NO_DEADLINE, _DO.LINGER)
    | _rows((_S.LEAVING,), _E.LINGERED, _S.CLOSING, _DO.TELL_SITE, _DO.CLOSE)
    | _rows((_S.VISITING,), _E.DEADLINE, _S.CLOSING, _DO.TELL_SITE, _DO.CLOSE)
    | _rows((_S.GREETING,), _E.DEADLINE, _S.CLOSING, _DO.TELL_NO_ANSWER, _DO.CLOSE)
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
