"""A client's proof: 16 sealed bytes and their tag in ClientHello.random.

RFC 9001 §8.4 forbids a session id in QUIC, so the remaining field is ``random``, which must look uniformly
random to everyone without the server's private key. Both ends derive the same keys from one X25519
exchange between the hello's lone x25519 key share and the server's REALITY key (HKDF, RFC 5869), and the additional
data of the AES-128-GCM seal is the whole ClientHello with ``random`` zeroed, so nothing of the hello can be
changed.

The key and nonce are used once for each key share: never seal two different hellos with the same share.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qre.errors import UntrustedInputError

RANDOM_LENGTH: Final = 32
#: ``random`` lies behind msg_type (1), length (3) and legacy_version (2): RFC 8446 §4, §4.1.2.
RANDOM_OFFSET: Final = 6
RANDOM_END: Final = RANDOM_OFFSET + RANDOM_LENGTH
VERSION: Final = (0, 3, 0)
#: Clients of this version and later take any of a site's connection IDs for the routed one.
TAKES_DEST_CIDS: Final = (0, 2, 0)
#: Clients of this version and later take transport parameters that do not name the server's connection ID.
TAKES_UNNAMED_CIDS: Final = (0, 3, 0)
SHORT_ID_LENGTH: Final = 8
_SALT: Final = b"qre reality v1"
_PLAINTEXT_LENGTH: Final = 16
_MAX_TIME: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class SharedSecrets:
    """The secrets that both ends derive from the hello's key share and RealityPublicKey."""

    hello_key: bytes
    hello_iv: bytes
    proof: bytes

    def __repr__(self) -> str:
        return "SharedSecrets(hidden)"


@dataclass(frozen=True)
class Authenticator:
    """The plaintext: version (3) ‖ 0 (1) ‖ unix time in seconds (4) ‖ short id (8, zero-padded on the right)."""

    version: tuple[int, int, int]
    unix_time: int
    short_id: bytes

    def to_bytes(self) -> bytes:
        """The 16 bytes to seal. Raises ValueError unless ``short_id`` is padded; the time is clamped to 32 bits."""
        if len(self.short_id) != SHORT_ID_LENGTH:
            raise ValueError("a short id is padded to 8 bytes")
        time = min(max(self.unix_time, 0), _MAX_TIME)
        return bytes(self.version) + b"\x00" + time.to_bytes(4, "big") + self.short_id

    def __repr__(self) -> str:
        return f"Authenticator(version={self.version}, unix_time={self.unix_time})"


def share_secrets_untrusted(private_key: bytes | X25519PrivateKey, public_key: bytes) -> SharedSecrets:
    """Derive the secrets from our private and the other end's public X25519 key.

    An all-zero result, which a small-order public key makes, is refused (RFC 7748 §6.1).
    """
    if isinstance(private_key, bytes):
        private_key = X25519PrivateKey.from_private_bytes(private_key)
    try:
        shared = private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise UntrustedInputError("x25519 key", "not a public key, or one of small order") from error
    prk = hmac.digest(_SALT, shared, "sha256")
    return SharedSecrets(
        hello_key=_expand(prk, b"hello key", 16),
        hello_iv=_expand(prk, b"hello iv", 12),
        proof=_expand(prk, b"proof", 32),
    )


def _expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand of at most one block (RFC 5869 §2.3)."""
    return hmac.digest(prk, info + b"\x01", "sha256")[:length]


def zero_random(client_hello: bytes) -> bytes:
    """The additional data: the handshake message, header included, with ``random`` zeroed."""
    return client_hello[:RANDOM_OFFSET] + bytes(RANDOM_LENGTH) + client_hello[RANDOM_END:]


def seal(secrets: SharedSecrets, authenticator: Authenticator, client_hello: bytes) -> bytes:
    """The 32 bytes for ``random`` of ``client_hello``, a handshake message with its 4-byte header."""
    return AESGCM(secrets.hello_key).encrypt(secrets.hello_iv, authenticator.to_bytes(), zero_random(client_hello))


def open_untrusted(secrets: SharedSecrets, client_hello: bytes) -> Authenticator:
    """What ``seal`` put into this hello; UntrustedInputError when it was not sealed with these secrets."""
    if len(client_hello) < RANDOM_END:
        raise UntrustedInputError("ClientHello", "too short")
    try:
        plaintext = AESGCM(secrets.hello_key).decrypt(
            secrets.hello_iv, client_hello[RANDOM_OFFSET:RANDOM_END], zero_random(client_hello)
        )
    except InvalidTag as error:
        raise UntrustedInputError("ClientHello", "its random is not a valid authenticator") from error
    if len(plaintext) != _PLAINTEXT_LENGTH or plaintext[3]:
        raise UntrustedInputError("authenticator", "of an unknown form")
    return Authenticator(
        version=(plaintext[0], plaintext[1], plaintext[2]),
        unix_time=int.from_bytes(plaintext[4:8], "big"),
        short_id=plaintext[8:],
    )
