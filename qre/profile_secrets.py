"""What of a profile only the handshake worker may know, and what a server's says of its clients afterwards.

``ProfileSecrets`` is no message: it travels in a sealed memfd, from the parent to that worker.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from qre.addresses import Address, Interface, Network
from qre.ends import MAX_CLIENTS
from qre.structs import U16, Struct

ShortId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Interfaces = Annotated[tuple[Interface, ...], msgspec.Meta(max_length=256)]
Prefixes = Annotated[tuple[Network, ...], msgspec.Meta(max_length=256)]


class KnownClient(Struct, frozen=True, kw_only=True):
    """A [Client NAME] section of a server's profile."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    short_id: ShortId
    address: Interfaces  # host prefixes
    allowed_ips: Prefixes = ()


class ServerKey(Struct, frozen=True, kw_only=True):
    """What admits a client to one of its servers."""

    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    short_id: ShortId

    def __repr__(self) -> str:
        return "ServerKey(hidden)"


class ProfileSecrets(Struct, frozen=True, kw_only=True):
    """What only the handshake worker may know; travels in a sealed memfd from the parent (msgpack)."""

    private_key: Annotated[bytes, msgspec.Meta(max_length=32)] = b""  # server
    previous_key: Annotated[bytes, msgspec.Meta(max_length=32)] = b""  # server: accepted, too, until
    previous_key_until: int = 0  # unix time in seconds
    short_ids: Annotated[
        tuple[bytes, ...], msgspec.Meta(max_length=MAX_CLIENTS)
    ] = ()  # server, padded to 8; of clients, too
    clients: Annotated[tuple[KnownClient, ...], msgspec.Meta(max_length=MAX_CLIENTS)] = ()  # server
    store_user: Annotated[str, msgspec.Meta(max_length=256)] = ""  # server: of ReplayStore
    store_database: U16 = 0
    store_password: Annotated[str, msgspec.Meta(max_length=256)] = ""
    public_key: Annotated[bytes, msgspec.Meta(max_length=32)] = b""  # client
    short_id: Annotated[bytes, msgspec.Meta(max_length=8)] = b""  # client, padded to 8
    others: Annotated[tuple[ServerKey, ...], msgspec.Meta(max_length=16)] = ()  # client: of WorkerConfig.others

    def __repr__(self) -> str:
        return "ProfileSecrets(hidden)"


class ListedClient(Struct, frozen=True, kw_only=True):
    """A client that a server knows, connected or not. ``name`` None: its short id has no section."""

    name: Annotated[str, msgspec.Meta(max_length=64)] | None
    short_id: ShortId
    address: Annotated[tuple[Address, ...], msgspec.Meta(max_length=8)] = ()  # that are its alone
