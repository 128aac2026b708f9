"""The throw-away certificate of a server: an Ed25519 leaf whose signature field is the proof.

One connection, one key. The certificate's signature field holds ``HMAC-SHA-512(proof, Ed25519 public key)``: only the
holder of RealityPrivateKey can make it for this ClientHello, and CertificateVerify (RFC 8446 §4.4.3) binds it to this
transcript. It travels encrypted: without the client's keys only the length of the flight shows, and a second, opaque
CertificateEntry brings that to the length of Dest's. No certificate authority is ever involved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from qre.reality.proof import PROOF_LENGTH, server_proof

#: Handshake type (1), length (3), certificate_request_context (1), length of certificate_list (3): RFC 8446 §4.4.2.
_MESSAGE_OVERHEAD: Final = 8
#: Length of cert_data (3), length of extensions (2).
_ENTRY_OVERHEAD: Final = 5
#: No Certificate message is made longer than this: aioquic keeps a flight in 16,384 bytes.
MAX_MESSAGE: Final = 12_000


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _make_template() -> tuple[bytes, bytes]:
    """The DER of a leaf, cut where its key was and before its signature."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))  # replaced in every certificate
    name = x509.Name([])
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2025, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2045, 1, 1, tzinfo=UTC))
        .sign(key, None)
        .public_bytes(Encoding.DER)
    )
    public = _raw(key.public_key())
    before, after = leaf.split(public)
    return before, after[:-PROOF_LENGTH]


_BEFORE_KEY, _BEFORE_SIGNATURE = _make_template()


@dataclass(frozen=True)
class ThrowAwayCertificate:
    """``private_key`` signs CertificateVerify; ``leaf`` is the DER."""

    private_key: Ed25519PrivateKey
    leaf: bytes

    def __repr__(self) -> str:
        return "ThrowAwayCertificate(hidden)"


def make_certificate(proof_key: bytes, random: Callable[[int], bytes]) -> ThrowAwayCertificate:
    """A new key and the leaf that carries the proof over it."""
    private_key = Ed25519PrivateKey.from_private_bytes(random(32))
    public = _raw(private_key.public_key())
    leaf = _BEFORE_KEY + public + _BEFORE_SIGNATURE + server_proof(proof_key, public)
    return ThrowAwayCertificate(private_key, leaf)


def certificate_entries(
    leaf: bytes, message_length: int, random_bytes: Callable[[int], bytes]
) -> list[tuple[bytes, bytes]]:
    """(cert_data, extensions) of a Certificate message that is ``message_length`` bytes long, header included.

    The second entry is random bytes. A message that cannot be that short has the leaf alone.
    """
    missing = min(message_length, MAX_MESSAGE) - _MESSAGE_OVERHEAD - 2 * _ENTRY_OVERHEAD - len(leaf)
    if missing <= 0:
        return [(leaf, b"")]
    return [(leaf, b""), (random_bytes(missing), b"")]
