"""The life of one established session as a table: state and event determine the next state and the effects.
``Session`` and ``Sending`` perform these rows and nothing else::

    state         what happens             becomes       effects
    -----------   ----------------------   -----------   ------------------
    held          the peer uses it         established   confirm
    held          protocol violation       held          report loss
    held          CLOSE sealed             closing       keep CLOSE
    held          dropped                  ended         release
    held          ended at once            ended         report loss, release
    established   protocol violation       established   report loss
    established   nothing comes back       established   report loss
    established   CLOSE sealed             closing       keep CLOSE
    established   dropped                  ended         release
    established   ended at once            ended         report loss, release
    closing       batch received           closing       answer rarely
    closing       ended at once            ended         release
    closing       three PTO passed         ended         release

A server's session is held from its installation until the peer uses it: nothing is sent. *The peer uses it*: first
packet at or above the base. *Ended at once*: idle, unconfirmed, the peer's close or reset, a limit. RFC 9000 §10.2.1:
the closing end answers with the same CLOSE, less and less often, for three PTO. *Nothing comes
back*: a client has waited as long as a browser (``loss``). After this, or a protocol violation, a CLOSE is sealed at
once; without a packet number for it, the session ends. A session that has ended has no rows: nothing can
happen to it.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class LifeState(enum.StrEnum):
    """Where a session is in its life; the words of refusals."""

    HELD = "held"
    ESTABLISHED = "established"
    CLOSING = "closing"
    ENDED = "ended"


class LifeEvent(enum.Enum):
    """What can happen to a session."""

    USED = "the peer uses it"
    BROKEN = "protocol violation"
    UNANSWERED = "nothing comes back"
    SEALED = "CLOSE sealed"
    DROPPED = "dropped"
    OVER = "ended at once"
    BATCH = "batch received"
    TIME_UP = "three PTO passed"


class LifeEffect(enum.Enum):
    """What the session performs."""

    CONFIRM = "confirm"
    TELL_LOST = "report loss"
    KEEP_CLOSE = "keep CLOSE"
    ANSWER_RARELY = "answer rarely"
    RELEASE = "release"


class LifeRule(NamedTuple):
    """The next state, and the effects in their order."""

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
    (_S.ESTABLISHED, _E.UNANSWERED): LifeRule(_S.ESTABLISHED, (_DO.TELL_LOST,)),
    (_S.ESTABLISHED, _E.SEALED): LifeRule(_S.CLOSING, (_DO.KEEP_CLOSE,)),
    (_S.ESTABLISHED, _E.DROPPED): LifeRule(_S.ENDED, (_DO.RELEASE,)),
    (_S.ESTABLISHED, _E.OVER): LifeRule(_S.ENDED, (_DO.TELL_LOST, _DO.RELEASE)),
    (_S.CLOSING, _E.BATCH): LifeRule(_S.CLOSING, (_DO.ANSWER_RARELY,)),
    (_S.CLOSING, _E.OVER): LifeRule(_S.ENDED, (_DO.RELEASE,)),
    (_S.CLOSING, _E.TIME_UP): LifeRule(_S.ENDED, (_DO.RELEASE,)),
}
