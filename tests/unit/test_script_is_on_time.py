"""What a recorded visit says is made before it is due, and leaves when it is."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qre.workers.handshake.acceptance import Acceptance
from qre.workers.handshake.recognition.accepted import Accepted

DUE = 100.007


class OneScript:
    """A handshake that says one thing, at DUE."""

    def __init__(self, *, scripted: bool) -> None:
        self.scripted = scripted
        self.said = [DUE]

    def timer(self) -> float | None:
        return self.said[0] if self.said else None

    def handle_timer(self, now: float) -> None:
        """Nothing is lost."""

    def datagrams_to_send(self, now: float) -> list[bytes]:
        return [b"page"] * len([self.said.pop() for at in self.said[:] if at <= now])


@pytest.mark.parametrize(("scripted", "made_at"), [(True, DUE - 0.0005), (False, DUE)])
def test_it_is_made_ahead_and_waits_for_its_time(scripted: bool, made_at: float, monkeypatch: Any) -> None:
    sent: list[float] = []
    one = cast(Any, Accepted.__new__(Accepted))
    one.inner, one.outbox, one.delay, one.source = OneScript(scripted=scripted), deque(), 0.0, ("192.0.2.1", 1)
    clock = [0.0]
    monkeypatch.setattr("qre.workers.handshake.acceptance.time.monotonic", lambda: clock[0])
    world = cast(
        Any,
        SimpleNamespace(
            volley=SimpleNamespace(say=lambda *_, **__: sent.append(clock[0])),
            mark_of=lambda _: 0,
            waits=lambda: None,
            send_due=lambda one, now: Acceptance.send_due(world, one, now),
            progress=lambda one, now: Acceptance.send(world, one, now),
        ),
    )
    one._acceptance = world
    assert one.timer() == pytest.approx(made_at)
    clock[0] = made_at - 0.001
    one.handle_timer(clock[0])
    assert not sent and not one.outbox
    clock[0] = one.timer()
    one.handle_timer(clock[0])
    assert one.timer() is None, "it is made"
    if scripted:
        assert not sent and [at for at, _ in one.outbox] == [DUE]
        clock[0] = DUE
        world.send_due(one, DUE)
    assert sent == [DUE] and not one.outbox


def test_what_waited_for_the_session_is_due_at_once_when_it_is_installed() -> None:
    told: list[str] = []
    inner = SimpleNamespace(session_installed=lambda: told.append("installed"))
    one = SimpleNamespace(session_id=b"id", inner=inner)
    world = cast(
        Any,
        SimpleNamespace(
            steering=None,
            _all=[one],
            progress=lambda *_: told.append("made"),
            waits=lambda: told.append("timer"),
        ),
    )
    asyncio.run(Acceptance._release(world, cast(Any, one)))
    assert told == ["installed", "made", "timer"]
