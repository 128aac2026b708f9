"""A server's proof: the signature field of its throw-away Ed25519 certificate.

``HMAC-SHA-512(proof, Ed25519 public key)`` is exactly as long as an Ed25519 signature. Only the holder of the
REALITY private key can derive ``proof`` for a given ClientHello, and CertificateVerify (RFC 8446 §4.4.3), made with
the key that the HMAC covers, binds it to the transcript. It proves nothing by itself: a client must check
CertificateVerify too.
"""

from __future__ import annotations

import hmac
from typing import Final

PROOF_LENGTH: Final = 64


def server_proof(proof_key: bytes, public_key: bytes) -> bytes:
    """The 64 bytes of the signature field; ``public_key`` is the raw Ed25519 key."""
    return hmac.digest(proof_key, public_key, "sha512")


def proves_server(proof_key: bytes, public_key: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is the proof, compared in constant time."""
    return hmac.compare_digest(server_proof(proof_key, public_key), signature)
