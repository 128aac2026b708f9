"""What goes to systemd, and what a talkative worker may cause: nothing waits, nothing grows, the latest counts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.ipc.latest import Latest
from qre.supervisor.parent.notify import Notifier
from tests.support.daemons import until


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as made:
        made.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield made


def heard(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def test_messages_go_out_in_order_and_hooks_do_not_see_the_socket(listener: socket.socket) -> None:
    notifier = Notifier()
    assert "NOTIFY_SOCKET" not in os.environ
    for text in ("STATUS=größer als — 0", "READY=1", "WATCHDOG=1", "WATCHDOG=1"):
        assert notifier.tell(text)
    assert heard(listener) == ["STATUS=größer als — 0", "READY=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_a_full_queue_is_waited_for_without_blocking_and_only_the_latest_of_its_kind_is_kept(
    listener: socket.socket,
) -> None:
    notifier = Notifier()
    while notifier.tell("READY=1"):
        pass
    for number in range(100):
        assert not notifier.tell(f"STATUS={number}")
        assert not notifier.tell("WATCHDOG=1")
    assert not notifier.tell("STOPPING=1")
    assert set(heard(listener)) == {"READY=1"}
    assert notifier.flush()
    assert heard(listener) == ["READY=1", "STATUS=99", "WATCHDOG=1", "STOPPING=1"]
    assert notifier.flush()


def test_no_listener_or_a_dead_one_is_no_obstacle(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notifier = Notifier()
    listener.close()
    assert notifier.tell("READY=1")
    assert notifier.tell("STATUS=x")
    assert Notifier().tell("READY=1"), "no NOTIFY_SOCKET"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    assert Notifier().tell("READY=1")
    assert "nowhere" in capsys.readouterr().err


def test_the_first_is_passed_on_at_once_and_of_the_rest_the_last_a_while_later() -> None:
    told: list[int] = []

    async def story() -> None:
        latest = Latest(told.append, 0.05)
        for number in range(1000):
            latest(number)
        assert told == [0]
        await until(lambda: len(told) > 1)
        assert told == [0, 999]
        latest(999)
        await asyncio.sleep(0.12)  # longer than it keeps anything
        assert told == [0, 999], "nothing twice"
        latest(5)
        latest(6)
        latest.close()
        await asyncio.sleep(0.12)  # longer than it keeps anything
        assert told == [0, 999, 5]

    asyncio.run(story())
