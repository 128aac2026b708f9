"""Coming back with a ticket: what the client offers, what the server plays, and what becomes of false tickets."""

from __future__ import annotations

import random as randomness
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.dest_profile import DestProfile, ReturnedFrame
from qre.errors import UntrustedInputError
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.hello import make_hello
from qre.quic.handshake_events import Closed, HandOverReady, NotRecognised, SiteAnswered
from qre.quic.resumption.file_lengths import TICKET_KEYS_LENGTH, TICKETS_LENGTH
from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.resumption.psk import BINDER_LENGTH, BINDERS_LENGTH
from qre.quic.resumption.ticket_keys import LIFE_OF_A_KEY, SHORTEST_TICKET, TicketKeys, is_marked
from qre.quic.resumption.ticket_store import MOST_TICKETS, TicketStore, name_of
from qre.quic.server.coming_back import is_forged, is_playable, returning
from qre.quic.server.inspector import Authenticated, HelloInspector, Undecided
from qre.quic.server.shadow_tls import ShadowTlsContext
from qre.reality.authenticator import RANDOM_END
from qre.visit.visitor_files import load_fingerprint
from qre.wire.packet import PacketType, packets_untrusted
from tests.support.ja4 import ja4
from tests.support.pair import ADDRESSES, NAME, SHORT_ID, UNIX_TIME, Path
from tests.support.returning import Keeper, ReturningPair, caddys_profile
from tests.support.stock_site import StockSite, meet, trust

JA4 = "q13d0314h3_55b375c5d22e_79cc91d6b50c"


@cache
def known() -> tuple[X25519PrivateKey, Keeper, HeldTicket]:
    """A server's keys, and a ticket that it has given in a real handshake."""
    pair = ReturningPair()
    pair.keeper = Keeper(pair.private_key.private_bytes_raw())
    assert pair.run().complete
    (ticket,), _ = pair.client.brought()
    return pair.private_key, pair.keeper, ticket


def back(keeper: Keeper | None = None, path: Path | None = None, seed: int = 3) -> ReturningPair:
    key, first, ticket = known()
    return ReturningPair(
        seed=seed, private_key=key, keeper=keeper or first, ticket=ticket, path=path or Path(delay=0.005)
    )


def types(data: bytes, cid_length: int) -> tuple[PacketType, ...]:
    return tuple(each.type for each in packets_untrusted(data, short_cid_length=cid_length))


def shapes(pair: ReturningPair, *, by_client: bool) -> list[tuple[int, tuple[PacketType, ...]]]:
    """Length and packet types of each datagram."""
    length = 8 if by_client else 0
    return [(len(data), types(data, length)) for by, data in pair.sent if by is by_client]


# --- the hello ---


def test_a_resumed_hello_is_the_browsers() -> None:
    _, _, ticket = known()
    orders, lengths = set(), set()
    for seed in range(60):
        offered = make_hello(
            load_fingerprint(),
            NAME,
            public_key=known()[0].public_key().public_bytes_raw(),
            short_id=SHORT_ID,
            unix_time=UNIX_TIME,
            random=randomness.Random(seed),
            ticket=ticket,
            round_trip_us=ticket.round_trip_us,
        )
        hello = tls.pull_client_hello(Buffer(data=offered.message))
        kinds = extensions(offered.message)
        assert hello.signature_algorithms is not None and hello.early_data
        assert ja4(hello.cipher_suites, kinds, hello.signature_algorithms, "h3") == JA4
        assert kinds[-1] == 41
        assert hello.pre_shared_key is not None
        ((identity, _),) = hello.pre_shared_key.identities
        assert len(identity) == 156 and [len(binder) for binder in hello.pre_shared_key.binders] == [32]
        orders.add(kinds)
        lengths.add(len(offered.message))
        parameters = dict(hello.other_extensions)[57]
        assert bytes.fromhex("7127") in parameters, "initial_rtt_us"
    assert len(orders) == 60
    assert 2080 <= min(lengths) < max(lengths) <= 2222


