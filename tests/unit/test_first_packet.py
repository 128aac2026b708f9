"""A client's first packet to the data plane of its server: a browser's acknowledgement to whoever looks, and no more.

It has no frame but PADDING, so that nothing answers it, and lets the server send.
"""

from __future__ import annotations

from qre.dataplane.protocol import LossReason, SessionBegun, SessionConfirmed, SessionLost
from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.loss.client_session import ASKS_AFTER, FIRST_PACKET_AFTER
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import Ends

C, S = Role.CLIENT, Role.SERVER
CID = b"\xc1" * 4
INNER = bytes.fromhex("45000054000040004001") + bytes(74)


def fresh() -> Ends:
    """Two ends that have no use for probes of the path's MTU."""
    return Ends(connection_id=CID, max_datagram_payload=1200)


def sent_by(ends: Ends, role: Role) -> list[int]:
    return [len(packet) for sender, packet in ends.sent if sender is role]


def test_an_idle_client_sends_nothing_but_what_looks_like_a_browsers_last_acknowledgement() -> None:
    ends = fresh()
    ends.run(FIRST_PACKET_AFTER - 0.001)
    assert ends.sent == []
    assert ends.server.state is LifeState.HELD
    ends.run(0.002 + ends.delay)
    assert sent_by(ends, C) == [31]
    assert ends.server.state is LifeState.ESTABLISHED
    ends.run(ASKS_AFTER - 0.1)
    assert sent_by(ends, C) == [31]
    assert sent_by(ends, S) == [], "it asks for no answer"


def test_a_client_tells_at_once_that_its_session_has_begun_and_when_the_server_was_heard_that_it_was() -> None:
    ends = fresh()
    ends.run(FIRST_PACKET_AFTER + 0.001)
    assert len(ends.said(C, SessionBegun)) == 1
    ends.run(ASKS_AFTER - 0.1)
    assert [len(ends.said(role, SessionConfirmed)) for role in (C, S)] == [0, 1]
    ends.run(5)
    assert [len(ends.said(role, SessionConfirmed)) for role in (C, S)] == [1, 1]
    assert [len(ends.said(role, SessionBegun)) for role in (C, S)] == [1, 0]


def test_a_server_that_was_never_heard_is_not_said_to_use_the_session() -> None:
    ends = fresh()
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    ends.run(9)
    assert len(ends.said(C, SessionBegun)) == 1
    assert ends.said(C, SessionConfirmed) == []


def test_a_session_that_never_heard_anything_ends_as_a_browsers() -> None:
    """Behind the handshake the way is cut: repeats, and the CLOSE of a browser; not ten seconds, and no word."""
    ends = fresh()
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    ends.client.recovery.smoothed, ends.client.recovery.variation = 0.003, 0.001
    ends.client._silence.end()  # type: ignore[attr-defined]  # of the client's kind
    ends.transmit(C, INNER)
    ends.run(6.3)
    assert ends.said(C, SessionLost) == []
    ends.run(0.3)
    assert [event.reason for event in ends.said(C, SessionLost)] == [LossReason.UNANSWERED]
    (close,) = ends.server.packets.open([ends.sent[-1][1]], 0).others
    assert b"blackhole" in close[0]


def test_an_inner_packet_that_is_due_sooner_is_the_first_and_the_only_one() -> None:
    ends = fresh()
    ends.transmit(C, INNER)
    assert len(ends.said(C, SessionBegun)) == 1
    ends.run(0.2)
    assert len(sent_by(ends, C)) == 1
    assert ends.delivered[S] == [INNER]
    assert ends.client.confirmed


def test_what_the_server_sends_shows_that_it_has_heard_from_the_client() -> None:
    ends = fresh()
    ends.run(0.1)
    assert not ends.client.confirmed
    ends.transmit(S, INNER)
    ends.run(ends.delay + 0.001)
    assert ends.client.confirmed
    ends.run(5)
    assert sent_by(ends, C)[1:] == [31], "an ACK without ECN counts, whose packet has a number of one byte"


def test_a_client_asks_a_server_that_never_says_anything_as_its_first_packet_may_be_lost() -> None:
    ends = fresh()
    ends.fate = lambda role, datagram: []
    ends.run(ASKS_AFTER - 0.01)
    assert sent_by(ends, C) == [31]
    assert ends.server.state is LifeState.HELD
    ends.fate = lambda role, datagram: [0.01]
    ends.run(0.1)
    assert sent_by(ends, C) == [31, 26]
    assert ends.client.confirmed
    assert ends.server.confirmed


def test_a_client_that_waits_for_an_answer_already_does_not_ask_for_another() -> None:
    ends = fresh()
    ends.run(ASKS_AFTER - 0.1)
    ends.fate = lambda role, datagram: []
    ends.transmit(C, INNER)
    ends.run(0.2)
    assert len(sent_by(ends, C)) == 2


def test_a_session_that_goes_on_after_a_restart_asks_at_once() -> None:
    ends = Ends(connection_id=CID, of_client={"packet_number": PACKET_NUMBER_BASE + 70_000})
    assert sent_by(ends, C) == [26]
    assert ends.said(C, SessionConfirmed) == []
    ends.run(0.1)
    assert ends.client.confirmed
