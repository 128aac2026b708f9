"""Packet and header protection with AES-128-GCM (RFC 9001 §5.2 to §5.4): the plain, one-packet form.

The data planes do the same in batches; tests compare them with this, and captures are read with it. It keeps no
packet numbers: the caller must never use one twice.
"""

from __future__ import annotations

import hmac
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qre.errors import UntrustedInputError
from qre.wire.number import decode_number

SECRET_LENGTH: Final = 32
TAG_LENGTH: Final = 16
SAMPLE_LENGTH: Final = 16
_INITIAL_SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")


class PacketKeys(NamedTuple):
    """Of one direction and key epoch (§5.1)."""

    key: bytes  # 16
    iv: bytes  # 12
    hp: bytes  # 16


def expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with SHA-256 and an empty context, of at most one block (RFC 8446 §7.1)."""
    return hmac.digest(secret, _block_of(label, length), "sha256")[:length]


@lru_cache(maxsize=16)
def _block_of(label: bytes, length: int) -> bytes:
    """HkdfLabel, and the number of the block."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\x00\x01"


def initial_secrets(destination_cid: bytes) -> tuple[bytes, bytes]:
    """client_initial_secret and server_initial_secret of the client's first DCID."""
    common = hmac.digest(_INITIAL_SALT, destination_cid, "sha256")
    return _client_initial_secret(common), expand_label(common, b"server in", SECRET_LENGTH)


def client_initial_secret(destination_cid: bytes) -> bytes:
    """That alone: what a server needs of every hello."""
    return _client_initial_secret(hmac.digest(_INITIAL_SALT, destination_cid, "sha256"))


def _client_initial_secret(common: bytes) -> bytes:
    return expand_label(common, b"client in", SECRET_LENGTH)


def derive(secret: bytes) -> PacketKeys:
    """Packet and header protection keys of a traffic secret. Header keys never change with a key update (§6)."""
    return PacketKeys(
        expand_label(secret, b"quic key", 16),
        expand_label(secret, b"quic iv", 12),
        expand_label(secret, b"quic hp", 16),
    )


def next_secret(secret: bytes) -> bytes:
    """The traffic secret of the next key epoch (§6.1)."""
    return expand_label(secret, b"quic ku", SECRET_LENGTH)


class Protection:
    """One direction and key epoch, from its traffic secret. ``hp_secret``: the first epoch's, after an update."""

    def __init__(self, secret: bytes, hp_secret: bytes | None = None) -> None:
        self.key, self.iv, self.hp = derive(secret)
        if hp_secret is not None:
            self.hp = derive(hp_secret).hp
        self._aead = AESGCM(self.key)
        self._masks = Cipher(algorithms.AES(self.hp), modes.ECB()).encryptor()

    def _nonce(self, number: int) -> bytes:
        return (int.from_bytes(self.iv, "big") ^ number).to_bytes(12, "big")

    def mask(self, sample: bytes) -> bytes:
        """Five bytes of header protection mask (§5.4.3)."""
        return self._masks.update(sample)[:5]

    def protect(self, header: bytes, number: int, payload: bytes) -> bytes:
        """A whole packet. ``header`` ends with the encoded number; number and payload have 4 bytes at least."""
        length = (header[0] & 3) + 1
        sealed = self._aead.encrypt(self._nonce(number), payload, header)
        sample = sealed[4 - length : 4 - length + SAMPLE_LENGTH]
        if len(sample) < SAMPLE_LENGTH:
            raise ValueError("a payload too short to be sampled")
        mask = self.mask(sample)
        first = header[0] ^ mask[0] & (0x0F if header[0] & 0x80 else 0x1F)
        offset = len(header) - length
        hidden = bytes(a ^ b for a, b in zip(header[offset:], mask[1:], strict=False))
        return bytes([first]) + header[1:offset] + hidden + sealed

    def unprotect_untrusted(self, packet: bytes, number_offset: int, expected: int) -> tuple[bytes, int, bytes]:
        """(unprotected header, packet number, payload). Raises UntrustedInputError when it is not authentic."""
        sample = packet[number_offset + 4 : number_offset + 4 + SAMPLE_LENGTH]
        if len(sample) < SAMPLE_LENGTH:
            raise UntrustedInputError("packet", "too short to be protected")
        mask = self.mask(sample)
        first = packet[0] ^ mask[0] & (0x0F if packet[0] & 0x80 else 0x1F)
        end = number_offset + (first & 3) + 1
        truncated = bytes(a ^ b for a, b in zip(packet[number_offset:end], mask[1:], strict=False))
        header = bytes([first]) + packet[1:number_offset] + truncated
        number = decode_number(int.from_bytes(truncated, "big"), len(truncated), expected)
        try:
            return header, number, self._aead.decrypt(self._nonce(number), packet[end:], header)
        except InvalidTag:
            raise UntrustedInputError("packet", "it does not decrypt") from None
