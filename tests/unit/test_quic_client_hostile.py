"""Whatever bytes come, the client never raises: mutated datagrams, altered TLS messages, random frames."""

from __future__ import annotations

import random as randomness
from collections.abc import Callable

import pytest
from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicFrameType

from qre.quic.handshake_events import (
    Closed,
    HandOverReady,
    HandshakeFailed,
    ManInTheMiddle,
    NotRecognised,
    Proven,
    SiteAnswered,
)
from tests.support.pair import SERVER, Pair
from tests.support.stock_site import ADDRESS, STRANGE_KEY, StockSite, client, issue, meet

LEAF = issue()


def mutate(chance: randomness.Random, data: bytes) -> bytes:
    """A few changed, lost, doubled or added bytes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(5):
            case 0 if changed:
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case 1 if changed:
                changed[chance.randrange(min(len(changed), 48))] = chance.randrange(256)
            case 2:
                del changed[chance.randrange(len(changed) + 1) :]
            case 3:
                changed += chance.randbytes(chance.randrange(64))
            case 4 if changed:
                start = chance.randrange(len(changed))
                changed[start:start] = changed[start : start + chance.randrange(40)]
    return bytes(changed)


ENDS = (NotRecognised, SiteAnswered, ManInTheMiddle, HandshakeFailed)


@pytest.mark.parametrize("seed", range(40))
def test_mutated_datagrams_of_a_site_end_in_an_event_or_do_nothing(seed: int) -> None:
    chance = randomness.Random(seed)
    rate = chance.choice((0.05, 0.3, 1.0))
    events = meet(
        client(chance.choice((STRANGE_KEY, b"")), seed=seed),
        StockSite(LEAF),
        tamper=lambda data: mutate(chance, data) if chance.random() < rate else data,
    )
    assert isinstance(events[-1], Closed)
    assert isinstance(events[0], ENDS)


@pytest.mark.parametrize("seed", range(60))
def test_altered_tls_messages_end_in_an_event(seed: int) -> None:
    """Packets are good, what TLS reads is not: every parser behind the keys."""
    chance = randomness.Random(1000 + seed)

    def alter(epoch: tls.Epoch, data: bytes) -> bytes:
        if epoch is tls.Epoch.INITIAL and seed % 4:
            return data
        return mutate(chance, data)[:8000]

    events = meet(client(chance.choice((STRANGE_KEY, b"")), seed=seed), StockSite(LEAF, alter=alter))
    assert isinstance(events[-1], Closed)
    assert isinstance(events[0], ENDS)


def random_frames(chance: randomness.Random) -> bytes:
    """Something like frames: known types with random fields, and sometimes just bytes."""
    frames = b""
    for _ in range(chance.randint(1, 4)):
        if chance.random() < 0.2:
            frames += chance.randbytes(chance.randint(1, 40))
            continue
        frames += bytes([chance.choice((*range(0x1F), 0x30, 0x31, 0x40))])
        for _ in range(chance.randint(0, 5)):
            frames += encode_uint_var(
                chance.choice((0, 1, 2, 3, 8, 20, chance.getrandbits(14), chance.getrandbits(61)))
            )
        frames += chance.randbytes(chance.randint(0, 60))
    return frames[:1100]


@pytest.mark.parametrize("seed", range(60))
def test_random_frames_from_a_proven_server_end_in_an_event_or_do_nothing(seed: int) -> None:
    chance = randomness.Random(2000 + seed)
    pair = Pair(seed=seed)
    client, server = pair.client, _proven_server(pair, stop_after=chance.randint(1, 4))
    for _ in range(20):
        payload = random_frames(chance)

        def write(builder: object, *_: object, payload: bytes = payload, **__: object) -> None:
            crypto = server._cryptos[tls.Epoch.ONE_RTT]
            builder.start_packet(_one_rtt(), crypto)  # type: ignore[attr-defined]  # a builder, whatever its class
            buf = builder.start_frame(QuicFrameType.PING)  # type: ignore[attr-defined]  # as above
            buf.seek(buf.tell() - 1)
            buf.push_bytes(payload)

        if not server._cryptos[tls.Epoch.ONE_RTT].send.is_valid():
            break
        server._write_application = write  # type: ignore[method-assign]  # the whole point
        for datagram in server.send(pair.now):
            client.datagram_received(datagram, SERVER, pair.now)
        client.datagrams_to_send(pair.now)
        client.handle_timer(pair.now)
        pair.now += 0.01
    client.abandon()
    client.datagrams_to_send(pair.now)
    told = [type(event) for event in iter(client.next_event, None)]
    assert told in ([], [HandshakeFailed, Closed])


def _one_rtt() -> object:
    from aioquic.quic.packet import QuicPacketType

    return QuicPacketType.ONE_RTT


def _proven_server(pair: Pair, stop_after: int) -> object:
    """Run the pair until the client has told so many events, or has handed over; the server's connection."""
    pair.client.connect(SERVER, pair.now)
    while len(pair.client_events) < stop_after and not pair.complete:
        pair._pump()
        if not pair._step():
            break
    assert any(isinstance(event, Proven) for event in pair.client_events)
    assert pair.server is not None
    return pair.server._connection


@pytest.mark.parametrize("seed", range(30))
def test_a_handshake_survives_garbage_between_its_datagrams(seed: int) -> None:
    """Injected and mutated copies beside the real datagrams: the hand-over still happens."""
    chance = randomness.Random(3000 + seed)
    pair = Pair(seed=seed)
    deliver = pair._deliver

    def deliver_with_garbage(by_client: bool, datagram: bytes) -> None:
        if chance.random() < 0.5 and (pair.server is not None or not by_client):
            garbage: Callable[[], bytes] = chance.choice(
                (
                    lambda: chance.randbytes(chance.randint(0, 1300)),
                    lambda: b"\x40" + chance.randbytes(40),
                    lambda: mutate(chance, datagram),
                )
            )
            deliver(by_client, garbage())
        deliver(by_client, datagram)

    pair._deliver = deliver_with_garbage  # type: ignore[method-assign]  # the path of this test
    pair.run()
    assert pair.complete, (pair.client_events, pair.server_events)
    assert any(isinstance(event, HandOverReady) for event in pair.client_events)


@pytest.mark.parametrize(
    "datagram",
    [b"", b"\x00", b"\x40", b"\xc0", b"\xff" * 1200, b"\x40" + bytes(60), b"\xc0\x00\x00\x00\x01" + b"\x14" * 40],
)
def test_garbage_before_any_answer_changes_nothing(datagram: bytes) -> None:
    handshake = client()
    handshake.connect(ADDRESS, 100.0)
    handshake.datagrams_to_send(100.0)
    handshake.datagram_received(datagram, ADDRESS, 100.01)
    assert handshake.next_event() is None
    assert handshake.datagrams_to_send(100.01) == []


def test_version_negotiation_ends_the_handshake() -> None:
    handshake = client()
    handshake.connect(ADDRESS, 100.0)
    sent = handshake.datagrams_to_send(100.0)
    negotiation = b"\x80" + bytes(4) + b"\x00\x08" + sent[0][6:14] + b"\x6b\x33\x43\xcf"
    handshake.datagram_received(negotiation, ADDRESS, 100.01)
    assert handshake.datagrams_to_send(100.01) == []
    first = handshake.next_event()
    assert isinstance(first, HandshakeFailed)
    assert "version" in first.reason
    assert handshake.next_event() == Closed()
