"""Connection IDs that a peer issues, each with what belongs to its sequence number."""

from __future__ import annotations

from qre.wire.frames import NewConnectionId


def cid(sequence: int, size: int = 20) -> bytes:
    return bytes([sequence & 0xFF]) * size


def token(sequence: int) -> bytes:
    return bytes([sequence & 0xFF ^ 0x55]) * 16


def issued(sequence: int, prior: int = 0, size: int = 20) -> NewConnectionId:
    """NEW_CONNECTION_ID; ``prior``: those below it are to be retired."""
    return NewConnectionId(sequence, prior, cid(sequence, size), token(sequence))
