"""Why a session was closed: a type in the error code of CONNECTION_CLOSE, and never a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.dataplane.protocol import LossReason, SessionLost
from qre.ends import Role
from qre.wire.close_reason import CloseReason, close_frames, close_words, reason_of
from qre.wire.frames import H3_NO_ERROR, ConnectionClose, Padding, encode_frame, frames_untrusted
from qre.wire.overhead import packet_overhead
from qre.wire.varint import encode_varint
from qre.workers.handshake.sessions.session_state import ended
from tests.support.driven import Driven

C, S = Role.CLIENT, Role.SERVER


@pytest.mark.parametrize("reason", CloseReason)
def test_each_reason_is_a_reserved_code_of_http3_with_words_of_its_own(reason: CloseReason) -> None:
    code = reason.error_code
    assert (code - 0x21) % 0x1F == 0, "RFC 9114, 8.1: other peers take it for H3_NO_ERROR"
    assert reason_of(code) is reason
    assert close_words(code)
    assert [other for other in CloseReason if close_words(other.error_code) == close_words(code)] == [reason]


@pytest.mark.parametrize("reason", [*CloseReason, None])
def test_a_close_with_a_reason_is_as_long_as_one_without(reason: CloseReason | None) -> None:
    plain = encode_frame(ConnectionClose(H3_NO_ERROR, application=True))
    assert len(close_frames(reason, S)) == len(plain)
    assert len(close_frames(reason, C)) + packet_overhead(4) == 49, "a Chromium's, with a connection ID of 4 bytes"
    close, padding = frames_untrusted(close_frames(reason, C))
    assert isinstance(close, ConnectionClose) and close.application and close.reason == b""
    assert isinstance(padding, Padding)


@given(st.integers(0, (1 << 62) - 1))
def test_any_other_code_is_no_reason_and_shown_in_bounded_words(code: int) -> None:
    reason = reason_of(code)
    assert reason is None or reason.error_code == code
    assert len(close_words(code)) < 100 and close_words(code).isprintable()


def test_no_error_says_nothing_and_an_error_of_quic_is_named() -> None:
    assert close_words(H3_NO_ERROR) == close_words(0) == ""
    assert "PROTOCOL_VIOLATION" in close_words(0x0A)


@pytest.mark.parametrize("closes", Role)
@pytest.mark.parametrize("reason", CloseReason)
def test_a_data_plane_says_it_and_the_other_reports_it(closes: Role, reason: CloseReason) -> None:
    driven = Driven(S if closes is C else C)
    driven.says(close_frames(reason, closes))
    (lost,) = driven.ends.said(driven.role, SessionLost)
    end = ended(lost)
    assert end.reason is reason and close_words(reason.error_code) in end.words


def test_the_text_of_a_hostile_peer_is_not_shown() -> None:
    driven = Driven(C)
    driven.says(encode_frame(ConnectionClose(7, application=True, reason=b"\x1b[2Jrm -rf /")))
    (lost,) = driven.ends.said(C, SessionLost)
    assert "rm" not in ended(lost).words and "\x1b" not in ended(lost).words


def test_other_ends_have_no_reason_of_the_peer() -> None:
    lost = SessionLost(session_id=bytes(32), reason=LossReason.IDLE, error_code=CloseReason.TWIN.error_code)
    assert ended(lost).reason is None


def test_the_codes_take_two_bytes() -> None:
    assert {len(encode_varint(reason.error_code)) for reason in CloseReason} == {2}
