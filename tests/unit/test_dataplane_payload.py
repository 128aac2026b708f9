"""A packet's payload, sorted by owner."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.wire.frames import ConnectionClose, encode_frame
from qre.workers.dataplane.session.payload import Payload, Sender
from qre.workers.dataplane.session.payload import parse_payload_untrusted as parse_from_untrusted
from tests.support.untrusted import read_or_refused

SERVER = Sender(client=False, gives_cids=True, takes_cids=False, issued=0)
CLIENT = Sender(client=True, gives_cids=False, takes_cids=True, issued=1)


def parse_payload_untrusted(payload: bytes) -> Payload:
    return parse_from_untrusted(payload, CLIENT)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_payload_parses_or_raises_the_one_exception(payload: bytes) -> None:
    found = read_or_refused(parse_payload_untrusted, payload)
    assert found is None or isinstance(found, Payload)


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


@pytest.mark.parametrize(
    ("frames", "from_client", "from_server"),
    [
        (b"\x1e", 0x0A, 0),  # HANDSHAKE_DONE
        (b"\x07\x01t", 0x0A, 0),  # NEW_TOKEN
        (b"\x18\x01\0\x08" + bytes(24), 0x0A, 0),  # NEW_CONNECTION_ID: the client has none
        (b"\x19\x01", 0, 0x0A),  # RETIRE_CONNECTION_ID
        (b"\x19\x02", 0x0A, 0x0A),  # of one that was never issued
        (b"\x0a\x03\x01x", 0x05, 0),  # STREAM on the server's own
        (b"\x0a\x02\x01x", 0, 0x05),  # and on the client's own
        (b"\x0a\0\x01x\x0a\x01\x01x", 0, 0),  # both send on those
        (b"\x04\x07\0\0", 0x05, 0),  # RESET_STREAM
        (b"\x15\x06\0", 0, 0x05),  # STREAM_DATA_BLOCKED
        (b"\x05\x02\0", 0x05, 0),  # STOP_SENDING of what only the client sends
        (b"\x11\x03\0", 0, 0x05),  # MAX_STREAM_DATA
        (b"\x10\x03\x14\x03\x12\x03\x06\0\x01c", 0, 0),
    ],
)
def test_what_a_peer_may_not_send_is_told_with_its_error(frames: bytes, from_client: int, from_server: int) -> None:
    assert parse_from_untrusted(b"\x01" + frames, CLIENT).error == from_client
    assert parse_from_untrusted(b"\x01" + frames, SERVER).error == from_server


def test_both_kinds_of_close_are_read() -> None:
    for application in (True, False):
        assert parse_payload_untrusted(encode_frame(ConnectionClose(0x100, application))).close == 0x100
