"""1-RTT packets as the peer of a session in the guest would send them, well or ill formed; the C sender's file."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qre.wire.number import decode_number

#: Never changed on the way.
WHOLE = 0xFFFF


class Keys(msgspec.Struct, frozen=True):
    """Of one direction; ``cid`` is what its packets bear."""

    key: bytes
    iv: bytes
    hp: bytes
    cid: bytes

    def _mask(self, sample: bytes) -> bytes:
        encryptor = Cipher(algorithms.AES(self.hp), modes.ECB()).encryptor()
        return (encryptor.update(sample) + encryptor.finalize())[:5]

    def _nonce(self, number: int) -> bytes:
        return (int.from_bytes(self.iv, "big") ^ number).to_bytes(12, "big")

    def seal(self, number: int, payload: bytes, *, phase: int = 0, size: int = 4, reserved: int = 0) -> bytes:
        """A packet whose number takes ``size`` bytes; ``payload`` and number have 4 bytes at least."""
        first = 0x40 | reserved << 3 | phase << 2 | size - 1
        encoded = (number & (1 << 8 * size) - 1).to_bytes(size, "big")
        header = bytes([first]) + self.cid + encoded
        sealed = AESGCM(self.key).encrypt(self._nonce(number), payload, header)
        mask = self._mask(sealed[4 - size : 20 - size])
        masked = bytes(a ^ b for a, b in zip(encoded, mask[1:], strict=False))
        return bytes([first ^ mask[0] & 0x1F]) + self.cid + masked + sealed

    def header(self, packet: bytes, expected: int) -> tuple[int, int, int]:
        """The first byte without its mask, the number, and where the sealed part begins."""
        at = 1 + len(self.cid)
        mask = self._mask(packet[at + 4 : at + 20])
        first = packet[0] ^ mask[0] & 0x1F
        size = (first & 3) + 1
        encoded = bytes(a ^ b for a, b in zip(packet[at : at + size], mask[1:], strict=False))
        return first, decode_number(int.from_bytes(encoded, "big"), size, expected), at + size

    def opens(self, packet: bytes, expected: int) -> bool:
        """Whether it is authentic under this key."""
        first, number, sealed = self.header(packet, expected)
        size = sealed - 1 - len(self.cid)
        header = bytes([first]) + packet[1 : 1 + len(self.cid)] + (number & (1 << 8 * size) - 1).to_bytes(size, "big")
        try:
            AESGCM(self.key).decrypt(self._nonce(number), packet[sealed:], header)
        except InvalidTag:
            return False
        return True


class Shot(msgspec.Struct, frozen=True):
    """One datagram for tests/vm/guest/packets.c; a byte from ``mutable_from`` on is changed each time."""

    data: bytes
    source_port: int
    port: int
    mutable_from: int = WHOLE

    def record(self) -> bytes:
        return struct.pack("<HHHH", len(self.data), self.mutable_from, self.source_port, self.port) + self.data


def write_shots(path: Path, shots: list[Shot]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(shot.record() for shot in shots))
