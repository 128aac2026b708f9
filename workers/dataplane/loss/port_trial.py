"""A client's trial of a new port, and the move to it: RFC 9000 §8.2, §9.2 and §9.5. Sans-IO.

As Chromium 156: three PATH_CHALLENGEs of 1,250 bytes with a spare connection ID of the peer's, 300 ms apart, from
another socket, while the old one goes on; when one is answered, the session moves there, and the old connection ID
is retired. In vain, or needed no more: the spare one is retired, because an observer has seen it (§9.5). A data plane
has no sockets of its own: it wants a port, and is lent one (``PortWanted``, ``NewPort``, ``PortTried``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Final

from qre.dataplane.new_port import APART, CHALLENGES, Trials
from qre.dataplane.protocol import PortTried, PortUse, PortWanted, Refusal, SessionRefusedError
from qre.wire.frames import Ack
from qre.wire.overhead import BROWSER_UDP_PAYLOAD
from qre.workers.dataplane.session.path import Challenges
from qre.workers.dataplane.session.peer_cids import PeerCid
from qre.workers.dataplane.session.session import Session

_NEVER: Final = float("inf")


class PortTrial:
    """Of one session; ``random`` gives bytes for PATH_CHALLENGE. ``number``: of the socket that is being tried, 0:
    none. ``used``: the port that the session has moved to, None: it has its first one."""

    def __init__(self, session: Session, random: Callable[[int], bytes]) -> None:
        self._session: Session = weakref.proxy(session)  # the owner
        self._random = random
        self._trials = Trials()
        self._wanted = False
        self.number = 0
        self.used: PortUse | None = None
        self._cid: PeerCid | None = None
        self._challenges = Challenges()
        self._numbers: list[int] = []  # of the packets with its PATH_CHALLENGEs
        self._next_at = _NEVER

    def begin(self, now: float) -> None:
        """The path is a bad one: ask for a port, if the peer has given a connection ID for it."""
        session = self._session
        if self._cid is not None or not session.paths.has_spare or not self._trials.begin(now):
            return
        self._wanted = True
        session.events.append(PortWanted(session_id=session.session_id))

    def lend(self, number: int, now: float) -> None:
        """Socket ``number`` is there: try it. Raises SessionRefusedError when it is wanted no more."""
        if not self._wanted or not number:
            raise SessionRefusedError(Refusal.OTHER, "no port is wanted")
        self._wanted = False
        cid = self._session.paths.take_spare()
        if cid is None:
            raise SessionRefusedError(Refusal.OTHER, "the peer has taken the spare connection id back")
        self._cid, self.number = cid, number
        self._challenges, self._numbers = Challenges(), []
        recovery = self._session.recovery
        recovery.largest_heard = recovery.largest_acked  # it may be an earlier trial's
        self._challenge(now)

    def _challenge(self, now: float) -> None:
        assert self._cid is not None
        self._next_at = now + APART
        frame = self._challenges.frame(self._random(8))
        session = self._session
        session.put_frames_elsewhere(frame, session.peer, self._cid.cid, BROWSER_UDP_PAYLOAD, new_port=True)
        self._numbers.append(session.packets.next_number - 1)

    def largest_heard(self, ack: Ack) -> int:
        """The largest acknowledged number that is not of the trial; -1: there is none."""
        for first, last in ack.ranges:
            number = last
            while number >= first and number in self._numbers:
                number -= 1
            if number >= first:
                return number
        return -1

    def heard(self) -> None:
        """The peer is heard on the old path: a port that has not come yet is needed no more."""
        self._wanted = False

    def cid_issued(self, now: float) -> None:
        """The peer may have taken back the connection ID that the trial has (Retire Prior To): then it is over."""
        if self._cid is not None and self._session.paths.cids.wanted_back(self._cid):
            self._give_back(now)

    def answered(self, data: bytes, now: float, *, silent: bool) -> bool:
        """PATH_RESPONSE; whether it is this trial's and the session has moved. ``silent``: nothing is heard on the
        old path."""
        cid = self._cid
        if cid is None or not self._challenges.answered_by(data):
            return False
        if not silent:
            self._give_back(now)
            return False
        self.used = PortUse(number=self.number, connection_id=cid.cid, sequence=cid.sequence, reset_token=cid.token)
        self._end(self.used)
        self._session.paths.move_to(cid, now)
        return True

    def _give_back(self, now: float) -> None:
        cid = self._cid
        assert cid is not None
        self._end(None)
        self._session.paths.give_back(cid, now)

    def _end(self, moved: PortUse | None) -> None:
        session = self._session
        session.events.append(PortTried(session_id=session.session_id, number=self.number, moved=moved))
        self._cid, self.number, self._next_at = None, 0, _NEVER

    def deadline(self) -> float:
        """When to call ``handle_timer``."""
        return self._next_at

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if now < self._next_at:
            return
        if len(self._numbers) < CHALLENGES:
            self._challenge(now)
        else:
            self._give_back(now)