def extensions(message: bytes) -> tuple[int, ...]:
    buf = Buffer(data=message)
    buf.seek(38)
    tls.pull_opaque(buf, 1)
    tls.pull_opaque(buf, 2)
    tls.pull_opaque(buf, 1)
    found = []

    def one() -> None:
        found.append(buf.pull_uint16())
        tls.pull_opaque(buf, 2)

    tls.pull_list(buf, 2, one)
    return tuple(found)


def test_the_first_flight_is_two_initials_then_early_data_in_datagrams_of_its_own() -> None:
    pair = back().run()
    first = shapes(pair, by_client=True)[:4]
    assert [kinds for _, kinds in first] == [(PacketType.INITIAL,)] * 2 + [(PacketType.ZERO_RTT,)] * 2
    assert [length for length, _ in first[:2]] == [1250, 1250]
    assert 75 <= first[2][0] <= 82
    assert 455 <= first[3][0] <= 475


def test_the_authenticator_covers_the_hello_up_to_the_binders_and_the_binder_the_authenticator() -> None:
    key, keeper, ticket = known()
    offered = make_hello(
        load_fingerprint(),
        NAME,
        public_key=key.public_key().public_bytes_raw(),
        short_id=SHORT_ID,
        unix_time=UNIX_TIME,
        random=randomness.Random(1),
        ticket=ticket,
    )
    found = judged(key, offered.message)
    assert isinstance(found, Authenticated) and found.ticket == ticket.identity
    assert not is_forged(found, keeper)
    for at in (RANDOM_END + 3, 400, len(offered.message) - BINDERS_LENGTH - 1):
        changed = bytearray(offered.message)
        changed[at] ^= 1
        assert judged(key, bytes(changed)) is Undecided.STRANGER
    forged = replace(found, client_hello=found.client_hello[:-1] + bytes([found.client_hello[-1] ^ 1]))
    assert is_forged(forged, keeper)
    assert returning(forged, keeper, caddys_profile(), randomness.Random(1).randbytes) is None


def judged(key: X25519PrivateKey, message: bytes) -> object:
    inspector = HelloInspector(server_name=NAME, private_key=key, short_ids=[SHORT_ID], max_time_diff_ms=0)
    inspector._original_cid = bytes(8)
    return inspector._decide(message, UNIX_TIME * 1000)


# --- the server's answer ---


@pytest.mark.parametrize("seed", range(8))
def test_a_ticket_that_is_taken_gets_the_flight_that_dest_was_seen_to_give(seed: int) -> None:
    pair = back(seed=seed).run()
    assert pair.complete
    connection = pair.client._connection
    assert connection.resumed and connection.early_data_taken
    recorded = caddys_profile().returns[0]
    flight = [made for _, datagrams in pair.mirrored for made in datagrams]
    assert len(flight) == len(recorded.flight)
    for made, datagram in zip(flight, recorded.flight, strict=True):
        kinds = [each.type for each in packets_untrusted(made, short_cid_length=0)]
        wanted = [PacketType.ONE_RTT if each.kind == 3 else PacketType(each.kind) for each in datagram.packets]
        assert kinds == wanted
    # Finished answers the whole flight with one datagram, which begins with an Initial.
    answer = shapes(pair, by_client=True)[4]
    assert answer == (1250, (PacketType.INITIAL, PacketType.HANDSHAKE))
    assert len(pair.farewells) == 1 and len(pair.farewells[0]) == 1250


def test_what_follows_server_hello_is_made_once_and_before_dest_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    known()
    said: list[bool] = []
    push = ShadowTlsContext._push_rest

    def counted(self: ShadowTlsContext, buf: Buffer) -> None:
        said.append(bool(pair.mirrored))
        push(self, buf)

    monkeypatch.setattr(ShadowTlsContext, "_push_rest", counted)
    pair = back()
    assert pair.run().complete and pair.client._connection.resumed
    assert said == [False]


def test_nothing_but_the_flight_is_said_before_finished() -> None:
    pair = back().run()
    finished = next(
        number
        for number, (by, data) in enumerate(pair.sent)
        if by and [each.type for each in packets_untrusted(data, short_cid_length=8)][-1] is PacketType.HANDSHAKE
    )
    before = [data for by, data in pair.sent[:finished] if not by]
    assert before == [made for _, datagrams in pair.mirrored for made in datagrams]


