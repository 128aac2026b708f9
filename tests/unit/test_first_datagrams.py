"""A newcomer's first datagram: what is done before it leaves for Dest, and what only afterwards."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from qre.quic.server.inspector import STRANGER, Verdict
from qre.workers.handshake.port.flow_parts import Flow
from qre.workers.handshake.port.relay import DestSocket, Relays
from qre.workers.handshake.recognition.late_inspector import LateInspector
from tests.support.error_log import ErrorLog


class Way:
    """The way of visitors to a socket in place of Dest's, and what came back."""

    def __init__(self, dest: socket.socket) -> None:
        self.dest = dest
        self.address: tuple[str, int] = dest.getsockname()
        self.replies: list[tuple[Flow, bytes]] = []
        self.doubts = 0
        self.errors = ErrorLog()
        self.relays = Relays(self._reply, contextlib.nullcontext, self._doubt, lambda key, line: None, self.errors)

    def _reply(self, flow: Flow, data: bytes, segment: int, ecn: int, age: float) -> None:
        self.replies.append((flow, data))

    def _doubt(self) -> None:
        self.doubts += 1

    def opened(self, number: int = 1) -> DestSocket:
        made = self.relays.open(Flow(("192.0.2.1", number), 0.0), socket.AF_INET, self.address)
        assert made is not None
        return made

    def readable(self) -> bool:
        return bool(select.select([self.relays.fileno()], [], [], 0)[0])


@pytest.fixture
def way() -> Iterator[Way]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dest:
        dest.bind(("127.0.0.1", 0))
        made = Way(dest)
        yield made
        made.relays.close()


def test_an_answer_that_was_there_before_anybody_watched_is_read(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dest is nearer than the worker is fast: its answer comes before the socket is watched."""
    flow = Flow(("192.0.2.1", 1), 0.0)
    opened = way.relays.open(flow, socket.AF_INET, way.address)
    assert opened is not None
    watch = way.relays.watch

    def answered_first(made: object) -> None:
        way.dest.sendto(b"answer", way.dest.recvfrom(100)[1])
        watch(opened)

    monkeypatch.setattr(way.relays, "watch", answered_first)
    opened.send(b"hello", 0)
    assert way.readable()
    way.relays.readable()
    assert way.replies == [(flow, b"answer")]


def test_a_connection_that_nothing_was_sent_by_is_closed_like_any_other(way: Way) -> None:
    opened = way.opened()
    assert len(way.relays) == 1
    opened.close()
    assert len(way.relays) == 0
    assert way.doubts == 0


def test_the_next_newcomer_has_a_socket_of_the_same_kind_waiting(way: Way) -> None:
    first = way.opened(1)
    way.relays.prepare_next()
    before = {fd for fd in range(first.fd + 8) if _is_open(fd)}
    second = way.opened(2)
    assert {fd for fd in range(first.fd + 8) if _is_open(fd)} == before, "a socket was made where one waited"
    second.send(b"hello", 0)
    assert way.dest.recvfrom(100)[0] == b"hello"


def test_a_socket_that_waits_for_an_earlier_address_of_dest_is_not_used(way: Way) -> None:
    way.relays.prepare_next((socket.AF_INET, ("127.0.0.1", 9)))
    opened = way.opened()
    opened.send(b"hello", 0)
    assert way.dest.recvfrom(100)[0] == b"hello"


def test_no_socket_is_made_for_nobody(way: Way) -> None:
    way.relays.prepare_next()
    opened = way.opened()
    way.relays.close()
    before = {fd for fd in range(opened.fd + 8) if _is_open(fd)}
    way.relays.prepare_next()
    assert {fd for fd in range(opened.fd + 8) if _is_open(fd)} == before


def _is_open(fd: int) -> bool:
    try:
        socket.socket(fileno=fd).detach()
    except OSError:
        return False
    return True


class CountedInspector:
    made = 0

    def __init__(self) -> None:
        CountedInspector.made += 1
        self.opened = False
        self.told: list[bytes] = []

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict:
        self.opened = True
        self.told.append(data)
        return STRANGER

    def retry_relayed(self, source_cid: bytes) -> None:
        self.told.append(source_cid)

    def cid_shown(self, source_cid: bytes) -> None:
        self.told.append(source_cid)


def test_an_inspector_is_made_when_there_is_something_to_read_and_once() -> None:
    CountedInspector.made = 0
    late = LateInspector(CountedInspector)
    assert not late.opened
    assert CountedInspector.made == 0
    assert late.datagram_received(b"hello", 0) is STRANGER
    late.retry_relayed(b"retry")
    late.cid_shown(b"shown")
    assert late.opened
    assert CountedInspector.made == 1
