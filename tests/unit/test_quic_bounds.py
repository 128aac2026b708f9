"""What one peer may cost a handshake: each kind of excess ends it, and no datagram on the way takes long.

Times are CPU times of calls in memory. A datagram takes a few milliseconds at most, and seconds before there were
bounds; what is asserted lies between, because a busy machine stalls a process and counts that as its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pylsqpack
import pytest
from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3Connection

from qre.errors import UntrustedInputError
from qre.quic.bounds import CLIENT, MAX_GAPS, SERVER, Bound, OverBoundError
from qre.quic.capsule_reader import CapsuleReader
from qre.quic.handshake_events import HandshakeFailed
from qre.quic.server.connect_ip import MAX_SKIPPED, AddressesRequested
from qre.quic.server.server_handshake import LeftUnread
from qre.wire.frames import Stream, encode_frame
from tests.fuzz.hostile_ends import SERVER_SETTINGS, ClientPlay, VisitPlay
from tests.fuzz.hostile_flows import withheld
from tests.fuzz.hostile_grammar import http_frame, prefixed
from tests.support.hostile_client import ROOM, HostileClient, crypto_frame, stream_frame
from tests.support.stock_site import StockSite, client, issue, meet

#: CPU seconds for one datagram, and for all that one peer sends.
ONE, ALL = 0.5, 1.5


def within_bounds(hostile: HostileClient) -> None:
    assert hostile.worst < ONE, f"{hostile.worst * 1000:.0f} ms for one datagram"
    assert hostile.spent < ALL, f"{hostile.spent:.2f} s for {hostile.datagrams} datagrams"


def one_byte_frames(frame: Callable[[int], bytes], first: int) -> Iterator[bytes]:
    """Payloads full of frames that bring each second byte."""
    offset = first
    while True:
        payload = b""
        while len(payload) < ROOM - 20:
            payload += frame(offset)
            offset += 2
        yield payload


def connect_request() -> bytes:
    """The HEADERS frame of a CONNECT-IP request."""
    fields = [
        (b":method", b"CONNECT"),
        (b":protocol", b"connect-ip"),
        (b":scheme", b"https"),
        (b":authority", b"site.test"),
        (b":path", b"/.well-known/masque/ip/*/*/"),
    ]
    block = pylsqpack.Encoder().encode(0, fields)[1]
    return b"\x01" + encode_uint_var(len(block)) + block


#: An encoder stream that fills the dynamic table with one entry of 4 KB, and a block that refers to it so many times.
ONE_LONG_ENTRY = prefixed(4096, 5, 0x20) + prefixed(1, 5, 0x40) + b"x" + prefixed(4000, 7, 0) + b"v" * 4000


def references(count: int) -> bytes:
    return b"\x02\x00" + b"\x80" * count


def test_initials_of_somebody_who_saw_the_hello_cost_nothing_and_change_nothing() -> None:
    hostile = HostileClient(round_trips=0)
    payloads = one_byte_frames(lambda offset: crypto_frame(offset, b"x"), 100_000)
    read = hostile.read[tls.Epoch.INITIAL]
    for _ in range(250):
        hostile.inject_initial(next(payloads))
    assert hostile.read[tls.Epoch.INITIAL] == read + SERVER.initials, "the first of them are opened, and no more"
    assert hostile.events == [LeftUnread(Bound.INITIALS)], "which is said once"
    receiver = hostile.server._connection._crypto_streams[tls.Epoch.INITIAL].receiver
    assert len(receiver._ranges) == 0, "nothing of it is kept"
    within_bounds(hostile)
    hostile.finish_handshake()
    assert hostile.client.h3 is not None, "the client gets its answer all the same"


def test_initials_in_one_datagram_are_counted_one_by_one_and_what_is_behind_them_is_read() -> None:
    hostile = HostileClient(round_trips=0)
    before = hostile.read[tls.Epoch.INITIAL]
    for _ in range(100):
        hostile.deliver(b"".join(hostile.initial(b"\x01".ljust(180, b"\x00")) for _ in range(6)))
    assert SERVER.initials - 6 < hostile.read[tls.Epoch.INITIAL] - before <= SERVER.initials
    hostile.finish_handshake()
    assert hostile.read[tls.Epoch.HANDSHAKE] > 0, "the client's Finished came behind an Initial of its own"
    assert hostile.client.h3 is not None
    within_bounds(hostile)


@pytest.mark.parametrize("kind", ["stream", "crypto"])
def test_holes_in_what_is_received_end_the_handshake(kind: str) -> None:
    hostile = HostileClient()
    make = {"stream": lambda at: stream_frame(0, at, b"x"), "crypto": lambda at: crypto_frame(at, b"x")}[kind]
    for payload, _ in zip(one_byte_frames(make, 100), range(400), strict=False):
        hostile.send(payload)
    assert hostile.failure is not None and hostile.failure.bound is Bound.GAPS
    within_bounds(hostile)


def test_as_many_holes_as_loss_may_leave_are_taken() -> None:
    hostile = HostileClient()
    for number in range(MAX_GAPS):
        hostile.send(stream_frame(0, 2 + 2 * number, b"\x00"))
    assert hostile.failure is None


def test_more_bytes_of_streams_than_any_client_sends_end_the_handshake() -> None:
    """Capsules without end, of which the beginning comes last: all of it is read at once then."""
    hostile = HostileClient()
    body = connect_request() + b"\x00" + encode_uint_var(1 << 29) + b"\x05\x00" * 260_000
    hostile.send_stream(0, body[1 : SERVER.streams - 200], 1)
    assert hostile.failure is None
    hostile.send(stream_frame(0, 0, body[:1]))
    assert hostile.failure is not None and hostile.failure.bound is Bound.CAPSULES
    within_bounds(hostile)
    hostile = HostileClient()
    hostile.send_stream(0, body[1:], 1)
    assert hostile.failure is not None and hostile.failure.bound is Bound.STREAMS
    within_bounds(hostile)


def test_more_bytes_of_tls_than_a_hello_and_finished_end_the_handshake() -> None:
    hostile = HostileClient()
    for number in range(40):
        hostile.send(crypto_frame(1000 * number, bytes([0x04, 0xFF, 0xFF, 0xFF]).ljust(1000, b"\x00")))
    assert hostile.failure is not None
    within_bounds(hostile)


@pytest.mark.parametrize(("stream_id", "beginning"), [(0, b"\x01"), (0, b"\x05"), (14, b"\x00\x04")])
def test_a_frame_without_end_ends_the_handshake_before_it_is_collected(stream_id: int, beginning: bytes) -> None:
    hostile = HostileClient()
    hostile.send_stream(stream_id, beginning + encode_uint_var(1 << 29) + bytes(200_000))
    assert hostile.ended
    within_bounds(hostile)


def test_a_block_of_references_is_not_decoded() -> None:
    """Our SETTINGS offer no dynamic table; stock has one all the same."""
    hostile = HostileClient()
    hostile.send_stream(18, b"\x02" + ONE_LONG_ENTRY)
    block = references(200_000)
    hostile.send_stream(0, b"\x01" + encode_uint_var(len(block)) + block)
    assert hostile.ended
    assert not any(isinstance(event, AddressesRequested) for event in hostile.events)
    within_bounds(hostile)


def test_a_block_that_stands_for_much_of_the_static_table_is_not_decoded() -> None:
    hostile = HostileClient()
    block = b"\x00\x00" + b"\xff\x16" * 1500  # the longest entry there is, Content-Security-Policy
    hostile.send_stream(0, b"\x01" + encode_uint_var(len(block)) + block)
    assert hostile.failure is not None and hostile.failure.bound is Bound.FIELDS
    within_bounds(hostile)


@pytest.mark.parametrize("payload", [b"\x01" * 1000, b"\x1a" + bytes(8), b"\x01"])
def test_more_packets_than_a_handshake_takes_end_it(payload: bytes) -> None:
    hostile = HostileClient()
    for _ in range(SERVER.packets - 100):
        hostile.send(payload)
    assert hostile.failure is None, "so many may come"
    for _ in range(200):
        hostile.send(payload)
    assert hostile.failure is not None and hostile.failure.bound is Bound.PACKETS
    assert hostile.worst < ONE, f"{hostile.worst * 1000:.0f} ms"


def test_more_requests_than_anybody_makes_end_it() -> None:
    hostile = HostileClient()
    for number in range(200):
        hostile.send(stream_frame(4 * number, 0, connect_request(), fin=True))
    assert hostile.failure is not None and hostile.failure.bound is Bound.REQUESTS
    within_bounds(hostile)


def test_more_frames_of_http3_than_a_client_sends_end_it() -> None:
    hostile = HostileClient()
    most = SERVER.frames - 10  # less its SETTINGS
    hostile.send_stream(0, b"\x21\x00" * most)
    assert hostile.failure is None, "so many may come"
    hostile.send_stream(0, b"\x21\x00" * 10, 2 * most)
    assert hostile.failure is not None and hostile.failure.bound is Bound.FRAMES


@pytest.mark.parametrize(
    ("body", "stream_id", "bound"),
    [
        (http_frame(1, b"\x00\x00\xd9") + b"\x00\x01x" * 300_000, 0, Bound.FRAMES),  # status 200, DATA
        (http_frame(1, b"\x00\x00\xff\x00" + b"\x21x\x00" * 100) * 3000, 0, Bound.FIELDS),  # status 100, fields
        (b"\x21\x00" * 400_000, 0, Bound.FRAMES),  # reserved
        (b"\x00\x04\x00" + b"\x07\x01\x00" * 20_000, 3, Bound.FRAMES),  # GOAWAY on the control stream
        (b"\x02\x3f\xe1\xff\x03\xc0\x00" + bytes(900_000), 3, Bound.UNIDIRECTIONAL),  # QPACK duplicates
    ],
)
def test_small_things_that_wait_for_one_byte_are_not_all_read_with_it(
    body: bytes, stream_id: int, bound: Bound
) -> None:
    """A server that has proved itself withholds the first byte: the packet that brings it cost 4 s."""
    play = ClientPlay()
    play.begin(Random(1))
    if not stream_id:
        play.input(encode_frame(Stream(3, b"\x00" + SERVER_SETTINGS)))  # the client asks for its tunnel
    for payload in withheld(stream_id, body):
        play.input(payload)
    assert play.outcome.error == ""
    assert [event.reason for event in play.events if isinstance(event, HandshakeFailed)] == [
        f"handshake: too many {bound}"
    ]
    assert play.outcome.worst < ONE, f"{play.outcome.worst * 1000:.0f} ms"


def test_more_tickets_than_a_site_sends_end_the_visit() -> None:
    play = VisitPlay()
    play.begin(Random(1))
    for payload in play.flows.withheld_tls(120_000):
        play.input(payload)
    failed = [event.reason for event in play.events if isinstance(event, HandshakeFailed)]
    assert failed == [f"handshake: too many {Bound.TICKETS}"]


def test_as_many_frames_as_a_long_page_has_are_read() -> None:
    play = VisitPlay()
    play.begin(Random(1))
    page = http_frame(0, b"tulips" * 150) * (CLIENT.frames - 2)
    head = http_frame(1, play.grammar.honest_section([(b":status", b"200")]))
    for payload in play.flows.stream(0, head + page, fin=True, wild=False):
        play.input(payload)
    assert play.outcome.installed, play.events


def test_what_no_capsule_can_need_is_not_kept() -> None:
    reader = CapsuleReader(max_length=10, max_count=3)
    assert list(reader.received(b"\x05\x0aabc" + bytes(4))) == []
    assert len(list(reader.received(bytes(3) + b"\x05\x00" * 2))) == 3
    with pytest.raises(OverBoundError, match="capsules"):
        list(reader.received(b"\x05\x00" * 3_000_000))
    assert len(reader._buffer) < 200


def test_capsules_in_pieces_are_read_in_order_and_counted() -> None:
    reader = CapsuleReader(max_length=10, max_count=3)
    assert list(reader.received(b"\x05")) == []
    assert list(reader.received(b"\x02ab\x06\x00\x07")) == [(5, b"ab"), (6, b"")]
    assert list(reader.received(b"\x01")) == []
    assert list(reader.received(b"z")) == [(7, b"z")]
    with pytest.raises(OverBoundError, match="capsules"):
        list(reader.received(b"\x05\x00"))
    with pytest.raises(UntrustedInputError):
        list(CapsuleReader(10, 3).received(b"\x05\x0b"))
    assert MAX_SKIPPED >= 1


class Bomber(StockSite):
    """A site whose answer refers to one long entry of the table, again and again."""

    count = 100_000

    def respond(self, http: H3Connection, stream_id: int) -> None:
        assert self.connection is not None and http._local_encoder_stream_id is not None
        self.connection.send_stream_data(http._local_encoder_stream_id, ONE_LONG_ENTRY)
        block = references(self.count)
        self.connection.send_stream_data(stream_id, b"\x01" + encode_uint_var(len(block)) + block, end_stream=True)


@pytest.mark.parametrize("count", [100_000, 60_000, 3000])
def test_a_hostile_site_cannot_hold_its_visitor(count: int) -> None:
    site = Bomber(issue())
    site.count = count
    events = meet(client(public_key=b""), site)
    failed = [event for event in events if isinstance(event, HandshakeFailed)]
    assert len(failed) == 1 and "too many" in failed[0].reason, events
