"""A session of the user data plane, and the test as its peer: it has the keys, and may speak from anywhere."""

from __future__ import annotations

from typing import Any

from qre.dataplane.protocol import LossReason, SessionLost
from qre.ends import Role
from qre.wire.frames import NewConnectionId, PathChallenge, PathResponse, encode_ack, encode_frame
from qre.workers.dataplane.session.sending import OutgoingPacket
from tests.support.dataplane import CLIENT_ADDRESS, SERVER_ADDRESS, Ends

OTHER = {Role.CLIENT: Role.SERVER, Role.SERVER: Role.CLIENT}
HOME = {Role.SERVER: CLIENT_ADDRESS, Role.CLIENT: SERVER_ADDRESS}
ELSEWHERE, FURTHER = ("198.51.100.7", 5555), ("198.51.100.8", 5556)
PING = b"\x01"
DATA = bytes(range(0x11, 0x19))
CHALLENGE, RESPONSE = encode_frame(PathChallenge(DATA)), encode_frame(PathResponse(DATA))
FIRST, SECOND, THIRD = bytes([0xC1] * 8), bytes([0xC2] * 8), bytes([0xC3] * 8)
TOKEN = bytes(range(0x70, 0x80))
INNER = bytes.fromhex("45000054000040004001") + bytes(74)


class Driven:
    """The session of ``role``, and the test as its peer, who has the keys and may speak from anywhere."""

    def __init__(self, role: Role = Role.SERVER, *, ecn: int = 0, **changes: Any) -> None:
        self.ends = Ends(**changes, ecn=ecn)
        self.ends.establish()
        self.role = role
        self.session, self.peer = self.ends.sessions[role], self.ends.sessions[OTHER[role]]
        self.ends.fate = lambda role, datagram: []
        self.ends._flying.clear()
        self.ends.take(role)
        self.ends.events[role].clear()
        self.ends.drops[role].clear()
        self._opened: dict[bytes, bytes] = {}

    @property
    def now(self) -> float:
        return self.ends.now

    def takes(self) -> list[OutgoingPacket]:
        """What the session sends, and has sent since."""
        sent, self.session.outbox[:] = list(self.session.outbox), []
        self.ends.take(self.role)
        return sent

    def says(self, frames: bytes, source: tuple[str, int] | None = None, size: int = 0) -> list[OutgoingPacket]:
        """One packet, padded to a datagram of ``size``; what the session answers at once."""
        padded = frames + bytes(max(size - self.peer.packet_overhead - len(frames), 0))
        self.session.open_datagrams(self.peer.packets.seal([padded]), source or HOME[self.role], 0, self.now)
        return self.takes()

    def raw(self, datagram: bytes, source: tuple[str, int] | None = None) -> None:
        self.session.open_datagrams([datagram], source or HOME[self.role], 0, self.now)

    def frames(self, sent: OutgoingPacket) -> bytes:
        """The payload of a packet that came to the peer, padding and all."""
        if sent.packet not in self._opened:
            ((plaintext, *_),) = self.peer.packets.open([sent.packet], 0).others
            self._opened[sent.packet] = plaintext
        return self._opened[sent.packet]

    def wait(self, seconds: float, step: float = 0.01) -> list[OutgoingPacket]:
        """Time passes; what the session sends by itself."""
        sent: list[OutgoingPacket] = []
        for _ in range(round(seconds / step)):
            self.ends.now += step
            if self.session.deadline() <= self.now:
                self.session.handle_timer(self.now)
                sent += self.takes()
        return sent

    def acknowledge(self, counts: tuple[int, ...] = ()) -> None:
        self.says(encode_ack([(65_536, self.session.packets.next_number - 1)], 0, counts))

    def lost(self) -> list[tuple[LossReason, int]]:
        return [(event.reason, event.error_code) for event in self.ends.said(self.role, SessionLost)]


def issued(sequence: int, prior: int, cid: bytes, token: bytes = TOKEN) -> bytes:
    return encode_frame(NewConnectionId(sequence, prior, cid, token))


def to(sent: list[OutgoingPacket], address: tuple[str, int]) -> list[bytes]:
    return [packet for packet, there, *_ in sent if there == address]
