"""A client's profile as one link, ``qre://v1/…``: what `add-client` prints and `import` reads (docs/client-link.md).

Behind the prefix stands base64url without padding (RFC 4648 §5) of fields and a checksum::

    type (varint) | length (varint) | value      each type once, in ascending order; varints as in RFC 9000 §16
    the first 4 bytes of SHA-256("qre link v1" | all fields)

A reader refuses an even type that it does not know and ignores an odd one. The checksum finds what copying has
damaged; it proves nothing about who made the link. A link admits its holder to the tunnel: it is a secret. Errors
repeat nothing of it. What the values mean is decided by the rules of a profile's file, not here; hooks have no type:
a link must never run a command.
"""

from __future__ import annotations

import binascii
from hashlib import sha256

from qre.config.server_places import parse_ids_of_servers, parse_keys_of_servers
from qre.config.values import show_key
from qre.errors import UntrustedInputError
from qre.wire.varint import encode_varint, encode_vector, read_varint_untrusted, read_vector_untrusted

PREFIX = "qre://v1/"
SCHEME = "qre://"
#: Room for 256 prefixes, as many as a profile may have.
MAX_LINK = 16_384
_CHECKSUM_LENGTH = 4
_CONTEXT = b"qre link v1"
_NAME = 1
#: Type -> the key of a client's profile. A later version may add odd ones, which this one ignores.
_TYPES = {
    2: "Endpoint",
    4: "ServerName",
    6: "RealityPublicKey",
    8: "RealityShortId",
    10: "Address",
    12: "AllowedIPs",
    13: "MTU",
    14: "DNS",
    15: "PersistentKeepalive",
    17: "EndpointOrder",
    19: "LeakProtection",
}
_KEYS = {key: number for number, key in _TYPES.items()}
#: Of these a link has one for each server, or one for all.
_LENGTHS = {"RealityPublicKey": 32, "RealityShortId": 8}


class ClientLink:
    """``name`` is what the server calls the client, or empty; ``values`` are keys of a profile with their texts."""

    __slots__ = ("name", "values")

    def __init__(self, name: str, values: dict[str, str]) -> None:
        self.name = name
        self.values = values


def is_link(text: str) -> bool:
    """Whether this is meant as a link, of whatever version."""
    return text.lstrip()[: len(SCHEME)].lower() == SCHEME


def encode_link(link: ClientLink) -> str:
    """The link. Keys that a link does not carry are a ValueError."""
    fields = {_number(key): _to_bytes(key, text) for key, text in link.values.items()}
    if link.name:
        fields[_NAME] = link.name.encode()
    body = b"".join(encode_varint(number) + encode_vector(fields[number]) for number in sorted(fields))
    return PREFIX + binascii.b2a_base64(body + _checksum(body), newline=False).decode().translate(_URL).rstrip("=")


_URL = str.maketrans("+/", "-_")
_PLAIN = str.maketrans("-_", "+/")


def _number(key: str) -> int:
    if key not in _KEYS:
        raise ValueError(f"a link does not carry {key}")
    return _KEYS[key]


def _to_bytes(key: str, text: str) -> bytes:
    match key:
        case "RealityPublicKey":
            return b"".join(parse_keys_of_servers(text))
        case "RealityShortId":
            return b"".join(parse_ids_of_servers(text))
        case _:
            return text.encode()


def _checksum(body: bytes) -> bytes:
    return sha256(_CONTEXT + body).digest()[:_CHECKSUM_LENGTH]


def decode_link_untrusted(text: str) -> ClientLink:
    """The fields of a link, blanks and line breaks within it ignored; UntrustedInputError says what is wrong."""
    if len(text) > MAX_LINK:
        raise UntrustedInputError("link", f"it is longer than {MAX_LINK} characters")
    word = "".join(text.split())
    if word[: len(PREFIX)].lower() != PREFIX:
        other = word[: len(SCHEME)].lower() == SCHEME
        why = "it is of another version than v1, which this program knows" if other else f"it is not {PREFIX}…"
        raise UntrustedInputError("link", why)
    body = _body_untrusted(word[len(PREFIX) :])
    found: dict[int, bytes] = {}
    at, last = 0, -1
    while at < len(body):
        number, at = read_varint_untrusted(body, at)
        value, at = read_vector_untrusted(body, at)
        if number <= last:
            raise UntrustedInputError("link", "its fields are not in order")
        last = number
        if number in _TYPES or number == _NAME:
            found[number] = value
        elif number % 2 == 0:
            raise UntrustedInputError("link", "it has a part that this version does not know")
    name = _text_untrusted(found.pop(_NAME, b""))
    return ClientLink(name, {_TYPES[at]: _from_bytes_untrusted(_TYPES[at], value) for at, value in found.items()})


def _body_untrusted(word: str) -> bytes:
    """The fields, if the checksum is right."""
    damaged = UntrustedInputError("link", "it is damaged or not whole: its checksum is wrong")
    if not word.isascii() or "+" in word or "/" in word or "=" in word:
        raise damaged
    try:
        data = binascii.a2b_base64(word.translate(_PLAIN) + "=" * (-len(word) % 4), strict_mode=True)
    except ValueError:
        raise damaged from None
    body, checksum = data[:-_CHECKSUM_LENGTH], data[-_CHECKSUM_LENGTH:]
    if len(data) < _CHECKSUM_LENGTH or checksum != _checksum(body):
        raise damaged
    return body


def _from_bytes_untrusted(key: str, value: bytes) -> str:
    length = _LENGTHS.get(key)
    if length is None:
        return _text_untrusted(value)
    if not value or len(value) % length:
        raise UntrustedInputError("link", f"its {key} does not have {length} bytes")
    each = (value[at : at + length] for at in range(0, len(value), length))
    return ", ".join(show_key(one) if key == "RealityPublicKey" else one.hex() for one in each)


def _text_untrusted(value: bytes) -> str:
    """Printable ASCII alone: no value of a profile needs more, and a line break would begin another key."""
    if not all(0x20 <= byte < 0x7F for byte in value):
        raise UntrustedInputError("link", "a value of it is not plain text")
    return value.decode("ascii")
