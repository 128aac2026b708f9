"""One UDP port, several server daemons: whoever has it is its *front*, and others join it.

The front listens on ``RuntimeDir/<ip>_<port>_<namespace>.front`` (mode 0600, SOCK_SEQPACKET) and holds the lock of
the same name. A daemon that finds the lock taken joins instead: it says what it serves and hands over its profile's
secrets, which only the two handshake workers read; what must be equal is compared. It is answered with duplicates of
the port's two sockets and its end of the feed that its clients come through. The connection stays open: its end says
that the other one is gone, and the first of those who joined then takes the front's place.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from qre.errors import MachineError, QreError, UntrustedInputError, UserError
from qre.ipc.channel import Channel, ChannelClosedError
from qre.ipc.messages import WorkerConfig
from qre.session import U16, U64, Message, Text
from qre.supervisor.control import may_ask

MAX_GUESTS: Final = 16
_SUFFIX: Final = ".front"
_JOIN_TIMEOUT: Final = 20.0
_RETRY: Final = 0.1


class Join(Message, frozen=True, kw_only=True):
    """A daemon wants its clients at this port; comes with the memfd of its profile's secrets."""

    profile: Text
    device: Annotated[str, msgspec.Meta(max_length=15)]
    server_name: Text
    dest: Text
    max_time_diff_ms: U64
    routed_cid_len: U16
    user_dataplane: bool


class Joined(Message, frozen=True, kw_only=True):
    """The answer; without ``error`` it comes with ``udp_userspace``, ``udp_kernel_slot`` and ``front_feed``."""

    error: Text = ""


#: In the order of ``Joined``'s descriptors.
JOINED_DESCRIPTORS: Final = ("udp_userspace", "udp_kernel_slot", "front_feed")


def port_name(ip: str, port: int) -> str:
    """The name of a port in RuntimeDir, which network namespaces share."""
    return f"{ip}_{port}_{os.stat('/proc/self/ns/net').st_ino}"


def join_of(config: WorkerConfig) -> Join:
    """What a daemon says of itself."""
    return Join(
        profile=config.profile,
        device=config.device,
        server_name=config.server_name,
        dest=f"{config.dest_host}:{config.dest_port}",
        max_time_diff_ms=config.max_time_diff_ms,
        routed_cid_len=config.routed_cid_len,
        user_dataplane=config.user_dataplane,
    )


def refusal(own: Join, its: Join) -> str:
    """Why the two cannot share a port, as far as public fields tell; empty when they can."""
    if own.user_dataplane or its.user_dataplane:
        return "a port is shared on the kernel's data plane only; set Dataplane = kernel, or choose another port"
    compared = (
        ("ServerName", own.server_name.lower(), its.server_name.lower()),
        ("Dest", own.dest, its.dest),
        ("RealityMaxTimeDiff", f"{own.max_time_diff_ms} ms", f"{its.max_time_diff_ms} ms"),
        ("RoutedCidLen", str(own.routed_cid_len), str(its.routed_cid_len)),
    )
    for name, ours, theirs in compared:
        if ours != theirs:
            return f"{name} is {theirs}, and {ours} at the port's front ({own.profile}); make them equal"
    return ""


# --- the front's side, in its supervisor ---


@dataclass
class GuestDaemon:
    """A joined daemon, as the front's supervisor holds it: descriptors for handshake workers to come."""

    number: int
    profile: str
    secrets: int
    feed: int

    def close(self) -> None:
        os.close(self.secrets)
        os.close(self.feed)


class Host:
    """What the listener needs of the crew."""

    def __init__(
        self,
        own: Callable[[], Join],
        pair: tuple[int, int],
        admit: Callable[[GuestDaemon], Coroutine[Any, Any, None]],
        leave: Callable[[int], Coroutine[Any, Any, None]],
    ) -> None:
        self.own = own
        self.pair = pair
        self.admit = admit
        self.leave = leave


