"""Base of every message and record: immutable structs of bounded fields, checked when decoded."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Port = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, msgspec.Meta(max_length=512)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An immutable, validated value."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    """A message between two processes. ``repr`` never shows keys (see ``__repr__`` of messages with keys)."""


def plain(value: Any) -> Any:
    """A value for JSON: structs as dicts, bytes as hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value
