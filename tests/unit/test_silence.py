"""When a client that hears nothing repeats, tries another port and gives up: as captures of Chromium 156 have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pytest

from qre.dataplane.giving_up import RoundTrip, gives_up_after
from qre.dataplane.new_port import MOST_TRIALS, TRIALS_WITHIN
from qre.dataplane.protocol import (
    LossReason,
    PortTried,
    PortWanted,
    SessionLost,
    SessionRefusedError,
    SessionSilent,
)
from qre.ends import Role
from qre.wire.frames import (
    Ack,
    ConnectionClose,
    Datagram,
    Frame,
    Padding,
    PathChallenge,
    PathResponse,
    Ping,
    RetireConnectionId,
    encode_ack,
    encode_frame,
    frames_untrusted,
)
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.loss.client_session import ClientSession
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import Ends
from tests.support.issued_cids import cid, issued

C, S = Role.CLIENT, Role.SERVER
INNER = b"\x45" + bytes(430)
NUMBER = 7  # of the socket that is lent


class Capture(NamedTuple):
    """Chromium's packets behind a request that nobody answered, and when (seconds); ``smoothed`` and ``variation`` of
    its round trip follow from them."""

    smoothed: float
    variation: float
    packets: tuple[tuple[float, int, type[Frame]], ...]


D, P, R, E = Datagram, PathChallenge, RetireConnectionId, ConnectionClose
#: Of four; in the other one the browser's own timers were late by 180 ms. Packet numbers count from the request's.
CAPTURES = (
    Capture(0.0026, 0.00055, (
        (0.0, 0, D), (0.0321, 2, D), (0.0924, 4, D), (0.1200, 5, P), (0.2125, 7, D), (0.4207, 8, P), (0.4808, 10, D),
        (0.7241, 11, P), (0.9579, 13, D), (1.0274, 14, R), (1.9809, 16, D), (3.9079, 18, R), (5.5832, 19, D),
        (6.4078, 20, E),
    )),
    Capture(0.0031, 0.00072, (
        (0.0, 0, D), (0.0353, 2, D), (0.0975, 4, D), (0.1249, 5, P), (0.2223, 7, D), (0.4257, 8, P), (0.4708, 10, D),
        (0.7263, 11, P), (0.9670, 13, D), (1.0269, 14, R), (2.0179, 16, D), (3.9992, 18, R), (5.6152, 19, D),
        (6.4092, 20, E),
    )),
    Capture(0.0101, 0.00150, (
        (0.0, 0, D), (0.0416, 2, D), (0.1234, 4, D), (0.1648, 5, P), (0.2874, 7, D), (0.4909, 8, P), (0.6113, 10, D),
        (0.7917, 11, P), (1.0930, 12, R), (1.7420, 14, D), (3.0379, 16, R), (5.6183, 17, D), (6.4303, 18, E),
    )),
)  # fmt: skip


class Fallen:
    """A client with a spare connection ID of its server's, whose datagrams reach nobody from now on. ``sent``: when
    each left, and the datagram."""

    def __init__(self, smoothed: float = 0.0026, variation: float = 0.00055) -> None:
        self.ends = Ends(idle_timeout_ms=10_000_000)
        self.ends.establish()
        self.ends.server.send_frames(1, encode_frame(issued(1)), self.ends.now)
        self.ends.take(S)
        self.ends.run(1)
        client = self.ends.client
        assert isinstance(client, ClientSession)
        self.client = client
        self.sent: list[tuple[float, bytes]] = []
        self.through: Callable[[Role, bytes], list[float]] = lambda role, datagram: []
        self.ends.fate = self._sent
        self.began = self.ends.now
        client.recovery.smoothed, client.recovery.variation = smoothed, variation
        self.lends = True

    def _sent(self, role: Role, datagram: bytes) -> list[float]:
        if role is C:
            self.sent.append((self.ends.now - self.began, datagram))
        return self.through(role, datagram)

    def run(self, seconds: float) -> None:
        """A port is lent as soon as one is wanted."""
        end = self.ends.now + seconds
        while self.ends.now < end:
            self.ends.run(0.001)
            wanted = len(self.ends.said(C, PortWanted))
            if self.lends and self.client.lent == 0 and wanted > len(self.ends.said(C, PortTried)):
                self.lends = False
                self.client.new_port(NUMBER, self.ends.now)
                self.ends.take(C)

    def numbered(self) -> list[tuple[float, int, bytes, tuple[Frame, ...]]]:
        """Each datagram that was sent, read by the server: when, its number, itself, and its frames."""
        found = []
        packets = self.ends.server.packets
        for at, datagram in self.sent:
            opened = packets.open([datagram], 0)
            (payload,) = [*opened.datagrams, *(text for text, *_ in opened.others)]
            found.append((at, packets.received.highest, datagram, tuple(frames_untrusted(payload))))
        return found


def kind(frames: tuple[Frame, ...], size: int) -> type[Frame]:
    """What stands in a packet; a PING as long as the user data stands for it."""
    kinds = {type(frame) for frame in frames} - {Padding, Ack}
    if kinds == {Ping}:
        return Datagram if size > 400 else Ping
    (only,) = kinds
    return only


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_leaves_and_when_and_under_which_numbers_is_what_left_chromium(capture: Capture) -> None:
    fallen = Fallen(capture.smoothed, capture.variation)
    fallen.ends.transmit(C, INNER)
    fallen.run(7)
    found = fallen.numbered()
    first = found[0][1]
    assert [(number - first, kind(frames, len(data))) for _, number, data, frames in found] == [
        (number, what) for _, number, what in capture.packets
    ]
    for (at, *_), (expected, *_) in zip(found, capture.packets, strict=True):
        late = 0.03 + 0.03 * expected  # a browser's timers are up to 15 ms late, and all that follow
        assert at == pytest.approx(expected, abs=late)


def test_repeats_are_as_long_as_what_had_no_answer_and_a_trial_and_the_end_as_chromiums() -> None:
    """Chromium's sizes are with a connection ID of four bytes, and here it has more."""
    fallen = Fallen()
    first_cid = fallen.client.install.connection_id
    longer = len(first_cid) - 4
    fallen.ends.transmit(C, INNER)
    fallen.run(7)
    sizes: dict[type[Frame], set[int]] = {}
    found = fallen.numbered()
    for _, _, data, frames in found:
        what = kind(frames, len(data))
        sizes.setdefault(what, set()).add(len(data))
        assert data.startswith(cid(1) if what is PathChallenge else first_cid, 1)
    assert sizes[Datagram] == {1 + len(first_cid) + 4 + 3 + len(INNER) + 16}
    assert sizes[PathChallenge] == {1250}
    assert sizes[RetireConnectionId] == {25 + longer}
    assert sizes[ConnectionClose] <= {66 + longer, 67 + longer, 68 + longer}
    *_, (_, _, _, (ack, close)) = found
    assert isinstance(ack, Ack)
    assert close == ConnectionClose(0, application=False, reason=b"85:Network blackhole detected")
    assert [lost.reason for lost in fallen.ends.said(C, SessionLost)] == [LossReason.UNANSWERED]
    assert fallen.client.state is LifeState.ENDED
    numbers = [number for _, number, *_ in found]
    assert len(set(numbers)) == len(numbers), "none twice"


