"""A client whose server says nothing: what it repeats and when, and how it gives up, as Chromium 156 does.

Measured: one datagram of 1,250 bytes at 0.300, 0.901 and 2.10 s, the halves of the hello in turn and in other pieces,
each after a packet number that is left out; at 4.0 s a CLOSE with a phrase (52 of 52, 60 of 60). At a round trip of
230 ms nothing is repeated (24 of 24).
"""

from __future__ import annotations

import random as randomness
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_interface

import pytest

from qre.causes import Cause
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.handshake_events import Closed, HandshakeFailed
from qre.visit.visitor_files import load_fingerprint
from qre.wire.frames import ConnectionClose, Crypto, Padding, encode_ack, frames_untrusted
from qre.wire.number import encode_number
from qre.wire.packet import PacketType, build_long_header
from qre.wire.protection import TAG_LENGTH, Protection, initial_secrets
from tests.support.packets import Plain, layout, open_initial, packets
from tests.support.pair import NAME, SERVER, SHORT_ID, TRUST, UNIX_TIME, Pair, Path


@dataclass(frozen=True)
class Sent:
    """One datagram: when it left, and its only packet."""

    time: float
    plain: Plain

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The bytes of the hello in it, adjoining pieces put together."""
        whole: list[tuple[int, int]] = []
        for frame in sorted(self.crypto, key=lambda each: each.offset):
            if whole and whole[-1][1] == frame.offset:
                whole[-1] = (whole[-1][0], frame.offset + len(frame.data))
            else:
                whole.append((frame.offset, frame.offset + len(frame.data)))
        return tuple(whole)

    @property
    def crypto(self) -> list[Crypto]:
        return [frame for frame in frames_untrusted(self.plain.payload) if isinstance(frame, Crypto)]


class Alone:
    """A client that speaks into a black hole, on a driven clock."""

    def __init__(self, seed: int = 1, patience: float = 10.0) -> None:
        self.client = ClientHandshake(
            server_name=NAME,
            public_key=b"",
            short_id=SHORT_ID,
            addresses=(ip_interface("10.0.0.2/24"),),
            fingerprint=load_fingerprint(),
            trust=TRUST,
            unix_time=UNIX_TIME,
            now=100.0,
            random=randomness.Random(seed),
        )
        self.now = 100.0
        self.cid = b""
        self.sent: list[Sent] = []
        self.client.connect(SERVER, self.now, patience)
        self._take()

    def _take(self) -> None:
        for datagram in self.client.datagrams_to_send(self.now):
            assert len(datagram) == 1250
            (packet,) = packets(datagram, 0)
            self.cid = self.cid or packet.destination_cid
            self.sent.append(Sent(self.now - 100.0, open_initial(packet, self.cid)))

    def wait(self, until: float = 60.0) -> None:
        while (at := self.client.timer()) is not None and at <= 100.0 + until:
            self.now = max(self.now, at)
            self.client.handle_timer(self.now)
            self._take()
        self.now = max(self.now, 100.0 + until)

    def hears(self, frames: bytes, number: int = 0) -> None:
        """An Initial of the server."""
        keys = Protection(initial_secrets(self.cid)[1])
        length = 2 + len(frames) + TAG_LENGTH
        header = build_long_header(PacketType.INITIAL, b"", bytes(8), encode_number(number, 2), length, b"")
        self.client.datagram_received(keys.protect(header, number, frames), SERVER, self.now)
        self._take()

    def events(self) -> list[object]:
        found = []
        while (event := self.client.next_event()) is not None:
            found.append(event)
        return found


@pytest.mark.parametrize("seed", range(8))
def test_a_black_hole_gets_the_browsers_datagrams_at_the_browsers_times(seed: int) -> None:
    alone = Alone(seed)
    alone.wait()
    assert [round(each.time, 3) for each in alone.sent] == [0.0, 0.0, 0.3, 0.9, 2.1, 4.0]
    assert [(each.plain.number, each.plain.length) for each in alone.sent] == [
        (1, 1),
        (2, 2),
        (4, 1),
        (6, 1),
        (8, 1),
        (9, 2),
    ]
    first, second, *repeated, close = alone.sent
    assert [each.ranges for each in repeated] == [first.ranges, second.ranges, first.ranges]
    assert len({each.plain.payload for each in alone.sent}) == 6
    frame, padding = frames_untrusted(close.plain.payload)
    phrase = b"25:No recent network activity after 4000000us. Timeout:4s num_undecryptable_packets: 0 {}"
    assert frame == ConnectionClose(0, application=False, frame_type=0, reason=phrase)
    assert isinstance(padding, Padding)
    # As in the captures: its length takes two bytes, and the packet is 1,250 bytes with a number of two.
    assert close.plain.payload.startswith(b"\x1c\x00\x00\x40\x59" + phrase)
    assert alone.events() == [HandshakeFailed("no answer in time", cause=Cause.NO_ANSWER), Closed()]
    alone.client.datagram_received(bytes(100), SERVER, alone.now)
    alone.client.handle_timer(alone.now)
    assert alone.client.datagrams_to_send(alone.now) == []
    assert alone.client.timer() is None


def test_who_is_left_for_another_address_gets_the_close_of_a_closed_tab() -> None:
    alone = Alone(patience=2.0)
    alone.wait()
    assert [round(each.time, 3) for each in alone.sent] == [0.0, 0.0, 0.3, 0.9, 2.0]
    frame, _ = frames_untrusted(alone.sent[-1].plain.payload)
    assert frame == ConnectionClose(0, application=False, frame_type=0, reason=b"70:net error")


def test_an_answer_after_230_ms_finds_nothing_repeated() -> None:
    pair = Pair(path=Path(delay=0.115))
    pair.run()
    assert pair.complete
    initials = [datagram for by_client, datagram in pair.sent if by_client and datagram[0] & 0xF0 == 0xC0]
    assert len(initials) == 3, "the hello, and the acknowledgement of its answer"


def test_a_half_that_has_arrived_is_not_repeated() -> None:
    """The round trip is known then: three of them, doubling (RFC 9002 §6.2.1)."""
    alone = Alone()
    alone.wait(0.05)
    alone.hears(encode_ack([(2, 2)], 0))
    alone.wait(3.0)
    first = alone.sent[0].ranges
    assert [each.ranges for each in alone.sent[2:]] == [first] * (len(alone.sent) - 2)
    assert [round(each.time, 3) for each in alone.sent[2:4]] == [0.056, 0.206]  # taken for lost; then a timeout
    numbers = [each.plain.number for each in alone.sent]
    assert len(set(numbers)) == len(numbers)


def test_who_has_been_heard_is_given_up_four_seconds_later() -> None:
    alone = Alone()
    alone.wait(0.05)
    alone.hears(encode_ack([(1, 2)], 0))
    alone.wait()
    assert round(alone.sent[-1].time, 3) == 4.05
    frame, _ = frames_untrusted(alone.sent[-1].plain.payload)
    assert isinstance(frame, ConnectionClose)
    assert alone.events() == [HandshakeFailed("no answer in time", cause=Cause.NO_ANSWER), Closed()]


def test_who_says_little_all_the_time_is_given_up_after_ten_seconds() -> None:
    alone = Alone()
    for number in range(40):
        alone.wait(0.3 * (number + 1))
        if alone.client.timer() is None:
            break
        alone.hears(b"\x01" + bytes(20), number)
    assert round(alone.sent[-1].time, 1) == 10.0
    frame, _ = frames_untrusted(alone.sent[-1].plain.payload)
    assert isinstance(frame, ConnectionClose)
    assert frame.reason == b"70:net error"


def test_the_choices_of_a_first_flight_are_as_even_as_the_browsers() -> None:
    """Chi-squared at p = 0.001 over 600 flights: PINGs, cuts and the place of the split are uniform."""
    pings: Counter[int] = Counter()
    pieces: Counter[int] = Counter()
    splits: Counter[int] = Counter()
    for seed in range(300):
        alone = Alone(seed)
        for number, each in enumerate(alone.sent):
            pings[layout(each.plain.payload).pings] += 1
            pieces[len(each.crypto) - len(each.ranges)] += 1
            if number == 1:
                splits[each.ranges[0][0]] += 1
    assert (min(pings), max(pings)) == (2, 10)
    assert (min(pieces), max(pieces)) == (2, 10)
    assert (min(splits), max(splits)) == (55, 86)
    assert _chi_squared(pings) < 26.1
    assert _chi_squared(pieces) < 26.1
    assert _chi_squared(splits) < 61.1


def _chi_squared(counted: Counter[int]) -> float:
    expected = counted.total() / len(counted)
    return sum((count - expected) ** 2 / expected for count in counted.values())