def test_both_ends_have_the_same_session_and_a_ticket_for_the_next() -> None:
    pair = back().run()
    assert pair.client_state is not None and pair.server_state is not None
    assert pair.client_state.session_id == pair.server_state.session_id
    assert pair.client_state.tx_secret == pair.server_state.rx_secret
    assert pair.client_state.short_id == pair.server_state.short_id == SHORT_ID
    (following,), round_trip_us = pair.client.brought()
    assert following.identity != known()[2].identity
    assert round_trip_us > 0


def test_a_client_comes_back_twenty_times_with_the_ticket_of_the_time_before() -> None:
    key, keeper, ticket = known()
    seen = {ticket.identity}
    for seed in range(20):
        pair = ReturningPair(seed=seed, private_key=key, keeper=keeper, ticket=ticket, path=Path(delay=0.002)).run()
        assert pair.complete and pair.client._connection.early_data_taken
        (ticket,), _ = pair.client.brought()
        assert ticket.identity not in seen
        seen.add(ticket.identity)


def test_a_ticket_that_is_not_taken_costs_a_whole_handshake_and_early_data_goes_again() -> None:
    pair = back(Keeper(b"another key", seed=9)).run()
    assert pair.complete
    assert not pair.client._connection.resumed
    sent = shapes(pair, by_client=True)
    again = next(number for number, (_, kinds) in enumerate(sent) if kinds[-1] is PacketType.ONE_RTT)
    assert sent[again][1] == (PacketType.HANDSHAKE, PacketType.ONE_RTT)
    assert 500 <= sent[again][0] <= 580
    assert sent[again + 1] == (73, (PacketType.HANDSHAKE,)), "Finished, behind early data as in the browser"
    assert [type(event) for event in pair.client_events][-1] is HandOverReady


def test_a_server_that_has_seen_no_return_gives_no_ticket_and_takes_none() -> None:
    key, keeper, ticket = known()
    unseen = msgspec.structs.replace(caddys_profile(), returns=())
    pair = ReturningPair(private_key=key, keeper=keeper, ticket=ticket, dest=unseen).run()
    assert pair.complete
    assert not pair.client._connection.resumed
    assert pair.client.brought()[0] == ()


def test_a_dest_without_early_data_gets_none_offered() -> None:
    key, keeper, _ = known()
    profile = caddys_profile()
    late = msgspec.structs.replace(profile.returns[0], early_data=False)
    dest = msgspec.structs.replace(profile, returns=(late,))
    first = ReturningPair(private_key=key, keeper=keeper, dest=dest).run()
    (ticket,), _ = first.client.brought()
    assert not ticket.early_data
    pair = ReturningPair(private_key=key, keeper=keeper, dest=dest, ticket=ticket, seed=5).run()
    assert pair.complete and pair.client._connection.resumed
    assert PacketType.ZERO_RTT not in {kind for _, kinds in shapes(pair, by_client=True) for kind in kinds}


@pytest.mark.parametrize("seed", range(25))
def test_what_is_lost_on_the_way_is_made_up_for(seed: int) -> None:
    pair = back(path=Path(loss=0.15, duplicate=0.1, reorder=0.2, delay=0.01), seed=seed)
    assert pair.run(60.0).complete


@pytest.mark.parametrize("heard", [1, 2, 3])
def test_a_client_that_falls_silent_gets_three_times_what_it_sent_and_no_more(heard: int) -> None:
    """Whoever copies a first flight and forges its address gets its owner no more than that."""
    pair = back()
    received = 0
    deliver = pair._deliver

    def silent(by_client: bool, datagram: bytes) -> None:
        nonlocal received
        if by_client and received >= 2500 + 79 * heard:
            return
        if by_client:
            received += len(datagram)
        deliver(by_client, datagram)

    pair._deliver = silent  # type: ignore[method-assign]
    pair.run(40.0)
    assert not pair.complete
    answered = sum(len(data) for by, data in pair.sent if not by)
    assert 2400 < answered <= 3 * received


