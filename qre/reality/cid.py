"""Routed connection IDs: packets with them go to the data plane (RFC 9000 §5.1).

A routed CID is random bytes and an 8-byte MAC of them, under a key derived from the server's REALITY private key: a
restarted server recognises its own forgotten ones and answers with a stateless reset (RFC 9000 §10.3), while all
others go to Dest. Without the key it must be indistinguishable from random bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

MIN_LENGTH: Final = 17
MAX_LENGTH: Final = 20
MAC_LENGTH: Final = 8
RESET_TOKEN_LENGTH: Final = 16


def cid_key(reality_private_key: bytes) -> bytes:
    """The 32-byte key of this module, from the 32 bytes of RealityPrivateKey (HKDF, RFC 5869, one block)."""
    prk = hmac.digest(b"qre routed cid v1", reality_private_key, "sha256")
    return hmac.digest(prk, b"cid key\x01", "sha256")


def routed_cid(key: bytes, random_bytes: Callable[[int], bytes], length: int = MAX_LENGTH) -> bytes:
    """A new routed CID of ``length`` bytes, 17 to 20. Raises ValueError for another length."""
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        raise ValueError("a routed CID has 17 to 20 bytes")
    body = random_bytes(length - MAC_LENGTH)
    return body + _mac(key, body)


def is_ours(key: bytes, cid: bytes) -> bool:
    """Whether ``routed_cid`` made it with this key."""
    if not MIN_LENGTH <= len(cid) <= MAX_LENGTH:
        return False
    return hmac.compare_digest(_mac(key, cid[:-MAC_LENGTH]), cid[-MAC_LENGTH:])


def reset_token(key: bytes, cid: bytes) -> bytes:
    """The stateless reset token of this CID: 16 bytes."""
    return hmac.digest(key, b"reset token" + cid, "sha256")[:RESET_TOKEN_LENGTH]


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, b"connection id" + body, "sha256")[:MAC_LENGTH]
