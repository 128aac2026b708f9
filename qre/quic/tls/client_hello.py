"""Reads the few fields of a ClientHello that decide whether its sender is answered (RFC 8446 §4.1.2).

The bytes are hostile: nothing here raises anything but ``UntrustedInputError``, allocates more than the message's
length, or reads beyond its end. Offers that do not matter here (ciphers, groups, versions) are left to TLS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qre.errors import UntrustedInputError
from qre.quic.resumption.psk import BINDERS_LENGTH

CLIENT_HELLO: Final = 1
HEADER_LENGTH: Final = 4
_SERVER_NAME: Final = 0
_PRE_SHARED_KEY: Final = 41
_EARLY_DATA: Final = 42
_PSK_MODES: Final = 45
_PSK_WITH_DHE: Final = 1
_KEY_SHARE: Final = 51
_X25519: Final = 0x001D


@dataclass(frozen=True)
class OfferedKey:
    """The first of the pre-shared keys that are offered, for psk_dhe_ke (RFC 8446 §4.2.9, §4.2.11), by whomever."""

    identity: bytes
    covered: bytes  # the part of the hello that the binders cover
    binder: bytes  # any length


@dataclass(frozen=True)
class ClientHello:
    """``server_name`` and ``x25519_share`` are None when the hello has none (or more than one share of the group)."""

    random: bytes
    session_id: bytes
    server_name: bytes | None
    x25519_share: bytes | None
    #: The one ticket that it offers; None without pre_shared_key, or with one of another form than browsers'.
    ticket: bytes | None
    has_pre_shared_key: bool
    has_early_data: bool
    #: Of whatever form: as many identities as binders, and the last extension.
    offered: OfferedKey | None = None


class _Cursor:
    """A cursor over ``data[position:end]``."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end

    def skip(self, length: int) -> int:
        """Where that begins which is skipped."""
        start = self.position
        if length > self.end - start:
            raise UntrustedInputError("ClientHello", "a field is longer than what is left of it")
        self.position = start + length
        return start

    def take(self, length: int) -> bytes:
        start = self.skip(length)
        return self.data[start : self.position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> _Cursor:
        """A vector that begins with its length in ``size`` bytes (RFC 8446 §3.4)."""
        start = self.skip(self.number(size))
        return _Cursor(self.data, start, self.position)

    @property
    def rest(self) -> bytes:
        return self.data[self.position : self.end]

    @property
    def more(self) -> bool:
        return self.position < self.end


def hello_length_untrusted(start: bytes) -> int | None:
    """The length of the whole handshake message that ``start`` begins, or None while its header is incomplete."""
    if start and start[0] != CLIENT_HELLO:
        raise UntrustedInputError("ClientHello", "another handshake message")
    if len(start) < HEADER_LENGTH:
        return None
    return HEADER_LENGTH + int.from_bytes(start[1:HEADER_LENGTH], "big")


def parse_client_hello_untrusted(message: bytes) -> ClientHello:
    """``message`` is exactly one handshake message, its 4-byte header included."""
    if hello_length_untrusted(message) != len(message):
        raise UntrustedInputError("ClientHello", "its length is not the message's")
    reader = _Cursor(message, HEADER_LENGTH, len(message))
    reader.take(2)  # legacy_version
    random = reader.take(32)
    session_id = reader.block(1).rest
    reader.block(2)  # cipher_suites
    reader.block(1)  # legacy_compression_methods
    extensions = _extensions(reader.block(2))
    if reader.more:
        raise UntrustedInputError("ClientHello", "bytes after its extensions")
    offered = _offered(extensions, message)
    return ClientHello(
        random=random,
        session_id=session_id,
        server_name=_server_name(extensions.get(_SERVER_NAME)),
        x25519_share=_x25519_share(extensions.get(_KEY_SHARE)),
        ticket=_ticket(extensions, len(message)),
        has_pre_shared_key=_PRE_SHARED_KEY in extensions,
        has_early_data=_EARLY_DATA in extensions,
        offered=offered,
    )


def _extensions(reader: _Cursor) -> dict[int, _Cursor]:
    found: dict[int, _Cursor] = {}
    data = reader.data
    while reader.more:
        at = reader.skip(4)
        kind = data[at] << 8 | data[at + 1]
        if kind in found:
            raise UntrustedInputError("ClientHello", "an extension twice")
        body = reader.skip(data[at + 2] << 8 | data[at + 3])
        found[kind] = _Cursor(data, body, reader.position)
    return found


def _server_name(body: _Cursor | None) -> bytes | None:
    if body is None:
        return None
    names = body.block(2)
    if names.number(1) != 0:
        raise UntrustedInputError("ClientHello", "an unknown type of server name")
    name = names.block(2).rest
    if names.more or body.more:
        raise UntrustedInputError("ClientHello", "more than one server name")
    return name


def _ticket(extensions: dict[int, _Cursor], end: int) -> bytes | None:
    """The identity of a last extension with one identity and one binder of 32 bytes (RFC 8446 §4.2.11)."""
    body = extensions.get(_PRE_SHARED_KEY)
    if body is None or body.end != end:
        return None
    identities = body.block(2)
    identity = identities.block(2).rest
    identities.take(4)  # obfuscated_ticket_age
    return identity if not identities.more and body.end - body.position == BINDERS_LENGTH else None


def _offered(extensions: dict[int, _Cursor], message: bytes) -> OfferedKey | None:
    body, modes = extensions.get(_PRE_SHARED_KEY), extensions.get(_PSK_MODES)
    if body is None or body.end != len(message) or modes is None or _PSK_WITH_DHE not in modes.rest[1:]:
        return None
    try:
        return _first_key_untrusted(_Cursor(message, body.position, body.end), message)
    except UntrustedInputError:
        return None


def _first_key_untrusted(body: _Cursor, message: bytes) -> OfferedKey | None:
    identities, covered = body.block(2), message[: body.position]
    binders = body.block(2)
    found: list[tuple[bytes, bytes]] = []
    while identities.more and binders.more:
        identity = identities.block(2).rest
        identities.take(4)  # obfuscated_ticket_age
        found.append((identity, binders.block(1).rest))
    if identities.more or binders.more or body.more or not found:
        return None
    return OfferedKey(found[0][0], covered, found[0][1])


def _x25519_share(body: _Cursor | None) -> bytes | None:
    """The key exchange of the lone x25519 entry; the hybrid's X25519 half is another key and does not count."""
    if body is None:
        return None
    shares = body.block(2)
    found: list[bytes] = []
    while shares.more:
        group = shares.number(2)
        key_exchange = shares.block(2).rest
        if group == _X25519:
            found.append(key_exchange)
    if body.more:
        raise UntrustedInputError("ClientHello", "bytes after its key shares")
    return found[0] if len(found) == 1 and len(found[0]) == 32 else None
