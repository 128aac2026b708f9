"""One UDP port, several server daemons: the one that has it is its *front*, the others join it.

The front listens on ``RuntimeDir/<ip>_<port>_<namespace>.front`` (``front_listener``) and holds the lock of the same
name. A daemon that finds the lock taken joins instead: it describes itself and hands over its profile's secrets,
which only the two handshake workers read; the settings that must be equal are compared. It is answered with
duplicates of the port's two sockets and its end of the feed that its clients come through. The connection stays open:
its end means that the other daemon is gone, and the first daemon to notice takes the front's place.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from qre.addresses import host_port
from qre.device.control_client import front_path
from qre.errors import MachineError, UserError
from qre.ipc.channel import Channel, ChannelClosedError
from qre.ipc.messages import WorkerConfig
from qre.structs import U16, U64, ListenAddresses, Message, Text

_JOIN_TIMEOUT: Final = 20.0
_RETRY: Final = 0.1
#: Of the front's answer to a reload (seconds).
_TELL_TIMEOUT: Final = 10.0
_LOOK: Final = 0.02


class Join(Message, frozen=True, kw_only=True):
    """A daemon asks to share this port; comes with the memfd of its profile's secrets. Once more after each reload of
    its, then with one end of a pair, too, on which ``Joined`` answers: what the connection itself says is its end."""

    profile: Text
    device: Annotated[str, msgspec.Meta(max_length=15)]
    server_name: Text
    dest: Text
    max_time_diff_ms: U64
    replay_store: Text = ""
    listen_only: ListenAddresses = ()  # in an order of their own
    routed_cid_len: U16
    user_dataplane: bool


class Joined(Message, frozen=True, kw_only=True):
    """The answer; without ``error`` it comes with ``udp_userspace``, ``udp_kernel_slot`` and ``front_feed``."""

    error: Text = ""


class Steered(Message, frozen=True, kw_only=True):
    """After ``Joined``: the port's BPF objects, and the front's device, which names the pins. A socket is in one
    socket map at most, so the successor takes over the map."""

    device: Annotated[str, msgspec.Meta(max_length=15)]


#: In the order of the messages' descriptors.
JOINED_DESCRIPTORS: Final = ("udp_userspace", "udp_kernel_slot", "front_feed")
STEERED_DESCRIPTORS: Final = ("cid_routes", "sockets", "program")


def join_of(config: WorkerConfig) -> Join:
    """A daemon's description of itself."""
    return Join(
        profile=config.profile,
        device=config.device,
        server_name=config.server_name,
        dest=host_port(config.dest_host, config.dest_port),
        max_time_diff_ms=config.max_time_diff_ms,
        replay_store=config.replay_store,
        listen_only=tuple(sorted(config.listen_only, key=str)),
        routed_cid_len=config.routed_cid_len,
        user_dataplane=config.user_dataplane,
    )


def refusal(own: Join, its: Join) -> str:
    """Why the two cannot share a port, by their public settings; empty when they can."""
    if own.user_dataplane or its.user_dataplane:
        return "a port is shared on the kernel's data plane only; set Dataplane = kernel, or choose another port"
    compared = (
        ("Listen", _addresses(own), _addresses(its)),
        ("ServerName", own.server_name.lower(), its.server_name.lower()),
        ("Dest", own.dest, its.dest),
        ("RealityMaxTimeDiff", f"{own.max_time_diff_ms} ms", f"{its.max_time_diff_ms} ms"),
        ("ReplayStore", own.replay_store or "not set", its.replay_store or "not set"),
        ("RoutedCidLen", str(own.routed_cid_len), str(its.routed_cid_len)),
    )
    for name, ours, theirs in compared:
        if ours != theirs:
            return f"{name} is {theirs}, and {ours} at the port's front ({own.profile}); make them equal"
    return ""


def _addresses(join: Join) -> str:
    return ", ".join(map(str, join.listen_only)) or "every address"


@dataclass
class GuestDaemon:
    """A joined daemon, as the front's supervisor holds it: descriptors for handshake workers to come."""

    number: int
    profile: str
    secrets: int
    feed: int

    def close(self) -> None:
        """Close both descriptors; handshake workers that were handed them keep theirs."""
        os.close(self.secrets)
        os.close(self.feed)


# --- the other side, in the parent of a daemon that joins ---

FrontChannel = Channel[Joined | Steered]


class FrontGoneError(MachineError):
    """No front answers at the port's socket (yet, or any longer)."""


def join_front(runtime: Path, name: str, join: Join, secrets: int) -> tuple[FrontChannel, str, dict[str, int]]:
    """The connection, which must be kept open, the front's device, and the descriptors by name. Blocks for a bounded
    time.

    Raises UserError when the front refuses, FrontGoneError when there is none.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deadline = time.monotonic() + _JOIN_TIMEOUT
    try:
        connection.connect(str(front_path(runtime, name)))
    except OSError as error:
        connection.close()
        raise FrontGoneError("the port's front", os.strerror(error.errno or 0)) from error
    channel: FrontChannel = Channel(connection, Joined | Steered)
    held: dict[str, int] = {}
    device = ""
    try:
        channel.send(join, [secrets])
        for names in (JOINED_DESCRIPTORS, STEERED_DESCRIPTORS):
            answer, fds = _answer(channel, deadline)
            held |= {f"{number}": fd for number, fd in enumerate(fds, len(held))}
            refused = answer.error if isinstance(answer, Joined) else ""
            if refused or len(fds) != len(names):
                raise _refused(refused or "an answer without its descriptors")
            device = answer.device if isinstance(answer, Steered) else device
    except BaseException as error:
        for fd in held.values():
            os.close(fd)
        channel.close()
        if isinstance(error, ChannelClosedError):
            raise FrontGoneError("the port's front", "it closed the connection") from error
        raise
    return channel, device, dict(zip((*JOINED_DESCRIPTORS, *STEERED_DESCRIPTORS), held.values(), strict=True))


async def tell_front(connection: int, join: Join, secrets: int) -> None:
    """A daemon that has joined was reloaded, and has other clients. Raises UserError when the front refuses that, and
    MachineError when it does not answer."""
    front: FrontChannel = Channel(socket.socket(fileno=os.dup(connection)), Joined | Steered)
    ours, theirs = Channel.pair()
    answers: Channel[Joined] = Channel(ours, Joined)
    try:
        with theirs:
            front.send(join, [secrets, theirs.fileno()])
        async with asyncio.timeout(_TELL_TIMEOUT):
            while (received := answers.receive()) is None:
                await asyncio.sleep(_LOOK)
    except TimeoutError:
        raise MachineError("the port's front", f"no answer in {_TELL_TIMEOUT:g} s") from None
    except ChannelClosedError as error:
        raise FrontGoneError("the port's front", "it closed the connection") from error
    finally:
        front.close()
        answers.close()
    if received[0].error:
        raise _refused(received[0].error)


def _refused(error: str) -> UserError:
    what, _, why = error.partition(": ")
    return UserError(what if why else "the port's front", why or what)


def _answer(channel: FrontChannel, deadline: float) -> tuple[Joined | Steered, list[int]]:
    while (received := channel.receive()) is None:
        if time.monotonic() > deadline:
            raise FrontGoneError("the port's front", f"no answer in {_JOIN_TIMEOUT:g} s")
        time.sleep(_RETRY)
    return received
