"""Which end of a tunnel a process is and where sessions live: two closed sets that the light commands need, too.

Kept apart from ``qre.dataplane.protocol`` so that ``qre-tool help`` and ``strip`` start without loading the messages.
"""

from __future__ import annotations

import enum

DEFAULT_MTU = 1380


class Role(enum.StrEnum):
    """Which end of a tunnel this is."""

    SERVER = "server"
    CLIENT = "client"


class Dataplane(enum.StrEnum):
    """Where established sessions live."""

    AUTO = "auto"
    KERNEL = "kernel"
    USER = "user"
