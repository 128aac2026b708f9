"""The kernel module's codec says what the Python one says, and reads nothing beyond its input (``kmod/frames.c``,
``kmod/ackwin.c``, built for user space under AddressSanitizer and UndefinedBehaviorSanitizer)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.wire.ackwin import MAX_ACK_RANGES, MAX_RANGES, ReceivedNumbers
from qre.wire.datagram import DATAGRAM_HEAD, SPLIT_HEAD
from qre.wire.frames import (
    FRAME_ENCODING_ERROR,
    MAX_ACK_RANGES_READ,
    MAX_STREAMS,
    PROTOCOL_VIOLATION,
    Ack,
    ConnectionClose,
    Crypto,
    Datagram,
    FlowControl,
    Frame,
    NewConnectionId,
    PathChallenge,
    PathResponse,
    Stream,
    encode_ack,
    encode_frame,
    frames_untrusted,
)
from qre.wire.number import MAX_PACKET_NUMBER, decode_number
from qre.wire.varint import MAX_VARINT, encode_varint, read_varint_untrusted
from qre.workers.dataplane.session.payload import Payload, Sender, parse_payload_untrusted
from tests.fuzz import fuzz_kmod
from tests.fuzz.fuzz_wire import FRAMES as SAMPLES
from tests.fuzz.fuzz_wire import broken
from tests.support.kmod.codec import CodecFrame, KernelCodec, Range
from tests.support.wire_codecs import encode_http_datagram
from tests.unit.test_wire_frames import FRAMES

BITS = 8192  # QRE_ACKWIN_BITS
#: enum qre_arrival
NEXT, REORDERED, REPLAYED = "012"
UINT64_MAX = (1 << 64) - 1
PATTERNS = (0, 1, 2, 3, 8, 0x14, 0x15, 0x18, 0x1C, 0x30, 0x31, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFF)
numbers = st.integers(0, MAX_PACKET_NUMBER)
payloads = (
    st.binary(max_size=80)
    | st.lists(st.sampled_from(PATTERNS), max_size=60).map(bytes)
    | st.lists(st.one_of(FRAMES).map(encode_frame), max_size=6).map(b"".join)
)


# --- frames ---


def sorted_by_kernel(codec: KernelCodec, data: bytes) -> Payload | None:
    """What a data plane makes of the frames that C reads: the rules of qre.workers.dataplane.session.payload."""
    frames = codec.frames(data)
    if not frames:
        return None
    found = Payload()
    for frame in frames:
        kind = frame.kind
        if kind not in ("PADDING", "NEW_CONNECTION_ID", "PATH_CHALLENGE", "PATH_RESPONSE"):
            found.probing_only = False
        if kind not in ("PADDING", "ACK", "CONNECTION_CLOSE"):
            found.eliciting = True
        match kind:
            case "ACK":
                found.acks.append(Ack(frame.ranges, frame.values[0], frame.ecn))
            case "DATAGRAM":
                found.datagrams.append(DATAGRAM_HEAD + frame.data)
            case "DATAGRAM_PART":
                found.datagrams.append(SPLIT_HEAD + frame.data)
            case "DATAGRAM_UNKNOWN":
                found.unknown_datagrams += 1
            case "PATH_CHALLENGE":
                found.challenges.append(frame.data)
            case "PATH_RESPONSE":
                found.responses.append(frame.data)
            case "CONNECTION_CLOSE":
                found.close = frame.values[0]
            case "NEW_CONNECTION_ID":
                found.issued.append(issued_by(frame))
            case "OTHER":
                found.passed.append(frame.raw)
            case _:
                assert kind in ("PADDING", "PING", "HANDSHAKE_DONE")
    assert b"".join(frame.raw for frame in frames) == data
    return found


def issued_by(frame: CodecFrame) -> NewConnectionId:
    """Its numbers are as C read them."""
    at = 1
    for _ in range(2):
        _, at = read_varint_untrusted(frame.raw, at)
    return NewConnectionId(frame.values[0], frame.values[1], frame.raw[at + 1 : -16], frame.raw[-16:])


#: Of whom nothing is out of place, by the streams and connection IDs that payloads here are made of.
ANYBODY = Sender(client=False, gives_cids=True, takes_cids=True, issued=MAX_VARINT)


def sorted_by_python(data: bytes, sender: Sender) -> Payload | None:
    try:
        return parse_payload_untrusted(data, sender)
    except UntrustedInputError:
        return None


SENDERS = (
    ANYBODY,
    Sender(client=True, gives_cids=False, takes_cids=True, issued=1),
    Sender(client=False, gives_cids=True, takes_cids=False, issued=0),
)


def check_content_is_alike(codec: KernelCodec, data: bytes, sender: Sender) -> None:
    """What the module finds out of a payload before it does anything."""
    kernel, python = codec.content(sender, data), sorted_by_python(data, sender)
    if python is None:
        assert kernel.error == (FRAME_ENCODING_ERROR if data else PROTOCOL_VIOLATION), data.hex()
        return
    assert kernel.error == python.error, data.hex()
    if kernel.error:
        return
    assert kernel.challenge == b"".join(python.challenges[-1:])
    assert kernel.passed == b"".join(python.passed)
    assert (kernel.unknown, kernel.datagrams) == (python.unknown_datagrams, bool(python.datagrams))
    parts = sum(datagram.startswith(SPLIT_HEAD) for datagram in python.datagrams)
    unexpected = codec.content(sender, data, splits=False)
    assert unexpected.unknown == python.unknown_datagrams + parts
    assert unexpected.datagrams == (len(python.datagrams) > parts)
    assert (kernel.eliciting, kernel.only_probing) == (python.eliciting, python.probing_only)


def check_read_alike(codec: KernelCodec, data: bytes) -> bool:
    """Whether it is a payload; both must say the same of it."""
    for sender in SENDERS:
        check_content_is_alike(codec, data, sender)
    kernel, python = sorted_by_kernel(codec, data), sorted_by_python(data, ANYBODY)
    if python is not None and python.error:
        return True
    assert (kernel is None) == (python is None), data.hex()
    for name in Payload.__slots__ if python else ():
        assert getattr(kernel, name) == getattr(python, name), (name, data.hex())
    return python is not None


@settings(max_examples=1000)
@given(payloads)
def test_any_payload_is_read_alike_or_refused_by_both(codec: KernelCodec, data: bytes) -> None:
    check_read_alike(codec, data)


def test_broken_payloads_are_read_alike_or_refused_by_both(codec: KernelCodec) -> None:
    rng, taken = Random(5), 0
    for _ in range(3000):
        whole = b"".join(rng.choice(SAMPLES) for _ in range(rng.randrange(1, 5)))
        taken += check_read_alike(codec, broken(whole, rng))
    assert 300 < taken < 2700


@pytest.mark.parametrize("strategy", FRAMES)
def test_a_frame_is_read_alike_and_none_that_is_cut_short(
    codec: KernelCodec, strategy: st.SearchStrategy[Frame]
) -> None:
    @settings(max_examples=6)
    @given(strategy)
    def check(frame: Frame) -> None:
        encoded = encode_frame(frame)
        assert check_read_alike(codec, b"\x1e" + encoded) or isinstance(frame, Datagram)
        assert check_read_alike(codec, encoded + b"\x1e") or isinstance(frame, Datagram)
        for cut in range(len(encoded)):
            check_read_alike(codec, encoded[:cut])

    check()


def test_every_frame_type_is_known_to_both_or_to_none(codec: KernelCodec) -> None:
    for kind in range(256):
        for rest in (b"", bytes(60), b"\x01" * 60, b"\xff" * 60):
            check_read_alike(codec, bytes([kind]) + rest)


def test_a_payload_without_frames_is_told_as_its_end(codec: KernelCodec) -> None:
    assert codec.frames(b"") == []


def test_runs_are_one_frame(codec: KernelCodec) -> None:
    frames = codec.frames(bytes(1000) + b"\1" * 400 + b"\0")
    assert frames is not None
    assert [(one.kind, len(one.raw)) for one in frames] == [("PADDING", 1000), ("PING", 400), ("PADDING", 1)]


@pytest.mark.parametrize(
    ("frame", "good"),
    [
        (FlowControl(0x12, MAX_STREAMS), True),
        (FlowControl(0x12, MAX_STREAMS + 1), False),
        (FlowControl(0x17, MAX_STREAMS + 1), False),
        (FlowControl(0x10, MAX_VARINT), True),
        (Crypto(MAX_VARINT - 3, b"abc"), True),
        (Crypto(MAX_VARINT - 2, b"abc"), False),
        (Stream(0, b"abc", MAX_VARINT - 3), True),
        (Stream(0, b"abc", MAX_VARINT - 2), False),
        (NewConnectionId(1, 1, bytes(20), bytes(16)), True),
        (NewConnectionId(1, 2, bytes(20), bytes(16)), False),
        (NewConnectionId(1, 1, bytes(21), bytes(16)), False),
        (NewConnectionId(1, 1, b"", bytes(16)), False),
        (NewConnectionId(1, 1, bytes(20), bytes(15)), False),
        (Ack([(0, 0)], 0), True),
        (Ack([(2 * at, 2 * at) for at in range(MAX_ACK_RANGES_READ, -1, -1)], 0), True),
        (Ack([(2 * at, 2 * at) for at in range(MAX_ACK_RANGES_READ + 1, -1, -1)], 0), False),
    ],
)
def test_bounds_are_those_of_the_python_codec(codec: KernelCodec, frame: Frame, good: bool) -> None:
    assert check_read_alike(codec, encode_frame(frame)) == good


@pytest.mark.parametrize(
    ("payload", "good"),
    [
        (b"\x02\x05\x00\x00\x05", True),
        (b"\x02\x05\x00\x00\x06", False),  # the first range goes below 0
        (b"\x02\x05\x00\x01\x00\x03\x00", True),  # 5, and 0
        (b"\x02\x05\x00\x01\x00\x04\x00", False),  # a gap goes below 0
        (b"\x02\x05\x00\x01\x00\x03\x01", False),  # a range does
        (b"\x02\x05\x00\x01\x00" + b"\xff" * 16, False),
        (b"\x02\x05\x00" + b"\xff" * 8 + b"\x00", False),
        (b"\x03\x05\x00\x00\x05\x00\x00\x00", True),
        (b"\x03\x05\x00\x00\x05\x00\x00", False),
        (b"\x31\x03\x00\x00E\x01", True),
        (b"\x31\x05\x00\x00E\x01", False),
        (b"\x30\x00\x00", True),
        (b"\x30\x00", False),
        (b"\x30", False),
        (b"\x31\x01\x00\x00", False),  # the context lies beyond the frame
        (b"\x30\x40\x00\xc0" + bytes(7) + b"E", True),
        (b"\x30\x01\x00E", True),
        (b"\x30\x00\x02E", True),
        (b"\x08\x00", True),  # a STREAM frame to the end, which is here
        (b"\x07\x00", False),
        (b"\x40\x01", False),  # PING in two bytes: RFC 9000 section 12.4
    ],
)
def test_corner_cases_are_check_read_alike(codec: KernelCodec, payload: bytes, good: bool) -> None:
    assert check_read_alike(codec, payload) == good


@given(numbers, numbers, st.binary(max_size=30), st.booleans())
def test_a_datagram_is_the_tunnels_when_stream_and_context_are_0(
    codec: KernelCodec, quarter_stream: int, context: int, packet: bytes, zero: bool
) -> None:
    quarter_stream, context = (0, 0) if zero else (quarter_stream, context)
    frames = codec.frames(encode_frame(Datagram(encode_http_datagram(quarter_stream, context, packet))))
    assert frames is not None
    ours = quarter_stream == context == 0
    assert [(one.kind, one.data) for one in frames] == [("DATAGRAM" if ours else "DATAGRAM_UNKNOWN", packet)]


# --- what is written ---


@given(st.integers(0, MAX_VARINT))
def test_a_varint_is_written_alike(codec: KernelCodec, value: int) -> None:
    assert codec.put_varint(value) == encode_varint(value)


@pytest.mark.parametrize("bits", [6, 14, 30, 62])
def test_a_varint_is_as_short_as_it_can_be(codec: KernelCodec, bits: int) -> None:
    for value in ((1 << bits) - 1, min(1 << bits, MAX_VARINT)):
        assert codec.put_varint(value) == encode_varint(value)


@given(st.binary(max_size=10))
def test_any_bytes_are_the_same_varint_or_cut_short(codec: KernelCodec, data: bytes) -> None:
    try:
        expected = read_varint_untrusted(data)
    except UntrustedInputError:
        expected = None
    assert codec.varint(data) == expected


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("c2197c5eff14e88c", 151288809941952652),
        ("9d7f3e7d", 494878333),
        ("7bbd", 15293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_rfc_9000_a1_varints(codec: KernelCodec, encoded: str, value: int) -> None:
    assert codec.varint(bytes.fromhex(encoded)) == (value, len(encoded) // 2)
    assert codec.put_varint(value).hex() == ("25" if value == 37 else encoded)


def ranges_of(received: set[int]) -> list[Range]:
    """All of them, highest first."""
    found: list[Range] = []
    for number in sorted(received, reverse=True):
        if found and found[-1][0] == number + 1:
            found[-1] = number, found[-1][1]
        else:
            found.append((number, number))
    return found


@given(
    st.sets(numbers | st.integers(0, 200), min_size=1, max_size=40),
    numbers,
    st.just(()) | st.tuples(numbers, numbers, numbers),
    st.integers(0, 500),
)
def test_an_ack_is_written_alike_with_as_many_ranges_as_fit(
    codec: KernelCodec, received: set[int], delay: int, ecn: tuple[int, ...], room: int
) -> None:
    ranges = ranges_of(received)
    whole = encode_ack(ranges, delay, ecn)
    assert codec.put_ack(len(whole), ranges, delay, ecn) == whole
    assert codec.put_ack(len(encode_ack(ranges[:1], delay, ecn)) - 1, ranges, delay, ecn) == b""
    fitting = [
        frame
        for frame in (encode_ack(ranges[:count], delay, ecn) for count in range(1, len(ranges) + 1))
        if len(frame) <= room
    ]
    assert codec.put_ack(room, ranges, delay, ecn) == (fitting[-1] if fitting else b"")
    (frame,) = codec.frames(whole) or []
    assert (frame.ranges, frame.values[0], frame.ecn) == (ranges, delay, tuple(ecn))


def test_an_ack_of_many_ranges_tells_their_count_in_two_bytes(codec: KernelCodec) -> None:
    ranges = [(3 * at, 3 * at) for at in range(200, 0, -1)]
    for count in (63, 64, 65, 66, 200):
        assert codec.put_ack(1500, ranges[:count], 0) == encode_ack(ranges[:count], 0)
    # The 65th range makes the count longer: with one byte of room less it stays away, and so does that byte.
    whole = encode_ack(ranges[:65], 0)
    assert codec.put_ack(len(whole) - 1, ranges, 0) == encode_ack(ranges[:64], 0)


@given(numbers, st.booleans())
def test_a_close_is_written_alike(codec: KernelCodec, error: int, application: bool) -> None:
    encoded = codec.put_close(error, application=application)
    assert encoded == encode_frame(ConnectionClose(error, application))
    assert list(frames_untrusted(encoded)) == [ConnectionClose(error, application)]


@given(st.binary(min_size=8, max_size=8))
def test_path_frames_are_written_alike(codec: KernelCodec, data: bytes) -> None:
    assert codec.put_path(data, response=False) == encode_frame(PathChallenge(data))
    assert codec.put_path(data, response=True) == encode_frame(PathResponse(data))


# --- packet numbers ---


def test_rfc_9000_a3_packet_number(codec: KernelCodec) -> None:
    assert codec.decode_number(0x9B32, 2, 0xA82F30EA + 1) == 0xA82F9B32


@settings(max_examples=500)
@given(
    numbers | st.integers(0, 1 << 33) | st.integers(MAX_PACKET_NUMBER - (1 << 33), MAX_PACKET_NUMBER + 1),
    st.integers(0, (1 << 32) - 1) | st.integers(0, 300),
    st.integers(1, 4),
)
def test_a_packet_number_is_decoded_alike(codec: KernelCodec, expected: int, truncated: int, length: int) -> None:
    truncated &= (1 << 8 * length) - 1
    assert codec.decode_number(truncated, length, expected) == decode_number(truncated, length, expected)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_packet_number_half_a_window_away_is_decoded_alike(codec: KernelCodec, length: int) -> None:
    half = 1 << 8 * length - 1
    for expected in (0, 1, half - 1, half, half + 1, 2 * half, 5 * half, MAX_PACKET_NUMBER, MAX_PACKET_NUMBER + 1):
        for distance in (-half - 1, -half, 1 - half, -1, 0, 1, half - 1, half, half + 1):
            truncated = (expected + distance) & (2 * half - 1)
            assert codec.decode_number(truncated, length, expected) == decode_number(truncated, length, expected)


def model(base: int, arriving: Sequence[int]) -> tuple[str, int, list[Range]]:
    """A window that remembers everything, and forgets what it has to by arithmetic."""
    received = set[int]()
    floor, arrivals = base, ""
    for number in arriving:
        if number < floor or number in received:
            arrivals += REPLAYED
            continue
        arrivals += NEXT if number == max(received, default=base - 1) + 1 else REORDERED
        received.add(number)
        if number - floor >= BITS:
            floor = -(-(number - BITS + 1) // 64) * 64
    return arrivals, floor, [one for one in ranges_of(received) if one[1] >= floor - 1]


bases = st.sampled_from([0, 1, 63, 64, 100, 65536, 1 << 32, MAX_PACKET_NUMBER - 9000, UINT64_MAX - 20_000])
#: How far each number is from the highest one before.
steps = (
    st.just(1)
    | st.integers(-70, 70)
    | st.integers(-BITS - 100, 3)
    | st.sampled_from([63, 64, 65, 127, 128, BITS - 64, BITS - 63, BITS - 1, BITS, BITS + 1])
)


def walk(base: int, distances: Sequence[int]) -> list[int]:
    arriving, highest = list[int](), base - 1
    for distance in distances:
        arriving.append(min(max(highest + distance, 0), UINT64_MAX))
        highest = max(highest, arriving[-1])
    return arriving


@settings(max_examples=300)
@given(bases, st.lists(steps, max_size=60))
def test_the_window_is_that_of_a_naive_model(codec: KernelCodec, base: int, distances: list[int]) -> None:
    arriving = walk(base, distances)
    assert codec.window(base, arriving, BITS) == model(base, arriving)


@pytest.mark.parametrize("base", [0, 1, 63, 64, 65536, UINT64_MAX - 30_000])
@pytest.mark.parametrize(("lost", "late"), [(0.0, 0.0), (0.02, 0.1), (0.5, 0.3)])
def test_a_long_stream_is_that_of_a_naive_model(codec: KernelCodec, base: int, lost: float, late: float) -> None:
    rng = Random(f"{base} {lost}")
    arriving: list[int] = []
    for number in range(base, base + 10_000):
        if rng.random() >= lost:
            arriving.insert(len(arriving) - (rng.randrange(40) if rng.random() < late else 0), number)
    seen, highest, arrivals = set[int](), base - 1, ""
    for number in arriving:  # nothing is late enough to be forgotten
        arrivals += REPLAYED if number in seen else NEXT if number == highest + 1 else REORDERED
        seen.add(number)
        highest = max(highest, number)
    window = codec.window(base, arriving, BITS)
    assert window.arrivals == arrivals
    assert highest - BITS < window.floor <= highest - BITS + 64
    assert window.ranges == [one for one in ranges_of(seen) if one[1] >= window.floor - 1]


@settings(max_examples=200)
@given(st.sampled_from([0, 7, 65536]), st.lists(st.integers(-60, 40) | st.just(1), max_size=150))
def test_the_window_agrees_with_the_python_one_within_the_memory_of_both(
    codec: KernelCodec, base: int, distances: list[int]
) -> None:
    arriving = walk(base, distances)
    python = ReceivedNumbers(base - 1)
    accepted = [python.accept(number) for number in arriving]
    assert len(python.starts) < MAX_RANGES and python.highest - base < BITS
    window = codec.window(base, arriving, MAX_ACK_RANGES)
    assert [arrival != REPLAYED for arrival in window.arrivals] == accepted
    assert window.ranges == python.ack_ranges()


@pytest.mark.parametrize("base", [0, 5, 64])
def test_no_number_is_accepted_twice(codec: KernelCodec, base: int) -> None:
    rng = Random(base)
    arriving = [base + rng.randrange(40_000) for _ in range(4000)]
    arrivals = codec.window(base, arriving * 2).arrivals
    taken = [number for number, arrival in zip(arriving * 2, arrivals, strict=True) if arrival != REPLAYED]
    assert len(taken) == len(set(taken)) > 100
    assert min(taken) >= base


def test_nothing_below_the_base_is_accepted_and_the_base_is_the_next_one(codec: KernelCodec) -> None:
    assert codec.window(65536, [0, 65535, 65536, 65537, 65536]) == (
        REPLAYED + REPLAYED + NEXT + NEXT + REPLAYED, 65536, [(65536, 65537)]
    )  # fmt: skip
    assert codec.window(0, [UINT64_MAX, 0]).arrivals == REORDERED + REPLAYED
    assert codec.window(UINT64_MAX - 10, [UINT64_MAX, 0, 1]).arrivals == REORDERED + REPLAYED + REPLAYED


def test_a_window_without_any_number_has_no_ranges(codec: KernelCodec) -> None:
    assert codec.window(65536, []).ranges == []
    assert codec.window(65536, [3]).ranges == []


def test_a_run_that_leaves_the_window_is_still_told_whole(codec: KernelCodec) -> None:
    window = codec.window(100, [*range(100, 20_000), 20_001])
    assert window.ranges == [(20_001, 20_001), (100, 19_999)]
    window = codec.window(0, [*range(6), *range(7, 30_000)])
    assert window.ranges == [(7, 29_999)]


def test_a_jump_whose_floor_is_just_behind_a_full_window_does_not_join_it(codec: KernelCodec) -> None:
    """The one number between has the place in the ring that the old floor had."""
    assert codec.window(63, [*range(63, 63 + BITS), 2 * BITS]) == (
        NEXT * BITS + REORDERED, BITS + 64, [(2 * BITS, 2 * BITS)]
    )  # fmt: skip


def test_no_more_ranges_are_told_than_asked_for(codec: KernelCodec) -> None:
    every_second = range(0, 400, 2)
    for most in (0, 1, 2, 32, 200, 300):
        assert codec.window(0, every_second, most).ranges == [(at, at) for at in reversed(every_second)][:most]


def test_a_short_fuzzing_run_finds_nothing() -> None:
    assert fuzz_kmod.main(40_000, seed=7) == 0
