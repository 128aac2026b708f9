"""Threads that nobody waits for at the end: a resolver that is silent may take longer than a command has left.

asyncio looks names up in its default executor, waits for that at the end of ``asyncio.run``, and Python waits for
every thread of a pool before it exits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class UnwaitedThreads(ThreadPoolExecutor):
    """A thread for each call. How many there may be at once is the caller's to bound."""

    def submit(self, call: Callable[..., Any], /, *words: Any, **named: Any) -> Future[Any]:
        """As an executor's."""
        future: Future[Any] = Future()
        threading.Thread(target=_run, args=(future, call, words, named), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is nothing to wait for."""


def _run(future: Future[Any], call: Callable[..., Any], words: tuple[Any, ...], named: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call(*words, **named))
    except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
        future.set_exception(error)