class FrontListener:
    """Lets others join."""

    def __init__(self, runtime: Path, name: str, host: Host) -> None:
        self.path = runtime / f"{name}{_SUFFIX}"
        self._host = host
        self._listener: socket.socket | None = None
        self._connections: dict[int, Channel[Join]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = 1

    def open(self) -> None:
        """Bind and listen; a socket that a dead front left is replaced."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        except OSError as error:
            listener.close()
            raise MachineError(f"socket {self.path}", os.strerror(error.errno or 0)) from error
        finally:
            os.umask(before)
        listener.listen(MAX_GUESTS)
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Those who joined notice, and one of them is the next front."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self.path.unlink(missing_ok=True)
            self._listener = None
        for task in self._tasks:
            task.cancel()
        for number in list(self._connections):
            self._drop(number)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        if not may_ask(accepted) or len(self._connections) >= MAX_GUESTS:
            accepted.close()
            return
        number, self._next = self._next, self._next + 1
        channel: Channel[Join] = Channel(accepted, Join)
        self._connections[number] = channel
        asyncio.get_running_loop().add_reader(channel.fileno(), self._readable, number)

    def _readable(self, number: int) -> None:
        channel = self._connections[number]
        try:
            received = channel.receive()
        except (ChannelClosedError, UntrustedInputError):
            self._drop(number)
            self._spawn(self._host.leave(number))
            return
        if received is None:
            return
        join, fds = received
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            self._drop(number)
            return
        self._spawn(self._join(number, channel, join, fds[0]))

    async def _join(self, number: int, channel: Channel[Join], join: Join, secrets: int) -> None:
        ours, theirs = Channel.pair()
        guest = GuestDaemon(number, join.profile, secrets, ours.detach())
        error = refusal(self._host.own(), join)
        try:
            if error:
                guest.close()
            else:
                try:
                    await self._host.admit(guest)
                except QreError as refused:
                    error = str(refused)
            fds = [] if error else [*self._host.pair, theirs.fileno()]
            channel.send(Joined(error=error[:512]), fds)
        except MachineError:
            self._drop(number)  # it left meanwhile
            await self._host.leave(number)
        finally:
            theirs.close()

    def _drop(self, number: int) -> None:
        channel = self._connections.pop(number, None)
        if channel is not None:
            asyncio.get_running_loop().remove_reader(channel.fileno())
            channel.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


# --- the other side, in the parent of a daemon that joins ---


class FrontGoneError(MachineError):
    """Nobody answers at the port's socket (yet, or any more)."""


def join_front(runtime: Path, name: str, join: Join, secrets: int) -> tuple[Channel[Joined], dict[str, int]]:
    """The connection, to be kept open, and what ``JOINED_DESCRIPTORS`` names. Blocks, for a bounded time.

    Raises UserError when the front says no, FrontGoneError when there is none.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deadline = time.monotonic() + _JOIN_TIMEOUT
    try:
        connection.connect(str(runtime / f"{name}{_SUFFIX}"))
    except OSError as error:
        connection.close()
        raise FrontGoneError("the port's front", os.strerror(error.errno or 0)) from error
    channel: Channel[Joined] = Channel(connection, Joined)
    try:
        channel.send(join, [secrets])
        while (received := channel.receive()) is None:
            if time.monotonic() > deadline:
                raise FrontGoneError("the port's front", f"no answer in {_JOIN_TIMEOUT:g} s")
            time.sleep(_RETRY)
        answer, fds = received
        if answer.error or len(fds) != len(JOINED_DESCRIPTORS):
            for fd in fds:
                os.close(fd)
            what, _, why = (answer.error or "an answer without its sockets").partition(": ")
            raise UserError(what if why else "the port's front", why or what)
    except ChannelClosedError as error:
        channel.close()
        raise FrontGoneError("the port's front", "it left") from error
    except BaseException:
        channel.close()
        raise
    return channel, dict(zip(JOINED_DESCRIPTORS, fds, strict=True))


def listen_address(config: WorkerConfig) -> tuple[str, int]:
    """Numeric."""
    return str(IPv4Address(config.listen_ip)), config.listen_port
