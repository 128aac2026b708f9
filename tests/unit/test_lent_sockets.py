"""Sockets that a client's handshake worker has lent to its data plane, for a session that tries another port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qre.dataplane.protocol import Answer, NewPort, PortUse, PortWanted, Refusal, refused
from qre.workers.handshake.sessions.new_ports import NewPorts
from qre.workers.handshake.sessions.session_state import PortsKnown

ID = b"\x07" * 32


@dataclass
class Worker:
    """Has lent socket 7; ``lives``: the session does. Keeps what it asks of the data plane."""

    lives: bool = True
    asked: list[tuple[NewPort, int]] = field(default_factory=list)
    released: int = 0

    def __post_init__(self) -> None:
        record = SimpleNamespace(session_id=ID, socket_number=1)
        live = SimpleNamespace(record=record) if self.lives else None
        self.sockets = SimpleNamespace(lent={ID: 7}, local_port=lambda number: None)
        sessions = SimpleNamespace(find=lambda session_id: live, ask=self._ask)
        tasks = SimpleNamespace(spawn=self._spawn)
        self.ports = NewPorts(
            cast(Any, sessions), cast(Any, self.sockets), cast(Any, tasks), lambda: None, self._free
        )

    def _ask(self, make: Callable[[int], NewPort], then: Callable[[Answer, float], None], socket: int) -> int:
        self.asked.append((make(1), socket))
        self._then = then
        return 1

    def answer(self, answer: Answer) -> None:
        self._then(answer, 0.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)

    async def _free(self) -> None:
        self.released += 1


@pytest.mark.parametrize(("tries", "lent"), [(0, {}), (8, {ID: 8})])
def test_a_new_data_plane_tells_which_socket_it_still_tries(tries: int, lent: dict[bytes, int]) -> None:
    """None, of a session that is gone: the one that the former had is not in use any more, and may be released."""
    worker = Worker(lives=False)
    worker.ports.heard(PortsKnown(ID, None, tries))
    assert worker.sockets.lent == lent and worker.released == 1 and worker.asked == []


AGAIN = (NewPort(id=1, session_id=ID, number=7, again=True), 7)


@pytest.mark.parametrize("said", [PortsKnown(ID, None, 0), PortWanted(session_id=ID)])
def test_a_new_data_plane_that_does_not_know_which_socket_the_kernel_tries_is_told(said: Any) -> None:
    worker = Worker()
    worker.ports.heard(said)
    assert worker.asked == [AGAIN] and worker.sockets.lent == {ID: 7}
    worker.answer(Answer(id=1))
    assert worker.sockets.lent == {ID: 7}


def test_a_socket_that_is_tried_no_more_is_released() -> None:
    worker = Worker()
    worker.ports.heard(PortsKnown(ID, None, 0))
    worker.answer(refused(1, Refusal.OTHER, "no such port is tried"))
    assert worker.sockets.lent == {} and worker.released == 2


def test_of_a_session_that_has_moved_nothing_is_told() -> None:
    worker = Worker()
    moved = PortUse(number=7, connection_id=b"\x0a" * 4, sequence=1, reset_token=None)
    worker.ports.heard(PortsKnown(ID, moved, 0))
    assert worker.asked == [] and worker.sockets.lent == {}
