"""A reload always ends, whatever goes wrong in it, and another one can follow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from qre.errors import UserError
from qre.supervisor.parent.profile_reload import ProfileReload


class Run:
    """A daemon's side of a reload; ``steps`` are what applying does, one a reload."""

    def __init__(self, *steps: Exception | None) -> None:
        self.steps = list(steps)
        self.told: list[str] = []
        self.ready = True
        self.during: Callable[[], None] = lambda: None
        self.reload = ProfileReload(
            self.apply, lambda: self.ready, lambda: self.told.append("begun"), self.told.append
        )

    async def apply(self) -> None:
        self.during()
        for _ in range(3):
            await asyncio.sleep(0)
        step = self.steps.pop(0)
        if step is not None:
            raise step


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (TimeoutError(), "the workers did not answer in time"),
        (UserError("profile", "it is wrong"), "it is wrong"),
        (RuntimeError("a bug"), "RuntimeError"),
    ],
)
def test_whatever_fails_is_told_and_the_next_reload_works(error: Exception, told: str) -> None:
    run = Run(error, None)
    asyncio.run(run.reload.run())
    begun, refusal = run.told
    assert begun == "begun"
    assert told in refusal
    asyncio.run(run.reload.run())
    assert run.told[2:] == ["begun", ""]


def test_what_is_wanted_during_one_is_done_after_it_once() -> None:
    async def both() -> None:
        again = iter([True])

        def during() -> None:
            if next(again, False):
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(run.reload.run()))

        run.during = during
        await run.reload.run()

    run = Run(OSError(5, "Input/output error"), None)
    asyncio.run(both())
    assert run.told == ["begun", ""]
    assert run.steps == []


def test_one_that_is_wanted_before_the_daemon_is_ready_is_kept() -> None:
    run = Run(None)
    run.ready = False
    asyncio.run(run.reload.run())
    assert run.told == []
    assert run.reload.wanted


def test_one_that_is_cancelled_leaves_the_way_free() -> None:
    async def cancelled() -> None:
        async with asyncio.timeout(0.01):
            await run.reload.run()

    run = Run(None)

    async def forever() -> None:
        await asyncio.Event().wait()

    run.reload = ProfileReload(forever, lambda: True, lambda: None, run.told.append)
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    run.reload._apply = run.apply
    asyncio.run(run.reload.run())
    assert run.told == [""]
