"""The kernel module's search for the path's MTU (``kmod/pathmtu.c``) over paths that a model makes, in their time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest

from tests.support.kmod.codec import KernelCodec, PathMtu

IP_AND_UDP = 28
BASE, SIZES = 1200, [1326, 1389, 1420, 1436]
#: A client's: a browser's size first.
CLIENTS = [1250, *SIZES]
PROBE, PING = 1, 2
IDLE, SEARCHING, SETTLED, CONFIRMING = range(4)
TEN_MINUTES, QUIET = 600_000, 3000
NONE = (1 << 64) - 1


class Model:
    """One end over a path of ``mtu``. ``loses``: whether the path loses a packet that would fit."""

    def __init__(
        self, codec: KernelCodec, mtu: int, *, rtt: int = 20, bound: int = 1472, client: bool = False,
        loses: Callable[[int], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        self.codec, self.mtu, self.rtt, self.loses = codec, mtu, rtt, loses
        self.pto = 3 * rtt + 25
        self.now, self.number = 1_000_000, 65_536
        self.probes: list[tuple[int, int]] = []  # when and how large
        self.pings = 0
        self._under_way: list[tuple[int, int]] = []  # acknowledgements: when, of which number
        self._received: list[int] = []
        self.at: PathMtu = codec.path_mtu("mtu-new", int(client), bound)

    def begin(self) -> Model:
        self._call("mtu-begin", self.now, self.rtt * 1000)
        self._run()
        return self

    def proven(self, size: int, ago: int = 0) -> None:
        self._call("mtu-proven", size, ago, self.now)
        self._run()

    def measured(self, rtt: int) -> None:
        self._call("mtu-rtt", rtt * 1000)
        self._run()

    def bound(self, most: int) -> None:
        self._call("mtu-bound", most, self.now)
        self._run()

    def _call(self, *words: object) -> PathMtu:
        self.at = self.codec.path_mtu(*words)
        return self.at

    def send(self, size: int) -> int:
        number, self.number = self.number, self.number + 1
        if size + IP_AND_UDP <= self.mtu and not self.loses(number):
            heapq.heappush(self._under_way, (self.now + self.rtt, number))
        return number

    def datagram(self, size: int) -> None:
        """A packet of the data path."""
        number = self.send(size)
        if size > BASE and self.at.watches:
            self._call("mtu-watch", number, self.now, self.pto)

    def _run(self) -> None:
        for _ in range(10):
            action = self._call("mtu-next", self.now, self.pto).action
            if action == PROBE:
                self.probes.append((self.now, self.at.probed))
                self._call("mtu-sent", self.send(self.at.probed), self.now, self.pto)
            elif action == PING:
                self.pings += 1
                self.send(50)
            else:
                return
        raise AssertionError("it does not come to rest")

    def _acknowledge(self) -> None:
        while self._under_way and self._under_way[0][0] <= self.now:
            self._received.append(heapq.heappop(self._under_way)[1])
        recent = sorted(self._received[-60:], reverse=True)
        ranges: list[list[int]] = []
        for number in recent:
            if ranges and ranges[-1][0] == number + 1:
                ranges[-1][0] = number
            else:
                ranges.append([number, number])
        if self.at.listens:
            self._call("mtu-acked", self.now, len(ranges), *(number for each in ranges for number in each))

    def run(self, milliseconds: int, traffic: Callable[[Model], None] | None = None, every: int = 10) -> Model:
        """Let so much time pass; ``traffic`` sends something every so often."""
        end, next_traffic = self.now + milliseconds, self.now
        while True:
            times = [end, self.at.due, *(when for when, _ in self._under_way[:1])]
            if traffic is not None:
                times.append(next_traffic)
            self.now = max(min(times), self.now)
            if self.now >= end:
                self.now = end
                return self
            if traffic is not None and self.now >= next_traffic:
                traffic(self)
                next_traffic = self.now + every
            if self._under_way and self._under_way[0][0] <= self.now:
                self._acknowledge()
            self._run()


def full(model: Model) -> None:
    """A stream's packets, as large as they may be."""
    model.datagram(model.at.size)


