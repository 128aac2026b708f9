"""Frames, received numbers and prefixes of the data plane: small parts, each by itself."""

from __future__ import annotations

import contextlib
from collections import Counter
from ipaddress import ip_address

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_ack_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError, UserError
from qre.session import PACKET_NUMBER_BASE, Role, SessionDelete, SessionList
from qre.workers.dataplane.frames import (
    encode_ack,
    encode_close,
    parse_frames_untrusted,
    read_varint_untrusted,
    varint,
)
from qre.workers.dataplane.marks import NumberMarks
from qre.workers.dataplane.received import MAX_ACK_RANGES, MAX_RANGES, ReceivedNumbers
from qre.workers.dataplane.registry import Registry
from qre.workers.dataplane.session import State
from qre.workers.dataplane.table import parse_prefixes
from tests.support.dataplane import fresh_marks, install_of, keys_of, update_of


@given(st.integers(0, (1 << 62) - 1))
def test_a_varint_read_is_the_varint_written(value: int) -> None:
    assert read_varint_untrusted(varint(value), 0) == (value, len(varint(value)))


@settings(max_examples=400)
@given(st.binary(max_size=60))
def test_any_payload_parses_or_raises_the_one_exception(payload: bytes) -> None:
    with contextlib.suppress(UntrustedInputError):
        parse_frames_untrusted(payload)


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(0, 1 << 20))
def test_an_ack_frame_says_what_was_received_also_to_aioquic(numbers: set[int], delay: int) -> None:
    received = ReceivedNumbers(-1)
    for number in numbers:
        assert received.accept(number)
    ranges = received.ack_ranges()
    encoded = encode_ack(ranges, delay)
    (ack,) = parse_frames_untrusted(encoded).acks
    assert ack.ranges == ranges
    told = {number for first, last in ranges for number in range(first, last + 1)}
    assert told <= numbers
    assert len(ranges) == MAX_ACK_RANGES or told == numbers
    theirs, their_delay = pull_ack_frame(Buffer(data=encoded[1:]))
    assert {number for span in theirs for number in span} == told
    assert their_delay == delay


@settings(max_examples=60, deadline=None)
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


def test_frames_are_sorted_by_owner() -> None:
    frames = parse_frames_untrusted(
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
    frames = parse_frames_untrusted(b"\x30\x40\0\x80\0\0\0ip")
    assert frames.datagrams == [b"\x30\0\0ip"]


def test_probing_packets_are_known_and_padding_elicits_nothing() -> None:
    assert parse_frames_untrusted(b"\x1a12345678" + bytes(100)).probing_only
    padding = parse_frames_untrusted(bytes(20))
    assert padding.probing_only
    assert not padding.eliciting


def test_both_kinds_of_close_are_read() -> None:
    for application in (True, False):
        assert parse_frames_untrusted(encode_close(0x100, application=application)).close == 0x100


# --- the registry ---


def packed(text: str) -> bytes:
    return ip_address(text).packed


def registry() -> Registry:
    return Registry(fresh_marks(), Counter(), bytes)


def add(known: Registry, seed: str, *allowed: str, role: Role = Role.SERVER, held: bool = False) -> bytes:
    request = install_of(role, seed, connection_id=seed.encode().ljust(20, b"."), allowed_ips=allowed, held=held)
    assert known.answer(request, 0).error == ""
    return request.session_id


def route(known: Registry, address: str) -> bytes | None:
    session = known.routes.session_for(packed(address))
    return session.session_id if session else None


def test_the_longest_prefix_decides_for_both_address_families() -> None:
    known = registry()
    wide = add(known, "wide", "10.0.0.0/8", "2001:db8::/32")
    narrow = add(known, "narrow", "10.1.0.0/16", "10.2.3.4/32", "2001:db8:1::/48")
    assert route(known, "10.9.9.9") == wide
    assert route(known, "10.1.9.9") == narrow
    assert route(known, "10.2.3.4") == narrow
    assert route(known, "2001:db8:1::9") == narrow
    assert route(known, "2001:db8:2::9") == wide
    assert route(known, "11.0.0.1") is None
    permits = known.routes.permits
    assert permits(known.sessions[wide], packed("10.9.9.9"))
    assert not permits(known.sessions[wide], packed("10.1.9.9"))
    assert permits(known.sessions[narrow], packed("10.1.9.9"))
    assert not permits(known.sessions[narrow], packed("11.0.0.1"))


def test_without_allowed_ips_everything_passes() -> None:
    known = registry()
    only = add(known, "only")
    assert route(known, "8.8.8.8") == route(known, "2001:db8::1") == only


def test_a_held_session_takes_no_traffic_from_an_established_one() -> None:
    known = registry()
    old = add(known, "old", "10.0.0.2/32")
    new = add(known, "new", "10.0.0.2/32", held=True)
    assert route(known, "10.0.0.2") == old
    known.sessions[new].state = State.ESTABLISHED
    known.routes.forget()
    assert route(known, "10.0.0.2") == new
    known.answer(SessionDelete(id=1, session_id=new, close=False), 0)
    known.remove(known.sessions[new])
    assert route(known, "10.0.0.2") == old


def test_a_bad_prefix_is_refused_and_nothing_is_installed() -> None:
    known = registry()
    answer = known.answer(install_of(Role.CLIENT, allowed_ips=("10.0.0.0/33",)), 0)
    assert "no prefix" in answer.error
    assert not known.sessions
    assert known.answer(install_of(Role.CLIENT), 0).error == ""
    with pytest.raises(UserError):
        parse_prefixes(("x",))


def test_repeating_an_installation_is_harmless_and_changing_it_is_refused() -> None:
    known = registry()
    request = install_of(Role.CLIENT)
    assert known.answer(request, 0).error == ""
    number = next(iter(known.sessions.values())).packets.next_number
    assert known.answer(request, 0).error == ""
    assert next(iter(known.sessions.values())).packets.next_number == number
    assert "installed already" in known.answer(install_of(Role.CLIENT, keys=keys_of(Role.CLIENT, 9)), 0).error
    assert "installed already" in known.answer(install_of(Role.CLIENT, key_epoch=1), 0).error


def test_two_sessions_cannot_have_one_routed_cid() -> None:
    known = registry()
    assert known.answer(install_of(Role.SERVER, "a"), 0).error == ""
    assert "connection id" in known.answer(install_of(Role.SERVER, "b"), 0).error


def test_a_restarted_data_plane_tells_its_epoch_and_goes_on_beyond_its_marks() -> None:
    known = registry()
    marks: NumberMarks = known._marks
    request = install_of(Role.CLIENT)
    known.answer(request, 0)
    session = known.sessions[request.session_id]
    session.phases.confirmed_at = -10.0
    assert known.answer(update_of(request, 1), 0).error == ""
    last = session.packets.next_number
    marks._live.clear()  # as a new process finds it
    again = Registry(marks, Counter(), bytes)
    answer = again.answer(request, 0)
    assert (answer.error, answer.key_epoch) == ("key epoch behind", 1)
    assert again.answer(install_of(Role.CLIENT, key_epoch=1), 0).error == ""
    (mark,) = again.answer(install_of_list(), 0).sessions
    assert mark.packet_number > last + 60_000
    assert mark.packet_number >= PACKET_NUMBER_BASE


def install_of_list() -> SessionList:

    return SessionList(id=9)
