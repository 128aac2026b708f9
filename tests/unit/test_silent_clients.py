"""What a server sends to a client that falls silent behind its Finished, when a recorded visit is played.

Caddy and gtlsserver were seen to repeat what was not acknowledged in datagrams of the same lengths, less the ACK that
was in the first, the oldest first, two at each probe timeout, until their idle timeout; aioquic one, with a PING.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from qre.dest_profile import Spoken
from tests.support.pair import Path
from tests.support.shadow_pair import ShadowPair
from tests.unit.test_recorded_visits import PROBED, SMALL, after_the_flight, profile, visit

#: A GREASE parameter, then quic-go's order.
CADDY = (6940, 5, 6, 7, 4, 8, 9, 1, 3, 11, 2, 0, 14, 15)


class Falling(ShadowPair):
    """The client is heard until its Finished has come, or ``more`` datagrams after that."""

    more = 0
    finished_at: float | None = None
    said: list[tuple[float, int]]

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        if by_client and self.finished_at is not None:
            self.more -= 1
            if self.more < 0:
                return
        super()._deliver(by_client, datagram)
        if by_client and self.server is not None and not self.server.following and self.finished_at is None:
            self.finished_at, self.said = self.now, []

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        if not by_client and self.finished_at is not None:
            self.said += [(self.now - self.finished_at, len(datagram)) for datagram in datagrams]
        super()._send(by_client, datagrams)

    def fall(self, more: int = 0) -> Falling:
        self.more = more
        end = self.now + 60
        self.client.connect(("192.0.2.1", 443), self.now)
        while self.now < end:
            self._pump()
            if not self._step():
                break
        assert self.finished_at is not None
        return self


def test_what_is_not_acknowledged_is_repeated_in_its_length_two_at_a_time_until_the_idle_timeout() -> None:
    pair = Falling(path=Path(delay=0.003), dest=profile(visit(SMALL))).fall()
    assert {length for _, length in pair.said} == {SMALL[0].length}
    times = [at for at, _ in pair.said[1:]]
    assert times[::2] == times[1::2]
    gaps = [later - earlier for earlier, later in pairwise(times[::2])]
    assert len(gaps) >= 6
    assert all(later == pytest.approx(2 * earlier, rel=0.05) for earlier, later in pairwise(gaps))
    assert 14 < times[-1] < 30, "as long as a site of 30 s would"


def test_several_take_turns_the_oldest_first() -> None:
    three = tuple(
        Spoken(asked=False, at_us=6_200 + n, length=length, eliciting=True, acknowledged=0)
        for n, length in enumerate((313, 216, 128))
    )
    pair = Falling(path=Path(delay=0.003), dest=profile(visit(three))).fall()
    lengths = [length for _, length in pair.said]
    assert lengths[:3] == [313, 216, 128]
    assert lengths[3:9] == [313, 216, 128, 313, 216, 128]


def test_nothing_that_waits_for_news_of_the_client_is_sent_because_a_timeout_came() -> None:
    """Its last datagram was sent when the first had arrived."""
    pair = Falling(path=Path(delay=0.003), dest=profile(visit(SMALL))).fall(more=1)
    assert SMALL[2].length not in {length for _, length in pair.said}


def test_a_probe_of_the_paths_mtu_is_not_repeated() -> None:
    pair = Falling(path=Path(delay=0.003), dest=profile(visit(PROBED))).fall(more=1)
    lengths = [length for _, length in pair.said]
    assert [lengths.count(each.length) for each in PROBED if each.probe] <= [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("parameters", "repeated"),
    [
        (CADDY, [298, 208, 298, 208]),
        ((0, 2, 15, 5, 6, 7, 4, 8, 9, 1, 14, 10930, 16741339), [298, 208, 298, 208]),
        ((0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 17), [299, 209, 299, 209]),
    ],
    ids=["Caddy", "gtlsserver", "aioquic"],
)
def test_what_is_repeated_is_without_the_acknowledgement_and_as_many_as_dest_sends(
    parameters: tuple[int, ...], repeated: list[int]
) -> None:
    two = tuple(
        Spoken(asked=False, at_us=6_200 + n, length=length, eliciting=True, acknowledged=0, ack_length=acks)
        for n, (length, acks) in enumerate(((303, 5), (214, 6)))
    )
    dest = msgspec.structs.replace(profile(visit(two)), transport_parameters=parameters)
    pair = Falling(path=Path(delay=0.003), dest=dest).fall()
    assert [length for _, length in pair.said][:6] == [303, 214, *repeated]
    times = [at for at, _ in pair.said[2:6]]
    assert (times[0] == times[1]) is (repeated[0] == 298), "two at each timeout, or one"


class Losing(ShadowPair):
    """The path loses one datagram that the server sends by itself."""

    lost = 0

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        if by_client or self.server is None or self.server.following:
            super()._send(by_client, datagrams)
            return
        for datagram in datagrams:
            self.lost -= 1
            if self.lost == -1:
                self.sent.append((False, datagram))
            else:
                super()._send(False, [datagram])


@pytest.mark.parametrize("lost", [0, 2])  # the other one only fills
def test_what_is_lost_is_said_again_in_a_datagram_of_the_same_length(lost: int) -> None:
    pair = Losing(path=Path(delay=0.003), dest=profile(visit(SMALL)))
    pair.lost = lost
    pair.run()
    assert pair.complete
    lengths = after_the_flight(pair)
    assert lengths.count(SMALL[lost].length) >= 2
    assert len([length for length in lengths if length not in {each.length for each in SMALL}]) <= 2
