"""Tasks belong to a group whose owner hears of every failure; nothing in the product makes one elsewhere."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from qre.ipc.tasks import Tasks

ROOT = Path(__file__).resolve().parents[2]
#: Both are awaited by the function that makes them.
AWAITED = {"cli/port/port_demo.py"}


async def never() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise ValueError("a bug")


def test_a_failure_is_told_and_the_others_go_on() -> None:
    async def run() -> tuple[list[str], int]:
        seen: list[str] = []
        tasks = Tasks(lambda error: seen.append(str(error)))
        tasks.spawn(never())
        tasks.spawn(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = len(tasks)
        await tasks.end()
        return seen, left

    assert asyncio.run(run()) == (["a bug"], 1)


def test_a_cancellation_is_no_failure_and_the_end_waits_for_all() -> None:
    async def run() -> tuple[list[BaseException], list[str], int]:
        seen: list[BaseException] = []
        over: list[str] = []
        tasks = Tasks(seen.append)

        async def slow(name: str) -> None:
            try:
                await never()
            finally:
                await asyncio.sleep(0)
                over.append(name)

        for name in ("one", "other"):
            tasks.spawn(slow(name))
        await asyncio.sleep(0)
        await tasks.end()
        return seen, sorted(over), len(tasks)

    assert asyncio.run(run()) == ([], ["one", "other"], 0)


def test_some_are_cancelled_or_spared_by_name_and_never_the_one_that_asks() -> None:
    async def run() -> list[str]:
        tasks = Tasks(lambda error: None)
        left: list[str] = []
        for name in ("dest", "dest", "serve", "other"):
            tasks.spawn(never(), name)

        async def ask() -> None:
            tasks.cancel(only="dest")
            while len(tasks) > 3:
                await asyncio.sleep(0)
            tasks.cancel(spare="serve")
            while len(tasks) > 2:
                await asyncio.sleep(0)
            left.extend(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})
            done.set()

        done = asyncio.Event()
        tasks.spawn(ask(), "ask")
        await done.wait()
        await tasks.end()
        return left

    assert sorted(name for name in asyncio.run(run()) if not name.startswith("Task-")) == ["serve"]


def test_the_product_makes_tasks_in_this_group_alone() -> None:
    making = {
        str(path.relative_to(ROOT))
        for folder in ("cli", "supervisor", "workers", "qre")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"create_task\(|ensure_future\(", path.read_text())
    }
    assert making - AWAITED == {"qre/ipc/tasks.py"}
