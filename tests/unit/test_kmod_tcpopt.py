"""What the kernel module reads in TCP headers of inner packets (``kmod/tcpopt.c``), and what it changes there."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.kmod.codec import KernelCodec

SYN, RST, ACK, URG = 0x02, 0x04, 0x10, 0x20
NOP, MSS_KIND, MD5, AO = b"\x01", 2, b"\x13\x12" + bytes(16), b"\x1d\x10" + bytes(14)
TIMESTAMP = b"\x08\x0a" + bytes(8)


def mss(size: int) -> bytes:
    return struct.pack("!BBH", MSS_KIND, 4, size)


def summed(data: bytes) -> int:
    """Of all words, as RFC 1071 adds them; 0 and 0xffff are one."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    return total % 0xFFFF


def header(options: bytes, flags: int = SYN, checksum: int | None = None, data: bytes = b"") -> bytes:
    """A whole segment whose checksum is right, were its pseudo-header all zeros."""
    options += bytes(-len(options) % 4)
    fields = (40_000, 443, 7, 9, (20 + len(options)) << 10 | flags, 65_535)
    bare = struct.pack("!HHLLHHHH", *fields, 0, 0) + options + data
    found = 0xFFFF - summed(bare) if checksum is None else checksum
    return bare[:16] + struct.pack("!H", found) + bare[18:]


@given(
    st.lists(st.sampled_from([NOP, TIMESTAMP, b"\x04\x02", b"\x03\x03\x07"]), max_size=3),
    st.integers(0, 0xFFFF),
    st.integers(100, 1500),
)
@settings(deadline=None)
def test_a_syn_asks_for_no_more_than_fits_and_its_checksum_stays_right(
    codec: KernelCodec, before: list[bytes], asked: int, most: int
) -> None:
    options = b"".join(before)
    segment = header(options + mss(asked), SYN | ACK)
    changed = codec.clamp_mss(segment, most)
    if asked <= most:
        assert changed is None
        return
    assert changed is not None and summed(changed) == 0
    at = 20 + len(options)
    assert changed[at : at + 4] == mss(most)
    assert changed[:16] + changed[18:at] + changed[at + 4 :] == segment[:16] + segment[18:at] + segment[at + 4 :]


def test_a_checksum_that_is_still_to_be_computed_is_left_alone(codec: KernelCodec) -> None:
    segment = header(mss(1460), checksum=0x1234)
    assert codec.clamp_mss(segment, 1300, partial=True) == header(mss(1300), checksum=0x1234)


@pytest.mark.parametrize(
    "segment",
    [
        header(mss(1460), ACK),  # no SYN
        header(b""),
        header(b"\x00" + mss(1460)),  # behind the end of the options
        header(b"\x02\x03\x05\xb4"),  # of another length than RFC 9293 gives it
        header(b"\x05\x00" + mss(1460)),  # a length of 0 would never end
        header(b"\x05\x01" + mss(1460)),
        header(b"\x05\x28" + mss(1460)),  # longer than the header
        header(mss(1460))[:22],
        header(mss(1460))[:12] + b"\x40" + header(mss(1460))[13:],  # a header of 16 bytes
        header(mss(1460))[:12] + b"\xf0" + header(mss(1460))[13:],  # more than there is
        header(mss(1460))[:19],
        b"",
    ],
)
def test_what_offers_nothing_or_makes_no_sense_is_left_alone(codec: KernelCodec, segment: bytes) -> None:
    assert codec.clamp_mss(segment, 100) is None


@given(st.binary(max_size=64), st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_any_bytes_are_read_within_their_bounds(codec: KernelCodec, data: bytes, most: int) -> None:
    clamped = codec.clamp_mss(data, most)
    assert clamped is None or len(clamped) == len(data)
    assert codec.divisible(data) in (True, False)


@pytest.mark.parametrize(
    ("segment", "divisible"),
    [
        (header(b"", ACK, data=b"data"), True),
        (header(NOP + NOP + TIMESTAMP, ACK, data=b"data"), True),
        (header(b"", ACK), False),  # nothing to cut
        (header(b"", SYN, data=b"data"), False),
        (header(b"", RST, data=b"data"), False),
        (header(b"", ACK | URG, data=b"data"), False),
        (header(MD5, ACK, data=b"data"), False),
        (header(NOP + AO, ACK, data=b"data"), False),
        (header(b"\x08\x00", ACK, data=b"data"), False),
    ],
)
def test_a_segment_is_cut_only_when_it_means_the_same_then(
    codec: KernelCodec, segment: bytes, divisible: bool
) -> None:
    assert codec.divisible(segment) is divisible
