"""Base of every message and record: immutable structs of bounded fields, checked when decoded.

What crosses a process boundary is written by ``encoder()`` and read by ``decoder(types)``, which know the types of
``qre.addresses``, too.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any, Final

import msgspec

from qre.addresses import Address, Interface, Network
from qre.ends import MAX_LISTEN

#: The longest text of an address with a prefix length.
_LONGEST_ADDRESS: Final = 49
_READERS: Final[dict[Any, Any]] = {Address: ip_address, Interface: ip_interface, Network: ip_network}

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Port = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, msgspec.Meta(max_length=512)]
#: At which a server listens.
ListenAddresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_LISTEN)]
#: AllowedIPs of an interface and of all its clients.
Routes = Annotated[tuple[Network, ...], msgspec.Meta(max_length=1280)]
IpVersions = Annotated[tuple[Annotated[int, msgspec.Meta(ge=4, le=6)], ...], msgspec.Meta(max_length=2)]
#: TCP ports that are passed to Dest.
SitePorts = Annotated[tuple[Port, ...], msgspec.Meta(max_length=16)]
#: A numeric address as sockets have it.
IpText = Annotated[str, msgspec.Meta(max_length=45)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An immutable, validated value."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    """A message between two processes. ``repr`` never shows keys (see ``__repr__`` of messages with keys)."""


def encoder() -> msgspec.msgpack.Encoder:
    """For messages and records with addresses in them."""
    return msgspec.msgpack.Encoder(enc_hook=text_of_address)


def decoder(types: Any) -> msgspec.msgpack.Decoder[Any]:
    """For what ``encoder`` wrote. It raises ``msgspec.ValidationError`` for anything else."""
    return msgspec.msgpack.Decoder(types, dec_hook=address_of_text)


def text_of_address(value: object) -> str:
    """``enc_hook``: an address in text. Raises NotImplementedError for what is none."""
    if isinstance(value, tuple(_READERS)):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def address_of_text(kind: type, text: object) -> object:
    """``dec_hook``: the address that ``text`` is. Raises ValueError."""
    if not isinstance(text, str) or len(text) > _LONGEST_ADDRESS:
        raise ValueError("not an address in text")
    return _READERS[kind](text)


def plain(value: Any) -> Any:
    """A value for JSON: structs as dicts, bytes as hex, addresses as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple(_READERS)):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value
