"""A worker's log lines on their way to the journal: all of them, in its name, at a pace that the supervisor bears."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable

import pytest

from qre.ipc.messages import Party
from qre.supervisor.members import worker_lines
from qre.supervisor.members.worker_lines import WorkerLines
from tests.support.daemons import until


def told(monkeypatch: pytest.MonkeyPatch, story: Callable[[WorkerLines, list[str]], Awaitable[None]]) -> list[str]:
    """What reached the journal."""
    lines: list[str] = []
    monkeypatch.setattr(worker_lines, "pass_on", lambda process, line: lines.append(f"{process} {line}"))

    async def run() -> None:
        await story(WorkerLines(Party.NETLINK), lines)

    asyncio.run(run())
    return lines


def test_lines_come_whole_and_the_last_ones_when_the_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(lines: WorkerLines, seen: list[str]) -> None:
        for part in (b"<4>one\n<6>tw", b"o\n", b"\xff\n"):
            os.write(lines.theirs._fd, part)
        await until(lambda: len(seen) == 3)
        os.write(lines.theirs._fd, b"its last\nwords")
        lines.theirs.close()
        lines.close()

    assert told(monkeypatch, story) == [
        f"netlink {line}" for line in ("<4>one", "<6>two", "\ufffd", "its last", "words")
    ]


def test_a_line_without_end_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(lines: WorkerLines, seen: list[str]) -> None:
        os.write(lines.theirs._fd, b"x" * 10_000)
        await until(lambda: len(seen) == 2)
        os.write(lines.theirs._fd, b"y" * 5000 + b"\n")
        lines.theirs.close()
        lines.close()

    parts = [line.removeprefix("netlink ") for line in told(monkeypatch, story)]
    assert "".join(parts) == "x" * 10_000 + "y" * 5000
    assert max(map(len, parts)) == worker_lines._LONGEST


def test_a_worker_that_writes_without_end_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_lines, "_PAUSE", 0.1)

    async def story(lines: WorkerLines, seen: list[str]) -> None:
        stopped = threading.Event()

        def write() -> None:
            while not stopped.is_set():
                os.write(lines.theirs._fd, b"x" * 99 + b"\n")

        writer = threading.Thread(target=write)
        writer.start()
        await asyncio.sleep(1)
        stopped.set()
        seen.append(str(len(seen)))
        await until(lambda: not writer.is_alive())
        lines.theirs.close()
        lines.close()

    passed = next(int(line) for line in told(monkeypatch, story) if line.isdecimal())
    assert 100 < passed <= 11 * worker_lines._AT_ONCE // 100


def test_empty_lines_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(lines: WorkerLines, seen: list[str]) -> None:
        os.write(lines.theirs._fd, b"\n" * worker_lines._AT_ONCE + b"a last one\n")
        await until(lambda: "netlink a last one" in seen)
        lines.theirs.close()
        lines.close()

    assert len(told(monkeypatch, story)) <= 2 * worker_lines._MOST_LINES
