"""A visitor who fetches something large: more of what Dest sends may wait to be read, for some visitors at a time."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from qre.workers.handshake.port import relay
from qre.workers.handshake.port.flow_parts import Flow
from qre.workers.handshake.port.relay import DestSocket, Relays
from tests.support.error_log import ErrorLog


class Dest:
    """A socket in place of Dest's, and the visitors' connections to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.came = 0
        self.relays = Relays(self._reply, contextlib.nullcontext, lambda: None, lambda key, line: None, ErrorLog())

    def _reply(self, flow: Flow, data: bytes, segment: int, ecn: int, age: float) -> None:
        self.came += len(data)

    def visited(self, number: int) -> DestSocket:
        flow = Flow(("192.0.2.1", number), 0.0)
        made = self.relays.open(flow, socket.AF_INET, self.sock.getsockname())
        assert made is not None
        made.send(b"hello", 0)
        return made

    def sends(self, length: int, count: int) -> None:
        """To the visitor who spoke last."""
        visitor = self.sock.recvfrom(100)[1]
        for _ in range(count):
            self.sock.sendto(bytes(length), visitor)
        self.relays.readable()


@pytest.fixture
def dest() -> Iterator[Dest]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        made = Dest(sock)
        yield made
        made.relays.close()


def room(visitor: DestSocket) -> int:
    return visitor._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def test_of_a_large_file_more_may_wait_than_of_a_flight(dest: Dest) -> None:
    visitor = dest.visited(1)
    before = room(visitor)
    dest.sends(1200, 4)
    assert dest.came == 4800 and room(visitor) == before
    visitor.send(b"more", 0)
    dest.sends(1200, 8)
    assert room(visitor) > before


def test_no_more_visitors_have_it_than_some_until_one_is_gone(dest: Dest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MOST_LARGE", 1)
    first = dest.visited(1)
    dest.sends(1200, 8)
    second = dest.visited(2)
    dest.sends(1200, 8)
    assert first.large and not second.large
    first.close()
    second.send(b"more", 0)
    dest.sends(1200, 8)
    assert second.large
