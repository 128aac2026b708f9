"""Undo steps of a command: run newest first, at its end or when it fails half-way.

A failing step does not stop the others: the first failure is raised at a command's regular end, and printed in
addition to the error that ended it otherwise.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from qre.cli.main import complain
from qre.errors import QreError


class Undo:
    """A context manager: leaving it in any way undoes everything that was added."""

    def __init__(self) -> None:
        self._deeds: list[Callable[[], None]] = []

    def add(self, deed: Callable[[], None]) -> None:
        """``deed`` undoes the last step. It must not fail for what is gone already."""
        self._deeds.append(deed)

    def keep(self) -> None:
        """Undo nothing: everything stays."""
        self._deeds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed: list[Exception] = []
        while self._deeds:
            try:
                self._deeds.pop()()
            except (QreError, OSError) as problem:
                failed.append(problem)
        for told in failed if error is not None else failed[1:]:
            complain(told)
        if failed and error is None:
            raise failed[0]


_TERMINATED = 128 + signal.SIGTERM


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises an exception meanwhile, so that a half-done change is undone."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
