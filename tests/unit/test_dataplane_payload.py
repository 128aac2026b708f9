"""A packet's payload, sorted by owner."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.wire.frames import ConnectionClose, encode_frame
from qre.workers.dataplane.payload import parse_payload_untrusted


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_payload_parses_or_raises_the_one_exception(payload: bytes) -> None:
    with contextlib.suppress(UntrustedInputError):
        parse_payload_untrusted(payload)


def test_frames_are_sorted_by_owner() -> None:
    frames = parse_payload_untrusted(
        b"\0\0\x01"
        + b"\x1a12345678"
        + b"\x1bABCDEFGH"
        + b"\x19\x01"
        + b"\x06\0\x01c"
        + b"\x31\x03\0\0x"
        + b"\x08\0end"
    )
    assert (frames.challenges, frames.responses) == ([b"12345678"], [b"ABCDEFGH"])
    assert frames.passed == [b"\x19\x01", b"\x06\0\x01c", b"\x08\0end"]
    assert frames.datagrams == [b"\x30\0\0x"]
    assert frames.eliciting
    assert not frames.probing_only


def test_longer_forms_of_stream_and_context_are_understood() -> None:
    frames = parse_payload_untrusted(b"\x30\x40\0\x80\0\0\0ip")
    assert frames.datagrams == [b"\x30\0\0ip"]


def test_probing_packets_are_known_and_padding_elicits_nothing() -> None:
    assert parse_payload_untrusted(b"\x1a12345678" + bytes(100)).probing_only
    padding = parse_payload_untrusted(bytes(20))
    assert padding.probing_only
    assert not padding.eliciting


def test_both_kinds_of_close_are_read() -> None:
    for application in (True, False):
        assert parse_payload_untrusted(encode_frame(ConnectionClose(0x100, application))).close == 0x100
