"""The icon of a page: a first visit requests it behind the page, a tunnel as well as a browser, and a server answers
as its site did. And the leave to switch that goes with the site's last datagram."""

from __future__ import annotations

import gzip
import heapq
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import brotli
import msgspec
import pytest
from aioquic.h3.connection import H3Connection
from hypothesis import given
from hypothesis import strategies as st

from qre.dest_profile import DestProfile, Follows, RecordedVisit, Spoken
from qre.quic.client.returning_client import ReturningClient
from qre.quic.client.visit_recorder import VisitRecorder
from qre.quic.handshake_events import SiteAnswered
from qre.quic.page_icon import ICON_FIELD, MAX_READ, icon_path_untrusted, page_icon_untrusted
from qre.quic.server.server_handshake import InstallNow, ServerEvent, ServerHandshake
from tests.support.pair import NAME, Pair, Path
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_site import StockSite, client, meet

#: As Caddy's of a small page and of an icon that there is not.
PAGE = (
    Spoken(asked=False, at_us=6_200, length=303, eliciting=True, acknowledged=0),
    Spoken(asked=True, at_us=7_000, length=213, eliciting=True, acknowledged=0),
    Spoken(asked=True, at_us=31_000, length=22, eliciting=True, acknowledged=1),
)
ICON = (
    Spoken(asked=True, icon=True, at_us=6_500, length=74, eliciting=True, acknowledged=0),
    Spoken(asked=True, icon=True, at_us=31_000, length=23, eliciting=True, acknowledged=0),
)
#: Datagrams with a GET of it, an ACK in front or not, of the usual path and a host of twelve characters.
REQUESTS = range(405, 430)


def site(*spoken: Spoken, icon: str = "") -> DestProfile:
    visit = RecordedVisit(round_trip_us=6_000, spoken=spoken, icon=icon)
    return DestProfile(reachable=True, checked_at=1, scid_length=8, visits=(visit,))


@dataclass
class Timed(ShadowPair):
    """Keeps when each datagram was sent. The session is installed ``takes`` seconds after it was asked for."""

    takes: float = 0.0
    at: list[float] = field(default_factory=list)
    _due: list[float] = field(default_factory=list)

    def _send(self, by_client: bool, datagrams: list[bytes]) -> None:
        self.at += [self.now] * len(datagrams)
        super()._send(by_client, datagrams)

    def _server_events(self, server: ServerHandshake) -> None:
        events: list[ServerEvent] = []
        while (event := server.next_event()) is not None:
            if isinstance(event, InstallNow):
                heapq.heappush(self._due, self.now + self.takes)
                self.server_state = server.hand_over_state()
            else:
                events.append(event)
        server._events.extend(events)
        super()._server_events(server)
        if self._due and self._due[0] <= self.now:
            self._due.pop(0)
            server.session_installed()

    def _moments(self) -> list[float]:
        return super()._moments() + self._due[:1]

    def run(self, limit: float = 30.0) -> Timed:
        super().run(limit)
        assert self.complete, (self.client_events, self.server_events)
        return self

    @property
    def complete(self) -> bool:
        return self.client_state is not None and self.server_state is not None

    def by_server(self) -> list[int]:
        """Lengths of what the server sent by itself."""
        mirrored = {made for _, datagrams in self.mirrored for made in datagrams}
        return [len(datagram) for by_client, datagram in self.sent if not by_client and datagram not in mirrored]

    def requests(self) -> list[tuple[float, int]]:
        """When the client sent requests, and their lengths."""
        both = zip(self.at, self.sent, strict=True)
        return [(at, len(datagram)) for at, (by_client, datagram) in both if by_client and 400 < len(datagram) < 600]


def been_there(pair: Pair) -> None:
    pair.client._first_visit = False


def test_a_client_that_was_never_there_requests_the_icon_and_is_let_go_with_its_last_datagram() -> None:
    for seed in range(10):
        pair = Timed(seed=seed, path=Path(delay=0.003), dest=site(*PAGE, *ICON, icon="/favicon.ico")).run()
        (asked, _), (icon, length) = pair.requests()
        assert length in REQUESTS and 0.1 < icon - asked < 0.6
        assert pair.by_server() == [303, 213, 22, 74, 23], "as the site, and nothing more"
        assert pair.now - icon < 0.1


def test_a_client_that_was_there_before_requests_no_icon_and_nobody_waits_for_it() -> None:
    pair = Timed(path=Path(delay=0.003), dest=site(*PAGE, *ICON, icon="/favicon.ico"))
    been_there(pair)
    pair.run()
    assert len(pair.requests()) == 1 and pair.by_server() == [303, 213, 22]
    assert pair.now - pair.at[0] < 0.1


def test_where_the_site_has_no_icon_none_is_requested() -> None:
    pair = Timed(path=Path(delay=0.003), dest=site(*PAGE)).run()
    assert len(pair.requests()) == 1 and pair.by_server() == [303, 213, 22]


