"""What the daemon decides of a client's session in qre.ko that hears nothing: when it ends, and which port it tries.

The module tells that a path is a bad one. It is ordered when the session ends (``degraded_paths``), and the handshake
worker is asked for a socket, as often as on the user data plane (``qre.dataplane.new_port``); the module sends the
PATH_CHALLENGEs and tells whether the port answers. Then the session moves there, unless it is heard on the old path
again: the module knows that at the very moment, and refuses. What the handshake worker is told is what the user data
plane tells. A module of an earlier version offers no port, and none is asked for. A dead daemon moves nothing.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from qre.dataplane.new_port import Trials
from qre.dataplane.protocol import DataplaneReport, NewPort, PortTried, PortUse, PortWanted, SessionMark
from qre.errors import MachineError, QreError
from qre.ipc import descriptors
from qre.ipc.roles import CLIENT_UDP
from qre.kernel.answers import KernelSession, PathDegraded, PortAnswered, PortDropped
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.workers.netlink.degraded_paths import order_end

PortNews = PathDegraded | PortAnswered | PortDropped

#: The port is not tried any more, or the session or its device is gone.
_GONE: Final = (errno.ENOENT, errno.ENODEV)


@dataclass
class _Ports:
    """Of one session. ``wanted``: a socket was asked for. ``number``: of the one that is tried, 0: none. ``used``:
    what it has moved to."""

    trials: Trials = field(default_factory=Trials)
    wanted: bool = False
    number: int = 0
    used: PortUse | None = None


class KernelPorts:
    """Those of one device's sessions; ``report`` sends to the handshake worker."""

    def __init__(
        self,
        qre: Qre,
        device: str,
        report: Callable[[DataplaneReport], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._qre = qre
        self._device = device
        self._report = report
        self._clock = clock
        self._of: dict[bytes, _Ports] = {}

    def happened(self, news: PortNews) -> None:
        """An event of the module. Raises NetlinkRefusedError when it refuses what it should take."""
        ports = self._of.setdefault(news.session_id, _Ports())
        match news:
            case PathDegraded(session_id=session_id):
                order_end(self._qre, self._device, news)
                if news.spare and not ports.number and ports.trials.begin(self._clock()):
                    ports.wanted = True
                    self._report(PortWanted(session_id=session_id))
            case PortAnswered():
                self._answered(ports, news)
            case PortDropped(session_id=session_id):
                self._over(session_id, ports, None)

    def lend(self, request: NewPort, fds: list[int]) -> None:
        """The socket that was asked for, once, or the number of one that is tried since an earlier process. Raises
        NetlinkRefusedError when it is wanted no more, QreError when it is none, or was not asked for."""
        if request.again:
            self._known_again(request)
            return
        ports = self._of.get(request.session_id)
        if ports is None or not ports.wanted or not request.number:
            raise QreError("session", "no port is wanted")
        ports.wanted = False
        self._qre.session_try_port(self._device, request.session_id, client_socket(fds))
        ports.number = request.number

    def _known_again(self, request: NewPort) -> None:
        session = self._qre.session(self._device, request.session_id)
        ports = self._of.setdefault(request.session_id, _Ports())
        if session is None or not session.tries or ports.number or not request.number:
            raise QreError("session", "no such port is tried")
        ports.number, ports.wanted = request.number, False

    def _answered(self, ports: _Ports, news: PortAnswered) -> None:
        """Of a port whose number is not known yet, or no more, nothing can be told to who holds its socket."""
        session_id, moved = news.session_id, False
        if ports.number:
            moved = self._done(lambda: self._qre.session_move(self._device, session_id), errno.EALREADY)
        if moved:
            use = PortUse(
                number=ports.number, connection_id=news.connection_id, sequence=news.sequence, reset_token=None
            )
            self._over(session_id, ports, use)
            return
        self._done(lambda: self._qre.session_drop_port(self._device, session_id))
        self._over(session_id, ports, None)

    def _done(self, order: Callable[[], None], *refusals: int) -> bool:
        """Whether the module has taken the order; it may come too late, or be refused for one of these reasons."""
        try:
            order()
        except NetlinkRefusedError as error:
            if error.code not in (*_GONE, *refusals):
                raise
            return False
        return True

    def _over(self, session_id: bytes, ports: _Ports, moved: PortUse | None) -> None:
        number, ports.number = ports.number, 0
        if moved is not None:
            ports.used = moved
        if number:
            self._report(PortTried(session_id=session_id, number=number, moved=moved))

    def look(self, sessions: Iterable[KernelSession]) -> None:
        """Compare with a listing of all sessions of the device: an event may have been lost."""
        tries = {session.status.session_id: session.tries for session in sessions}
        self._of = {session_id: ports for session_id, ports in self._of.items() if session_id in tries}
        for session_id, ports in self._of.items():
            if not tries[session_id]:
                self._over(session_id, ports, None)

    def marked(self, mark: SessionMark) -> SessionMark:
        """The session's mark, with its ports."""
        ports = self._of.get(mark.session_id)
        if ports is None:
            return mark
        return msgspec.structs.replace(mark, port=ports.used, lent=ports.number)


def client_socket(fds: list[int]) -> int:
    """The UDP socket of a client that came with a request. Raises QreError when it is another thing."""
    if len(fds) != 1:
        raise QreError("session", "a client session comes with its socket")
    try:
        descriptors.check(fds[0], CLIENT_UDP)
    except MachineError as error:
        raise QreError("session", str(error)) from error
    return fds[0]