def largest(mtu: int, sizes: list[int] = SIZES) -> int:
    return max(size for size in [BASE, *sizes] if size + IP_AND_UDP <= mtu)


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("mtu", [1228, 1280, 1300, 1353, 1354, 1400, 1417, 1420, 1448, 1463, 1464, 1500, 9000])
def test_it_finds_the_largest_size_that_the_path_takes(codec: KernelCodec, mtu: int, client: bool) -> None:
    model = Model(codec, mtu, client=client).begin().run(2000)
    found = largest(mtu, CLIENTS if client else SIZES)
    assert (model.at.size, model.at.state, model.at.quiet) == (found, SETTLED, False)


def test_sizes_are_probed_one_a_round_and_never_above_the_next(codec: KernelCodec) -> None:
    model = Model(codec, 1500, client=True).begin().run(2000)
    assert model.probes == [(1_000_000 + number * model.rtt, size) for number, size in enumerate(CLIENTS)]
    assert model.at.due == NONE  # nothing is left to be found


def test_a_servers_probes_are_five_round_trips_apart(codec: KernelCodec) -> None:
    model = Model(codec, 1500).begin().run(2000)
    assert model.probes == [(1_000_000 + 100 + number * 120, size) for number, size in enumerate(SIZES)]


def test_a_server_tries_a_size_again_after_five_more(codec: KernelCodec) -> None:
    model = Model(codec, 1300).begin()
    model.run(2000, lambda model: model.datagram(100))
    assert [size for _, size in model.probes] == [1326] * 3
    times = [at for at, _ in model.probes]
    assert all(later - earlier >= 100 for earlier, later in itertools.pairwise(times))


def test_a_server_goes_by_the_newest_round_trip(codec: KernelCodec) -> None:
    model = Model(codec, 1500, rtt=100).begin().run(10)
    model.measured(20)
    model.run(500)
    assert model.probes[0] == (1_000_100, 1326) and model.probes[1][0] == 1_000_300


def test_the_search_goes_on_behind_what_the_handshake_has_proven(codec: KernelCodec) -> None:
    model = Model(codec, 1500).begin().run(30)
    model.proven(1389, ago=50)
    assert (model.at.size, model.at.hope, model.at.quiet) == (1389, 1436, True)
    model.run(2000)
    assert model.probes == [(1_000_030 - 50 + 100, 1420), (1_000_030 - 50 + 220, 1436)]


@pytest.mark.parametrize(("size", "becomes"), [(0, 1200), (1325, 1200), (1400, 1389), (65535, 1436)])
def test_what_is_proven_counts_as_a_size_of_the_search(codec: KernelCodec, size: int, becomes: int) -> None:
    model = Model(codec, 1500).begin()
    model.proven(size)
    assert model.at.size == becomes


def test_nothing_is_proven_above_what_the_peer_or_the_first_hop_takes(codec: KernelCodec) -> None:
    model = Model(codec, 1500, bound=1400).begin()
    model.proven(1452)
    assert (model.at.size, model.at.state, model.at.quiet) == (1389, SETTLED, False)


def test_a_search_that_has_ended_is_not_told_what_it_can_find(codec: KernelCodec) -> None:
    model = Model(codec, 1300).begin().run(5000)
    model.proven(1436)
    assert (model.at.size, model.at.state) == (BASE, SETTLED)


def test_a_proof_that_is_older_than_the_clock_is_one(codec: KernelCodec) -> None:
    model = Model(codec, 1500).begin()
    model.proven(1326, ago=3_600_000)
    assert (model.at.size, model.probes) == (1326, [(1_000_000, 1389)])


def test_a_size_that_is_lost_three_times_ends_the_search_for_ten_minutes(codec: KernelCodec) -> None:
    model = Model(codec, 1400).begin().run(5000)
    assert [size for _, size in model.probes] == [1326, 1389, 1389, 1389]
    assert model.probes[-1][0] - model.probes[0][0] < 1000 and model.at.due - model.probes[-1][0] >= TEN_MINUTES
    model.mtu = 1500
    model.run(TEN_MINUTES - 5000)
    assert model.at.size == 1326
    model.run(5000)
    assert model.at.size == 1436 and not model.at.quiet


def test_nothing_larger_is_probed_than_the_peer_or_the_first_hop_takes(codec: KernelCodec) -> None:
    model = Model(codec, 1500, bound=1400).begin().run(2000)
    assert [size for _, size in model.probes] == [1326, 1389]
    assert (model.at.size, model.at.hope, model.at.due) == (1389, 1389, NONE)


