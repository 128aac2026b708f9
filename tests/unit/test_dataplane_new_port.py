"""A client that hears nothing tries a port of its own that is new, as Chromium 156 does: with the third probe, three
PATH_CHALLENGEs in datagrams of 1,250 bytes, 0.3 s apart, with another connection ID of the server's."""

from __future__ import annotations

import pytest

from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import PathChallenge, PathResponse, RetireConnectionId, encode_frame, frames_untrusted
from tests.support.driven import FIRST, INNER, SECOND, THIRD, Driven, issued


class Client(Driven):
    """Of a server that has issued a spare connection ID; ``spare``: it has a spare port."""

    def __init__(self, *, spare: bool = True, cid: bytes | None = SECOND) -> None:
        super().__init__(Role.CLIENT, connection_id=FIRST)
        self.acknowledge()
        if cid is not None:
            self.says(issued(1, 0, cid))
        self.session.paths.has_new_port = spare
        self.wait(1)
        self.acknowledge()

    def falls_silent(self, seconds: float) -> list[tuple[float, bytes]]:
        """The server does; what leaves by the new port, and after how many seconds."""
        assert self.session.seal_datagrams([DATAGRAM_HEAD + INNER], self.now)
        began, sent = self.now, []
        while self.now < began + seconds:
            self.wait(0.01)
            sent += [(self.now - began, packet) for packet in self.session.from_new_port]
            self.session.from_new_port.clear()
        return sent

    def challenge(self, packet: bytes) -> bytes:
        """Of a packet from the new port, whose frames are that and PADDING."""
        opened = self.peer.packets
        ((plaintext, *_),) = opened.open([packet], 0).others
        first, *_ = frames_untrusted(plaintext)
        assert isinstance(first, PathChallenge)
        assert not plaintext[9:].strip(b"\0")
        return first.data


def test_three_challenges_leave_from_a_new_port_with_another_connection_id() -> None:
    client = Client()
    pto = client.session.recovery.pto
    sent = client.falls_silent(4)
    assert [len(packet) for _, packet in sent] == [1250] * 3
    assert all(packet.startswith(SECOND, 1) for _, packet in sent)
    (first, second, third) = (at for at, _ in sent)
    assert pto * 4 - 0.02 <= first <= pto * 4 + 0.05, "one, one and two probe timeouts later"
    assert (second - first, third - second) == (pytest.approx(0.3, abs=0.03),) * 2
    assert len({client.challenge(packet) for _, packet in sent}) == 3


def test_a_new_port_that_is_not_answered_is_given_up_and_its_connection_id_retired() -> None:
    client = Client()
    assert client.falls_silent(1.5)
    assert client.session.paths.new_port is None and not client.session.moved
    assert SECOND not in {one.cid for one in client.session.paths.cids.held}
    assert client.falls_silent(5) == [], "once"


def test_the_client_moves_when_the_server_answers_there() -> None:
    client = Client()
    sent = client.falls_silent(1)
    data = client.challenge(sent[-1][1])
    answers = client.says(encode_frame(PathResponse(data)))
    assert client.session.moved
    assert answers and all(one.packet.startswith(SECOND, 1) for one in answers)
    retired = [
        frame.sequence
        for one in answers
        for frame in frames_untrusted(client.frames(one))
        if isinstance(frame, RetireConnectionId)
    ]
    assert retired == [], "whoever is restarted begins at the old port again"
    assert all(
        packet.startswith(SECOND, 1) for packet in client.session.seal_datagrams([DATAGRAM_HEAD + INNER], client.now)
    )


def test_a_wrong_answer_moves_nobody() -> None:
    client = Client()
    assert client.falls_silent(1)
    client.says(encode_frame(PathResponse(bytes(8))))
    assert not client.session.moved


@pytest.mark.parametrize(("spare", "cid"), [(False, SECOND), (True, None)])
def test_without_a_port_or_a_connection_id_for_it_nothing_is_tried(spare: bool, cid: bytes | None) -> None:
    assert Client(spare=spare, cid=cid).falls_silent(4) == []


def test_a_server_that_answers_is_not_left() -> None:
    client = Client()
    for _ in range(20):
        assert client.falls_silent(0.05) == []
        client.acknowledge()


def test_a_connection_id_that_the_server_takes_back_meanwhile_is_retired() -> None:
    client = Client()
    assert client.falls_silent(0.9)
    client.says(issued(2, 2, THIRD))
    assert client.session.packets.tx_cid == THIRD
    client.wait(2)
    assert {one.cid for one in client.session.paths.cids.held} == {THIRD}