@pytest.mark.parametrize(
    ("smoothed", "variation", "several", "seconds"),
    [
        (0.001, 0.0005, False, 6.403),
        (0.03, 0.005, False, 6.49),
        (0.001, 0.0005, True, 6.22),  # of several packets the tail loss probes would have been sooner
        (0.23, 0.02, False, 10.53),
        (2.0, 0.5, False, 132.0),
    ],
)
def test_a_longer_round_trip_has_more_patience(
    smoothed: float, variation: float, several: bool, seconds: float
) -> None:
    pto = smoothed + 4 * variation + 0.025
    assert gives_up_after(RoundTrip(smoothed, variation, pto), several=several) == pytest.approx(seconds, abs=0.01)


def test_who_sends_on_repeats_nothing_but_tells_and_gives_up_as_soon() -> None:
    fallen = Fallen()
    fallen.lends = False
    for _ in range(700):
        if fallen.client.state is LifeState.ESTABLISHED:
            fallen.ends.transmit(C, INNER)
        fallen.run(0.01)
    found = [(at, kind(frames, len(data))) for at, _, data, frames in fallen.numbered()]
    (end,) = [at for at, what in found if what is ConnectionClose]
    assert 6.2 < end < 6.5
    assert [event.silent for event in fallen.ends.said(C, SessionSilent)] == [True]