def test_a_first_hop_that_narrows_or_widens_is_followed_at_once(codec: KernelCodec) -> None:
    model = Model(codec, 1500).begin().run(2000)
    model.bound(1372)
    assert (model.at.size, model.at.state, model.at.quiet) == (1326, SETTLED, False)
    model.bound(1000)
    assert (model.at.size, model.at.hope) == (1000, 1000)
    model.bound(1472)
    assert model.at.size == BASE and model.at.quiet
    model.run(2000)
    assert model.at.size == 1436 and not model.at.quiet


def test_nobody_is_kept_without_word_for_more_than_three_seconds(codec: KernelCodec) -> None:
    model = Model(codec, 1300, rtt=2000).begin()
    model.run(QUIET - 1)
    assert model.at.quiet and model.at.state == SEARCHING
    model.run(2)
    assert not model.at.quiet and model.at.state == SEARCHING


def test_a_path_that_shrinks_is_noticed_by_what_is_lost(codec: KernelCodec) -> None:
    for mtu, seconds in ((1300, 2), (1400, 2), (1420, 2)):
        model = Model(codec, 1500).begin().run(2000)
        model.run(500, full)
        model.mtu = mtu
        model.run(seconds * 1000, full)
        assert (model.at.size, model.at.state) == (largest(mtu), SETTLED)


def test_smaller_packets_that_still_arrive_do_not_hide_it(codec: KernelCodec) -> None:
    model = Model(codec, 1500).begin().run(2000)
    sizes = iter([1424, 1424, 700, 1300, 1424, 90] * 1000)

    def mixed(model: Model) -> None:
        size = next(sizes)
        model.datagram(min(size, model.at.size))

    model.mtu = 1400
    model.run(4000, mixed)
    assert (model.at.size, model.at.state) == (1326, SETTLED)


def test_a_path_that_is_down_proves_nothing(codec: KernelCodec) -> None:
    down = [False]
    model = Model(codec, 1500, loses=lambda _: down[0]).begin().run(2000)
    model.run(500, full)
    down[0] = True
    model.run(20_000, full)
    assert (model.at.size, model.at.state) == (1436, CONFIRMING) and 10 <= model.pings <= 25
    down[0] = False
    model.run(2000, full)
    assert (model.at.size, model.at.state) == (1436, SETTLED)


def test_a_path_that_is_down_while_it_is_searched_ends_no_search(codec: KernelCodec) -> None:
    down = [True]
    model = Model(codec, 1500, loses=lambda _: down[0]).begin().run(10_000)
    assert (model.at.size, model.at.state) == (BASE, SEARCHING) and len(model.probes) == 1
    down[0] = False
    model.run(2000)
    assert model.at.size == 1436


def test_a_lossy_path_keeps_its_size(codec: KernelCodec) -> None:
    dice = Random(7)
    model = Model(codec, 1500, loses=lambda _: dice.random() < 0.05).begin().run(3000)
    at_full_size = 0
    for _ in range(100):
        model.run(100, full)
        at_full_size += model.at.size == 1436
    assert at_full_size >= 98
    assert len(model.probes) < 400  # of 1000 packets and 20 rounds a second


def test_an_acknowledgement_that_is_late_is_believed(codec: KernelCodec) -> None:
    model = Model(codec, 1300).begin().run(2000)
    assert (model.at.size, model.at.state) == (BASE, SETTLED)
    model.mtu = 1500
    heapq.heappush(model._under_way, (model.now + 50, 65_536))
    model.run(1000)
    assert model.at.size == 1436


def test_a_probe_without_memory_is_asked_for_again(codec: KernelCodec) -> None:
    codec.path_mtu("mtu-new", 0, 1472)
    codec.path_mtu("mtu-begin", 1000, 0)
    assert codec.path_mtu("mtu-next", 1000, 50).action == PROBE
    at = codec.path_mtu("mtu-sent", NONE, 1000, 50)
    assert (at.due, codec.path_mtu("mtu-next", 1049, 50).action) == (1050, 0)
    assert codec.path_mtu("mtu-next", 1050, 50).action == PROBE


def test_another_path_is_searched_from_the_base(codec: KernelCodec) -> None:
    model = Model(codec, 1500).begin().run(2000)
    model.mtu = 1400
    model.begin()
    assert model.at.size == BASE and model.at.quiet and model.at.hope == 1436
    model.run(2000)
    assert model.at.size == 1326
