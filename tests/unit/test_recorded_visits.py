"""What a site sends after a visitor's handshake, recorded by a visit and played to a client of ours."""

from __future__ import annotations

import random as randomness
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.dest_profile import MAX_SPOKEN, MAX_VISITS, DestProfile, RecordedVisit, Spoken
from qre.quic.client.returning_client import ReturningClient
from qre.quic.client.visit_recorder import VisitRecorder
from qre.quic.handshake_events import SiteAnswered
from qre.quic.shadow.visit_script import VisitScript, choose
from tests.support.pair import Path
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_site import StockSite, client, meet

#: As Caddy's of a small page, and of one that does not fit into the first flight of data.
SMALL = (
    Spoken(asked=False, at_us=6_200, length=303, eliciting=True, acknowledged=0),
    Spoken(asked=True, at_us=7_000, length=213, eliciting=True, acknowledged=0),
    Spoken(asked=True, at_us=31_000, length=22, eliciting=True, acknowledged=1),
)
LONG = (
    Spoken(asked=False, at_us=6_200, length=303, eliciting=True, acknowledged=0),
    Spoken(asked=True, at_us=6_300, length=25, eliciting=False, acknowledged=0),
    *(Spoken(asked=True, at_us=7_000 + n, length=1200, eliciting=True, acknowledged=0) for n in range(20)),
    *(Spoken(asked=True, at_us=13_500 + n, length=1200, eliciting=True, acknowledged=8) for n in range(20)),
    Spoken(asked=True, at_us=14_000, length=600, eliciting=True, acknowledged=12),
)


def visit(spoken: tuple[Spoken, ...]) -> RecordedVisit:
    return RecordedVisit(round_trip_us=6_000, spoken=spoken)


def profile(*visits: RecordedVisit) -> DestProfile:
    return DestProfile(reachable=True, checked_at=1, scid_length=8, visits=visits)


def after_the_flight(pair: ShadowPair) -> list[int]:
    """Lengths of what the server sent by itself."""
    mirrored = {made for _, datagrams in pair.mirrored for made in datagrams}
    return [len(datagram) for by_client, datagram in pair.sent if not by_client and datagram not in mirrored]


@pytest.mark.parametrize("spoken", [SMALL, LONG])
@pytest.mark.parametrize("delay", [0.0005, 0.01, 0.08])
def test_a_client_gets_the_datagrams_of_a_recorded_visit(spoken: tuple[Spoken, ...], delay: float) -> None:
    pair = ShadowPair(path=Path(delay=delay), dest=profile(visit(spoken))).run()
    assert pair.complete
    wanted = [each.length for each in spoken]
    lengths = after_the_flight(pair)
    assert lengths[: len(wanted)] == wanted
    assert len(lengths) - len(wanted) <= 2, "an acknowledgement, and the leave to switch where the visit was over"


def test_the_leave_to_switch_goes_with_the_visits_last_datagram() -> None:
    """So that there is nothing that a visit has not."""
    pair = ShadowPair(path=Path(delay=0.003), dest=profile(visit(LONG))).run()
    assert pair.complete and after_the_flight(pair)[-1] == LONG[-1].length


#: With probes of the path's MTU, two before the page has come and two behind it, when the client is let go.
PROBED = (
    SMALL[0],
    Spoken(asked=True, at_us=7_000, length=213, eliciting=True, acknowledged=0),
    *(
        Spoken(asked=True, at_us=at, length=n, eliciting=True, acknowledged=0, probe=True)
        for at, n in ((20_000, 1326), (30_000, 1389))
    ),
    SMALL[2],
    *(
        Spoken(asked=True, at_us=at, length=n, eliciting=True, acknowledged=0, probe=True)
        for at, n in ((90_000, 1420), (99_000, 1436))
    ),
)


