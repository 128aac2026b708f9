"""Bytes of the files of tickets; apart from what reads them, because the parent only makes room for them."""

from __future__ import annotations

from typing import Final

#: A mark of RealityPrivateKey, and two keys with the time of each.
TICKET_KEYS_LENGTH: Final = 16 + 2 * (8 + 32)
#: The tickets of a client, of all its servers.
TICKETS_LENGTH: Final = 32_768
