"""Which worker may send which message to whom: the closed table by which the supervisor forwards messages.

A row reads: a message of this type, sent by this role, may go to that role; ``request`` says whether it asks for an
answer, ``when`` in which part of the sender's life it may come. A message without a row is dropped, counted and
logged: a compromised worker can do what its row says, and nothing more.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from qre.ipc.messages import (
    CidAdopt,
    CidRelease,
    CidSync,
    DestAddressReport,
    DestProfileReport,
    DeviceTampered,
    Hello,
    LinkGone,
    NetworkChanged,
    Party,
    ResolveName,
    RoleState,
    SocketRelease,
    SocketRequest,
    StoreRequest,
    VisitDest,
)
from qre.kernel.udp.port_errors import PortError
from qre.structs import Message


class When(enum.Enum):
    """In which part of the sender's life a message may come."""

    ONCE = "once, before anything else"
    STARTING = "once it was told to start"
    READY = "once it said that it is ready"


@dataclass(frozen=True)
class Route:
    to: Party
    request: bool
    when: When


_ONCE = Route(Party.SUPERVISOR, False, When.ONCE)
_TELL = Route(Party.SUPERVISOR, False, When.STARTING)
_ASK = Route(Party.SUPERVISOR, True, When.STARTING)
_STEER = Route(Party.BPF_LOADER, True, When.STARTING)

ROUTES: Final[dict[Party, dict[type[Message], Route]]] = {
    Party.HANDSHAKE: {
        Hello: _ONCE,
        RoleState: _TELL,
        SocketRequest: _ASK,
        StoreRequest: _ASK,
        SocketRelease: _TELL,
        NetworkChanged: _TELL,
        DestProfileReport: _TELL,
        DestAddressReport: _TELL,
        VisitDest: _ASK,
        ResolveName: _ASK,
        CidAdopt: _STEER,
        CidRelease: _STEER,
        CidSync: _STEER,
        PortError: _STEER,
    },
    Party.BPF_LOADER: {Hello: _ONCE},
    Party.NETLINK: {
        Hello: _ONCE,
        LinkGone: _TELL,
        DeviceTampered: _TELL,
        NetworkChanged: Route(Party.HANDSHAKE, False, When.STARTING),
        CidAdopt: _STEER,
        CidRelease: _STEER,
        CidSync: _STEER,
    },
    Party.DATAPLANE: {Hello: _ONCE},
    Party.VISIT: {Hello: _ONCE},
    Party.RESOLVER: {Hello: _ONCE},
}


def route(sender: Party, to: Party, kind: type[Message], *, request: bool) -> Route | None:
    """The row for a message of this kind; None when there is none."""
    found = ROUTES[sender].get(kind)
    if found is None or found.to is not to or found.request is not request:
        return None
    return found
