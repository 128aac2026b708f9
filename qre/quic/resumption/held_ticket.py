"""A session ticket that a client holds: what the next connection to its server needs (RFC 8446 §4.6.1)."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from qre.dest_profile import MOST_TOKEN
from qre.structs import U32, U64, Struct

#: RFC 8446 §4.6.1: no ticket is used for longer, whatever its server says (seconds).
LONGEST_LIFE: Final = 604_800
SECRET_LENGTH: Final = 32
#: Of longer ones no use is made (bytes).
MOST_PARAMETERS, MOST_IDENTITY = 1024, 1024


class HeldTicket(Struct, frozen=True, kw_only=True):
    """``secret``: the pre-shared key. ``parameters``: the server's transport parameters, whose limits early data
    keeps (RFC 9001 §4.6.1). ``token``: goes with it in the Initials of the next connection (RFC 9000 §8.1.3); empty:
    none."""

    identity: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MOST_IDENTITY)]
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_LENGTH, max_length=SECRET_LENGTH)]
    age_add: U32
    lifetime: U32  # seconds
    received_ms: U64  # Unix time
    early_data: bool
    parameters: Annotated[bytes, msgspec.Meta(max_length=MOST_PARAMETERS)]
    round_trip_us: U32 = 0  # of the connection that it came in; 0: not known
    nonce_length: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    token: Annotated[bytes, msgspec.Meta(max_length=MOST_TOKEN)] = b""

    def is_usable(self, unix_ms: int) -> bool:
        """Whether its server may still take it."""
        age = unix_ms - self.received_ms
        return 0 <= age < min(self.lifetime, LONGEST_LIFE) * 1000

    def obfuscated_age(self, unix_ms: int) -> int:
        """RFC 8446 §4.2.11.1."""
        return (max(0, unix_ms - self.received_ms) + self.age_add) & 0xFFFFFFFF

    def __repr__(self) -> str:
        return "HeldTicket(hidden)"
