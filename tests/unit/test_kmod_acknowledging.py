"""How a client's session in the kernel acknowledges (``kmod/ackpolicy.c``), and how short its packet numbers are.

The user data plane, which is held to the browser's figures, does the same."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from qre.wire.ack_policy import BROWSER, AckPolicy
from tests.support.kmod.codec import KernelCodec

NONE = (1 << 64) - 1
BASE = 65_536


def test_every_second_packet_and_after_a_hundred_every_tenth(codec: KernelCodec) -> None:
    due, _ = codec.acks(0, 0, "a" * 300)
    found = [at for at, one in enumerate(due, 1) if one == "1"]
    assert {after - before for before, after in itertools.pairwise(at for at in found if at <= 100)} == {2}
    assert {after - before for before, after in itertools.pairwise(at for at in found if at >= 100)} == {10}


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_policy_of_the_user_data_plane(codec: KernelCodec, seed: int) -> None:
    chance = Random(seed)
    received, rtt = chance.randrange(120), chance.choice([0, 300, 4000, 40_000, 300_000])
    what = "".join(chance.choices("as", [9, 1], k=chance.randrange(1, 200)))
    policy, expected = AckPolicy(BROWSER, received), ""
    for one in what:
        if one == "a":
            expected += str(policy.arrived(1))
        else:
            policy.sent()
    assert codec.acks(received, rtt, what) == (expected, round(policy.delay(rtt / 1e6) * 1e6))


@pytest.mark.parametrize(
    ("number", "acknowledged", "size"),
    [
        (BASE, NONE, 4), (BASE + 63, BASE, 1), (BASE + 64, BASE, 2), (BASE + 16_383, BASE, 2),
        (BASE + 16_384, BASE, 4), (BASE + 1, BASE, 1), ((1 << 62) - 1, NONE, 4), ((1 << 40) + 9, 1 << 40, 1),
    ],
)  # fmt: skip
def test_a_number_is_as_short_as_the_peer_can_read_it(
    codec: KernelCodec, number: int, acknowledged: int, size: int
) -> None:
    assert codec.number_size(number, acknowledged) == size


@pytest.mark.parametrize("behind", [1, 63, 64, 16_383, 16_384])
def test_a_peer_reads_it_whichever_packets_since_it_has_received(codec: KernelCodec, behind: int) -> None:
    for acknowledged in (BASE, BASE + 255, (1 << 32) - 70, 1 << 33):
        number = acknowledged + behind
        size = codec.number_size(number, acknowledged)
        for highest in (acknowledged, acknowledged + behind // 2, number - 1):
            assert codec.decode_number(number & ((1 << 8 * size) - 1), size, highest + 1) == number
