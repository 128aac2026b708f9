"""Silence behind the hello of a client that comes back: what its server repeats, as Caddy, and what it does itself.

Chromium at a black hole, its round trip known: at the first timeout the beginning and the end of the hello, each in
a packet of its own, then one packet a timeout, its middle first (4 of 4); early data are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import msgspec
import pytest
from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.shadow.probe_times import ProbeTimes
from qre.wire.packet import PacketType, packets_untrusted
from tests.support.packets import Plain, layout, open_initial, packets
from tests.support.pair import SERVER
from tests.support.returning import Keeper, ReturningPair

KEY = X25519PrivateKey.generate()
KEEPER = Keeper(KEY.private_bytes_raw())


@pytest.fixture(scope="module")
def ticket() -> HeldTicket:
    pair = ReturningPair(private_key=KEY, keeper=KEEPER).run()
    (brought,), _ = pair.client.brought()
    return brought


@dataclass
class Silent(ReturningPair):
    """The client's machine ends behind its first flight, or ``until`` then (seconds). ``at``: when the server sent
    what, after its first datagram with the hello's answer."""

    until: float = 1e9
    at: list[tuple[float, bytes]] = field(default_factory=list)

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        if not by_client:
            self.at += [(self.now, each) for each in datagrams if len(each) > 50]
            super()._send(by_client, datagrams)
        elif self.now < self.began + 0.008 or self.now > self.until + self.began:
            super()._send(by_client, datagrams)

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        if by_client or self.now > self.until + self.began:
            super()._deliver(by_client, datagram)

    def run(self, limit: float = 30.0) -> Silent:
        self.began = self.now
        super().run(limit)
        return self

    @property
    def timeouts(self) -> list[tuple[float, list[tuple[int, tuple[PacketType, ...]]]]]:
        """When, and length and packets of what was sent."""
        first = self.at[0][0]
        found = []
        for at, group in groupby(self.at, key=lambda each: round(each[0] - first, 2)):
            kinds = [
                (len(data), tuple(each.type for each in packets_untrusted(data, short_cid_length=0)))
                for _, data in group
            ]
            found.append((at, kinds))
        return found


INITIAL, HANDSHAKE = (PacketType.INITIAL,), (PacketType.HANDSHAKE,)


def test_initial_and_handshake_packets_are_repeated_by_turns_two_at_a_time(ticket: HeldTicket) -> None:
    pair = Silent(seed=1, private_key=KEY, keeper=KEEPER, ticket=ticket).run(12)
    (_, flight), *later = pair.timeouts
    assert all(1200 <= length <= 1208 for length, _ in flight[:2]), "Caddy's connection IDs are shorter by four"
    assert [at for at, _ in later] == [0.2, 0.4, 1.0, 2.0, 4.2][: len(later)] and len(later) >= 4
    for number, (_, kinds) in enumerate(later):
        if number % 2:
            assert {each for _, each in kinds} == {HANDSHAKE} and len({length for length, _ in kinds}) == 1
        else:
            assert {each for _, each in kinds} == {INITIAL} and all(1200 <= length <= 1208 for length, _ in kinds)
    assert all(len(kinds) == 2 for _, kinds in later[:4])


def test_no_more_than_three_times_what_the_client_has_sent(ticket: HeldTicket) -> None:
    pair = Silent(seed=2, private_key=KEY, keeper=KEEPER, ticket=ticket).run(30)
    received = sum(len(data) for by_client, data in pair.sent if by_client)
    assert sum(len(data) for by_client, data in pair.sent if not by_client) <= 3 * received


@pytest.mark.parametrize("until", [0.25, 0.5, 1.1, 2.3])
def test_a_client_that_hears_a_repetition_gets_its_tunnel(ticket: HeldTicket, until: float) -> None:
    pair = Silent(seed=3, private_key=KEY, keeper=KEEPER, ticket=ticket, until=until).run()
    assert pair.complete


@pytest.mark.parametrize("token", [b"", bytes(91)], ids=["bare", "token"])
def test_a_returning_client_that_hears_nothing_repeats_its_hello_in_three_parts(
    ticket: HeldTicket, token: bytes
) -> None:
    held = msgspec.structs.replace(ticket, token=token, round_trip_us=20_000)
    pair = ReturningPair(seed=4, private_key=KEY, keeper=KEEPER, ticket=held)
    client, now = pair.client, pair.now
    client.connect(SERVER, now)
    sent = [(0.0, each) for each in client.datagrams_to_send(now)]
    while (at := client.timer()) is not None:
        now = max(now, at)
        client.handle_timer(now)
        sent += [(now - pair.now, each) for each in client.datagrams_to_send(now)]
    initials = [(at, data) for at, data in sent if is_initial(data)]
    assert [len(data) for _, data in initials] == [1250] * len(initials)
    cid = initials[0][1][6:14]
    opened = [(at, open_initial(next(packets(data, 0)), cid)) for at, data in initials]
    early = [each for each in sent if not is_initial(each[1])]
    assert len(early) == 2
    (_, first), (_, second), *repeated, _ = opened
    (begins, ends), (middle,) = ranges(first), ranges(second)
    assert [at for at, _ in repeated[:2]] == pytest.approx([0.06, 0.06], abs=0.01)
    assert [plain.number for _, plain in repeated[:2]] == [6, 7]
    parts = [ranges(plain) for _, plain in repeated]
    if not token:  # beside it the end has no room in one
        assert parts[:5] == [[begins], [ends], [middle], [begins], [ends]]
        assert [plain.number for _, plain in repeated[2:5]] == [9, 11, 13]
    assert parts[0] == [begins] and parts[1][0][0] == ends[0]


def is_initial(data: bytes) -> bool:
    return next(packets(data, 0)).kind is PacketType.INITIAL


def ranges(plain: Plain) -> list[tuple[int, int]]:
    """The bytes of the hello in a packet, adjoining pieces put together."""
    whole: list[tuple[int, int]] = []
    for offset, data in sorted(layout(plain.payload).crypto.items()):
        if whole and whole[-1][1] == offset:
            whole[-1] = (whole[-1][0], offset + len(data))
        else:
            whole.append((offset, offset + len(data)))
    return whole


def test_each_space_has_its_own_timer_and_both_one_count() -> None:
    times, found = ProbeTimes(100.0, timeout=0.2, patience=5.0), []
    while (due := times.next_due()) is not None:
        assert times.take(due - 0.001) is None
        space = times.take(due)
        found.append((round(due - 100, 3), space))
    spaces = [tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE]
    expected = [0.2, 0.4, 1.0, 2.0, 4.2]
    assert found == [(at, spaces[number % 2]) for number, at in enumerate(expected)]
