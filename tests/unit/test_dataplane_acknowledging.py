"""How a client's data plane acknowledges and idles: as the browser that its handshake was."""

from __future__ import annotations

import itertools

import pytest

from qre.dataplane.protocol import SessionInstall
from qre.ends import Role
from qre.visit.visitor_files import load_fingerprint
from qre.wire.ack_policy import BROWSER, AckPolicy
from qre.wire.datagram import DATAGRAM_HEAD
from tests.support.dataplane import SERVER_ADDRESS, Ends

INNER = bytes.fromhex("45000054000040004001") + bytes(74)
C, S = Role.CLIENT, Role.SERVER


def established(**changes: object) -> Ends:
    ends = Ends(**changes)  # type: ignore[arg-type]
    ends.run(1.0)
    ends.transmit(C, INNER)
    ends.run(1.0)
    ends.sent.clear()
    return ends


def arrive(ends: Ends, count: int, *, together: int = 1) -> list[int]:
    """So many packets arrive at the client; after which of them it sent something."""
    found = []
    for number in range(0, count, together):
        packets = ends.server.packets.seal([DATAGRAM_HEAD + INNER] * together)
        before = len(ends.sent)
        ends.client.open_datagrams(packets, SERVER_ADDRESS, 2, ends.now)
        ends.take(C)
        found += [number + together] * (len(ends.sent) - before)
    return found


def test_the_rule_is_that_of_the_fingerprint() -> None:
    shape = load_fingerprint().acknowledgements
    assert BROWSER.every == shape.every and BROWSER.delay == shape.delay_ms / 1000
    assert (BROWSER.later_from, BROWSER.later_every) == (shape.later_from, shape.later_every)
    assert BROWSER.later_round_trips == shape.later_round_trips


def test_every_second_packet_and_after_a_hundred_every_tenth() -> None:
    ends = established()
    found = arrive(ends, 300)
    early, late = [at for at in found if at < 85], [at for at in found if at > 110]
    assert {after - before for before, after in itertools.pairwise(early)} == {2}
    assert {after - before for before, after in itertools.pairwise(late)} == {10}


def test_a_batch_is_acknowledged_as_often_as_if_it_came_one_by_one() -> None:
    ends = established()
    arrive(ends, 200)
    ends.sent.clear()
    found = arrive(ends, 320, together=32)
    assert 30 <= len(found) <= 33
    ends.run(0.1)
    assert ends.server.recovery.largest_acked == ends.server.packets.next_number - 1


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_less_waits_for_25_ms(count: int) -> None:
    ends = established()
    arrive(ends, count)
    ends.sent.clear()
    ends.run(0.0245)
    assert not ends.sent
    ends.run(0.001)
    assert [role for role, _ in ends.sent] == [C]


def test_a_bare_acknowledgement_is_as_short_as_a_browsers() -> None:
    """30 to 38 bytes with a connection ID of four; ours has twenty in this test."""
    ends = established()
    arrive(ends, 1000)
    lengths = {len(packet) - len(ends.client.packets.tx_cid) + 4 for role, packet in ends.sent if role is C}
    assert lengths and min(lengths) >= 28 and max(lengths) <= 38


def test_who_idles_sends_a_ping_of_25_bytes_every_15_s() -> None:
    ends = established()
    began = ends.now
    times = []
    while ends.now < began + 62:
        before = len(ends.sent)
        ends.run(0.005)
        for role, packet in ends.sent[before:]:
            if role is C:
                times.append(ends.now)
                assert len(packet) - len(ends.client.packets.tx_cid) + 4 == 25
    assert 3 <= len(times) <= 4
    assert all(15.0 <= after - before <= 15.06 for before, after in itertools.pairwise(times))


def test_numbers_stay_readable_while_nothing_is_acknowledged() -> None:
    ends = established()
    for _ in range(400):
        ends.send(C, [ends.client.packets.seal_brief(b"\x02", ends.client.recovery.largest_acked)])
    sizes = {len(packet) for role, packet in ends.sent if role is C}
    assert len(sizes) == 1, "what a shorter number saves is padded: a packet is never shorter than its sample"
    assert isinstance(ends.client.install, SessionInstall)


def test_a_policy_counts_what_waits() -> None:
    policy = AckPolicy(BROWSER)
    assert [policy.arrived(1) for _ in range(4)] == [0, 1, 0, 1]
    assert policy.arrived(7) == 3 and policy.waiting == 1
    policy.sent()
    assert policy.waiting == 0 and policy.delay(0.04) == BROWSER.delay
    policy.arrived(200)
    assert policy.delay(0.04) == 0.01
    assert policy.delay(0.0) == 0.001
