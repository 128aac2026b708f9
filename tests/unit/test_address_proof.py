"""Three times what a visitor sent, until it shows that an answer reached it (RFC 9000 §8.1)."""

from __future__ import annotations

import pytest

from qre.wire.packet import PacketType, build_short_header, long_header_source_cid
from qre.workers.handshake.port.address_proof import AMPLIFICATION, AddressProof
from tests.support.long_headers import long_datagram

HELLO = long_datagram(PacketType.INITIAL, b"chosen by me", b"me")
ANSWER = long_datagram(PacketType.HANDSHAKE, b"me", b"dests")
VERSIONS = bytes([0x80, 0, 0, 0, 0]) + b"\x02me" + b"\x0cchosen by me" + bytes([0, 0, 0, 1])


def begun() -> AddressProof:
    proof = AddressProof()
    proof.visitor_spoke(HELLO)
    return proof


def test_an_address_that_proved_nothing_gets_three_times_what_it_sent() -> None:
    proof = begun()
    assert [proof.may_answer(ANSWER) for _ in range(5)] == [True] * AMPLIFICATION + [False] * 2
    proof.visitor_spoke(HELLO)
    assert [proof.may_answer(ANSWER) for _ in range(5)] == [True] * AMPLIFICATION + [False] * 2
    assert not proof.proven
    assert not AddressProof().may_answer(b"\x40"), "and nothing for nothing"


def test_one_datagram_goes_beyond_that_where_dest_does_so() -> None:
    """quic-go asks before each whether it has sent three times as much already."""
    answers = [ANSWER[:31], *[ANSWER] * 4]
    for overshoots, count in ((True, 4), (False, 3)):
        proof = begun()
        assert [proof.may_answer(each, overshoots) for each in answers] == [True] * count + [False] * (5 - count)
        assert not proof.proven


@pytest.mark.parametrize(
    ("first", "answer"), [(HELLO[:1199], ANSWER), (HELLO, ANSWER.ljust(1501)), (b"\x40" + HELLO[1:], HELLO)]
)
def test_nothing_goes_beyond_that_to_what_begins_no_connection_and_nothing_that_is_longer(
    first: bytes, answer: bytes
) -> None:
    proof = AddressProof()
    proof.visitor_spoke(first)
    proof.visitor_spoke(HELLO[:1])
    returned = sum(len(answer) for _ in range(12) if proof.may_answer(answer, overshoots=True))
    assert returned <= AMPLIFICATION * (len(first) + 1)


@pytest.mark.parametrize(
    "data",
    [
        long_datagram(PacketType.HANDSHAKE, b"dests", b"me"),
        build_short_header(b"dests", b"\x01") + bytes(20),
    ],
)
def test_a_connection_id_of_dests_proves_it(data: bytes) -> None:
    proof = begun()
    proof.visitor_spoke(data)
    assert not proof.proven, "Dest has not chosen it yet"
    assert proof.may_answer(ANSWER)
    proof.visitor_spoke(data)
    assert proof.proven


@pytest.mark.parametrize(
    "data",
    [
        HELLO,
        long_datagram(PacketType.INITIAL, b"dest", b"me"),
        long_datagram(PacketType.INITIAL, b"", b"me"),
        build_short_header(b"dest!", b"\x01") + bytes(20),
        b"\xc0",
        b"",
    ],
)
def test_what_a_forger_could_have_sent_proves_nothing(data: bytes) -> None:
    proof = begun()
    for answer in (ANSWER, VERSIONS, long_datagram(PacketType.HANDSHAKE, b"me", b"")):
        assert proof.may_answer(answer)
    proof.visitor_spoke(data)
    assert not proof.proven


MOVED = build_short_header(b"anything", b"\x01") + bytes(20)
DATA = build_short_header(b"me", b"\x01") + bytes(1200)


def test_packets_of_a_connection_that_moved_here_are_dests_to_bound_and_no_others() -> None:
    proof = AddressProof()
    proof.visitor_spoke(MOVED)
    assert all(proof.may_answer(DATA) for _ in range(100))
    assert proof.is_free(DATA + DATA, len(DATA))
    assert not proof.is_free(DATA + ANSWER.ljust(len(DATA)), len(DATA))
    assert not proof.may_answer(ANSWER), "which is more than three times the one packet"
    assert not proof.proven


def test_a_short_header_in_front_lets_no_answer_to_a_hello_through() -> None:
    """The first answers of the other connection are what would be amplified."""
    proof = AddressProof()
    proof.visitor_spoke(MOVED)
    proof.visitor_spoke(HELLO)
    for answer in (ANSWER, DATA):
        assert not proof.is_free(answer, len(answer))
    returned = sum(len(ANSWER) for _ in range(12) if proof.may_answer(ANSWER))
    assert returned <= AMPLIFICATION * (len(MOVED) + len(HELLO))
    proof.visitor_spoke(MOVED)
    assert not proof.may_answer(DATA), "a second one is no way back"
    assert not proof.proven
    proof.visitor_spoke(long_datagram(PacketType.HANDSHAKE, b"dests", b"me"))
    assert proof.proven


def test_a_datagram_of_nothing_in_front_changes_nothing() -> None:
    proof = AddressProof()
    for data in (b"", MOVED):
        proof.visitor_spoke(data)
    assert not proof.may_answer(DATA)


@pytest.mark.parametrize("length", range(len(ANSWER[:20])))
def test_a_header_that_is_cut_short_has_no_source_cid(length: int) -> None:
    assert long_header_source_cid(ANSWER[:length]) in (None, b"dests")
    assert long_header_source_cid(VERSIONS) is None
