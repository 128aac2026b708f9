"""What a client sends after its hello, as Chromium 156 does: its acknowledgements, Finished, the first request.

Measured on an unloaded machine, with connection IDs of four bytes and a certificate that takes no time to verify, in
36 of 36 connections: what a datagram of the server's flight causes is one datagram, in which all that is due is
coalesced; the second packet of a kind is acknowledged at once, and that ACK goes before Finished. And 0.5 to 4.4 ms
later a request, 453 bytes for an authority of twelve.
"""

from __future__ import annotations

import itertools
import random as randomness
from dataclasses import dataclass, field
from ipaddress import ip_interface

import pytest
from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.recovery import QuicPacketSpace

from qre.dest_profile import DestProfile
from qre.quic.client.acknowledgements import Acknowledging
from qre.quic.client.http3 import HttpClient, Reserved
from qre.visit.visitor_files import load_fingerprint
from qre.wire.frames import Ack, Frame, Stream, frames_untrusted
from qre.wire.packet import PacketType
from tests.support.packets import open_one_rtt, packets
from tests.support.pair import Pair, Path
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_site import StockSite, issue

SHORT_CIDS = DestProfile(reachable=True, checked_at=1, scid_length=4)
#: Of a chain of two certificates.
LONG_FLIGHT = DestProfile(reachable=True, checked_at=1, scid_length=4, handshake_flight_length=1205)
_LETTERS = {PacketType.INITIAL: "I", PacketType.HANDSHAKE: "H", PacketType.ONE_RTT: "1"}


@dataclass
class Timed(Pair):
    """Keeps when the client sent what. It answers each datagram by itself, as on a socket."""

    at: list[float] = field(default_factory=list)

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        self.at += [self.now] * len(datagrams) * by_client
        super()._send(by_client, datagrams)

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        super()._deliver(by_client, datagram)
        if not by_client and self.client_state is None:
            self._send(True, self.client.datagrams_to_send(self.now))
            self._client_events()

    @property
    def datagrams(self) -> list[bytes]:
        """The client's."""
        return [datagram for by_client, datagram in self.sent if by_client]

    def frames(self, datagram: bytes) -> list[Frame]:
        """Those of its 1-RTT packet."""
        assert self.client_state is not None
        *_, last = packets(datagram, 4)
        assert last.kind is PacketType.ONE_RTT
        return list(frames_untrusted(open_one_rtt(last, self.client_state.tx_secret).payload))


@dataclass
class LateEnd(Timed):
    """What the server sends behind its first two datagrams comes 8 ms later than they do."""

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        if by_client or self._server_has_sent:
            super()._send(by_client, datagrams)
            return
        super()._send(False, datagrams[:2])
        path, self.path = self.path, Path(delay=self.path.delay + 0.008)
        super()._send(False, datagrams[2:])
        self.path = path

    @property
    def _server_has_sent(self) -> bool:
        return any(not by_client for by_client, _ in self.sent)


@dataclass
class TimedShadow(ShadowPair, Timed):
    """With a living Dest."""


def layout(datagram: bytes, cid_length: int = 4) -> str:
    """Its packets, such as ``IH1``."""
    return "".join(_LETTERS[packet.kind] for packet in packets(datagram, cid_length))


def second_flight(pair: Timed) -> list[tuple[str, int]]:
    """The packets and the length of each datagram from the hello to the request."""
    return [(layout(datagram), len(datagram)) for datagram in pair.datagrams[2:] if not 450 < len(datagram) < 470]


def server_flight(pair: Timed) -> list[str]:
    """Until the client's Finished arrives."""
    return [layout(datagram, 0) for by_client, datagram in pair.sent if not by_client and datagram[0] & 0x80]


@pytest.mark.parametrize("seed", range(12))
def test_a_flight_that_ends_with_the_hello_is_answered_by_one_datagram(seed: int) -> None:
    """Its Handshake packet is the only one. 1-RTT says that it has one, which came in the same datagram."""
    pair = Timed(seed=seed, dest=SHORT_CIDS).run()
    assert pair.complete
    assert server_flight(pair) == ["I", "IH1"]
    assert second_flight(pair)[0] == ("IH1", 1250)
    *_, last = packets(pair.datagrams[2], 4)
    assert 67 <= len(last.data) <= 77
    acknowledgement, control = pair.frames(pair.datagrams[2])
    assert isinstance(acknowledgement, Ack)
    assert isinstance(control, Stream) and control.stream_id == 2 and 39 <= len(control.data) <= 46