@pytest.mark.parametrize("mtu", [1300, 1350, 1500])
def test_probes_of_the_paths_mtu_are_played_and_the_largest_that_arrived_is_known(mtu: int) -> None:
    """Nothing waits for one, and nothing of it is sent again."""
    pair = ShadowPair(path=Path(delay=0.003, mtu=mtu), dest=profile(visit(PROBED))).run()
    assert pair.complete and pair.server is not None
    assert after_the_flight(pair)[:5] == [303, 213, 1326, 1389, 22]
    assert sum(length > 1200 for length in after_the_flight(pair)) <= 4
    proven = pair.server.proven_path
    assert (proven and proven[0]) == {1300: None, 1350: 1326, 1500: 1389}[mtu]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_stalls_on_a_bad_path(seed: int) -> None:
    path = Path(loss=0.1, duplicate=0.2, reorder=0.3)
    pair = ShadowPair(seed=seed, path=path, dest_path=path, dest=profile(visit(SMALL), visit(LONG))).run(60)
    assert pair.complete or not pair.mirrored, (pair.client_events, pair.server_events)


def test_a_routed_connection_id_of_our_own_is_issued_when_the_visit_is_over() -> None:
    pair = ShadowPair(dest=profile(visit(SMALL)), routed_cid_len=20).run()
    assert pair.complete and pair.client_state is not None and len(pair.client_state.routed_cid) == 20
    assert after_the_flight(pair)[: len(SMALL)] == [each.length for each in SMALL]


def test_a_visit_is_recorded_and_can_be_played() -> None:
    events = meet(client(public_key=b""), StockSite())
    assert isinstance(events[0], SiteAnswered)
    (recorded,) = events[0].profile.visits
    assert recorded.spoken and any(each.asked for each in recorded.spoken)
    assert [each.asked for each in recorded.spoken] == sorted(each.asked for each in recorded.spoken)
    assert all(5 <= each.ack_length <= 8 for each in recorded.spoken if not each.eliciting), "nothing but an ACK"
    pair = ShadowPair(dest=profile(recorded)).run()
    assert pair.complete
    last = max(number for number, each in enumerate(recorded.spoken, start=1) if each.eliciting)
    assert after_the_flight(pair)[:last] == [each.length for each in recorded.spoken[:last]]


def a_connection() -> SimpleNamespace:
    """What a recorder reads of one that has finished."""
    return SimpleNamespace(
        handshake_complete=True,
        acknowledgement_pending=False,
        eliciting_packets=0,
        acknowledgement_bytes=0,
        application_progress=0,
        answer_begun=False,
        round_trip=0.006,
        kept_token=b"",
    )


def test_times_are_counted_from_when_finished_left_and_not_from_when_it_was_made() -> None:
    connection = a_connection()
    recorder = VisitRecorder()
    visitor = cast(ReturningClient, connection)
    recorder.sent(visitor, 10.0, asked=False)
    recorder.left(10.001)
    recorder.sent(visitor, 10.002, asked=True)
    recorder.left(10.004)
    recorder.left(10.006)
    for answers in (False, True):
        connection.answer_begun = answers
        connection.eliciting_packets += 1
        recorder.received(bytes([0x40]) + bytes(40), visitor, 10.0101)
    recorded = recorder.visit(visitor)
    assert recorded is not None and [each.at_us for each in recorded.spoken] == [9_100, 6_100]


def test_an_answer_that_is_here_before_the_visitor_knows_that_it_asked_was_no_time_under_way() -> None:
    connection = a_connection()
    connection.round_trip, connection.answer_begun, connection.eliciting_packets = 0.0001, True, 1
    recorder = VisitRecorder()
    visitor = cast(ReturningClient, connection)
    recorder.sent(visitor, 10.0, asked=False)
    recorder.left(10.0)
    recorder.sent(visitor, 10.002, asked=True)
    recorder.left(10.003)
    recorder.received(bytes([0x40]) + bytes(40), visitor, 10.0022)
    recorded = recorder.visit(visitor)
    assert recorded is not None and [each.at_us for each in recorded.spoken] == [0]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(recorded), type=RecordedVisit) == recorded


