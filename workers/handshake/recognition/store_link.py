"""The connection to the store in which several servers remember hellos, and what waits for its answers.

The supervisor connects and hands the socket over: this process may not. A hello is asked for as soon as it is read;
the answer comes before Dest's first reply, or too late. Without a store that answers, nobody is let in: a hello that
another server has accepted would be let in again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from qre.errors import QreError, UntrustedInputError
from qre.reality.hello_store import StoreAnswer, StoreConnection

#: Answers that may be outstanding: more than arrive in the time that Dest takes.
_MAX_WAITING: Final = 1024
#: An answer that takes longer is none (seconds): the connection is made anew.
_PATIENCE: Final = 2.0
#: Between attempts to connect (seconds).
_PAUSE: Final = 1.0
_RECEIVE: Final = 4096
_UNREACHABLE: Final = "the replay store does not answer"


class ReplayStoreLink:
    """``new_connection`` makes the state of one; ``connect`` asks for a socket, which comes to ``use``, or raises
    QreError. ``told`` is called with why nobody can be let in, or with nothing when that is over."""

    def __init__(
        self,
        new_connection: Callable[[], StoreConnection],
        connect: Callable[[], Coroutine[Any, Any, None]],
        told: Callable[[str], None],
    ) -> None:
        self._new_connection = new_connection
        self._connect = connect
        self._told = told
        self._state: StoreConnection | None = None
        self._socket: socket.socket | None = None
        self._waiting: deque[Callable[[bool], None]] = deque()
        self._deadline: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Keep a connection, until cancelled."""
        while True:
            try:
                await self._connect()
            except QreError as error:
                self._told(f"{_UNREACHABLE} ({error})")
            if self._socket is not None:
                await self._gone.wait()
            await asyncio.sleep(_PAUSE)

    def use(self, fd: int) -> None:
        """A connected socket, which is ours from here on."""
        self._drop()
        self._gone.clear()
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._state = self._new_connection()
        asyncio.get_running_loop().add_reader(fd, self._readable)
        self._expect()
        self._send(self._state.greeting)

    def ask(self, digest: bytes, seconds: int, answered: Callable[[bool], None]) -> None:
        """Ask whether a hello with this hash is new; ``answered`` hears it, now if nobody can be asked."""
        if self._state is None or not self._state.greeted or len(self._waiting) >= _MAX_WAITING:
            answered(False)
            return
        self._waiting.append(answered)
        if self._deadline is None:
            self._expect()
        self._send(self._state.ask(digest, seconds))

    def _expect(self) -> None:
        """The next answer is to come soon."""
        self._deadline = asyncio.get_running_loop().call_later(_PATIENCE, self._lost, "it is silent")

    def _send(self, data: bytes) -> None:
        assert self._socket is not None
        try:
            whole = self._socket.send(data) == len(data)
        except OSError as error:
            self._lost(error.strerror or "it is gone")
            return
        if not whole:
            self._lost("it does not read")

    def _readable(self) -> None:
        assert self._socket is not None and self._state is not None
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or "it is gone")
            return
        greeted = self._state.greeted
        try:
            answers = self._state.received_untrusted(data)
        except UntrustedInputError as error:
            self._lost(error.why)
            return
        if not data:
            self._lost("it has closed the connection")
            return
        if self._state.greeted:
            self._expect_nothing()
            if not greeted:
                self._told("")
        heard = [(self._waiting.popleft(), answer) for answer in answers]
        if self._waiting:
            self._expect()
        for answered, answer in heard:
            answered(answer is StoreAnswer.NEW)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _lost(self, why: str) -> None:
        self._drop()
        self._told(f"{_UNREACHABLE} ({why})")

    def _drop(self) -> None:
        """Whoever waits hears no."""
        self._gone.set()
        self._expect_nothing()
        if self._socket is not None:
            with contextlib.suppress(OSError, ValueError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
        self._socket = self._state = None
        waiting, self._waiting = self._waiting, deque()
        for answered in waiting:
            answered(False)

    def close(self) -> None:
        """Close the connection; whoever waits hears no."""
        self._drop()