@pytest.mark.parametrize("seed", range(12))
def test_a_flight_with_two_handshake_packets_is_answered_by_three_datagrams(seed: int) -> None:
    pair = Timed(seed=seed, dest=LONG_FLIGHT).run()
    assert pair.complete
    assert server_flight(pair) == ["I", "IH", "H1"]
    initial, handshake, finished = second_flight(pair)[:3]
    assert initial == ("I", 1250)
    assert handshake[0] == "H" and handshake[1] in (35, 36)
    assert finished[0] == "H1" and 136 <= finished[1] <= 152


@pytest.mark.parametrize(
    ("names", "flight", "sent"),
    [(1, 0, [("H1", 139, 148)]), (60, 1500, [("H", 35, 36), ("H1", 136, 147)])],
)
def test_a_lone_initial_is_not_acknowledged(names: int, flight: int, sent: list[tuple[str, int, int]]) -> None:
    """Of a site without X25519MLKEM768, whose hello is short; ``flight``: what its server expects of it."""
    site = StockSite(issue(names=names), suites=[tls.CipherSuite.AES_128_GCM_SHA256], cid_length=4)
    known = DestProfile(reachable=True, checked_at=1, scid_length=4, handshake_flight_length=flight)
    pair = TimedShadow(seed=names, site=site, dest=known).run()
    assert pair.complete
    for (kinds, least, most), seen in zip(sent, second_flight(pair), strict=False):
        assert seen[0] == kinds and least <= seen[1] <= most


def test_a_flight_whose_end_is_late_is_acknowledged_after_a_millisecond() -> None:
    pair = LateEnd(seed=1, dest=LONG_FLIGHT).run()
    assert pair.complete
    assert [kinds for kinds, _ in second_flight(pair)[:3]] == ["I", "H", "H1"]
    initial, handshake, finished = pair.at[2:5]
    assert handshake - initial == pytest.approx(0.001, abs=1e-4)
    assert finished - initial == pytest.approx(0.008, abs=1e-4)
    assert 142 <= len(pair.datagrams[4]) <= 152, "this Handshake packet acknowledges, too"


@pytest.mark.parametrize("seed", range(12))
def test_the_request_follows_by_itself(seed: int) -> None:
    pair = Timed(seed=seed, dest=SHORT_CIDS).run()
    rest = pair.datagrams[3:]
    assert layout(rest[0]) == "1" and len(rest[0]) == 453
    assert all(27 <= len(datagram) <= 38 for datagram in rest[1:]), "acknowledgements"
    assert 0.0002 <= pair.at[3] - pair.at[2] <= 0.0026, "and what it takes to make it, on a real clock"
    priority, request = pair.frames(rest[0])
    assert isinstance(priority, Stream) and (priority.stream_id, priority.data[-6:]) == (2, b"u=0, i")
    assert isinstance(request, Stream) and (request.stream_id, len(request.data)) == (0, 413)


def test_the_request_is_not_repeated_at_any_distance() -> None:
    for delay in (0.0005, 0.02, 0.115, 0.3):
        pair = Timed(path=Path(delay=delay), dest=SHORT_CIDS).run()
        assert pair.complete
        requests = [datagram for datagram in pair.datagrams if 453 <= len(datagram) <= 462]  # perhaps with an ACK
        assert len(requests) == 1, delay


@pytest.mark.parametrize("name", ["a.example", "a-rather-long-name.of-a-site.in-some-domain.example"])
@pytest.mark.parametrize("addresses", [1, 2, 8])
def test_a_request_for_a_tunnel_is_as_long_as_one_for_a_page(name: str, addresses: int) -> None:
    lengths = set()
    for tunnel in (False, True):
        quic = QuicConnection(configuration=QuicConfiguration(is_client=True, server_name=name))
        http = HttpClient(quic, load_fingerprint().http3, name, randomness.Random(1))
        if tunnel:
            http.open_tunnel(tuple(ip_interface(f"10.0.0.{number}/24") for number in range(1, 1 + addresses)))
        else:
            http.visit()
        lengths.add(len(quic._streams[0].sender._buffer))
    assert len(lengths) == 1


