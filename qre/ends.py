"""Which end of a tunnel a process is, where sessions live and who answers: closed sets that the light commands need.

Kept apart from ``qre.dataplane.protocol`` so that ``qre-tool help`` and ``strip`` start without loading the messages.
"""

from __future__ import annotations

import enum

DEFAULT_MTU = 1380
DEFAULT_TIME_DIFF_MS = 60_000
#: Clients of a server that its profile can name, and sessions of a device.
MAX_CLIENTS = 2000
#: Addresses at which a server listens. qre_reuseport.bpf.c has the same number.
MAX_LISTEN = 8
#: Addresses of a name that the process which looks it up tells.
MAX_ADDRESSES = 64


class Role(enum.StrEnum):
    """Which end of a tunnel this is."""

    SERVER = "server"
    CLIENT = "client"


class Dataplane(enum.StrEnum):
    """Where established sessions live."""

    AUTO = "auto"
    KERNEL = "kernel"
    USER = "user"


#: As a length of routed connection IDs: that of the connection IDs that Dest chooses, which are the routed ones then.
LIKE_DEST = 0


class WhenDestIsDown(enum.StrEnum):
    """What a server's clients get while Dest cannot be reached."""

    SILENT = "silent"
    IMITATE = "imitate"


class EndpointOrder(enum.StrEnum):
    """In which order a client tries its servers."""

    LISTED = "listed"
    RANDOM = "random"


class Forward(enum.StrEnum):
    """Whether a server forwards its tunnel's packets, and with whose addresses."""

    OFF = "off"
    ROUTE = "route"
    NAT = "nat"
