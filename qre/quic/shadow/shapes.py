"""The shape of a datagram: all that an observer without keys can tell of it.

That is every clear byte and every length, and the whole of Initial packets, whose keys are public (RFC 9001 §5.2).
"""

from __future__ import annotations

import msgspec

from qre.wire.packet import PacketType


class CryptoPlace(msgspec.Struct, frozen=True):
    """A CRYPTO frame without its data. ``head``: its type, offset and length, as they were encoded."""

    head: bytes
    offset: int
    length: int


class PacketShape(msgspec.Struct, frozen=True):
    """One packet. ``header``: its clear bytes up to the packet number; ``length``: packet number, payload and tag, in
    bytes."""

    type: PacketType
    header: bytes
    length: int

    @property
    def size(self) -> int:
        """Of the whole packet, in bytes."""
        return len(self.header) + self.length


class InitialShape(PacketShape, frozen=True):
    """An Initial. ``header`` begins with its unprotected first byte; ``frames``: everything but CRYPTO, as it is."""

    number: int = 0
    number_length: int = 1
    frames: tuple[bytes | CryptoPlace, ...] = ()

    @property
    def has_crypto(self) -> bool:
        """Whether any of its frames is CRYPTO."""
        return any(isinstance(frame, CryptoPlace) for frame in self.frames)


class DatagramShape(msgspec.Struct, frozen=True):
    """``trailing``: bytes behind the last packet."""

    packets: tuple[PacketShape, ...]
    trailing: bytes = b""

    @property
    def needs_our_keys(self) -> bool:
        """Whether any of it is sealed with other keys than those of Initials, which anyone can derive."""
        return any(not isinstance(each, InitialShape) for each in self.packets)

    @property
    def needs_hello(self) -> bool:
        """Whether it cannot be imitated before ServerHello is known: it holds a part of it, or what comes after."""
        return any(not isinstance(each, InitialShape) or each.has_crypto for each in self.packets)
