"""Clients that a server must not answer: their first flight, and whether the server tells them from real ones.
Sans-IO.

Each is as similar to a real client as possible: the client's own code makes it, with one error.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random

from qre.addresses import Interface
from qre.config.model import ClientSettings, ServerSettings
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.quic.in_memory.lone_server import Address
from qre.quic.server.inspector import Authenticated, HelloInspector
from qre.reality.authenticator import SHORT_ID_LENGTH

#: A real client repeats its flight for longer; the capture shows this many seconds.
_SHOWN: float = 1.0


class Stranger(enum.StrEnum):
    """The error of the client."""

    INVALID_SHORT_ID = "invalid-short-id"
    WRONG_SNI = "wrong-sni"
    MALFORMED_INITIAL = "malformed-initial"  # a client's Initials, which do not decrypt
    RANDOM_UDP = "random-udp"  # not QUIC at all


@dataclass(frozen=True)
class Arrived:
    """A datagram that leaves the client at ``time``, in seconds."""

    time: float
    data: bytes


def flight(
    stranger: Stranger,
    server: ServerSettings,
    client: ClientSettings,
    addresses: tuple[Interface, ...],
    server_address: Address,
    unix_time: int,
    fingerprint: Fingerprint,
    random: Random,
) -> tuple[Arrived, ...]:
    """The datagrams to a server that does not answer."""
    if stranger is Stranger.RANDOM_UDP:
        return tuple(Arrived(0.2 * n, random.randbytes(random.randint(24, 1200))) for n in range(5))
    short_id, name = client.short_id, client.server_name
    if stranger is Stranger.INVALID_SHORT_ID:
        while short_id in server.accepted_ids:
            short_id = random.randbytes(SHORT_ID_LENGTH)
    elif stranger is Stranger.WRONG_SNI:
        name = f"www.{name}" if len(name) < 200 else name.partition(".")[2]
    handshake = ClientHandshake(
        server_name=name,
        public_key=client.public_key,
        short_id=short_id,
        addresses=addresses,
        fingerprint=fingerprint,
        trust=TrustStore([], "nothing: there is no site in memory"),
        unix_time=unix_time,
        now=0.0,
        random=random,
    )
    sent = _unanswered(handshake, server_address)
    if stranger is Stranger.MALFORMED_INITIAL:
        return tuple(Arrived(each.time, _damaged(each.data, random)) for each in sent)
    return sent


def is_taken_for_ours(server: ServerSettings, datagrams: tuple[Arrived, ...], unix_time: int) -> bool:
    """Whether the server's inspector authenticates the flow."""
    inspector = HelloInspector(
        server_name=server.server_name,
        private_key=server.private_key,
        short_ids=server.accepted_ids,
        max_time_diff_ms=server.max_time_diff_ms,
    )
    for each in datagrams:
        inspector.datagram_received(each.data, int((unix_time + each.time) * 1000))
    return isinstance(inspector.verdict, Authenticated)


def _unanswered(handshake: ClientHandshake, server_address: Address) -> tuple[Arrived, ...]:
    """The first flight and its retransmissions."""
    handshake.connect(server_address, 0.0)
    now, sent = 0.0, []
    while now < _SHOWN:
        sent += [Arrived(now, data) for data in handshake.datagrams_to_send(now)]
        at = handshake.timer()
        if at is None:
            break
        now = max(at, now) + 1e-6
        handshake.handle_timer(now)
    return tuple(sent)


def _damaged(data: bytes, random: Random) -> bytes:
    """The same header with another packet number and payload."""
    kept = 6 + data[5]  # first byte, version, destination CID
    kept += 1 + data[kept]  # source CID
    kept += 1 + data[kept] + 2  # token, length of two bytes
    return data[:kept] + random.randbytes(len(data) - kept)