def test_the_request_is_as_long_as_one_of_the_icon_that_the_page_names() -> None:
    lengths = []
    for path in ("/favicon.ico", "/a/much/longer/path/of/an/icon-32x32.png"):
        pair = Timed(path=Path(delay=0.003), dest=site(*PAGE, *ICON, icon=path)).run()
        lengths.append(pair.requests()[1][1])
    assert 10 < lengths[1] - lengths[0] <= 28


def test_the_end_of_the_answer_waits_for_no_news_that_the_data_plane_gets() -> None:
    """From the installation on the client's acknowledgements go there."""
    last = msgspec.structs.replace(ICON[1], acknowledged=4)
    pair = Deaf(path=Path(delay=0.003), dest=site(*PAGE, ICON[0], last, icon="/favicon.ico")).run()
    assert pair.by_server() == [303, 213, 22, 74, 23]
    assert pair.now - pair.requests()[1][0] < 0.1


@dataclass
class Deaf(Timed):
    """What comes to the server is the data plane's once the session is installed."""

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        if not (by_client and self.server_state is not None):
            super()._deliver(by_client, datagram)


@pytest.mark.parametrize("seed", range(20))
def test_a_lost_icon_stalls_nothing(seed: int) -> None:
    path = Path(loss=0.1, duplicate=0.2, reorder=0.3)
    dest = site(*PAGE, *ICON, icon="/favicon.ico")
    pair = ShadowPair(seed=seed, path=path, dest_path=path, dest=dest).run(60)
    assert pair.complete or not pair.mirrored, (pair.client_events, pair.server_events)


def test_a_server_that_imitates_says_nothing_of_icons() -> None:
    pair = Pair(path=Path(delay=0.3), dest=DestProfile(reachable=True, checked_at=1, scid_length=4)).run()
    assert pair.complete
    assert [len(each) for by_client, each in pair.sent if by_client and len(each) in REQUESTS] == []


# --- the leave to switch ---


def test_the_last_datagram_waits_for_a_session_that_is_being_installed() -> None:
    pair = Timed(path=Path(delay=0.003), dest=site(*PAGE), takes=0.06)
    been_there(pair)
    pair.run()
    assert pair.by_server() == [303, 213, 22]


@pytest.mark.parametrize(("last", "leave"), [(22, 22), (340, 340)])
def test_a_late_leave_is_as_long_as_the_last_datagram_when_it_is_repeated(last: int, leave: int) -> None:
    page = (*PAGE[:2], Spoken(asked=True, at_us=31_000, length=last, eliciting=True, acknowledged=1))
    pair = Timed(path=Path(delay=0.003), dest=site(*page), takes=1.5)
    been_there(pair)
    pair.run()
    lengths = pair.by_server()
    assert lengths[:3] == [303, 213, last] and lengths[-1] in (leave, leave + 1)
    assert 21 not in lengths


# --- the visitor ---


class Site(StockSite):
    """Answers with ``page`` and these fields."""

    page: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()

    def respond(self, http: H3Connection, stream_id: int) -> None:
        http.send_headers(stream_id, [(b":status", b"200"), *self.fields])
        http.send_data(stream_id, self.page, end_stream=True)


def visited(page: bytes, *fields: tuple[bytes, bytes]) -> tuple[RecordedVisit, list[Any]]:
    """What a visitor recorded of such a site, and the paths of its requests."""
    there = Site()
    there.page, there.fields = page, fields
    events = meet(client(public_key=b""), there)
    assert isinstance(events[0], SiteAnswered)
    return events[0].profile.visits[0], [dict(each)[b":path"] for each in there.requests]


def test_the_visitor_requests_the_icon_and_records_what_follows() -> None:
    recorded, paths = visited(b"<html><title>tulips</title>" + b"tulip " * 100)
    assert paths == [b"/", b"/favicon.ico"] and recorded.icon == "/favicon.ico"
    parts = [each.follows for each in recorded.spoken]
    assert parts == sorted(parts) and Follows.ICON in parts
    assert all(each.at_us < 100_000 for each in recorded.spoken if each.icon), "from the icon's request on"
    pair = Timed(dest=DestProfile(reachable=True, checked_at=1, scid_length=8, visits=(recorded,))).run()
    last = max(number for number, each in enumerate(recorded.spoken, start=1) if each.eliciting)
    wanted = [each.length for each in recorded.spoken[:last]]  # and an ACK of it, which the data plane overtakes
    assert len(pair.requests()) == 2 and pair.by_server()[:last] == wanted


def test_the_visitor_requests_nothing_where_a_browser_would_not() -> None:
    recorded, paths = visited(b'<link rel="icon" href="data:,"><title>tulips</title>')
    assert paths == [b"/"] and recorded.icon == "" and not any(each.icon for each in recorded.spoken)


