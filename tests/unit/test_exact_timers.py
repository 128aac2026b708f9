"""The workers' event loop: its timers, and that it notices what asyncio's own notices."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import threading
import time

from qre.exact_timers import ExactSelector, add_first_reader, exact_loop, remove_first_reader


def test_a_timer_is_not_as_late_as_epoll_would_be() -> None:
    """The best of many: a busy machine makes any timer late. Of 1.2 ms epoll makes two."""

    async def lateness() -> float:
        loop = asyncio.get_running_loop()
        due = loop.time() + 0.0012
        fired: asyncio.Future[float] = loop.create_future()
        loop.call_at(due, lambda: fired.set_result(loop.time()))
        return await fired - due

    with asyncio.Runner(loop_factory=exact_loop) as runner:
        late = [runner.run(lateness()) for _ in range(50)]
    assert min(late) < 0.0005, late


def test_what_is_readable_ends_the_wait() -> None:
    with ExactSelector() as selector:
        one, other = socket.socketpair()
        with one, other:
            selector.register(one, selectors.EVENT_READ, "it")
            began = time.monotonic()
            assert selector.select(0.01) == [], "nothing has come"
            assert time.monotonic() - began >= 0.01
            assert selector.select(0) == selector.select(-1) == []
            other.send(b"x")
            for timeout in (30, 0.001, 0, None):
                ((key, events),) = selector.select(timeout)
                assert (key.data, events) == ("it", selectors.EVENT_READ)


def test_a_signal_ends_the_wait_and_is_handled() -> None:
    async def told() -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR2, done.set_result, "told")
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR2))
        timer.start()
        try:
            async with asyncio.timeout(60):
                return await done
        finally:
            timer.join()
            loop.remove_signal_handler(signal.SIGUSR2)

    with asyncio.Runner(loop_factory=exact_loop) as runner:
        assert runner.run(told()) == "told"


def test_a_call_from_a_thread_ends_the_wait() -> None:
    async def told() -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        loop.run_in_executor(None, lambda: loop.call_soon_threadsafe(done.set_result, "told"))
        async with asyncio.timeout(60):
            return await done

    with asyncio.Runner(loop_factory=exact_loop) as runner:
        assert runner.run(told()) == "told"


def test_a_first_reader_is_called_before_the_others_and_they_have_their_turn() -> None:
    async def order() -> list[str]:
        loop, seen = asyncio.get_running_loop(), list[str]()
        done: asyncio.Future[None] = loop.create_future()
        pairs = [socket.socketpair() for _ in range(2)]
        (first, to_first), (other, to_other) = pairs

        def read_first() -> None:
            seen.append(first.recv(1).decode())
            if seen[-1] == "c":
                loop.call_soon(done.set_result, None)

        loop.add_reader(other, lambda: seen.append(other.recv(1).decode()))
        add_first_reader(first.fileno(), read_first)
        to_other.send(b"b")
        to_first.send(b"a")
        loop.call_later(0.01, to_first.send, b"c")
        try:
            async with asyncio.timeout(60):
                await done
        finally:
            remove_first_reader(first.fileno())
            loop.remove_reader(other)
            to_first.send(b"d")
            await asyncio.sleep(0.01)
            for one in (first, to_first, other, to_other):
                one.close()
        return seen

    with asyncio.Runner(loop_factory=exact_loop) as runner:
        assert runner.run(order()) == ["a", "b", "c"]
    assert sorted(asyncio.run(order())) == ["a", "b", "c"], "of a loop of another kind it is a reader as any other"


def test_an_error_of_a_first_reader_is_told_as_that_of_any_other() -> None:
    async def told() -> object:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        failed: asyncio.Future[object] = loop.create_future()

        def fail() -> None:
            one.recv(1)
            raise ZeroDivisionError

        loop.set_exception_handler(lambda _, context: failed.set_result(context["exception"]))
        add_first_reader(one.fileno(), fail)
        with one, other:
            other.send(b"x")
            async with asyncio.timeout(60):
                return await failed

    with asyncio.Runner(loop_factory=exact_loop) as runner:
        assert isinstance(runner.run(told()), ZeroDivisionError)
