"""The plays against the user data plane, after the installation of its session."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qre.dataplane.protocol import KeyPhaseChanged, SessionRefusedError
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD, in_two
from qre.wire.frames import Datagram, NewConnectionId, encode_frame
from qre.workers.dataplane.inner.joining import MOST_KEPT
from qre.workers.dataplane.session.keyphase import SendKeys
from qre.workers.dataplane.session.session_life import LifeState
from tests.fuzz.hostile_grammar import ANSWER, CONNECT
from tests.fuzz.hostile_plays import Play
from tests.support.dataplane import CLIENT_ADDRESS, SERVER_ADDRESS, Ends, install_of, keys_of, update_of

_PACKET: Final = bytes.fromhex("45000054000040004001") + bytes(74)
_ELSEWHERE: Final = "198.51.100.7"
#: RFC 9000 §17.3.1.
_RESERVED, _SPIN = 0x18, 0x20


class _Sealer:
    """Packets of one end by its keys, of any epoch that it likes (RFC 9001 §6)."""

    def __init__(self, role: Role, cid: bytes, number: int) -> None:
        self._role = role
        self._cid = cid
        self._number = number
        self._epoch = 0
        self._mask = Cipher(algorithms.AES(install_of(role).tx_hp_key), modes.ECB()).encryptor().update

    def seal(self, payload: bytes, rng: Random) -> bytes:
        """Rarely the number jumps or repeats, the keys are updated, or an odd bit of the header is set."""
        self._number += rng.choices((1, 0, 2, 40, 5000), (100, 1, 3, 0.5, 0.2))[0]
        self._epoch += rng.random() < 0.01
        epoch = self._epoch if rng.random() < 0.98 else rng.randrange(self._epoch + 2)
        keys = keys_of(self._role, epoch)
        tx = SendKeys(keys.tx_key, keys.tx_iv, epoch)
        size = rng.choices((4, 3, 2, 1), (100, 3, 3, 3))[0]
        first = tx.first_byte & ~3 | size - 1 | rng.choices((0, _SPIN, _RESERVED), (100, 1, 0.5))[0]
        number = self._number.to_bytes(8, "big")[-size:]
        header = bytes([first]) + self._cid + number
        nonce = (tx.iv ^ self._number).to_bytes(12, "big")
        sealed = tx.encrypt(nonce, payload, header)
        mask = self._mask(sealed[4 - size : 20 - size])
        masked = bytes(one ^ other for one, other in zip(number, mask[1:], strict=False))
        return bytes([first ^ mask[0] & 0x1F]) + self._cid + masked + sealed


class TunnelPlay(Play):
    """A client with the keys of a session, against its server's data plane."""

    kind = "dataplane-server"
    fields = CONNECT
    subject = Role.SERVER
    most = 160

    def __init__(self) -> None:
        super().__init__()
        ends = Ends(splits=True)
        ends.run(0.2)
        self.client = self.subject is Role.SERVER
        peer = Role.CLIENT if self.client else Role.SERVER
        self._source = CLIENT_ADDRESS if self.client else SERVER_ADDRESS
        self.session = ends.sessions[self.subject]
        self._install = install_of(self.subject)
        packets = ends.sessions[peer].packets
        self._sealer = _Sealer(peer, packets.tx_cid, packets.next_number)
        self._first = self.session.packets.next_number
        self.now = ends.now
        self.outcome = replace(self.outcome, installed=True)

    def cids(self) -> list[bytes]:
        return [self.session.packets.tx_cid or bytes(8), bytes(20)]

    def seal(self, payload: bytes) -> bytes:
        return self._sealer.seal(payload, self.rng)

    def course(self) -> list[Callable[[], list[bytes]]]:
        def packet() -> list[bytes]:
            return [encode_frame(Datagram(DATAGRAM_HEAD[1:] + _PACKET))]

        steps = [packet, self.acknowledge, self._send] * 4 + [self._parts] * 3
        if self.session.packets.tx_cid:  # whose is empty may issue no other
            steps += [self._issue] * 4
        self.rng.shuffle(steps)
        return steps

    def _send(self) -> list[bytes]:
        """The subject has packets to send, and hears something."""
        self.call(lambda: self.session.seal_datagrams([DATAGRAM_HEAD + _PACKET] * 3, self.now))
        return [b"\x01"] * self.rng.randrange(1, 4)

    def _parts(self) -> list[bytes]:
        """Of packets with few identifiers: either, both, in any order, with lengths that may not fit."""
        rng = self.rng
        parts = in_two(_PACKET, rng.randrange(6), rng.randrange(len(_PACKET) // 2, len(_PACKET)))
        parts += in_two(_PACKET * 2, rng.randrange(1 << 16), len(_PACKET) + 1)
        chosen = rng.sample(parts, rng.randrange(1, 4))
        return [encode_frame(Datagram(part[1:] + rng.choice((b"", b"", b"x")))) for part in chosen]

    def _issue(self) -> list[bytes]:
        number = self.rng.choice((1, 2, 3, 4, 5))
        frame = NewConnectionId(number, self.rng.choice((0, number)), self.rng.randbytes(20), self.rng.randbytes(16))
        return [encode_frame(frame)]

    def deliver(self, datagram: bytes) -> None:
        session = self.session
        if session.deadline() <= self.now:
            session.handle_timer(self.now)
        source = self._source if self.rng.random() < 0.95 else (_ELSEWHERE, self.rng.randrange(1, 9))
        session.open_datagrams([datagram], source, self.rng.choice((0, 0, 0, 1, 2, 3)), self.now)
        assert len(session._joiner) <= MOST_KEPT
        for event in list(session.events):
            if isinstance(event, KeyPhaseChanged) and self.rng.random() < 0.9:
                self._bring_keys(event.key_epoch)
        session.outbox.clear()
        session.events.clear()
        self.over = session.state in {LifeState.CLOSING, LifeState.ENDED}

    def _bring_keys(self, epoch: int) -> None:
        """As the handshake worker does, which knows that it can be too late."""
        with suppress(SessionRefusedError):
            self.session.update(update_of(self._install, epoch), self.now)

    def unacknowledged(self) -> list[int]:
        following = self.session.packets.next_number
        return list(range(max(self._first, following - 40), following))


class TunnelClientPlay(TunnelPlay):
    """A hostile server against its client's data plane."""

    kind = "dataplane-client"
    fields = ANSWER
    subject = Role.CLIENT