def test_what_a_site_said_before_it_had_finished_belongs_to_its_flight_however_late_it_is_read() -> None:
    connection = a_connection()
    recorder = VisitRecorder()
    recorder.sent(cast(ReturningClient, connection), 10.0, asked=True)
    connection.answer_begun = True
    for at in (10.0001, 10.0029, 10.0061):
        connection.eliciting_packets += 1
        recorder.received(bytes([0x40]) + bytes(40), cast(ReturningClient, connection), at)
    recorded = recorder.visit(cast(ReturningClient, connection))
    assert recorded is not None and [each.at_us for each in recorded.spoken] == [6_100]


@pytest.mark.parametrize(
    ("datagrams", "apart", "says", "longer"),
    [(10, 0.001, True, False), (80, 0.001, True, True), (30, 0.05, True, True), (80, 0.05, False, False)],
)
def test_a_page_that_is_longer_than_is_played_is_said_to_be(
    datagrams: int, apart: float, says: bool, longer: bool
) -> None:
    """Not one that is idle, and acknowledges or asks for life."""
    connection = SimpleNamespace(
        handshake_complete=True,
        acknowledgement_pending=False,
        eliciting_packets=0,
        acknowledgement_bytes=0,
        application_progress=0,
        answer_begun=True,
        round_trip=0.006,
        kept_token=b"",
    )
    recorder = VisitRecorder()
    recorder.sent(cast(ReturningClient, connection), 10.0, asked=True)
    for number in range(datagrams):
        connection.eliciting_packets += 1
        connection.application_progress += says
        recorder.received(bytes([0x40]) + bytes(40), cast(ReturningClient, connection), 10.01 + number * apart)
    recorded = recorder.visit(cast(ReturningClient, connection))
    assert recorded is not None and recorded.longer == longer and len(recorded.spoken) <= MAX_SPOKEN


def test_a_site_that_does_not_answer_leaves_no_recording() -> None:
    events = meet(client(public_key=b""), StockSite(answer=False))
    assert isinstance(events[0], SiteAnswered) and not events[0].profile.visits


def test_the_last_visits_are_kept() -> None:
    kept: DestProfile | None = None
    for number in range(MAX_VISITS + 3):
        kept = profile(RecordedVisit(round_trip_us=number, spoken=SMALL)).after(kept)
    assert kept is not None
    assert [each.round_trip_us for each in kept.visits] == list(range(3, MAX_VISITS + 3))
    assert kept.without_visits().visits == ()
    written = msgspec.json.encode(profile(*[visit((LONG * 2)[:MAX_SPOKEN])] * MAX_VISITS))
    assert len(written) < 32_768, "what reads the file reads 65,536 bytes of it"
    assert msgspec.json.decode(written, type=DestProfile).visits[0].spoken[0] == LONG[0]


def test_each_datagram_is_due_as_long_after_the_client_as_it_was() -> None:
    script = VisitScript(visit(SMALL))
    assert script.next_due() is None and not script.speaks
    script.finished(10.0)
    assert script.next_due() == pytest.approx(10.0062)
    assert script.take(10.006) is None and script.take(10.0063) == SMALL[0]
    assert script.next_due() is None, "the page has not been asked for"
    script.asked(11.0)
    assert script.take(11.0071) == SMALL[1]
    assert script.take(11.2) is None, "Dest knew that the first had arrived"
    script.arrived(1, 11.3)
    assert script.next_due() == pytest.approx(11.306), "as far away as Dest is"
    assert script.to_be_acknowledged == 1
    assert script.take(11.31) == SMALL[2] and not script.speaks and script.next_due() is None