def on_the_new_port(role: Role, datagram: bytes) -> list[float]:
    """A path that swallows what comes from the old one."""
    return [0.005] if role is S or datagram.startswith(cid(1), 1) else []


def test_a_port_that_answers_is_moved_to_and_the_first_connection_id_is_retired() -> None:
    fallen = Fallen()
    fallen.through = on_the_new_port
    fallen.ends.transmit(C, INNER)
    fallen.run(8)
    (tried,) = fallen.ends.said(C, PortTried)
    assert tried.number == NUMBER and tried.moved is not None
    assert (tried.moved.connection_id, tried.moved.sequence) == (cid(1), 1)
    assert fallen.client.port_use == tried.moved
    assert fallen.client.lent == 0
    assert not fallen.ends.said(C, SessionLost)
    challenge = next(at for at, data in fallen.sent if len(data) == 1250)
    later = [data for at, data in fallen.sent if at > challenge + 0.02]
    assert later and all(data.startswith(cid(1), 1) for data in later)
    before = len(fallen.ends.delivered[S])
    fallen.ends.transmit(C, INNER)
    fallen.run(1)
    assert len(fallen.ends.delivered[S]) == before + 1
    assert [one.sequence for one in fallen.client.paths.cids.held] == [1]


def test_that_the_packets_of_a_trial_are_acknowledged_on_the_old_path_is_no_sign_of_its_life() -> None:
    fallen = Fallen()
    fallen.ends.transmit(C, INNER)
    fallen.run(0.125)
    (number,) = [each for _, each, data, _ in fallen.numbered() if len(data) == 1250]
    (ack,) = fallen.ends.server.packets.seal([encode_ack([(number, number)], 0)])
    fallen.ends.receive(C, ack)
    assert fallen.client.lent == NUMBER
    fallen.run(7)
    assert [lost.reason for lost in fallen.ends.said(C, SessionLost)] == [LossReason.UNANSWERED]


def test_the_old_path_is_heard_again_though_the_trial_was_acknowledged_alone_before() -> None:
    """The second ACK has the same largest number, and one of the old path's besides. Only that is a sample."""
    fallen = Fallen()
    fallen.ends.transmit(C, INNER)
    first = fallen.client.packets.next_number - 1
    fallen.run(0.125)
    (number,) = [each for _, each, data, _ in fallen.numbered() if len(data) == 1250]
    assert first < number
    smoothed = fallen.client.recovery.smoothed
    alone, both = encode_ack([(number, number)], 0), encode_ack([(number, number), (first, first)], 0)
    (packet,) = fallen.ends.server.packets.seal([alone])
    fallen.ends.receive(C, packet)
    assert fallen.client.recovery.smoothed == smoothed, "it is the other path's"
    assert fallen.client._silence.degraded
    (packet,) = fallen.ends.server.packets.seal([both])
    fallen.ends.receive(C, packet)
    assert not fallen.client._silence.degraded
    (packet,) = fallen.ends.server.packets.seal([encode_frame(PathResponse(challenge_of(fallen)))])
    fallen.ends.receive(C, packet)
    (tried,) = fallen.ends.said(C, PortTried)
    assert tried.moved is None, "the old path is heard"


def test_a_peer_that_takes_the_connection_id_of_a_trial_back_ends_it() -> None:
    """Retire Prior To covers both: nothing moves to the one, and the next one takes the place of the other."""
    fallen = Fallen()
    fallen.ends.transmit(C, INNER)
    fallen.run(0.125)
    assert fallen.client.lent == NUMBER
    for said in (msgspec.structs.replace(issued(2), retire_prior_to=2), PathResponse(challenge_of(fallen))):
        (packet,) = fallen.ends.server.packets.seal([encode_frame(said)])
        fallen.ends.receive(C, packet)
    (tried,) = fallen.ends.said(C, PortTried)
    assert tried.moved is None and fallen.client.lent == 0
    assert [one.sequence for one in fallen.client.paths.cids.held] == [2]
    assert fallen.client.paths.used.cid == cid(2)


