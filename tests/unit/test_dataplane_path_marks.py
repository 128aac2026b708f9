"""ECN marks of the user data plane's packets, as its peer counts them: RFC 9000 section 13.4."""

from __future__ import annotations

from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import encode_ack
from qre.workers.dataplane.session.path_ecn import EcnState
from tests.support.driven import CHALLENGE, ELSEWHERE, INNER, PING, Driven


def data_marks(driven: Driven, count: int, counts: tuple[int, ...] | None) -> list[int]:
    """What ``count`` packets leave with; each is acknowledged, with the true counts unless told otherwise."""
    seen: list[int] = []
    for _ in range(count):
        assert driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
        seen.append(driven.session.tx_ecn)
        driven.acknowledge(counts if counts is not None else (driven.session.packets.next_number - 65_536, 0, 0))
        driven.ends.now += 0.03
    return seen


def test_a_path_that_counts_marks_rightly_gets_them() -> None:
    driven = Driven(ecn=2)
    assert data_marks(driven, 60, None) == [2] * 60
    assert driven.session.path_ecn.state is EcnState.CAPABLE
    assert [sent.ecn for sent in driven.says(CHALLENGE)] == [2]


def test_a_path_that_does_not_gets_no_more_than_the_test_of_it() -> None:
    driven = Driven(ecn=2)
    seen = data_marks(driven, 60, ())
    assert set(seen) <= {0, 2} and seen.count(2) <= 10 and set(seen[10:]) == {0}
    assert driven.session.path_ecn.state is EcnState.FAILED


def test_a_profile_that_saw_congestion_sends_what_can_have_become_it_and_a_client_nothing() -> None:
    assert Driven(ecn=3).session.path_ecn.codepoint == 2
    assert data_marks(Driven(ecn=0), 12, ()) == [0] * 12


def test_an_acknowledgement_that_was_overtaken_is_no_judge_of_the_path() -> None:
    driven = Driven(ecn=2)
    late = encode_ack([(65_536, 65_537)], 0, (2, 0, 0))
    data_marks(driven, 5, None)
    driven.says(late)
    assert driven.session.path_ecn.state is EcnState.CAPABLE


def test_another_path_is_tested_anew_and_probes_of_it_bear_no_mark() -> None:
    driven = Driven(ecn=2)
    data_marks(driven, 20, ())
    assert driven.session.path_ecn.state is EcnState.FAILED
    sent = driven.says(PING, ELSEWHERE, 1200)
    (probe,) = [one for one in sent if one.to == ELSEWHERE]
    assert probe.ecn == 0
    driven.says(b"\x1b" + driven.frames(probe)[1:9], ELSEWHERE)
    assert driven.session.path_ecn.state is EcnState.TESTING
    assert driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now) and driven.session.tx_ecn == 2


def test_probes_of_another_path_are_not_missed_in_the_counts() -> None:
    driven = Driven(ecn=2)
    driven.acknowledge((driven.session.packets.next_number - 65_536, 0, 0))
    marked = driven.session.packets.next_number - 65_536
    for n in range(5):
        driven.says(CHALLENGE, (f"203.0.113.{n}", 7))
        driven.session.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)
        marked += 1
        driven.says(encode_ack([(65_536, driven.session.packets.next_number - 1)], 0, (marked, 0, 0)))
    assert driven.session.path_ecn.state is EcnState.CAPABLE
