"""What a server repeats to a client that came back and says nothing to its flight: Caddy's times and shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import pytest
from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.shadow.probe_times import ProbeTimes
from qre.wire.packet import PacketType, packets_untrusted
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


def test_each_space_has_its_own_timer_and_both_one_count() -> None:
    times, found = ProbeTimes(100.0, timeout=0.2, patience=5.0), []
    while (due := times.next_due()) is not None:
        assert times.take(due - 0.001) is None
        space = times.take(due)
        found.append((round(due - 100, 3), space))
    spaces = [tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE]
    expected = [0.2, 0.4, 1.0, 2.0, 4.2]
    assert found == [(at, spaces[number % 2]) for number, at in enumerate(expected)]
