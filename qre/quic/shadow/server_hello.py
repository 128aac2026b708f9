"""Dest's ServerHello as the pattern of ours: the same bytes but for the random and the key share.

It may span several datagrams, and ours has to leave with the first of them: the pattern is made from as much as has
come, as soon as the rest is certain.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qre.errors import UntrustedInputError

X25519MLKEM768: Final = 0x11EC  # draft-ietf-tls-ecdhe-mlkem
X25519: Final = 0x001D
#: The server's share of each group that can be taken over (bytes).
SHARE_LENGTHS: Final = {X25519MLKEM768: 1120, X25519: 32}
_SERVER_HELLO: Final = 2
_RANDOM, _RANDOM_END = 6, 38  # behind the message's header and its legacy_version
_LEGACY_VERSION: Final = b"\x03\x03"
_AES_128_GCM_SHA256: Final = 0x1301
_PRE_SHARED_KEY, _SUPPORTED_VERSIONS, _KEY_SHARE = 0x29, 0x2B, 0x33
#: The first ticket is taken (RFC 8446 §4.2.11): the whole extension.
_TAKEN: Final = bytes.fromhex("002900020000")
_TLS_1_3: Final = bytes.fromhex("002b00020304")  # the whole extension
#: No ServerHello of TLS 1.3 that we could answer with is longer (bytes).
_LONGEST: Final = 2048
#: RFC 8446 §4.1.3: the random of a HelloRetryRequest.
_RETRY_RANDOM: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


class Obstacle(enum.StrEnum):
    """What a QRE server cannot do as Dest does it."""

    HELLO_RETRY = "it asks for another key share"
    SUITE = "its cipher suite is not AES_128_GCM_SHA256"
    GROUP = "its key exchange is neither X25519MLKEM768 nor X25519"
    CONNECTION_ID = "its connection ID is shorter than 4 bytes"
    TAKEN = "its connection ID is that of another session"
    CLOSED = "it closed the connection"
    UNREADABLE = "its answer cannot be read"


class CannotFollowError(UntrustedInputError):
    """Dest chose what ours cannot have. The client then has to see Dest itself."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__("Dest", obstacle.value)
        self.obstacle = obstacle


@dataclass(frozen=True)
class ServerHelloPattern:
    """``pattern`` is a whole ServerHello, in which the share of ``group`` begins at ``share_at``."""

    pattern: bytes
    share_at: int
    group: int

    def with_ours(self, random: bytes, share: bytes) -> bytes:
        """The message with our random (32 bytes) and our share, which has the length of Dest's."""
        if len(random) != _RANDOM_END - _RANDOM or len(share) != SHARE_LENGTHS[self.group]:
            raise ValueError("a random or a share of the wrong length")
        end = self.share_at + len(share)
        return b"".join(
            (self.pattern[:_RANDOM], random, self.pattern[_RANDOM_END : self.share_at], share, self.pattern[end:])
        )


def is_retry_request(hello: bytes) -> bool:
    """Whether this ServerHello, of which the beginning is known, asks for another hello."""
    return hello[_RANDOM:_RANDOM_END] == _RETRY_RANDOM


def expected_pattern(group: int, extensions: Sequence[int]) -> ServerHelloPattern:
    """That of a Dest which chose this group and this order of extensions before, pre_shared_key among them if it took
    a ticket."""
    share = SHARE_LENGTHS[group]
    written = {
        _SUPPORTED_VERSIONS: _TLS_1_3,
        _KEY_SHARE: b"".join(part.to_bytes(2, "big") for part in (_KEY_SHARE, 4 + share, group, share))
        + bytes(share),
    }
    if _PRE_SHARED_KEY in extensions:
        written[_PRE_SHARED_KEY] = _TAKEN
    order = [kind for kind in extensions if kind in written]
    if sorted(order) != sorted(written):
        order = list(written)
    body = b"".join(written[kind] for kind in order)
    suite = b"\0" + _AES_128_GCM_SHA256.to_bytes(2, "big") + b"\0"
    message = _LEGACY_VERSION + bytes(_RANDOM_END - _RANDOM) + suite + len(body).to_bytes(2, "big") + body
    pattern = bytes([_SERVER_HELLO]) + len(message).to_bytes(3, "big") + message
    return ServerHelloPattern(pattern, pattern.index(written[_KEY_SHARE][:8]) + 8, group)


def pattern_of_untrusted(prefix: bytes) -> ServerHelloPattern | None:
    """The pattern, from the first bytes of Dest's ServerHello; None: not certain yet. Raises CannotFollowError."""
    if len(prefix) < _RANDOM_END + 6:
        return None
    end = 4 + int.from_bytes(prefix[1:4], "big")
    if prefix[0] != _SERVER_HELLO or prefix[4:_RANDOM] != _LEGACY_VERSION or end > _LONGEST:
        raise CannotFollowError(Obstacle.UNREADABLE)
    if prefix[_RANDOM:_RANDOM_END] == _RETRY_RANDOM:
        raise CannotFollowError(Obstacle.HELLO_RETRY)
    at = _RANDOM_END
    if prefix[at]:  # RFC 9001 §8.4: the client's session id is empty
        raise CannotFollowError(Obstacle.UNREADABLE)
    if int.from_bytes(prefix[at + 1 : at + 3], "big") != _AES_128_GCM_SHA256:
        raise CannotFollowError(Obstacle.SUITE)
    if prefix[at + 3] or at + 6 + int.from_bytes(prefix[at + 4 : at + 6], "big") != end:
        raise CannotFollowError(Obstacle.UNREADABLE)
    return _pattern_untrusted(prefix[:end], at + 6, end)


def _pattern_untrusted(prefix: bytes, at: int, end: int) -> ServerHelloPattern | None:
    """Walk through the extensions at ``at``; all but the bytes of the share have to be known, or certain."""
    share_at = group = 0
    versions = False
    while at < end:
        if versions is False and share_at and end - at == len(_TLS_1_3) and at >= len(prefix):
            break  # only one extension is missing, and it has this length
        if at + 4 > len(prefix):
            return None
        kind, size = int.from_bytes(prefix[at : at + 2], "big"), int.from_bytes(prefix[at + 2 : at + 4], "big")
        at += 4
        if kind == _KEY_SHARE:
            if at + 4 > len(prefix):
                return None
            group, length = int.from_bytes(prefix[at : at + 2], "big"), int.from_bytes(prefix[at + 2 : at + 4], "big")
            if SHARE_LENGTHS.get(group) != length or size != 4 + length:
                raise CannotFollowError(Obstacle.GROUP)
            share_at = at + 4
        elif kind == _SUPPORTED_VERSIONS:
            versions = True
            if at + size > len(prefix):
                return None
            if prefix[at - 4 : at + size] != _TLS_1_3:
                raise CannotFollowError(Obstacle.UNREADABLE)
        elif at + size > len(prefix):
            return None
        at += size
    if at > end or not share_at:
        raise CannotFollowError(Obstacle.UNREADABLE)
    known = prefix if versions else prefix.ljust(at, b"\0") + _TLS_1_3
    return ServerHelloPattern(known.ljust(end, b"\0"), share_at, group)
