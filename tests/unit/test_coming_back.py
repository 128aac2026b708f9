"""When a client comes back after a failure: as a person with a browser, where somebody may be watching."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from qre.causes import Cause
from qre.workers.handshake.backoff import VISITS, Pauses, spread
from qre.workers.handshake.early_attempt import EarlyAttempt


def pauses(seed: int = 1, shortest: float = 1.0, longest: float = 60.0) -> Pauses:
    return Pauses(shortest, longest, random.Random(seed))


@pytest.mark.parametrize("cause", sorted(VISITS))
def test_a_site_that_takes_us_for_a_stranger_is_visited_again_after_minutes(cause: Cause) -> None:
    made = pauses()
    found = [made.after(cause) for _ in range(10)]
    assert all(120 <= pause <= 3600 for pause in found)
    assert found[0] <= 150
    assert all(after >= before for before, after in itertools.pairwise(found[:5]))
    assert found[-1] > 2600


@pytest.mark.parametrize("seed", range(20))
def test_only_after_a_session_the_first_such_visit_has_another_one_soon(seed: int) -> None:
    made = pauses(seed)
    assert made.after(Cause.NOT_RECOGNISED) >= 120
    made.succeeded()
    assert 5 <= made.after(Cause.NOT_RECOGNISED) <= 15
    assert made.after(Cause.NOT_RECOGNISED) >= 120
    made.network_changed()
    assert made.after(Cause.CLOCK_OFF) >= 120


def test_a_silent_server_is_called_as_an_error_page_reloads_itself_and_then_as_when_quic_is_broken() -> None:
    made = pauses()
    reloads = [made.after(Cause.NO_ANSWER) for _ in range(4)]
    for pause, step in zip(reloads, (1, 5, 30, 60), strict=True):
        assert 0.75 * step <= pause <= 1.25 * step
    broken = [made.after(Cause.NO_ANSWER) for _ in range(8)]
    assert 300 <= broken[0] <= 375 and broken[1] >= 450 and broken[2] >= 900
    assert max(broken) <= 3600


def test_udp_is_suspected_from_the_second_silence_on() -> None:
    made = pauses()
    said = []
    for cause in (Cause.NO_ANSWER, Cause.NO_ANSWER, Cause.PORT_CLOSED, Cause.NO_ANSWER):
        made.after(cause)
        said.append(made.udp_seems_blocked)
    assert said == [False, True, False, False]


def test_another_network_is_tried_at_once_and_its_silences_count_anew() -> None:
    made = pauses()
    for _ in range(6):
        made.after(Cause.NO_ANSWER)
    made.network_changed()
    assert made.after(Cause.NO_ANSWER) <= 1.25


def test_a_thousand_clients_of_a_server_that_died_do_not_come_back_in_the_same_second() -> None:
    """All gave it up at the same moment, or found it silent."""
    for beside, share in ((False, 500), (True, 750)):
        times = sorted(spread(random.Random(number), beside=beside) for number in range(1000))
        most = max(sum(at <= other < at + 1 for other in times) for at in times)
        assert most < share
        assert times[-1] < 3, "each of them within three seconds"


def test_shorter_pauses_are_shorter_everywhere() -> None:
    made = pauses(shortest=0.2, longest=1.0)
    assert made.after(Cause.NOT_RECOGNISED) <= 2.5
    made.succeeded()
    assert 1.0 <= made.after(Cause.NOT_RECOGNISED) <= 3.0
    assert [made.after(Cause.NO_ANSWER) <= 1.25 for _ in range(4)] == [True] * 4
    assert 5.0 <= made.after(Cause.NO_ANSWER) <= 6.25


def test_a_failure_that_is_no_visit_has_the_plain_backoff() -> None:
    made = pauses()
    assert made.after(None) <= 1.25
    assert made.after(Cause.TUNNEL_UNKNOWN) <= 2.5
    assert [made.after(Cause.PORT_CLOSED) for _ in range(10)][-1] >= 45


def test_who_waits_for_minutes_is_woken_by_the_user_and_by_no_network() -> None:
    async def wait(wake: str) -> bool:
        made = EarlyAttempt()
        asyncio.get_running_loop().call_later(0.05, getattr(made, wake))
        return await made.wait(1.0, any_network=False)

    assert not asyncio.run(wait("changed"))
    assert asyncio.run(wait("wanted"))
