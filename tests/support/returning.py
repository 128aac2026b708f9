"""A client that comes back to a server of ours, in memory, with what Caddy did when a visitor came back to it."""

from __future__ import annotations

import random as randomness
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as File

import msgspec

from qre.dest_profile import DestProfile
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.resumption.dest_tokens import DestTokens
from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.resumption.ticket_keys import OpenedTicket, TicketKeys
from qre.visit.visitor_files import load_fingerprint
from qre.wire.packet import is_early_data
from tests.support.pair import ADDRESSES, NAME, SHORT_ID, TRUST, UNIX_TIME
from tests.support.shadow_pair import ShadowPair

_RECORDED = File(__file__).resolve().parents[1] / "data" / "caddy-return.json"


def caddys_profile() -> DestProfile:
    """Of a real Caddy, with a visit and a return."""
    return msgspec.json.decode(_RECORDED.read_bytes(), type=DestProfile)


class Keeper:
    """Ticket keys at one moment."""

    def __init__(self, private_key: bytes, seed: int = 0) -> None:
        random = randomness.Random(seed).randbytes
        self.tokens = DestTokens()
        self.keys = TicketKeys(b"", private_key=private_key, random=random, unix_time=UNIX_TIME)

    def seal(self, secret: bytes, short_id: bytes, length: int) -> bytes:
        return self.keys.seal(secret, short_id, UNIX_TIME, length)

    def open_untrusted(self, identity: bytes) -> OpenedTicket:
        return self.keys.open_untrusted(identity)

    def take_token(self, tokens: Sequence[bytes], room: int) -> bytes:
        return self.tokens.take(tokens, room)


@dataclass
class ReturningPair(ShadowPair):
    """``ticket``: what the client comes with; ``keeper``: of the server, None: it gives no tickets."""

    ticket: HeldTicket | None = None
    keeper: Keeper | None = None
    dest: DestProfile | None = field(default_factory=caddys_profile)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.client = ClientHandshake(
            server_name=NAME,
            public_key=self.private_key.public_key().public_bytes_raw(),
            short_id=SHORT_ID,
            addresses=ADDRESSES,
            fingerprint=load_fingerprint(),
            trust=TRUST,
            unix_time=UNIX_TIME,
            now=self.now,
            random=randomness.Random(self.chance.random()),
            ticket=self.ticket,
            round_trip_us=self.ticket.round_trip_us if self.ticket is not None else 0,
        )

    def _post(self, to_dest: bool, datagram: bytes) -> None:
        """Dest cannot open early data, and drops it."""
        if not (to_dest and is_early_data(datagram)):
            super()._post(to_dest, datagram)
