"""What every worker process runs: drop privileges, connect to the supervisor, dispatch messages, answer each once.

A role's module offers ``create() -> Worker``; it is called before the sandbox closes and must import everything that
the role will ever need. Descriptors come over a SEQPACKET channel, messages over ZeroMQ; the supervisor sends
descriptors first, so the channel is emptied before any message is handled.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec
import zmq
import zmq.asyncio

from qre.errors import InternalError, MachineError, QreError, UntrustedInputError
from qre.exact_timers import exact_loop
from qre.freed_memory import give_back, keep_one_arena
from qre.ipc import descriptors, sandbox
from qre.ipc.channel import Channel, ChannelClosedError
from qre.ipc.journal import WritingEnd, log_as_worker
from qre.ipc.messages import (
    MAX_MESSAGE,
    Body,
    Descriptor,
    Done,
    Envelope,
    Heartbeat,
    Hello,
    Party,
    Refused,
    Reload,
    Start,
    StatusRequest,
    Stop,
    WorkerConfig,
)
from qre.ipc.roles import ROLES, WorkerRole
from qre.ipc.tasks import Tasks
from qre.structs import Message, decoder, encoder

MAX_RUNNING_REQUESTS = 256
#: At most one line a key in this many seconds; the next one counts those held back.
LOG_INTERVAL = 10.0
MAX_LOG_KEYS = 64


class LimitedLog:
    """Log lines that an outsider can cause: at most one a key and interval."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._keys: dict[str, tuple[float, int]] = {}

    def __call__(self, key: str, text: str, level: int = logging.WARNING) -> None:
        now = time.monotonic()
        if key not in self._keys and len(self._keys) >= MAX_LOG_KEYS:
            self._keys = {each: entry for each, entry in self._keys.items() if now - entry[0] < LOG_INTERVAL}
            if len(self._keys) >= MAX_LOG_KEYS:
                key = ""  # too many keys at once share one
        last, held = self._keys.get(key, (-LOG_INTERVAL, 0))
        if now - last < LOG_INTERVAL:
            self._keys[key] = (last, held + 1)
            return
        self._keys[key] = (now, 0)
        self._log.log(level, "%s%s", text, f" ({held} more of these)" if held else "")


def refusal_of(error: QreError) -> Refused:
    """The answer that tells it to whoever asked."""
    return Refused(reason=str(error)[:512], cause=error.cause)


def error_of(what: str, refused: Refused) -> MachineError:
    """The same at the other end."""
    error = MachineError(what, refused.reason)
    error.cause = refused.cause
    return error


class WorkerContext:
    """A worker's environment: its configuration, its descriptors, and requests to other processes."""

    def __init__(self, role: WorkerRole, channel: Channel[Descriptor], dealer: zmq.asyncio.Socket) -> None:
        self.role = role.party
        self.config: WorkerConfig
        self.descriptors: dict[str, int] = {}
        #: Descriptors that may come more than once: (name, number) -> fd, as long as Start has not been handled.
        self.numbered: dict[tuple[str, int], int] = {}
        self.log = logging.getLogger(f"qre.{role.party}")
        self.limited = LimitedLog(self.log)
        self.failed = False
        self.over = asyncio.Event()  # after Stop, or a failure: the process ends
        self._channel = channel
        self._dealer = dealer
        self._encoder = encoder()
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    async def send(self, to: Party, message: Message) -> None:
        """Send one-way to ``to`` through the supervisor, if its table allows it."""
        await self._transmit(Envelope(peer=to, body=cast(Body, message)))

    async def request(self, to: Party, message: Message, timeout: float = 5.0) -> Message:
        """The answer to ``message``. Raises MachineError when it is refused, or none comes in ``timeout`` seconds."""
        number, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._transmit(Envelope(peer=to, id=number, body=cast(Body, message)))
            async with asyncio.timeout(timeout):
                answer = await future
        except TimeoutError:
            raise MachineError(f"{type(message).__name__} to {to}", f"no answer in {timeout:g} s") from None
        finally:
            del self._waiting[number]
        if isinstance(answer, Refused):
            raise error_of(f"{type(message).__name__} to {to}", answer)
        return answer

    def send_descriptor(self, name: str, fd: int, number: int = 0) -> None:
        """Hand a descriptor up to the supervisor; the caller keeps its own."""
        self._channel.send(Descriptor(name=name, number=number), [fd])

    def fail(self, reason: str) -> None:
        """Give up: the process ends with a failure, and the supervisor starts another one."""
        self.log.error("giving up: %s", reason)
        self.failed = True
        self.over.set()

    def internal_error(self, error: BaseException) -> None:
        """Give up because a task failed; logs only the exception's type, since its text may hold anything."""
        self.fail(f"an internal error ({type(error).__name__})")

    def answered(self, number: int, body: Message) -> None:
        """Hand the answer to the request ``number``; an answer to an unknown or finished request is dropped."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(body)

    async def _transmit(self, envelope: Envelope) -> None:
        await self._dealer.send(self._encoder.encode(envelope))

    async def answer(self, to: Party, number: int, body: Message) -> None:
        """Answer the request ``number`` of ``to``."""
        await self._transmit(Envelope(peer=to, id=number, answer=True, body=cast(Body, body)))


class Worker(Protocol):
    """What a role implements."""

    async def start(self, context: WorkerContext) -> None:
        """Begin; when it returns, the role can do its work. A QreError refuses."""

    async def reload(self) -> None:
        """``context.config`` has changed."""

    async def handle(self, source: Party, message: Message) -> Message:
        """Answer any other request; a QreError refuses."""

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """A descriptor that arrived after ``start``; the worker closes it."""

    async def status(self) -> Message:
        """The role's part of ``show``."""

    async def stop(self) -> None:
        """End in order; called once, after Stop."""


