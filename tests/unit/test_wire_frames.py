"""Frames: what is written is read back, also by aioquic, and any bytes parse or raise the one exception."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_ack_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.wire.ackwin import MAX_ACK_RANGES, MAX_RANGES, ReceivedNumbers
from qre.wire.datagram import DATAGRAM_HEAD, parse_http_datagram_untrusted
from qre.wire.frames import (
    MAX_ACK_RANGES_READ,
    Ack,
    ConnectionClose,
    Crypto,
    Datagram,
    FlowControl,
    Frame,
    HandshakeDone,
    NewConnectionId,
    NewToken,
    Padding,
    PathChallenge,
    PathResponse,
    Ping,
    ResetStream,
    RetireConnectionId,
    StopSending,
    Stream,
    encode_ack,
    encode_frame,
    frames_untrusted,
    read_frame_untrusted,
)
from tests.support.wire_codecs import encode_http_datagram

NUMBER = st.integers(0, (1 << 62) - 1)
DATA = st.binary(max_size=70)
OFFSET = st.integers(0, (1 << 62) - 71)
STREAMS = st.integers(0, 1 << 60)


def ack_of(numbers: set[int], delay: int, ecn: tuple[int, ...]) -> Ack:
    received = ReceivedNumbers(-1)
    for number in numbers:
        received.accept(number)
    return Ack(received.ack_ranges(), delay, ecn)


FRAMES: list[st.SearchStrategy[Frame]] = [
    st.builds(Padding, st.integers(1, 1500)),
    st.builds(Ping, st.integers(1, 1500)),
    st.builds(
        ack_of, st.sets(NUMBER, min_size=1, max_size=40), NUMBER, st.just(()) | st.tuples(NUMBER, NUMBER, NUMBER)
    ),
    st.builds(ResetStream, NUMBER, NUMBER, NUMBER),
    st.builds(StopSending, NUMBER, NUMBER),
    st.builds(Crypto, OFFSET, DATA),
    st.builds(NewToken, st.binary(min_size=1, max_size=70)),
    st.builds(Stream, NUMBER, DATA, OFFSET, st.booleans()),
    st.builds(FlowControl, st.sampled_from((0x10, 0x14)), NUMBER),
    st.builds(FlowControl, st.sampled_from((0x12, 0x13, 0x16, 0x17)), STREAMS),
    st.builds(FlowControl, st.sampled_from((0x11, 0x15)), NUMBER, NUMBER),
    st.builds(
        lambda numbers, cid, token: NewConnectionId(max(numbers), min(numbers), cid, token),
        st.tuples(NUMBER, NUMBER),
        st.binary(min_size=1, max_size=20),
        st.binary(min_size=16, max_size=16),
    ),
    st.builds(RetireConnectionId, NUMBER),
    st.builds(PathChallenge, st.binary(min_size=8, max_size=8)),
    st.builds(PathResponse, st.binary(min_size=8, max_size=8)),
    st.builds(ConnectionClose, NUMBER, st.just(True), st.just(0), DATA),
    st.builds(ConnectionClose, NUMBER, st.just(False), NUMBER, DATA),
    st.just(HandshakeDone()),
    st.builds(Datagram, DATA),
]


@pytest.mark.parametrize("strategy", FRAMES)
def test_a_frame_is_read_back(strategy: st.SearchStrategy[Frame]) -> None:
    @settings(max_examples=25)
    @given(strategy)
    def check(frame: Frame) -> None:
        encoded = encode_frame(frame)
        assert read_frame_untrusted(encoded) == (frame, len(encoded))
        assert read_frame_untrusted(b"\x1e" + encoded + b"\x1e", 1) == (frame, len(encoded) + 1)
        for cut in range(len(encoded)):
            try:
                shorter, end = read_frame_untrusted(encoded[:cut])
            except UntrustedInputError:
                continue
            assert end == cut  # the runs alone
            assert isinstance(shorter, Padding | Ping)

    check()


def test_every_type_of_frame_is_written() -> None:
    assert len(FRAMES) == len(Frame.__subclasses__()) + 3
    with pytest.raises(TypeError):
        encode_frame(Frame())


@settings(max_examples=100)
@given(st.lists(st.one_of(FRAMES[2:]), min_size=1, max_size=6))
def test_a_payload_of_many_frames_is_read_in_order(frames: list[Frame]) -> None:
    assert list(frames_untrusted(b"".join(map(encode_frame, frames)))) == frames


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_parse_or_raise_the_one_exception(payload: bytes) -> None:
    try:
        frames = list(frames_untrusted(payload))
    except UntrustedInputError:
        return
    assert list(frames_untrusted(b"".join(map(encode_frame, frames)))) == frames


def test_frames_without_a_length_go_on_to_the_end_of_the_payload() -> None:
    assert list(frames_untrusted(b"\x01\x0d\x04\x05data")) == [Ping(), Stream(4, b"data", 5, fin=True)]
    assert list(frames_untrusted(b"\x01\x30data")) == [Ping(), Datagram(b"data")]


def test_runs_of_padding_and_ping_are_one_frame_each() -> None:
    payload = bytes(3) + b"\x01\x01" + bytes(1) + b"\x01"
    assert list(frames_untrusted(payload)) == [Padding(3), Ping(2), Padding(1), Ping(1)]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x40\x01",  # a type that is not in its shortest form
        b"\x1f",
        b"\x02\x05\x00\x00\x06",  # more than there are numbers
        b"\x02\x05\x00\x01\x02\x02\x00",  # a gap below zero
        b"\x02\x80\x0f\xff\xff\x00" + (MAX_ACK_RANGES_READ + 1 | 0x4000).to_bytes(2, "big") + b"\x00" * 2000,
        b"\x18\x01\x00\x00" + bytes(40),  # an empty connection ID
        b"\x18\x01\x00\x15" + bytes(40),
        b"\x18\x01\x02\x08" + bytes(40),  # retires itself
        b"\x07\x00",  # no token
        b"\x06" + b"\xff" * 8 + b"\x01\x00",  # data beyond the largest offset
        b"\x0c\x00" + b"\xff" * 8 + b"\x00",
        b"\x0e\x00" + b"\xff" * 8 + b"\x01\x00",
        *(bytes([kind]) + b"\xd0" + bytes(6) + b"\x01" for kind in (0x12, 0x13, 0x16, 0x17)),  # 2^60 + 1 streams
    ],
)
def test_an_impossible_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        list(frames_untrusted(payload))


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20), DATA)
def test_an_http_datagram_is_read_back(quarter_stream_id: int, context_id: int, packet: bytes) -> None:
    data = encode_http_datagram(quarter_stream_id, context_id, packet)
    assert parse_http_datagram_untrusted(data) == (quarter_stream_id, context_id, packet)


@given(st.binary(max_size=20))
def test_any_http_datagram_parses_or_raises_the_one_exception(data: bytes) -> None:
    try:
        assert data.endswith(parse_http_datagram_untrusted(data)[2])
    except UntrustedInputError:
        assert len(data) < 16


def test_the_tunnels_own_head_is_that_of_stream_0_and_context_0() -> None:
    assert list(frames_untrusted(DATAGRAM_HEAD + b"ip")) == [Datagram(encode_http_datagram(0, 0, b"ip"))]


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(0, 1 << 20))
def test_an_ack_frame_says_what_was_received_also_to_aioquic(numbers: set[int], delay: int) -> None:
    received = ReceivedNumbers(-1)
    for number in numbers:
        assert received.accept(number)
    ranges = received.ack_ranges()
    encoded = encode_ack(ranges, delay)
    (ack,) = frames_untrusted(encoded)
    assert isinstance(ack, Ack)
    assert ack.ranges == ranges
    told = {number for first, last in ranges for number in range(first, last + 1)}
    assert told <= numbers
    assert len(ranges) == MAX_ACK_RANGES or told == numbers
    theirs, their_delay = pull_ack_frame(Buffer(data=encoded[1:]))
    assert {number for span in theirs for number in span} == told
    assert their_delay == delay


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2000), max_size=1500), st.integers(-1, 100))
def test_no_number_is_accepted_twice_and_none_below_the_floor(numbers: list[int], floor: int) -> None:
    received = ReceivedNumbers(floor)
    accepted: set[int] = set()
    for number in numbers:
        known = number in accepted or number <= received.floor
        assert received.accept(number) == (not known)
        accepted.add(number)
        assert len(received.starts) <= MAX_RANGES
        assert received.highest >= number