LINK = b'<HTML><head><link href="/s/i.png?v=2" rel="shortcut icon" type="image/png"></head>'


@pytest.mark.parametrize(
    ("page", "path"),
    [
        (b"", "/favicon.ico"),
        (b"<html><title>no link</title>", "/favicon.ico"),
        (b"<link rel=stylesheet href=/a.css><link rel='apple-touch-icon' href='/apple.png'>", "/favicon.ico"),
        (LINK, "/s/i.png?v=2"),
        (b"<link rel=icon href=i.svg>", "/i.svg"),
        (b"<link rel=icon href='https://site.example/i.svg'>", "/i.svg"),
        (b"<link rel=icon href='//cdn.example/i.svg'>", ""),
        (b"<link rel=icon href='http://site.example/i.svg'>", ""),
        (b'<link rel="icon" href="data:image/svg+xml,%3Csvg/%3E">', ""),
        (b"<link rel=icon href='/" + b"x" * 200 + b"'>", ""),
        (b"<link rel=icon href='/\xc3\xbc.png'>", ""),
        (b"<link rel=icon href='https://[broken/'>", ""),
        (b"<link rel=icon>", "/"),
    ],
)
def test_which_icon_a_page_has(page: bytes, path: str) -> None:
    assert page_icon_untrusted(200, {}, page, NAME, "/favicon.ico") == path
    for encoding, packed in ((b"gzip", gzip.compress(page)), (b"br", brotli.compress(page))):
        assert page_icon_untrusted(200, {b"content-encoding": encoding}, packed, NAME, "/favicon.ico") == path


def test_a_page_that_leads_elsewhere_has_none_and_one_that_cannot_be_read_the_usual_one() -> None:
    assert page_icon_untrusted(302, {}, LINK, NAME, "/favicon.ico") == ""
    for encoding in (b"gzip", b"br", b"zstd", b"\xff"):
        assert page_icon_untrusted(200, {b"content-encoding": encoding}, LINK, NAME, "/usual") == "/usual"


PIECES = (b"<link", b" rel=", b"icon", b" href=", b"'", b'"', b">", b"//", b"[", b"http:", b":99999", b"?", b"/i.png")


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=40).map(b"".join),
    st.sampled_from((b"", b"gzip", b"br", b"zstd")),
    st.integers(0, 999),
)
def test_whatever_a_page_says_its_icon_is_a_path_or_nothing(page: bytes, encoding: bytes, status: int) -> None:
    found = page_icon_untrusted(status, {b"content-encoding": encoding}, page, NAME, "/usual")
    assert found == "" or icon_path_untrusted([(ICON_FIELD, found.encode())]) == found


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"br", brotli.compress)])
def test_of_a_page_that_expands_without_end_a_little_is_read(encoding: bytes, pack: Any) -> None:
    large = pack(b"a" * (64 << 20) + LINK)
    assert len(large) < MAX_READ * 2
    assert page_icon_untrusted(200, {b"content-encoding": encoding}, large, NAME, "/usual") == "/usual"


@pytest.mark.parametrize("path", [b"", b"favicon.ico", b"/a b", b"/" + b"a" * 128, b"/\r\nx: y", b"/\xff", b"*"])
def test_a_path_that_no_browser_would_send_is_not_requested(path: bytes) -> None:
    assert icon_path_untrusted([(ICON_FIELD, path)]) == ""
    assert icon_path_untrusted([(ICON_FIELD, b"/favicon.ico")]) == "/favicon.ico"


def test_an_answer_that_is_here_before_the_visitor_knows_that_it_asked_is_the_icons() -> None:
    connection = SimpleNamespace(
        handshake_complete=True, acknowledgement_pending=False, eliciting_packets=0, acknowledgement_bytes=0,
        application_progress=0, answer_begun=False, round_trip=0.006, kept_token=b"",
    )  # fmt: skip
    recorder, visitor = VisitRecorder(), cast(ReturningClient, connection)

    def hears(length: int, now: float) -> None:
        connection.eliciting_packets += 1
        connection.application_progress += 1
        recorder.received(b"\x40" + bytes(length - 1), visitor, now)

    recorder.sent(visitor, 10.0, asked=True)
    recorder.left(10.0)
    connection.answer_begun = True
    hears(213, 10.007)
    recorder.sent(visitor, 10.4, asked=True, icon="/favicon.ico")
    recorder.left(10.402)
    hears(1326, 10.4005)
    hears(63, 10.403)
    recorded = recorder.visit(visitor)
    assert recorded is not None and recorded.icon == "/favicon.ico"
    assert [(each.icon, each.at_us, each.length) for each in recorded.spoken] == [
        (False, 7_000, 213), (True, 0, 1326), (True, 1_000, 63),
    ]  # fmt: skip
