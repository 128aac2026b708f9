"""Whether a server takes a client's ticket, and which tickets it gives: as the recorded returns of Dest allow."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from qre.dest_profile import DestProfile, RecordedReturn
from qre.errors import UntrustedInputError
from qre.quic.resumption.psk import BINDER_LENGTH, binder_of, bound_secret, covered_part
from qre.quic.resumption.ticket_keys import SHORTEST_TICKET, OpenedTicket
from qre.quic.server.inspector import Authenticated
from qre.quic.server.returning_connection import KIND_OF_1RTT, ReturningConnection
from qre.quic.server.server_tls import TICKET_OVERHEAD, Resumption, ServerFlight, TicketMaker
from qre.quic.server.shadow_connection import ShadowConnection
from qre.quic.shadow.habits import habits_of
from qre.quic.shadow.visit_script import VisitScript, choose
from qre.quic.tls.client_hello import parse_client_hello_untrusted
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.wire.packet import PacketType
from qre.wire.protection import TAG_LENGTH

_EARLY_DATA_LENGTH: Final = 8


class TicketKeeper(Protocol):
    """Seals and opens tickets, with the keys of now, and gives Dest's tokens."""

    def seal(self, secret: bytes, short_id: bytes, length: int) -> bytes:
        """A ticket of ``length`` bytes."""

    def open_untrusted(self, identity: bytes) -> OpenedTicket:
        """Raises UntrustedInputError for what no key has sealed."""

    def take_token(self, tokens: Sequence[bytes], room: int) -> bytes:
        """One of these that no client has, of at most ``room`` bytes; empty: there is none."""


@dataclass(frozen=True)
class Returning:
    """A client whose ticket is taken, and the visit that it gets."""

    recorded: RecordedReturn
    resumption: Resumption


#: Of a recorded return: the sizes of a Length field (RFC 9000 §16), and the longest ServerHello (bytes).
_LENGTH_SIZES: Final = {1: 1 << 6, 2: 1 << 14, 4: 1 << 30, 8: 1 << 62}
_LONGEST_HELLO: Final = 2048


def is_playable(recorded: RecordedReturn) -> bool:
    """Whether what a visitor has told of a return fits together: Dest may be hostile, and so may a file."""
    for packet in (packet for datagram in recorded.flight for packet in datagram.packets):
        if packet.kind == KIND_OF_1RTT:
            continue
        if packet.kind not in (PacketType.INITIAL.value, PacketType.HANDSHAKE.value):
            return False
        if packet.length >= _LENGTH_SIZES.get(packet.length_size, 0):
            return False
        said = sum(len(frame.raw) + frame.crypto for frame in packet.frames)
        room = packet.length - packet.number_length - TAG_LENGTH
        if packet.kind == PacketType.INITIAL.value and said != room:
            return False
        if any(frame.offset + frame.crypto > _LONGEST_HELLO for frame in packet.frames):
            return False
    return all(sum(packet.length for packet in datagram.packets) <= MAX_UDP_PAYLOAD for datagram in recorded.flight)


def is_forged(found: Authenticated, keeper: TicketKeeper | None) -> bool:
    """Whether somebody offers a ticket of ours without its key."""
    return _opened(found, keeper) is None if _is_ours(found, keeper) else False


def returning(
    found: Authenticated, keeper: TicketKeeper | None, dest: DestProfile | None, random: Callable[[int], bytes]
) -> Returning | None:
    """None when the ticket is not taken, or there is none: then there is a whole handshake, as at Dest."""
    if dest is None or not dest.returns or found.retry_source_cid is not None:
        return None
    secret = _opened(found, keeper)
    if secret is None:
        return None
    playable = [each for each in dest.returns if is_playable(each)]
    if not playable:
        return None
    recorded = playable[int.from_bytes(random(4)) % len(playable)]
    early = parse_client_hello_untrusted(found.client_hello).has_early_data and recorded.early_data
    if found.repeated:  # no Finished can come under a key that nobody has; early data is acknowledged
        return Returning(recorded, Resumption(random(len(secret)), early, reads_with=secret))
    return Returning(recorded, Resumption(secret, early))


@dataclass(frozen=True)
class Following:
    """How Dest is followed: for whom, as what kind of site, and what it has told the client already (its source CID
    and highest packet number). ``reset_token``: see ShadowConnection."""

    client_cid: bytes
    flight: ServerFlight
    shown: tuple[bytes, int] | None
    reset_token: Callable[[bytes], bytes] | None


def shadow_of(
    found: Authenticated,
    keeper: TicketKeeper | None,
    dest: DestProfile | None,
    follows: Following,
    arguments: dict[str, Any],
) -> tuple[ShadowConnection, VisitScript | None]:
    """The connection in Dest's shadow, and what it plays after Finished. ``arguments``: those of every connection."""
    random = arguments["random_bytes"]
    back = returning(found, keeper, dest, random)
    visits = dest.visits if dest is not None else ()
    script = choose(visits if back is None else (back.recorded.visit,), random)
    arguments = arguments | {
        "client_cid": follows.client_cid,
        "expected_flight": follows.flight.handshake_length,
        "shown": follows.shown,
        "reset_token": follows.reset_token,
        "flight": replace(follows.flight, handshake_length=0),  # PADDING fills what Dest's has more
        "scripted": script is not None,
        "habits": habits_of(dest.transport_parameters if dest is not None else ()),
        "datagram_lengths": [],
    }
    if back is None:
        return ShadowConnection(**arguments), script
    return ReturningConnection(recorded=back.recorded, resumption=back.resumption, **arguments), script


def ticket_maker(keeper: TicketKeeper | None, dest: DestProfile | None, short_id: bytes) -> TicketMaker | None:
    """None when a client gets no tickets: nobody has seen what Dest answers to one, or Dest's have no room."""
    returns = [each for each in dest.returns if is_playable(each)] if dest is not None else []
    if keeper is None or dest is None or not returns or not dest.session_ticket_lengths:
        return None
    last = returns[-1]
    overhead = TICKET_OVERHEAD + last.nonce_length - (0 if last.early_data else _EARLY_DATA_LENGTH)
    if min(dest.session_ticket_lengths) - overhead < SHORTEST_TICKET:
        return None
    return TicketMaker(
        lambda secret, length: keeper.seal(secret, short_id, length),
        last.nonce_length,
        last.early_data,
        lambda room: keeper.take_token(dest.tokens, room),
    )


def _is_ours(found: Authenticated, keeper: TicketKeeper | None) -> bool:
    if keeper is None or found.ticket is None:
        return False
    try:
        keeper.open_untrusted(found.ticket)
    except UntrustedInputError:
        return False
    return True


def _opened(found: Authenticated, keeper: TicketKeeper | None) -> bytes | None:
    """The pre-shared key, if the ticket is ours, this client's, and its binder is right."""
    if keeper is None or found.ticket is None:
        return None
    try:
        opened = keeper.open_untrusted(found.ticket)
    except UntrustedInputError:
        return None
    secret = bound_secret(opened.secret, found.secrets.proof)
    binder = binder_of(covered_part(found.client_hello), secret)
    right = hmac.compare_digest(binder, found.client_hello[-BINDER_LENGTH:])
    return secret if right and hmac.compare_digest(opened.short_id, found.short_id) else None