def test_the_icon_of_a_page_is_requested_as_by_the_browser() -> None:
    """371 bytes of header block for an authority of twelve."""
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True, server_name="site.example"))
    http = HttpClient(quic, load_fingerprint().http3, "site.example", randomness.Random(1))
    http.ask_icon()
    assert len(quic._streams[0].sender._buffer) == 371 + 3


def test_many_addresses_make_a_longer_request() -> None:
    reserved = Reserved(randomness.Random(1))
    for length in range(2, 300):
        assert len(reserved.frame(length)) in (length, 0)
    assert sum(not reserved.frame(length) for length in range(2, 300)) <= 1
    assert [reserved.frame(length) for length in (-5, 0, 1)] == [b"", b"", b""]


class Space(QuicPacketSpace):
    """Of one number space of which only acknowledgements matter."""

    def __init__(self, application: bool = True) -> None:
        super().__init__()
        self.is_application_data = application


def acknowledged_at(count: int, interval: float, round_trip: float = 0.04) -> list[int]:
    """After which of so many packets an ACK is sent."""
    acknowledging, space, found, now = Acknowledging(load_fingerprint().acknowledgements), Space(), [], 10.0
    for number in range(count):
        now += interval
        if space.ack_at is not None and space.ack_at < now:
            found.append(number)
            space.ack_at = None
            acknowledging.sent(tls.Epoch.ONE_RTT)
        space.ack_queue.add(number, number + 1)
        acknowledging.wants(tls.Epoch.ONE_RTT, space, round_trip, now)
        acknowledging.gaps(space, now)
    return found


def test_every_second_packet_is_acknowledged_and_after_a_hundred_every_tenth() -> None:
    found = acknowledged_at(300, 0.00001, round_trip=1.0)
    early, late = [at for at in found if at <= 100], [at for at in found if at > 110]
    assert {after - before for before, after in itertools.pairwise(early)} == {2}
    assert {after - before for before, after in itertools.pairwise(late)} == {10}


def test_a_lone_packet_waits_25_ms_and_later_a_quarter_of_the_round_trip() -> None:
    acknowledging, space = Acknowledging(load_fingerprint().acknowledgements), Space()
    for number in range(200):
        space.ack_at = None
        acknowledging.wants(tls.Epoch.ONE_RTT, space, 0.04, now=5.0)
        assert space.ack_at == pytest.approx(5.025 if number < 100 else 5.01)
        acknowledging.sent(tls.Epoch.ONE_RTT)
    space.ack_at = None
    acknowledging.wants(tls.Epoch.HANDSHAKE, space, 0.04, now=5.0)
    assert space.ack_at == pytest.approx(5.001)


def test_a_new_gap_is_acknowledged_at_once() -> None:
    acknowledging, space = Acknowledging(load_fingerprint().acknowledgements), Space()
    for number in (0, 2):
        space.ack_queue.add(number, number + 1)
        space.ack_at = None
        acknowledging.sent(tls.Epoch.ONE_RTT)
        acknowledging.wants(tls.Epoch.ONE_RTT, space, 0.04, now=5.0)
        acknowledging.gaps(space, 5.0)
        assert space.ack_at == pytest.approx(5.0 if number else 5.025)


def test_a_timer_that_was_overtaken_by_an_answer_repeats_nothing() -> None:
    """It ends while the answer is being read, as on a busy machine: Finished went again at once."""
    pair = Timed(path=Path(delay=0.004), dest=SHORT_CIDS).run(0.0081)
    assert len(pair.datagrams) == 3 and pair.client_state is None
    pair.client._connection._loss_at = pair.now  # worked out before the answer came
    pair.client.handle_timer(pair.now)
    assert not [datagram for datagram in pair.client.datagrams_to_send(pair.now) if datagram[0] & 0x80]


def test_a_request_that_becomes_due_while_something_is_sent_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine its moment falls between the reading of a datagram and the sending of its answer."""
    pair = Pair(path=Path(delay=0.004), dest=SHORT_CIDS)
    send = pair.client.datagrams_to_send

    def late(now: float) -> list[bytes]:
        sent = send(now + 0.005)
        assert not send(now + 0.005), "nobody would ask again"
        return sent

    monkeypatch.setattr(pair.client, "datagrams_to_send", late)
    assert pair.run(5).complete