@pytest.mark.parametrize(
    "odd",
    [
        {"kind": 1},
        {"length": 1400},
        {"length_size": 1},
        {"length_size": 3},
        {"frames": (ReturnedFrame(bytes(1500)),) * 4},
        {"frames": (ReturnedFrame(b"", 65_000, 1143),)},
    ],
)
def test_a_recording_that_does_not_fit_together_is_not_played(odd: dict[str, Any]) -> None:
    """Whoever has the site's name may say anything of it."""
    key, keeper, ticket = known()
    profile = caddys_profile()
    (recorded,) = profile.returns
    first = recorded.flight[0]
    packet = msgspec.structs.replace(first.packets[0], **odd)
    flight = (msgspec.structs.replace(first, packets=(packet,)), *recorded.flight[1:])
    recorded = msgspec.structs.replace(recorded, flight=flight)
    assert not is_playable(recorded)
    dest = msgspec.structs.replace(profile, returns=(recorded,))
    pair = ReturningPair(private_key=key, keeper=keeper, ticket=ticket, dest=dest).run()
    assert pair.complete and not pair.client._connection.resumed
    assert pair.client.brought()[0] == ()


# --- at a site ---


def test_a_site_that_takes_no_ticket_never_hears_of_a_tunnel() -> None:
    key, _, ticket = known()
    visitor = ClientHandshake(
        server_name=NAME,
        public_key=key.public_key().public_bytes_raw(),
        short_id=SHORT_ID,
        addresses=ADDRESSES,
        fingerprint=load_fingerprint(),
        trust=trust(),
        unix_time=UNIX_TIME,
        now=100.0,
        random=randomness.Random(7),
        ticket=ticket,
    )
    site = StockSite()
    assert meet(visitor, site) == [NotRecognised(), Closed()]
    assert {dict(request)[b":method"] for request in site.requests} == {b"GET"}
    assert dict(site.requests[0])[b":path"] == b"/"


def test_a_ticket_that_only_looks_like_one_is_not_kept() -> None:
    """Servers of earlier versions give such."""
    pair = ReturningPair(dest=None).run()
    assert pair.complete
    assert pair.client._connection.context is not None
    assert pair.client._connection.context.ticket_lengths == [181]
    assert pair.client.brought()[0] == ()


def test_a_recording_is_of_bounded_size_and_stays_in_the_profile() -> None:
    profile = caddys_profile()
    many = profile.after(profile).after(profile).after(profile).after(profile)
    assert len(many.returns) == 4
    data = msgspec.json.encode(many)
    assert msgspec.json.decode(data, type=DestProfile) == many
    assert len(data) < 32_768
    assert many.without_visits().returns == ()


def test_a_probe_of_a_site_that_resumes_nothing_records_no_return() -> None:
    visitor = ClientHandshake(
        server_name=NAME,
        public_key=b"",
        short_id=bytes(8),
        addresses=(),
        fingerprint=load_fingerprint(),
        trust=trust(),
        unix_time=UNIX_TIME,
        now=100.0,
        random=randomness.Random(7),
        ticket=known()[2],
    )
    told = meet(visitor, StockSite())
    assert isinstance(told[0], SiteAnswered)
    assert told[0].profile.returns == () and told[0].profile.http_status == 200


# --- tickets and their keys ---


def keys(image: bytes = b"", key: bytes = b"key", at: int = UNIX_TIME, seed: int = 1) -> TicketKeys:
    return TicketKeys(image, private_key=key, random=randomness.Random(seed).randbytes, unix_time=at)


def test_a_ticket_has_the_length_of_dests_and_nobody_else_opens_it() -> None:
    made = keys()
    for length in (SHORTEST_TICKET, 156, 300):
        ticket = made.seal(bytes(range(32)), SHORT_ID, UNIX_TIME, length)
        assert len(ticket) == length
        opened = made.open_untrusted(ticket)
        assert (opened.secret, opened.short_id, opened.unix_time) == (bytes(range(32)), SHORT_ID, UNIX_TIME)
        assert is_marked(ticket, bytes(range(32))) and not is_marked(ticket, bytes(32))
        for changed in (ticket[:20] + bytes([ticket[20] ^ 1]) + ticket[21:], ticket[:-9], b"", bytes(length)):
            with pytest.raises(UntrustedInputError):
                made.open_untrusted(changed)
        with pytest.raises(UntrustedInputError):
            keys(seed=2).open_untrusted(ticket)