def test_a_session_may_move_twice_within_the_seconds_that_a_port_lingers() -> None:
    fallen = Fallen()
    gone = fallen.client.paths.used.cid
    fallen.through = lambda role, datagram: [0.005] if role is S or not datagram.startswith(gone, 1) else []
    fallen.ends.server.send_frames(2, encode_frame(issued(2)), fallen.ends.now)
    fallen.ends.take(S)
    fallen.ends.transmit(C, INNER)
    fallen.run(1)
    fallen.through = lambda role, datagram: [0.005] if role is S or datagram.startswith(cid(2), 1) else []
    fallen.lends = True
    fallen.ends.transmit(C, INNER)
    fallen.run(2)
    assert [tried.moved.sequence for tried in fallen.ends.said(C, PortTried) if tried.moved is not None] == [1, 2]
    assert [one.sequence for one in fallen.client.paths.cids.held] == [2]
    before = len(fallen.ends.delivered[S])
    fallen.ends.transmit(C, INNER)
    fallen.run(1)
    assert len(fallen.ends.delivered[S]) == before + 1


def challenge_of(fallen: Fallen) -> bytes:
    """What the first PATH_CHALLENGE of the trial asks for."""
    client = fallen.client
    return client._trial._challenges._sent[0]


def test_a_port_that_answers_when_the_old_one_is_heard_again_is_left_and_its_connection_id_retired() -> None:
    fallen = Fallen()
    fallen.ends.transmit(C, INNER)
    fallen.run(0.125)
    (frames,) = [frames for *_, data, frames in fallen.numbered() if len(data) == 1250]
    (asked,) = [frame.data for frame in frames if isinstance(frame, PathChallenge)]
    latest = fallen.client.packets.next_number - 1
    for said in (encode_ack([(PACKET_NUMBER_BASE, latest)], 0), encode_frame(PathResponse(asked))):
        (packet,) = fallen.ends.server.packets.seal([said])
        fallen.ends.receive(C, packet)
    (tried,) = fallen.ends.said(C, PortTried)
    assert tried.moved is None and fallen.client.port_use is None
    assert [one.sequence for one in fallen.client.paths.cids.held] == [0]
    assert fallen.client.paths.used.cid == fallen.client.install.connection_id


def test_without_a_spare_connection_id_no_port_is_wanted_and_one_that_is_not_wanted_is_refused() -> None:
    fallen = Fallen()
    assert fallen.client.paths.take_spare() is not None
    fallen.ends.transmit(C, INNER)
    fallen.run(1)
    assert fallen.ends.said(C, PortWanted) == []
    with pytest.raises(SessionRefusedError):
        fallen.client.new_port(NUMBER, fallen.ends.now)


def test_a_session_tries_no_more_than_so_many_ports_within_so_long() -> None:
    fallen = Fallen()
    wanted = []
    for number in range(2, 3 * MOST_TRIALS):
        fallen.lends = True
        fallen.through = lambda role, datagram: []
        fallen.ends.transmit(C, INNER)
        fallen.run(3)  # in vain
        fallen.through = lambda role, datagram: [0.005]
        fallen.ends.transmit(C, INNER)
        fallen.run(1.5)
        fallen.ends.server.send_frames(number, encode_frame(issued(number)), fallen.ends.now)
        fallen.ends.take(S)
        fallen.run(0.5)
        wanted.append(len(fallen.ends.said(C, PortWanted)))
    assert wanted[: MOST_TRIALS + 1] == [1, 2, 3, 4, 4]
    assert wanted[-1] == MOST_TRIALS and not fallen.ends.said(C, SessionLost)
    fallen.ends.now += TRIALS_WITHIN
    fallen.run(1)
    fallen.lends = True
    fallen.through = lambda role, datagram: []
    fallen.ends.transmit(C, INNER)
    fallen.run(1)
    assert len(fallen.ends.said(C, PortWanted)) == MOST_TRIALS + 1


def test_numbers_that_were_left_out_are_never_sent_and_count_as_no_loss() -> None:
    fallen = Fallen()
    fallen.lends = False
    fallen.ends.transmit(C, INNER)
    fallen.run(1)
    used = {number for _, number, *_ in fallen.numbered()}
    left_out = set(range(min(used), fallen.client.packets.next_number)) - used
    assert len(left_out) == 5
    fallen.through = lambda role, datagram: [0.005]
    fallen.run(2)
    ranges = fallen.ends.server.packets.received.ack_ranges()
    assert not [number for number in left_out for first, last in ranges if first <= number <= last]
    assert fallen.client.recovery.largest_acked > max(left_out)
    assert fallen.client.recovery.packets_lost == 0
