"""The search for the path's MTU: the state machine alone, in any order of fates, and in two sessions over a path."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.dataplane.protocol import PeerMoved, SessionRefusedError
from qre.ends import Role
from qre.workers.dataplane.session.path_mtu import SEARCHES, MtuState, PathMtu, Search
from tests.support.dataplane import Ends

C, S = Role.CLIENT, Role.SERVER
SEARCH = Search()
PTO, RTT = 0.1, 0.05


class Path:
    """A PathMtu whose PINGs cross a path that carries ``mtu`` bytes of UDP payload; each is answered at once."""

    def __init__(self, mtu: int, *, limit: int = 1472, search: Search = SEARCH) -> None:
        self.mtu = mtu
        self.now = 10.0
        self.number = 100
        self.sent: list[int] = []
        self.path = PathMtu(search, limit)

    def begin(self) -> Path:
        self.path.begin(self.now)
        return self

    def step(self) -> bool:
        """Send what is due, answer it; False: nothing is due."""
        size = self.path.due(self.now)
        if size is None:
            return False
        self.send(size)
        return True

    def send(self, size: int) -> None:
        """A PING packet of this length, or user data; 0: without padding."""
        self.number += 1
        if size:
            self.sent.append(size)
            self.path.sent(self.number, size, self.now, PTO)
        if size <= self.mtu:
            self.path.acknowledged([(self.number, self.number)], self.now + RTT, RTT)

    def run(self, seconds: float) -> Path:
        end = self.now + seconds
        for _ in range(10_000):
            if not self.step():
                at = self.path.deadline()
                if at > end:
                    self.now = end
                    return self
                self.now = max(self.now, at)
        raise AssertionError("it never comes to rest")


def test_servers_probe_what_quic_go_probes_and_no_end_more_than_the_peer_takes() -> None:
    assert SEARCHES[S].sizes == (1326, 1389, 1420, 1436)
    assert SEARCHES[S].base == 1200
    for limit, sizes in ((1472, [1326, 1389, 1420, 1436]), (1420, [1326, 1389, 1420]), (1419, [1326, 1389])):
        path = Path(9000, limit=limit).begin().run(1)
        assert path.sent == sizes
        assert path.path.size == sizes[-1]
        assert path.path.state is MtuState.COMPLETE


@pytest.mark.parametrize(
    ("mtu", "size"),
    [(1200, 1200), (1325, 1200), (1326, 1326), (1388, 1326), (1435, 1420), (1436, 1436)],
)
def test_the_largest_size_that_passes_is_found_and_the_next_one_tried_three_times(mtu: int, size: int) -> None:
    path = Path(mtu).begin().run(10)
    assert path.path.size == size
    assert path.path.settled
    above = [tried for tried in path.sent if tried > size]
    assert above == ([min(each for each in SEARCH.sizes if each > size)] * 3 if size < 1436 else [])


def test_nothing_is_sent_before_it_begins_and_nobody_is_to_be_told_of_the_size() -> None:
    path = PathMtu(SEARCH, 1472)
    assert path.due(1e9) is None
    assert path.deadline() == float("inf")
    assert not path.settled
    assert not path.watching


def test_a_probe_is_lost_when_something_later_was_acknowledged_and_not_for_time() -> None:
    path = PathMtu(SEARCH, 1472)
    path.begin(0)
    assert path.due(0) == 1326
    path.sent(7, 1326, 0, PTO)
    assert path.due(0.05) is None
    assert path.due(PTO) == 0, "a small PING, so that there is an acknowledgement"
    for minute in range(60):
        assert path.due(60 * minute + 1) is None, "a dead path proves nothing"
    path.acknowledged([(5, 6)], 3600, RTT)
    assert path.due(3600) is None
    path.acknowledged([(8, 8), (5, 6)], 3600.01, RTT)
    assert path.due(3600.01) == 1326


def test_a_packet_that_was_overtaken_is_not_lost_yet() -> None:
    path = PathMtu(SEARCH, 1472)
    path.begin(0)
    path.sent(7, 1326, 0, PTO)
    path.acknowledged([(8, 9)], 0.01, RTT)
    path.acknowledged([(7, 9)], 0.02, RTT)
    assert path.size == 1326
    path.sent(20, 1389, 1, PTO)
    path.acknowledged([(21, 23)], 1.01, RTT)
    assert path.due(1.02) == 1389, "three later ones are enough"


def test_ten_minutes_later_it_looks_again_and_nobody_waits_for_that() -> None:
    path = Path(1350).begin().run(100)
    path.sent.clear()
    path.mtu = 9000
    path.run(SEARCH.raise_after - 101)
    assert path.sent == []
    path.run(10)
    assert path.sent == [1389, 1420, 1436]
    assert path.path.size == 1436
    path.sent.clear()
    assert path.run(10_000).sent == [], "at the top there is nothing to look for"


def test_traffic_does_not_put_that_off() -> None:
    path = Path(1350).begin().run(10)
    path.mtu = 9000
    for _ in range(600):
        if path.path.watching and path.path.wants(1300, path.now):
            path.send(1300)
        path.run(1)
    assert path.path.size == 1436


def test_a_search_counts_as_ended_after_three_seconds() -> None:
    path = PathMtu(SEARCH, 1472)
    path.begin(0)
    path.sent(7, 1326, 0, PTO)
    path.due(PTO)
    assert path.deadline() == 3
    path.due(2.9)
    assert not path.settled
    path.due(3)
    assert path.settled
    path.acknowledged([(7, 7)], 3.1, RTT)
    assert (path.state, path.size) == (MtuState.SEARCHING, 1326)


def test_a_path_that_shrinks_is_noticed_by_its_traffic_and_searched_again() -> None:
    path = Path(9000).begin().run(1)
    path.sent.clear()
    path.mtu = 1392
    assert path.path.watching
    assert path.path.wants(1424, path.now)
    path.send(1424)
    assert not path.path.watching, "one at a time"
    path.run(5)
    assert path.sent == [1424, 1436, 1436, 1326, 1389, 1420, 1420, 1420]
    assert (path.path.size, path.path.settled) == (1389, True)


def test_while_it_searches_again_nobody_is_told_and_nothing_large_is_sent() -> None:
    path = Path(9000).begin().run(1)
    path.mtu = 1210
    path.send(1424)
    while path.path.size > 1200:
        assert path.path.settled
        if not path.step():
            path.now = path.path.deadline()
    assert not path.path.settled
    path.run(10)
    assert path.path.settled


def test_user_data_that_arrives_proves_its_size_for_a_while() -> None:
    path = Path(9000).begin().run(1)
    assert not path.path.wants(1200, path.now)
    path.send(1300)
    assert not path.path.wants(1300, path.now + 0.1)
    assert path.path.wants(1301, path.now + 0.1)
    assert path.path.wants(1300, path.now + RTT + SEARCH.watch_every)


def test_one_loss_of_user_data_among_many_changes_nothing() -> None:
    path = Path(9000).begin().run(1)
    for _ in range(100):
        path.mtu = 1200
        path.send(1400)
        path.mtu = 9000
        path.run(1)
    assert path.path.size == 1436
    assert path.path.state is MtuState.COMPLETE


def test_what_the_first_hop_refuses_ends_the_search_at_once() -> None:
    path = PathMtu(SEARCH, 1472)
    path.begin(0)
    path.sent(7, 1326, 0, PTO)
    path.acknowledged([(7, 7)], 0.01, RTT)
    assert path.due(0.01) == 1389
    path.sent(8, 1389, 0.01, PTO)
    assert path.refused(1389, 0.01)
    assert (path.state, path.size, path.settled) == (MtuState.COMPLETE, 1326, True)
    assert path.due(600.01) == 1389


def test_a_first_hop_that_shrinks_sends_it_back_to_the_base_and_no_further_than_the_hop_takes() -> None:
    path = Path(9000).begin().run(1)
    assert not path.path.refused(1390, path.now)
    assert path.path.size == 1200
    path.sent.clear()
    path.run(5)
    assert path.sent == [1326, 1389]
    assert path.path.size == 1389
    assert not path.path.refused(100, path.now)
    assert path.path.size == 1200, "a hop that takes nothing: never below the base"
    path.run(5)
    again = path.path.deadline()
    assert not path.path.refused(100, path.now)
    assert path.path.settled
    assert path.path.deadline() == again, "and the next search is not put off"


def test_a_table_without_sizes_stays_at_its_base_for_good() -> None:
    path = Path(9000, search=Search(base=1250, sizes=())).begin().run(10_000)
    assert path.sent == []
    assert (path.path.size, path.path.settled, path.path.state) == (1250, True, MtuState.COMPLETE)


def test_a_peer_that_takes_less_than_the_base_gets_no_more_than_that() -> None:
    path = Path(9000, limit=1100).begin().run(10)
    assert (path.path.size, path.sent) == (1100, [])


class AnyFate:
    """A PathMtu to which anything may happen; what must always hold is looked at after each step."""

    def __init__(self, limit: int, search: Search) -> None:
        self.search, self.limit = search, limit
        self.path = PathMtu(search, limit)
        self.now, self.number = 0.0, 100
        self.flying: list[tuple[int, int]] = []

    def check(self) -> None:
        path = self.path
        assert min(self.search.base, self.limit) <= path.size <= max(self.limit, 0)
        assert path.size in (path.base, *self.search.sizes)
        assert path.largest <= self.limit
        if path.state is MtuState.COMPLETE:
            assert path.settled

    def do(self, what: str, amount: int) -> None:
        path = self.path
        match what:
            case "begin":
                path.begin(self.now)
                self.flying.clear()
            case "wait":
                self.now += amount / 100
            case "due":
                size = path.due(self.now)
                self.number += 1
                if size:
                    assert path.size <= size <= self.limit
                    self.flying.append((self.number, size))
                    path.sent(self.number, size, self.now, PTO)
                    assert path.due(self.now) is None, "one in flight"
                    assert not path.watching
            case "data" if path.watching:
                size = min(path.base + amount, path.size)
                if path.wants(size, self.now):
                    self.number += 1
                    self.flying.append((self.number, size))
                    path.sent(self.number, size, self.now, PTO)
            case "arrive" if self.flying:
                number, _ = self.flying.pop(amount % len(self.flying))
                path.acknowledged([(number, number)], self.now, RTT)
            case "lose":
                self.number += 3
                path.acknowledged([(self.number, self.number)], self.now, RTT)
            case "refuse":
                path.refused(1150 + amount, self.now)
            case _:
                pass
        self.check()


STEPS = st.tuples(
    st.sampled_from(["begin", "wait", "due", "data", "arrive", "lose", "lose", "refuse"]), st.integers(0, 300)
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1000, 1500), st.lists(STEPS, max_size=80), st.integers(1000, 1500))
def test_whatever_happens_it_stays_within_its_bounds_and_finds_the_path_in_the_end(
    limit: int, steps: list[tuple[str, int]], mtu: int
) -> None:
    fate = AnyFate(limit, SEARCH)
    for what, amount in steps:
        fate.do(what, amount)
    path = Path(mtu, limit=limit)
    path.path, path.now, path.number = fate.path, fate.now, fate.number + 10
    path.begin().run(30)
    fitting = [size for size in (1200, *SEARCH.sizes) if size <= min(mtu, limit)]
    assert path.path.size == (fitting[-1] if fitting else min(1200, limit))
    assert path.path.settled
    assert len(path.sent) <= len(SEARCH.sizes) + SEARCH.tries


# --- in sessions ---


def carrying(mtu: int, ends: Ends) -> Callable[[Role, bytes], list[float]]:
    """A path that loses longer datagrams without a word."""
    return lambda role, datagram: [ends.delay] if len(datagram) <= mtu else []


def inner_of(length: int) -> bytes:
    return bytes.fromhex("4500") + length.to_bytes(2, "big") + bytes(length - 4)


def test_both_ends_of_a_session_search_when_it_is_confirmed() -> None:
    ends = Ends()
    assert [ends.sessions[role].max_inner for role in (C, S)] == [1200 - 44, 1200 - 24]
    ends.run(2)
    assert [ends.sessions[role].path_mtu.size for role in (C, S)] == [1436, 1436]
    assert [ends.sessions[role].max_inner for role in (C, S)] == [1436 - 44, 1436 - 24]
    for role in (C, S):
        lengths = [len(datagram) for sender, datagram in ends.sent if sender is role and len(datagram) > 1200]
        assert lengths == [1326, 1389, 1420, 1436]


def test_a_server_probes_as_a_site_does_five_round_trips_after_the_last_answer() -> None:
    ends = Ends()
    times: dict[int, float] = {}
    while len(times) < 4 and ends.now < 110:
        ends.run(0.001)
        for role, datagram in ends.sent:
            if role is S and len(datagram) > 1200:
                times.setdefault(len(datagram), ends.now)
    assert list(times) == [1326, 1389, 1420, 1436]
    for one, two in pairwise(times.values()):
        assert 0.05 < two - one < 0.5
    large = [at for at, (role, datagram) in enumerate(ends.sent) if role is S and len(datagram) > 1200]
    for one, two in pairwise(large):
        assert any(role is C for role, _ in ends.sent[one:two])


def test_a_search_goes_on_behind_what_the_handshake_has_proven() -> None:
    path = PathMtu(Search(spacing=5.0), 1452)
    path.proven(1389, 0.1, 0.5)
    assert path.size == 1200, "nothing is searched yet"
    path.begin(1.0, 0.02)
    assert path.deadline() == pytest.approx(1.1)
    path.proven(1400, 0.04, 1.0)
    assert path.size == 1389 and not path.settled
    assert path.deadline() == pytest.approx(1.06)
    assert path.due(1.05) is None and path.due(1.06) == 1420
    path.proven(1326, 0.0, 1.06)
    path.proven(9000, 0.0, 1.06)
    assert path.size == 1389
    path.proven(1436, 0.0, 1.06)
    assert path.size == 1436 and path.settled


@pytest.mark.parametrize(("mtu", "size"), [(1300, 1200), (1372, 1326), (1392, 1389), (1472, 1436)])
def test_a_path_that_drops_what_is_larger_without_a_word_is_found(mtu: int, size: int) -> None:
    ends = Ends()
    ends.fate = carrying(mtu, ends)
    ends.run(5)
    for role in (C, S):
        session = ends.sessions[role]
        found = max(size, 1250) if role is C else size
        assert (session.path_mtu.size, session.path_mtu.settled) == (found, True)
        assert (session.max_inner_ipv6 > 0) == (session.max_inner >= 1280)


def test_ipv6_is_not_refused_while_the_search_runs_and_a_syn_is_told_what_it_may_end_at() -> None:
    ends = Ends()
    assert ends.client.max_inner_ipv6 == ends.client.max_inner == 1156
    assert ends.client.mss_inner == 1436 - 44
    ends.fate = carrying(1252, ends)
    ends.run(5)
    assert ends.client.max_inner_ipv6 < 0
    assert ends.client.mss_inner == 1206, "its hello has shown that the path takes 1,250"


def test_a_stream_over_a_path_that_shrinks_goes_on_within_seconds_and_never_ends() -> None:
    ends = Ends()
    ends.run(2)
    ends.fate = carrying(1372, ends)
    began = ends.now
    while ends.client.path_mtu.size != 1326 or not ends.client.path_mtu.settled:
        ends.transmit(C, inner_of(min(1380, ends.client.max_inner)), inner_of(100), inner_of(100))
        ends.run(0.05)
        assert ends.now - began < 5
    ends.delivered[S].clear()
    ends.transmit(C, inner_of(1282))
    ends.run(0.1)
    assert len(ends.delivered[S]) == 1


def test_a_peer_at_another_address_is_searched_again_and_at_another_port_is_not() -> None:
    ends = Ends()
    ends.run(2)
    for source, size in ((("192.0.2.2", 9), 1436), (("198.51.100.7", 9), 1200)):
        ends.transmit(C, inner_of(100))
        _, packet = ends.sent[-1]
        ends._flying.clear()
        ends.server.open_datagrams([packet], source, 0, ends.now)
        (challenge,) = [sent for sent in ends.server.outbox if sent.to == source]
        ends.server.outbox.clear()
        ends.client.open_datagrams([challenge[0]], ("192.0.2.1", 443), 0, ends.now)
        response, *_ = ends.client.outbox  # an acknowledgement may follow
        ends.client.outbox.clear()
        ends.server.open_datagrams([response[0]], source, 0, ends.now)
        assert ends.server.peer == source
        assert ends.server.path_mtu.size == size
        ends.take(S)
    assert len(ends.said(S, PeerMoved)) == 2


def test_a_datagram_that_the_first_hop_refuses_lowers_the_limit_at_once() -> None:
    ends = Ends()
    ends.run(2)
    assert ends.client.refused_by_first_hop([1424, 1424], ends.now) == 2
    assert ends.client.max_inner == 1156
    ends.run(2)
    assert ends.client.path_mtu.size == 1420


def test_frames_that_no_packet_of_the_path_could_carry_are_refused() -> None:
    ends = Ends()
    ends.run(2)
    with pytest.raises(SessionRefusedError, match="too long for one packet"):
        ends.client.send_frames(1, bytes([1]) * 1200, ends.now)
