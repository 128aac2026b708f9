"""The addresses of both ends, and the peer's connection ID in use on each path: RFC 9000 §5.1, §8.2, §9; sans-IO.

Like ``kmod/migrate.c``. A new address of the peer is a candidate until the peer has answered a PATH_CHALLENGE there;
one at a time. The address in use is challenged, too: if it still answers, the packet from elsewhere was only a copy
(§9.3.3). No connection ID is used at two addresses, unless the peer has issued no other (§9.5). A mere probe is
answered, wherever it comes from, and is not a migration.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

import msgspec

from qre.dataplane.protocol import PeerMoved
from qre.ends import Role
from qre.kernel.udp.control_messages import family_of
from qre.wire import overhead
from qre.wire.frames import (
    CONNECTION_ID_LIMIT_ERROR,
    NewConnectionId,
    PathResponse,
    encode_frame,
)
from qre.workers.dataplane.session.path import PADDED, Address, Candidate
from qre.workers.dataplane.session.payload import PING
from qre.workers.dataplane.session.peer_cids import MAX_OWED, PeerCid, PeerCids
from qre.workers.dataplane.session.sending import Sending
from qre.workers.dataplane.session.session_life import LifeState

#: RETIRE_CONNECTION_ID frames of everything that can be owed.
_OWED_BYTES: Final = 9 * MAX_OWED
_NEVER: Final = float("inf")


class Paths:
    """Of one session; ``random`` gives bytes for PATH_CHALLENGE."""

    def __init__(self, sending: Sending, random: Callable[[int], bytes]) -> None:
        install = sending.install
        #: The owner; a weak reference, so that a removed session and its keys are freed at once.
        self._sending: Sending = weakref.proxy(sending)
        self._random = random
        sequence = install.cid_sequence if sending.role is Role.CLIENT else 0
        self.used = PeerCid(sending.packets.tx_cid, sequence, install.reset_token, used=True)
        self.cids = PeerCids(self.used)
        self.candidate: Candidate | None = None
        self._challenged_at = -_NEVER  # the address in use, the last time
        self._pay_at = _NEVER

    # --- connection IDs ---

    def issued(self, frame: NewConnectionId, now: float) -> bool:
        """NEW_CONNECTION_ID (§19.15): replaces connection IDs in use that the peer retires, if there is another.
        False: the session has ended."""
        candidate = self.candidate
        shared = candidate is not None and candidate.cid is self.used
        error = self.cids.issued(frame)
        if error:
            self._sending.violated(error, now)
            return False
        before = self.used
        self._use(self._replacement(before))
        if self.used is not before:
            self._retire(before, now)
        if candidate is not None and shared:
            candidate.cid = self.used
        elif candidate is not None:
            before, candidate.cid = candidate.cid, self._replacement(candidate.cid)
            if candidate.cid is not before:
                self._retire(before, now)
        self._pay(now)
        return self._sending.state is LifeState.ESTABLISHED

    def _replacement(self, used: PeerCid) -> PeerCid:
        """Another connection ID if the peer retires this one and there is a spare one; otherwise the same."""
        wanted = self.cids.wanted_back(used)
        return (self.cids.take(len(self.used.cid)) if wanted else None) or used

    def _use(self, cid: PeerCid) -> None:
        """Use this one for everything to the peer from now on; only its token makes a stateless reset (§10.3.1)."""
        self._sending.packets.reset_token = cid.token
        if cid is not self.used:
            self.used = cid
            self._sending.packets.use_cid(cid.cid)
            self._sending.set_limits()

    def _fresh_cid(self) -> PeerCid:
        """A spare one, or, when there is none, the one in use."""
        return (self.cids.take(len(self.used.cid)) if self.used.cid else None) or self.used

    @property
    def has_spare(self) -> bool:
        """Whether the peer has issued a connection ID that is not in use."""
        return bool(self.used.cid) and any(not one.used for one in self.cids.held)

    def take_spare(self) -> PeerCid | None:
        """One for a new path; None: none is spare."""
        return self.cids.take(len(self.used.cid)) if self.used.cid else None

    def give_back(self, cid: PeerCid, now: float) -> None:
        """It was seen on a path that is not taken, and is never used again (§9.5)."""
        self._retire(cid, now)
        self._pay(now)

    def move_to(self, cid: PeerCid, now: float) -> None:
        """From now on we send from another port, with this connection ID: to the peer the path is the same (§9.4)."""
        before = self.used
        self._use(cid)
        self._retire(before, now)
        self._pay(now)

    def _retire(self, cid: PeerCid, now: float) -> None:
        """§5.1.2: a peer that makes us owe so many is an attacker."""
        if not self.cids.retire(cid):
            self._sending.violated(CONNECTION_ID_LIMIT_ERROR, now)

    def _pay(self, now: float) -> None:
        """RETIRE_CONNECTION_ID until it is acknowledged; while there is no room for it, the timer asks."""
        sending = self._sending
        if self.cids.owed and sending.state is LifeState.ESTABLISHED and sending.recovery.has_room:
            sending.send_control(self.cids.pay(_OWED_BYTES), now)
        self._pay_at = now + sending.recovery.pto if self.cids.owed else _NEVER

    # --- addresses ---

    def from_elsewhere(
        self, source: Address, size: int, newest: bool, asked: Sequence[tuple[bytes, int]], now: float
    ) -> None:
        """Authentic packets of ``size`` bytes came from another address than the peer's; ``newest``: one is the
        newest, and more than a probe. ``asked``: the data of each PATH_CHALLENGE, and how large its datagram was."""
        if family_of(source[0]) != family_of(self._sending.peer[0]):
            return  # the session has its local address in one version of IP
        candidate = self.candidate
        if candidate is None or (candidate.address != source and newest):
            self._forget(now)
            candidate = self.candidate = Candidate(source, self._fresh_cid(), now, self._sending.recovery.pto)
        if candidate.address != source:  # §8.2.2: always, where it came from
            for data, brought in asked:
                self._probe(encode_frame(PathResponse(data)), source, self.used, 3 * brought)
            return
        candidate.received += size
        challenge = newest and not len(candidate.challenges)
        answers = [encode_frame(PathResponse(data)) for data, _ in asked]
        if challenge or answers:
            self._speak_to(candidate, b"".join(answers[:1]), now, challenge=challenge)
        for answer in answers[1:]:
            self._speak_to(candidate, answer, now, challenge=False)

    def _speak_to(self, candidate: Candidate, answer: bytes, now: float, *, challenge: bool) -> None:
        """Send the answer to its PATH_CHALLENGE, if any, and a PATH_CHALLENGE if one is due."""
        pto = self._sending.recovery.pto
        frames = answer + (candidate.challenge(self._random(8), now, pto) if challenge else b"")
        if frames:
            candidate.sent += self._probe(frames, candidate.address, candidate.cid, candidate.allowance())
        if challenge:
            self._challenge_before(candidate, now)

    def _probe(self, frames: bytes, to: Address, cid: PeerCid, allowance: int) -> int:
        """Frames to an address that is not validated; how many bytes were sent, within what is allowed."""
        if allowance < len(frames) + overhead.packet_overhead(len(cid.cid)):
            return 0
        return self._sending.put_frames_elsewhere(frames, to, cid.cid, min(allowance, PADDED))

    def _challenge_before(self, candidate: Candidate, now: float) -> None:
        """The address in use, no more often than a PTO allows: copies may come from many addresses."""
        sending = self._sending
        if candidate.before_answered or candidate.before.enough:
            return
        if now >= self._challenged_at + sending.recovery.pto:
            self._challenged_at = now
            sending.put_frames(candidate.before.frame(self._random(8)), now, PADDED)

    def answer(self, data: bytes, now: float) -> None:
        """A PATH_CHALLENGE from the peer's address: with a PING, which is no probe, so that a server whose peer seems
        to have moved learns that it has not (§9.3.3). A client's is as long as all that a browser pads."""
        size = overhead.BROWSER_UDP_PAYLOAD if self._sending.role is Role.CLIENT else PADDED
        self._sending.put_frames(encode_frame(PathResponse(data)) + PING, now, size)

    def answered(self, data: bytes, now: float) -> None:
        """PATH_RESPONSE; it may come on another path than the challenge's (§8.2.2)."""
        candidate = self.candidate
        if candidate is None:
            return
        if candidate.before.answered_by(data):
            candidate.before_answered = True
        if candidate.challenges.answered_by(data):
            self.candidate = None
            self._move(candidate.address, candidate.cid, now)

    def _move(self, peer: Address, cid: PeerCid, now: float) -> None:
        sending, before = self._sending, self.used
        other_host = peer[0] != sending.peer[0]
        sending.peer = peer
        if cid is not before:
            self._use(cid)
            self._retire(before, now)
        sending.path_ecn.begin()
        if other_host:  # only the port changed, by a NAT: the path is the same (§9.4)
            sending.recovery.begin_path(sending.packets.next_number)
            sending.path_mtu.begin(now, sending.recovery.smoothed)
            sending.set_limits()
        self._pay(now)
        underlay = sending.install.underlay
        moved = msgspec.structs.replace(underlay, peer_ip=ip_address(peer[0]), peer_port=peer[1])
        sending.events.append(PeerMoved(session_id=sending.session_id, underlay=moved))

    def _forget(self, now: float) -> None:
        """Retire its connection ID: seen there, it is never used elsewhere."""
        candidate, self.candidate = self.candidate, None
        if candidate is not None and candidate.cid is not self.used:
            self._retire(candidate.cid, now)
            self._pay(now)

    # --- time ---

    def deadline(self) -> float:
        """When to call ``handle_timer``."""
        candidate = self.candidate
        return self._pay_at if candidate is None else min(self._pay_at, candidate.next_at, candidate.expires)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self.candidate is not None and now >= self.candidate.expires:
            self._forget(now)
        if self.candidate is not None and now >= self.candidate.next_at:
            self._speak_to(self.candidate, b"", now, challenge=True)
        if now >= self._pay_at:
            self._pay(now)
