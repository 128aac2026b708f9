"""Tokens for the next connection (RFC 9000 §8.1.3): Dest's own, each for one client, which uses it as browsers do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.dest_profile import MOST_TOKEN, DestProfile
from qre.quic.resumption.dest_tokens import DestTokens
from qre.quic.resumption.held_ticket import HeldTicket
from qre.wire.packet import PacketType
from tests.support.packets import layout, open_initial, packets
from tests.support.returning import Keeper, ReturningPair, caddys_profile

KEY = X25519PrivateKey.generate()
#: As long as Caddy's are.
TOKENS = tuple(bytes([number]) * (90 + number % 2) for number in range(12))


def with_tokens(profile: DestProfile, tokens: tuple[bytes, ...] = TOKENS) -> DestProfile:
    """``profile`` as if so many visits had each brought one."""
    visits = tuple(msgspec.structs.replace(profile.visits[0], token=token) for token in tokens)
    return msgspec.structs.replace(profile, visits=visits)


def first_pair(seed: int, keeper: Keeper, dest: DestProfile) -> ReturningPair:
    pair = ReturningPair(seed=seed, private_key=KEY, keeper=keeper, dest=dest).run()
    assert pair.complete
    return pair


def ticket_of(pair: ReturningPair) -> HeldTicket:
    (ticket,), _ = pair.client.brought()
    return ticket


@cache
def given() -> tuple[Keeper, list[HeldTicket]]:
    """What twelve clients of one server hold."""
    keeper = Keeper(KEY.private_bytes_raw())
    dest = with_tokens(caddys_profile())
    return keeper, [ticket_of(first_pair(seed, keeper, dest)) for seed in range(12)]


def test_some_tickets_have_a_token_of_dests_and_no_two_have_the_same() -> None:
    """As of a site of quic-go, which writes ticket and token in any order."""
    tokens = [ticket.token for ticket in given()[1] if ticket.token]
    assert 2 <= len(tokens) <= 10
    assert len(set(tokens)) == len(tokens) and set(tokens) <= set(TOKENS)


def test_a_token_stands_in_all_initials_of_the_next_connection_beside_the_whole_hello() -> None:
    keeper, tickets = given()
    for seed, ticket in enumerate(each for each in tickets if each.token):
        pair = ReturningPair(seed=seed, private_key=KEY, keeper=keeper, ticket=ticket).run()
        assert pair.complete and pair.client_state is not None
        sent = [data for by_client, data in pair.sent if by_client]
        initials = [(data, each) for data in sent for each in packets(data, 4) if each.kind is PacketType.INITIAL]
        assert {each.token for _, each in initials} == {ticket.token} and len(initials) >= 3
        assert {len(data) for data, _ in initials} == {1250}
        hello = b""
        pieces: dict[int, bytes] = {}
        for _, each in initials[:2]:
            pieces |= layout(open_initial(each, each.destination_cid).payload).crypto
        for offset, data in sorted(pieces.items()):
            assert offset == len(hello)
            hello += data
        assert int.from_bytes(hello[1:4], "big") == len(hello) - 4


@pytest.mark.parametrize("length", [1, 63, 64, 91, MOST_TOKEN])
def test_whatever_its_length_the_first_flight_is_two_initials(length: int) -> None:
    """One that has no room is left out."""
    keeper, tickets = given()
    for seed in range(6):
        ticket = msgspec.structs.replace(tickets[0], token=bytes(length))
        pair = ReturningPair(seed=seed, private_key=KEY, keeper=keeper, ticket=ticket).run()
        assert pair.complete
        sent = [data for by_client, data in pair.sent if by_client]
        kinds = [[each.kind for each in packets(data, 4)] for data in sent[:4]]
        assert kinds == [[PacketType.INITIAL]] * 2 + [[PacketType.ZERO_RTT]] * 2
        (first,) = packets(sent[0], 4)
        assert first.token in (bytes(length), b"") and (first.token or length > 91)


def test_a_token_in_front_of_the_ticket_is_forgotten() -> None:
    """A server that plays no visit writes one there, as it ever did."""
    dest = msgspec.structs.replace(caddys_profile(), visits=())
    for seed in range(4):
        assert ticket_of(first_pair(seed, Keeper(KEY.private_bytes_raw()), dest)).token == b""


def test_without_tokens_of_dests_none_are_given() -> None:
    for seed in range(4):
        assert ticket_of(first_pair(seed, Keeper(KEY.private_bytes_raw()), caddys_profile())).token == b""


def test_a_token_that_is_lost_comes_again_with_its_ticket() -> None:
    keeper = Keeper(KEY.private_bytes_raw())
    for seed in range(12):
        pair = ReturningPair(seed=seed, private_key=KEY, keeper=keeper, dest=with_tokens(caddys_profile()))
        pair.path = replace(pair.path, loss=0.2)
        pair.run()
        if pair.complete and (brought := pair.client.brought()[0]):
            assert brought[-1].token in (b"", *TOKENS)


def test_each_is_taken_once_and_only_where_it_has_room() -> None:
    tokens = DestTokens([b"before"])
    known = (b"before", b"longer", b"one", b"two")
    assert tokens.take(known, 3) == b"one"
    assert tokens.take(known, 3) == b"two"
    assert tokens.take(known, 3) == b""
    assert tokens.take(known, 6) == b"longer"
    assert tokens.take(known, 99) == b""
    assert tokens.take((*known, b""), 99) == b""


def test_what_visits_have_brought_is_no_part_of_what_is_shown() -> None:
    profile = with_tokens(caddys_profile(), TOKENS[:3])
    assert profile.tokens == TOKENS[:3]
    assert profile.without_visits().tokens == ()
    (one,) = caddys_profile().returns
    returned = msgspec.structs.replace(one, visit=msgspec.structs.replace(one.visit, token=b"last"))
    assert msgspec.structs.replace(profile, returns=(returned,)).tokens == (*TOKENS[:3], b"last")