def run_worker(party: Party, sock: socket.socket, endpoint: str, says: WritingEnd | None = None) -> None:
    """The whole life of a worker process; called in a fresh interpreter by the supervisor, which reads its log lines
    from ``says``. Ends with SystemExit."""
    role = ROLES[party]
    parent = os.getppid()
    if says is not None:
        says.become_stderr()
    log_as_worker(f"qre-tool {party}", marked=says is not None)
    keep_one_arena()
    try:
        worker: Worker = importlib.import_module(role.module).create()
        sandbox.enter(role, parent)
        with asyncio.Runner(loop_factory=exact_loop) as runner:
            status = runner.run(_Runtime(role, worker, sock, endpoint, sandbox.close_the_door).run())
    except QreError as error:
        logging.getLogger("qre").error("%s", error)
        status = 1
    except ImportError as error:
        logging.getLogger("qre").error("%s cannot be loaded: is QRE installed with its dependencies?", error.name)
        status = 1
    except Exception as error:  # noqa: BLE001 - the last resort of a process: no traceback, it may show a key
        logging.getLogger("qre").error("internal error at %s: %s", place_of(error), type(error).__name__)
        status = 1
    sys.exit(status)


def place_of(error: BaseException) -> str:
    """The function and line where an error was raised, without values."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class _Runtime:
    """Dispatches incoming messages, one task a request, until Stop or a failure."""

    def __init__(
        self,
        role: WorkerRole,
        worker: Worker,
        sock: socket.socket,
        endpoint: str,
        connected: Callable[[], None],
    ) -> None:
        """``connected`` is called once, when the supervisor is known to be connected and the work begins."""
        self._role = role
        self._connected = connected
        self._worker = worker
        self._channel: Channel[Descriptor] = Channel(sock, Descriptor)
        # After the sandbox: ZeroMQ's I/O threads inherit what this thread is.
        self._zmq = zmq.asyncio.Context()
        self._dealer = self._zmq.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, 500)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self._dealer.connect(endpoint)
        self._context = WorkerContext(role, self._channel, self._dealer)
        self._decoder: msgspec.msgpack.Decoder[Envelope] = decoder(Envelope)
        self._tasks = Tasks(self._task_failed)
        self._requests = Tasks(self._task_failed)
        self._descriptor_lock = asyncio.Lock()
        self._started = False

    async def run(self) -> int:
        """0 after Stop, 1 after a failure."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        loop.add_reader(self._channel.fileno(), self._channel_readable)
        self._tasks.spawn(self._receive())
        await self._context.send(Party.SUPERVISOR, Hello(role=self._role.party, pid=os.getpid()))
        await self._context.over.wait()
        loop.remove_reader(self._channel.fileno())
        await self._requests.end()
        await self._tasks.end()
        self._dealer.close()
        self._zmq.term()
        return 1 if self._context.failed else 0

    async def _receive(self) -> None:
        while True:
            data = await self._dealer.recv()
            await self._take_descriptors()
            try:
                envelope = self._parse_untrusted(data)
            except UntrustedInputError as error:
                self._context.limited("envelope", str(error))
                continue
            if envelope.answer:
                self._context.answered(envelope.id, envelope.body)
            elif len(self._requests) < MAX_RUNNING_REQUESTS:
                self._requests.spawn(self._serve(envelope))

    def _parse_untrusted(self, data: bytes) -> Envelope:
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UntrustedInputError("supervisor", "a message that does not parse") from None

    async def _serve(self, envelope: Envelope) -> None:
        """Handle one message; a request gets exactly one answer."""
        answer: Message
        try:
            answer = await self._dispatch(envelope.peer, envelope.body)
        except QreError as error:
            answer = refusal_of(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the request gets its one answer
            self._report(error)
            answer = Refused(reason=f"internal error ({type(error).__name__})")
        if envelope.id:
            await self._answer(envelope, answer)
        if isinstance(envelope.body, Stop):
            self._context.over.set()

    async def _answer(self, envelope: Envelope, answer: Message) -> None:
        try:
            await self._context.answer(envelope.peer, envelope.id, answer)
        except (TypeError, ValueError, OverflowError) as error:  # it cannot be written down: nothing has left
            self._report(error)
            refused = Refused(reason=f"internal error ({type(error).__name__})")
            await self._context.answer(envelope.peer, envelope.id, refused)

    async def _dispatch(self, source: Party, body: Message) -> Message:
        if not isinstance(body, Heartbeat):
            self._context.log.debug("%s from %s", type(body).__name__, source)
        match body:
            case Heartbeat():
                return Done()
            case Start(config=config) if not self._started:
                self._context.config = config
                logging.getLogger("qre").setLevel(config.log_level.upper())
                self._connected()
                self._check_descriptors()
                await self._worker.start(self._context)
                self._started = True
                give_back()  # what importing and starting took for a moment
            case Reload(config=config) if self._started:
                self._context.config = config
                await self._worker.reload()
            case StatusRequest() if self._started:
                return await self._worker.status()
            case Stop():
                if self._started:
                    await self._worker.stop()
            case _ if self._started:
                return await self._worker.handle(source, body)
            case _:
                raise InternalError(f"worker {self._role.party}", f"{type(body).__name__} out of turn")
        return Done()

    # --- descriptors ---

    def _channel_readable(self) -> None:
        self._tasks.spawn(self._take_descriptors())

    async def _take_descriptors(self) -> None:
        async with self._descriptor_lock:
            while True:
                try:
                    received = self._channel.receive()
                except ChannelClosedError:
                    asyncio.get_running_loop().remove_reader(self._channel.fileno())
                    self._context.fail("the supervisor is gone")
                    return
                except UntrustedInputError as error:
                    self._context.fail(str(error))
                    return
                if received is None:
                    return
                await self._accept(*received)

    async def _accept(self, described: Descriptor, fds: list[int]) -> None:
        """Take an expected descriptor; close any other."""
        expected = self._role.expected(described.name)
        try:
            if expected is None or len(fds) != 1:
                raise MachineError(f"descriptor {described.name!r}", "it is unexpected")
            descriptors.check(fds[0], expected)
            if self._started:
                descriptors.check_bound(fds[0], expected, self._context.config)
        except MachineError as error:
            for fd in fds:
                os.close(fd)
            self._context.limited("descriptor", f"refused: {error}")
            return
        if self._started:
            await self._worker.descriptor(described.name, described.number, fds[0])
            return
        held = self._context.descriptors.get(described.name)
        if held is not None and self._context.numbered.get((described.name, described.number)) == held:
            os.close(held)  # a newer one of the same
        self._context.descriptors[described.name] = fds[0]
        self._context.numbered[described.name, described.number] = fds[0]

    def _check_descriptors(self) -> None:
        """Before the work begins: is everything there, and are the server's sockets where the configuration says?"""
        if missing := self._role.missing(self._context.config, self._context.descriptors):
            raise MachineError(f"worker {self._role.party}", f"descriptors are missing: {', '.join(missing)}")
        for name, fd in self._context.descriptors.items():
            expected = self._role.expected(name)
            if expected is not None:
                descriptors.check_bound(fd, expected, self._context.config)

    # --- failures ---

    def _task_failed(self, error: BaseException) -> None:
        self._report(error)
        self._context.fail("an internal error")

    def _unexpected(self, loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
        error = details.get("exception")
        if isinstance(error, BaseException):
            self._report(error)
        else:
            self._context.limited("loop", str(details.get("message"))[:200])

    def _report(self, error: BaseException) -> None:
        """Log where it happened, without values: a message or a local variable may hold a key."""
        place = place_of(error)
        text = str(error) if isinstance(error, QreError) else type(error).__name__
        self._context.limited(f"internal {place}", f"internal error at {place}: {text}", logging.ERROR)