def test_a_key_is_replaced_each_day_and_gone_the_day_after() -> None:
    made = keys()
    ticket = made.seal(bytes(32), SHORT_ID, UNIX_TIME, 156)
    image = made.image
    assert len(image) == TICKET_KEYS_LENGTH
    assert not made.refresh(UNIX_TIME + LIFE_OF_A_KEY - 1)
    assert made.refresh(UNIX_TIME + LIFE_OF_A_KEY)
    assert made.open_untrusted(ticket).short_id == SHORT_ID
    assert made.refresh(UNIX_TIME + 2 * LIFE_OF_A_KEY)
    assert image[24:56] not in made.image, "overwritten"
    with pytest.raises(UntrustedInputError):
        made.open_untrusted(ticket)


def test_keys_outlive_a_process_but_not_another_private_key() -> None:
    made = keys()
    ticket = made.seal(bytes(32), SHORT_ID, UNIX_TIME, 156)
    assert keys(made.image, seed=5).open_untrusted(ticket).secret == bytes(32)
    for other in (keys(made.image, key=b"another", seed=5), keys(made.image[:50], seed=5), keys(seed=5)):
        with pytest.raises(UntrustedInputError):
            other.open_untrusted(ticket)
    assert not made.replace_all(b"key", UNIX_TIME)
    assert made.replace_all(b"another", UNIX_TIME)
    with pytest.raises(UntrustedInputError):
        made.open_untrusted(ticket)


def test_a_clock_that_was_set_back_makes_a_new_key() -> None:
    made = keys()
    assert made.refresh(UNIX_TIME - 10)


def test_a_ticket_is_taken_out_once_the_newest_first() -> None:
    _, _, ticket = known()
    one, two, three = (msgspec.structs.replace(ticket, identity=bytes([n]) * 156) for n in range(3))
    name, now = name_of(NAME, bytes(32), SHORT_ID), UNIX_TIME * 1000
    store = TicketStore(b"")
    store.put(name, (one, two, three), 4000)
    store = TicketStore(store.image)
    assert len(store.image) == TICKETS_LENGTH
    assert store.take(name_of(NAME, bytes(32), bytes(8)), now) is None, "another client's"
    assert store.take(name, now) == three
    again = TicketStore(store.image)
    assert again.take(name, now) == two
    assert again.take(name, now) is None
    assert again.round_trip_us(name) == 4000
    assert MOST_TICKETS == 2
    again.keep(())
    assert again.round_trip_us(name) == 0
    again.put(name, (one,), 4000)
    again.forget(name)
    assert again.take(name, now) is None and again.round_trip_us(name) == 0


def test_a_ticket_is_used_no_longer_than_it_lives() -> None:
    _, _, ticket = known()
    name, now = name_of(NAME, bytes(32), SHORT_ID), ticket.received_ms
    store = TicketStore(b"")
    store.put(name, (ticket,), 0)
    assert store.take(name, now + ticket.lifetime * 1000) is None
    store.put(name, (ticket,), 0)
    assert store.take(name, now - 1) is None, "it comes from the future"


@pytest.mark.parametrize("image", [b"", bytes(100), b"\0\0\0\x04abcd", b"\xff" * 64, b"\0\0\0\x02\x91\x80"])
def test_a_file_that_cannot_be_read_holds_no_tickets(image: bytes) -> None:
    assert TicketStore(image).take(bytes(16), 0) is None


def test_no_secret_is_shown() -> None:
    _, _, ticket = known()
    assert ticket.secret.hex() not in repr(ticket) and repr(ticket) == "HeldTicket(hidden)"
    assert len(ticket.secret) == BINDER_LENGTH
