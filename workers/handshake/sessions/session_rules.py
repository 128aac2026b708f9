"""The life of a live session as a table: stage and event determine the next stage and the effects. ``Sessions``
performs these rows and nothing else::

    stage        what happens                        becomes      effects
    ----------   ---------------------------------   ----------   ------------------------------------------
    (none)       the handshake is complete           INSTALLING   ask to install
    (none)       found, not confirmed                INSTALLING   -
    (none)       found, confirmed                    RESTORING    -
    INSTALLING   the data plane has it               INSTALLED    ready
    INSTALLING   the data plane does not have it     INSTALLING   ask to install
    INSTALLING   the peer uses it                    UP           confirm, settle, replace orphans
    INSTALLING   lost or refused                     (gone)       forget
    INSTALLING   deleted                             (gone)       ask to delete, forget
    INSTALLED    the data plane has it               INSTALLED    ready
    INSTALLED    the data plane does not have it     INSTALLING   ask to install
    INSTALLED    the peer uses it                    UP           confirm, settle, replace orphans
    INSTALLED    lost or refused                     (gone)       forget
    INSTALLED    deleted                             (gone)       ask to delete, forget
    UP           the data plane has it               UP           ready, settle
    UP           the data plane does not have it     RESTORING    ask to install
    UP           the peer uses it                    UP           -
    UP           lost or refused                     (gone)       forget
    UP           deleted                             (gone)       ask to delete, forget
    RESTORING    the data plane has it               UP           ready, settle
    RESTORING    the data plane does not have it     RESTORING    ask to install
    RESTORING    the peer uses it                    UP           -
    RESTORING    lost or refused                     (gone)       forget
    RESTORING    deleted                             (gone)       ask to delete, forget

A session is INSTALLING or INSTALLED until its peer has used it, and UP or RESTORING from then on: its record says
which, and survives the process. RESTORING: the session was up, and the data plane, perhaps a new one, has not yet
answered that it has it. *Found*: an earlier process left the session; the comparison shows whether the data plane has
it. The peer may use a session before the data plane has answered, and a new data plane reports again a peer that was
confirmed before; that changes nothing. That a client's session has begun, and carries packets, is no stage: the peer
uses it when it was heard, which on an idle tunnel takes until the data plane asks it. An installation whose epoch is
behind is repeated: the data plane does not have the session.

*Ready*: its timer runs, its connection IDs may be steered, and its owner is told. *Settle*: connection IDs of the
handshake are retired and spare ones issued (``settling``). *Confirm*: the record is written, then the owner is told.
A session that is gone has no rows: nothing can happen to it.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class SessionStage(enum.Enum):
    """Where a session is in its life."""

    NONE = "(none)"
    INSTALLING = "INSTALLING"
    INSTALLED = "INSTALLED"
    UP = "UP"
    RESTORING = "RESTORING"
    GONE = "(gone)"


class SessionEvent(enum.Enum):
    """What can happen to a session."""

    NEW = "the handshake is complete"
    FOUND = "found, not confirmed"
    FOUND_CONFIRMED = "found, confirmed"
    HELD = "the data plane has it"
    MISSING = "the data plane does not have it"
    CONFIRMED = "the peer uses it"
    LOST = "lost or refused"
    DELETED = "deleted"


class SessionEffect(enum.Enum):
    """What ``Sessions`` performs."""

    ASK_INSTALL = "ask to install"
    ASK_DELETE = "ask to delete"
    READY = "ready"
    CONFIRM = "confirm"
    SETTLE = "settle"
    REPLACE_ORPHANS = "replace orphans"
    FORGET = "forget"


class SessionRule(NamedTuple):
    """The next stage, and the effects in their order."""

    becomes: SessionStage
    effects: tuple[SessionEffect, ...] = ()


_S, _E, _DO = SessionStage, SessionEvent, SessionEffect
_ASK, _READY, _READY_AGAIN = (_DO.ASK_INSTALL,), (_DO.READY,), (_DO.READY, _DO.SETTLE)
_CONFIRM = (_DO.CONFIRM, _DO.SETTLE, _DO.REPLACE_ORPHANS)
_FORGET, _DELETE = (_DO.FORGET,), (_DO.ASK_DELETE, _DO.FORGET)
SESSION_RULES: Final[dict[tuple[SessionStage, SessionEvent], SessionRule]] = {
    (_S.NONE, _E.NEW): SessionRule(_S.INSTALLING, _ASK),
    (_S.NONE, _E.FOUND): SessionRule(_S.INSTALLING),
    (_S.NONE, _E.FOUND_CONFIRMED): SessionRule(_S.RESTORING),
    (_S.INSTALLING, _E.HELD): SessionRule(_S.INSTALLED, _READY),
    (_S.INSTALLING, _E.MISSING): SessionRule(_S.INSTALLING, _ASK),
    (_S.INSTALLING, _E.CONFIRMED): SessionRule(_S.UP, _CONFIRM),
    (_S.INSTALLING, _E.LOST): SessionRule(_S.GONE, _FORGET),
    (_S.INSTALLING, _E.DELETED): SessionRule(_S.GONE, _DELETE),
    (_S.INSTALLED, _E.HELD): SessionRule(_S.INSTALLED, _READY),
    (_S.INSTALLED, _E.MISSING): SessionRule(_S.INSTALLING, _ASK),
    (_S.INSTALLED, _E.CONFIRMED): SessionRule(_S.UP, _CONFIRM),
    (_S.INSTALLED, _E.LOST): SessionRule(_S.GONE, _FORGET),
    (_S.INSTALLED, _E.DELETED): SessionRule(_S.GONE, _DELETE),
    (_S.UP, _E.HELD): SessionRule(_S.UP, _READY_AGAIN),
    (_S.UP, _E.MISSING): SessionRule(_S.RESTORING, _ASK),
    (_S.UP, _E.CONFIRMED): SessionRule(_S.UP),
    (_S.UP, _E.LOST): SessionRule(_S.GONE, _FORGET),
    (_S.UP, _E.DELETED): SessionRule(_S.GONE, _DELETE),
    (_S.RESTORING, _E.HELD): SessionRule(_S.UP, _READY_AGAIN),
    (_S.RESTORING, _E.MISSING): SessionRule(_S.RESTORING, _ASK),
    (_S.RESTORING, _E.CONFIRMED): SessionRule(_S.UP),
    (_S.RESTORING, _E.LOST): SessionRule(_S.GONE, _FORGET),
    (_S.RESTORING, _E.DELETED): SessionRule(_S.GONE, _DELETE),
}
