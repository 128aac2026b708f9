"""One ZeroMQ ROUTER per role: a process that reaches the socket has that role, whatever its messages claim.

The endpoint lies in a directory that only the role's group may enter, so no other uid can connect. Input is
hostile until it was parsed and found in the table (``routes``). Each request gets exactly one answer. What one worker
has under way is bounded in number and in bytes, so that it neither fills the supervisor nor stands before another
worker's heartbeats.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, cast

import msgspec
import zmq
import zmq.asyncio

from qre.errors import MachineError, QreError, UntrustedInputError
from qre.ipc import sandbox
from qre.ipc.message_guard import MessageGuard
from qre.ipc.messages import MAX_MESSAGE, Body, Envelope, Hello, Party, Refused
from qre.ipc.private_socket import OWNER_ONLY, masked
from qre.ipc.roles import ROLES
from qre.ipc.tasks import Tasks
from qre.ipc.worker import LimitedLog, error_of, place_of, refusal_of
from qre.structs import Message, decoder, encoder
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.routes import Route, When, route

#: What one worker may have under way: requests without an answer, one-way messages, and the bytes of both. Several of
#: the largest that ``routes`` allows (CidSync) have room.
MAX_OPEN_REQUESTS: Final = 64
MAX_ONE_WAY: Final = 16
MAX_OPEN_BYTES: Final = 1 << 19
#: Those of them that are with other workers; the others wait their turn.
_MAX_FORWARDED: Final = 4
_FORWARD_TIMEOUT: Final = 10.0
_SOCKET_NAME: Final = "s"
#: Complete messages of a connection that ZeroMQ keeps for us, each of MAX_MESSAGE bytes at most: what comes meanwhile
#: waits at its sender.
_MAX_INCOMING: Final = 2
#: Those for the worker. ZeroMQ drops what is beyond, heartbeats too; but what is sent unasked is far less.
_MAX_OUTGOING: Final = 128
_TOO_MANY: Final = Refused(reason="too many requests at once")

#: Handles a message for the supervisor itself; returns the answer to a request.
Handler = Callable[[Party, Message], Awaitable[Message | None]]


def make_directories(runtime: Path, parties: tuple[Party, ...], parent: int) -> None:
    """Make a directory per role below ``runtime`` that only its group may enter. Needs root.

    Each is made as its group, and never given away: a daemon has no CAP_CHOWN. ``parent`` is this process's.
    """
    runtime.mkdir(mode=0o711, parents=True, exist_ok=True)
    # Regardless of the umask: a unit's is 0077, and the workers must traverse it. Nor does it hand down its group.
    runtime.chmod(0o711)
    for party in parties:
        directory = runtime / party.value
        if directory.exists():  # of a daemon that was killed; the group may have got another number since
            shutil.rmtree(directory)
        with sandbox.as_group(ROLES[party].ids()[1], parent):
            directory.mkdir(mode=0o700)
        directory.chmod(0o710)


def endpoint(runtime: Path, party: Party) -> str:
    """The ZeroMQ address at which the supervisor listens for ``party``."""
    return f"ipc://{runtime / party.value / _SOCKET_NAME}"


class Router:
    """The messages of one role."""

    def __init__(self, context: zmq.asyncio.Context, runtime: Path, party: Party, limited: LimitedLog) -> None:
        self.party = party
        self.stage: Callable[[], WorkerStage] = lambda: WorkerStage.ABSENT
        self.dropped = 0
        self._limited = limited
        self._identity: bytes | None = None
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._requests = Tasks(self._failed)
        self._one_way = Tasks(self._failed)
        self._forwarded = asyncio.Semaphore(_MAX_FORWARDED)
        self._decoder: msgspec.msgpack.Decoder[Envelope] = decoder(Envelope)
        self._encoder = encoder()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self._socket.setsockopt(zmq.SNDHWM, _MAX_OUTGOING)
        self._socket.setsockopt(zmq.RCVHWM, _MAX_INCOMING)
        private = runtime / f"{party.value}.router"
        with masked(OWNER_ONLY):
            self._socket.bind(f"ipc://{private}")
        public = Path(endpoint(runtime, party).removeprefix("ipc://"))
        self._guard = MessageGuard(public, private, self._drop)

    def close(self) -> None:
        """Requests that are still unanswered fail."""
        self._guard.close()
        self.abandon("the daemon ends")
        self._socket.close()

    def abandon(self, why: str) -> None:
        """The worker is gone: requests to it fail. Its own end: the next process counts its requests from the
        beginning, and must not get their answers."""
        self._identity = None
        self._requests.cancel()
        self._one_way.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_result(Refused(reason=why))

    async def request(self, source: Party, message: Message, timeout: float) -> Message:
        """Ask the worker; Refused or no answer raises MachineError."""
        answer = await self.forward(source, message, timeout)
        if isinstance(answer, Refused):
            raise error_of(f"worker {self.party}", answer)
        return answer

    async def forward(self, source: Party, message: Message, timeout: float) -> Message:
        """Ask the worker on behalf of ``source``; the answer may be a refusal."""
        number, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self.send(Envelope(id=number, peer=source, body=cast(Body, message)))
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            return Refused(reason=f"{self.party} did not answer {type(message).__name__} in {timeout:g} s")
        finally:
            del self._waiting[number]

    async def send(self, envelope: Envelope) -> None:
        """Send ``envelope`` to the worker. Raises MachineError while none is connected."""
        if self._identity is None:
            raise MachineError(f"worker {self.party}", "it is not running")
        await self._socket.send_multipart([self._identity, self._encoder.encode(envelope)])

    async def serve(self, handler: Handler, peers: dict[Party, Router]) -> None:
        """Take messages until cancelled."""
        self._guard.open()
        while True:
            frames = await self._socket.recv_multipart()
            # Waiting messages are received without a turn of the loop: a flooding worker must not stall it.
            await asyncio.sleep(0)
            try:
                envelope = self._parse_untrusted(frames)
            except UntrustedInputError as error:
                self._drop(str(error))
                continue
            if not isinstance(envelope.body, Hello) and frames[0] != self._identity:
                self._drop(f"{type(envelope.body).__name__} from a process that is not the worker")
                continue
            if envelope.answer:
                future = self._waiting.get(envelope.id)
                if future is not None and not future.done():
                    future.set_result(envelope.body)
                continue
            found = self._permitted(envelope)
            if found is None:
                continue
            if found.when is When.ONCE:
                self._identity = frames[0]
            elif not self._has_room(envelope, len(frames[1])):
                self._drop(f"too much at once: {type(envelope.body).__name__}")
                if envelope.id:
                    await self.send(Envelope(id=envelope.id, answer=True, peer=envelope.peer, body=_TOO_MANY))
                continue
            # In order: Hello must be seen before what follows it. Requests of other workers run beside it.
            tasks = self._requests if envelope.id else self._one_way
            tasks.spawn(self._handle(envelope, handler, peers), weight=len(frames[1]))

    def _has_room(self, envelope: Envelope, size: int) -> bool:
        """Whether the worker may have this message of ``size`` bytes under way, too."""
        many = len(self._requests) >= MAX_OPEN_REQUESTS if envelope.id else len(self._one_way) >= MAX_ONE_WAY
        return not many and self._requests.weight + self._one_way.weight + size <= MAX_OPEN_BYTES

    def _parse_untrusted(self, frames: list[bytes]) -> Envelope:
        try:
            if len(frames) != 2:
                raise UntrustedInputError(f"worker {self.party}", "a message with a wrong number of parts")
            return self._decoder.decode(frames[1])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UntrustedInputError(f"worker {self.party}", "a message that does not parse") from None

    def _permitted(self, envelope: Envelope) -> Route | None:
        found = route(self.party, envelope.peer, type(envelope.body), request=envelope.id != 0)
        stage = self.stage()
        allowed = found is not None and (
            stage is WorkerStage.SPAWNED
            if found.when is When.ONCE
            else stage in (WorkerStage.STARTING, WorkerStage.READY, WorkerStage.STOPPING)
            if found.when is When.STARTING
            else stage is WorkerStage.READY
        )
        if allowed:
            return found
        self._drop(f"{type(envelope.body).__name__} for {envelope.peer} is not permitted while {stage.value}")
        return None

    def _drop(self, why: str) -> None:
        self.dropped += 1
        self._limited(f"drop {self.party}", f"dropped a message from worker {self.party}: {why}")

    def _failed(self, error: BaseException) -> None:
        """The request gets no answer and times out at its sender; the daemon continues."""
        where = f"internal error at {place_of(error)}: {type(error).__name__}"
        self._limited(f"internal {self.party}", f"a request from worker {self.party}: {where}")

    async def _handle(self, envelope: Envelope, handler: Handler, peers: dict[Party, Router]) -> None:
        try:
            answer = await self._answer(envelope, handler, peers)
            if envelope.id and answer is not None:
                reply = Envelope(id=envelope.id, answer=True, peer=envelope.peer, body=cast(Body, answer))
                await self.send(reply)
        except MachineError as error:
            self._limited(f"answer {self.party}", str(error))  # the worker that asked has died

    async def _answer(self, envelope: Envelope, handler: Handler, peers: dict[Party, Router]) -> Message | None:
        try:
            if envelope.peer is Party.SUPERVISOR:
                return await handler(self.party, envelope.body)
            if envelope.peer not in peers:
                return Refused(reason=f"there is no worker {envelope.peer}")
            return await self._forward(peers[envelope.peer], envelope.body)
        except QreError as error:
            return refusal_of(error)

    async def _forward(self, to: Router, body: Message) -> Message:
        """Ask another worker for this one. Who asks much waits here, where it delays nobody else."""
        try:
            async with asyncio.timeout(_FORWARD_TIMEOUT):
                await self._forwarded.acquire()
        except TimeoutError:
            return _TOO_MANY
        try:
            return await to.forward(self.party, body, _FORWARD_TIMEOUT)
        finally:
            self._forwarded.release()