def at(first: int, second: int) -> RecordedVisit:
    """What follows Finished and what follows the request, each with one more 40 µs behind it."""
    return RecordedVisit(
        round_trip_us=6_000,
        spoken=tuple(
            Spoken(asked=asked, at_us=at_us + more, length=100, eliciting=False, acknowledged=0)
            for asked, at_us in ((False, first), (True, second))
            for more in (0, 40)
        ),
    )


def times_of(script: VisitScript | None) -> list[int]:
    """When all of it is due, in microseconds after the client."""
    assert script is not None
    script.finished(0.0)
    times = []
    while (due := script.next_due()) is not None:
        times.append(round(due * 1e6))
        assert script.take(due + 1e-9) is not None
        if len(times) == 2:
            script.asked(0.0)
    return times


def test_a_few_recordings_are_not_a_few_times() -> None:
    visits = [at(7_000, 20_000), at(6_500, 21_000), at(7_300, 20_200)]
    chance = randomness.Random(1)
    played = [times_of(choose(visits, chance.randbytes)) for _ in range(400)]
    firsts, asked = [times[0] for times in played], [times[2] for times in played]
    assert 6_500 <= min(firsts) < 6_520 and 7_280 < max(firsts) <= 7_300
    assert 20_000 <= min(asked) < 20_020 and 20_980 < max(asked) <= 21_000
    assert len(set(firsts)) > 200 and len(set(asked)) > 200
    assert {times[1] - times[0] for times in played} <= {39, 40, 41}, "what was together stays together"
    assert abs(sorted(firsts)[200] - 7_000) < 60, "the median of the recordings"


def test_recordings_of_something_else_have_times_of_their_own() -> None:
    late = [
        msgspec.structs.replace(
            visit, spoken=tuple(msgspec.structs.replace(each, length=40) for each in visit.spoken)
        )
        for visit in (at(31_000, 40_000), at(32_000, 40_000))
    ]
    chance = randomness.Random(3)
    firsts = [times_of(choose([at(7_000, 20_000), *late], chance.randbytes))[0] for _ in range(200)]
    assert {each for each in firsts if each < 31_000} == {7_000}
    assert all(each == 7_000 or 31_000 <= each <= 32_000 for each in firsts)


def test_the_only_recording_is_played_as_it_is() -> None:
    assert times_of(choose([at(7_000, 20_000)], randomness.Random(2).randbytes)) == [7_000, 7_040, 20_000, 20_040]
    assert choose([], randomness.Random(2).randbytes) is None


def test_a_client_that_acknowledges_nothing_ends_the_play() -> None:
    script = VisitScript(visit(SMALL))
    script.finished(10.0)
    script.asked(10.0)
    taken = [script.take(10.2), script.take(10.2), script.take(10.2)]
    assert taken == [SMALL[0], SMALL[1], None] and script.speaks
    at = script.next_due()
    assert at is not None and at < 12
    assert script.take(at + 1e-6) is None and not script.speaks


spoken_values = st.builds(
    Spoken,
    asked=st.booleans(),
    at_us=st.integers(0, 2_000_000),
    length=st.integers(21, 1452),
    eliciting=st.booleans(),
    acknowledged=st.integers(0, 70),
)


@given(st.lists(spoken_values, max_size=MAX_SPOKEN), st.integers(0, 3))
def test_whatever_was_recorded_ends(spoken: list[Spoken], every: int) -> None:
    """In time order, within a bound, with a client that acknowledges all, some or nothing."""
    script = VisitScript(RecordedVisit(round_trip_us=6_000, spoken=tuple(spoken)))
    now, taken, times = 5.0, 0, []
    script.finished(now)
    script.asked(now)
    for _ in range(4 * MAX_SPOKEN):
        due = script.next_due()
        if due is None:
            break
        now = max(now, due)
        while script.take(now) is not None:
            taken += 1
            times.append(now)
        script.arrived(taken * every // 3, now)
    assert not script.speaks and now < 5 + 3 * MAX_SPOKEN
    assert all(one <= other for one, other in pairwise(times)) and taken <= len(spoken)
