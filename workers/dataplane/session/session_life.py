"""The life of one established session as a table: its state and what happens to it give the next state and the
effects. ``Session`` and ``Sending`` do what stands here and nothing else::

    state         what happens             becomes       effects
    -----------   ----------------------   -----------   ------------------
    held          the peer uses it         established   confirm
    held          the peer breaks QUIC     held          tell lost
    held          a CLOSE is sealed        closing       keep the CLOSE
    held          it is dropped            ended         release
    held          it is over               ended         tell lost, release
    established   the peer breaks QUIC     established   tell lost
    established   a CLOSE is sealed        closing       keep the CLOSE
    established   it is dropped            ended         release
    established   it is over               ended         tell lost, release
    closing       a batch comes            closing       answer rarely
    closing       it is over               ended         release
    closing       three PTO have passed    ended         release

A server's session is held from its installation until the peer has used it: nothing is sent. *The peer uses it*: its
first packet at or above the base. *It is over*: idle, unconfirmed, the peer's close or reset, a limit. RFC 9000
§10.2.1: whoever closes answers with the same CLOSE, ever more rarely, for three PTO. After the peer has broken QUIC a
CLOSE is sealed at once; where there is no packet number left for one, the session is over. What has ended has no
rows: nothing happens to it any more.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class LifeState(enum.StrEnum):
    HELD = "held"
    ESTABLISHED = "established"
    CLOSING = "closing"
    ENDED = "ended"


class LifeEvent(enum.Enum):
    """What can happen to a session."""

    USED = "the peer uses it"
    BROKEN = "the peer breaks QUIC"
    SEALED = "a CLOSE is sealed"
    DROPPED = "it is dropped"
    OVER = "it is over"
    BATCH = "a batch comes"
    TIME_UP = "three PTO have passed"


class LifeEffect(enum.Enum):
    """What the session does then."""

    CONFIRM = "confirm"
    TELL_LOST = "tell lost"
    KEEP_CLOSE = "keep the CLOSE"
    ANSWER_RARELY = "answer rarely"
    RELEASE = "release"


class LifeRule(NamedTuple):
    """Where a session goes, and what is done, in this order."""

    becomes: LifeState
    effects: tuple[LifeEffect, ...]


_S, _E, _DO = LifeState, LifeEvent, LifeEffect
LIFE_RULES: Final[dict[tuple[LifeState, LifeEvent], LifeRule]] = {
    (_S.HELD, _E.USED): LifeRule(_S.ESTABLISHED, (_DO.CONFIRM,)),
    (_S.HELD, _E.BROKEN): LifeRule(_S.HELD, (_DO.TELL_LOST,)),
    (_S.HELD, _E.SEALED): LifeRule(_S.CLOSING, (_DO.KEEP_CLOSE,)),
    (_S.HELD, _E.DROPPED): LifeRule(_S.ENDED, (_DO.RELEASE,)),
    (_S.HELD, _E.OVER): LifeRule(_S.ENDED, (_DO.TELL_LOST, _DO.RELEASE)),
    (_S.ESTABLISHED, _E.BROKEN): LifeRule(_S.ESTABLISHED, (_DO.TELL_LOST,)),
    (_S.ESTABLISHED, _E.SEALED): LifeRule(_S.CLOSING, (_DO.KEEP_CLOSE,)),
    (_S.ESTABLISHED, _E.DROPPED): LifeRule(_S.ENDED, (_DO.RELEASE,)),
    (_S.ESTABLISHED, _E.OVER): LifeRule(_S.ENDED, (_DO.TELL_LOST, _DO.RELEASE)),
    (_S.CLOSING, _E.BATCH): LifeRule(_S.CLOSING, (_DO.ANSWER_RARELY,)),
    (_S.CLOSING, _E.OVER): LifeRule(_S.ENDED, (_DO.RELEASE,)),
    (_S.CLOSING, _E.TIME_UP): LifeRule(_S.ENDED, (_DO.RELEASE,)),
}
