"""Workers that misbehave, for tests of the supervisor: real processes in the real sandbox, another module inside.

``python -m tests.support.strange_daemon daemon PROFILE`` is ``qre-tool daemon PROFILE``, but that the roles which
QRE_STRANGE names (``handshake=forges,dataplane=hangs``) run the behaviour of that name instead of their own module.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import time
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from types import ModuleType
from typing import Any

from qre.dataplane.status import DeviceCounters
from qre.dest_profile import MAX_SPOKEN, MAX_VISITS, DestProfile, RecordedVisit, Spoken
from qre.errors import MachineError, QreError
from qre.ipc import journal, messages
from qre.ipc.journal import WritingEnd
from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from qre.ipc.worker import WorkerContext, run_worker
from qre.structs import Message
from qre.supervisor import crew
from qre.supervisor import supervisor as main
from qre.supervisor.members import heartbeats, life, supervised

#: Seconds that the supervisor waits for what a behaviour never does, instead of its own. For everything else it has
#: its own: a busy machine needs them.
IMPATIENCE: dict[str, tuple[tuple[ModuleType, str, float], ...]] = {
    "hangs": ((heartbeats, "_INTERVAL", 0.2), (heartbeats, "_TIMEOUT", 3.0)),
    "hangs-starting": ((crew, "_START_TIMEOUT", 10.0),),
    "hangs-stopping": ((main, "_STOP_TIMEOUT", 5.0),),
}
STATUS: dict[Party, Message] = {
    Party.HANDSHAKE: messages.HandshakeStatus(up=False, text="strange"),
    Party.DATAPLANE: messages.DataplaneStatus(counters=DeviceCounters(), sessions=()),
    Party.NETLINK: messages.NetlinkStatus(device_present=True, link_up=True),
    Party.BPF_LOADER: messages.LoaderStatus(
        attached=False, program="", routed_cid_len=20, map_entries=0, connection_ids=()
    ),
}


class Quiet:
    """Does nothing, and says how often it was told of a configuration."""

    def __init__(self) -> None:
        self.reloads = 0
        self.secrets = 0

    async def start(self, context: WorkerContext) -> None:
        self.context = context
        await self.begin()

    async def begin(self) -> None:
        await self.say(f"quiet: {context_names(self.context)}")

    async def say(self, text: str, *, up: bool = False) -> None:
        if self.context.role is Party.HANDSHAKE:
            await self.context.send(Party.SUPERVISOR, messages.RoleState(up=up, text=text))

    def later(self, seconds: float, deed: Any, *arguments: object) -> None:
        asyncio.get_running_loop().call_later(seconds, deed, *arguments)

    async def reload(self) -> None:
        self.reloads += 1
        await self.say(f"reloaded {self.reloads}, secrets {self.secrets}, mtu {self.context.config.mtu}")

    async def handle(self, source: Party, message: Message) -> Message:
        raise QreError("strange worker", "it answers nothing")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        self.secrets += name == "profile_secrets"
        os.close(fd)

    async def status(self) -> Message:
        return STATUS[self.context.role]

    async def stop(self) -> None:
        return None


def context_names(context: WorkerContext) -> str:
    return " ".join(sorted(context.descriptors))


class Up(Quiet):
    """Says that a session is up."""

    async def begin(self) -> None:
        await self.say("connected", up=True)


class Dies(Quiet):
    """Ends soon after it was ready, each time."""

    async def begin(self) -> None:
        self.later(0.05, os._exit, 3)


class DiesStarting(Quiet):
    async def begin(self) -> None:
        os._exit(3)


class Fails(Quiet):
    """Has a defect: an exception where none is expected, with something in it that must not be told."""

    async def begin(self) -> None:
        raise ValueError("the key is 0123456789")


class Refuses(Quiet):
    async def begin(self) -> None:
        raise MachineError("strange worker", "this machine has no left shoe", "buy a pair")


class Hangs(Quiet):
    """Blocks for good soon after it was ready."""

    async def begin(self) -> None:
        self.later(0.3, time.sleep, 3600)


class HangsStarting(Quiet):
    async def begin(self) -> None:
        time.sleep(3600)


class HangsStopping(Quiet):
    async def stop(self) -> None:
        time.sleep(3600)


class NoReload(Quiet):
    async def reload(self) -> None:
        raise MachineError("strange worker", "any reload, but not this one")


class Forges(Quiet):
    """Sends what its role may not, what nobody may, and what is no message."""

    async def begin(self) -> None:
        self.later(0.1, lambda: asyncio.ensure_future(self.forge()))

    async def forge(self) -> None:
        send = self.context.send
        await send(Party.BPF_LOADER, messages.Stop())
        await send(Party.NETLINK, messages.Stop())
        await send(Party.DATAPLANE, messages.Heartbeat())
        await send(Party.SUPERVISOR, messages.Hello(role=Party.NETLINK, pid=1))
        await send(Party.SUPERVISOR, messages.LinkGone(device=self.context.config.device))
        await send(Party.SUPERVISOR, messages.Stop())
        await send(Party.HANDSHAKE, messages.CidSync(connection_ids=()))
        device = messages.SyncDevice(
            device="lo", address=(ip_interface("192.0.2.1/32"),), mtu=1400, allowed_ips=(ip_network("0.0.0.0/0"),)
        )
        await send(Party.NETLINK, device)
        dealer = self.context._dealer
        for data in (b"", b"\xff" * 4000, pickle.dumps(Bomb()), b"\x91" * 60_000):
            await dealer.send(data)
        await self.say("forged everything")


class Bomb:
    """Kills whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.kill, (0, signal.SIGKILL)


class HandsUp(Quiet):
    """Hands the supervisor a descriptor that nobody asked for."""

    async def begin(self) -> None:
        fd = os.eventfd(0)
        for name in ("program", "tun"):
            self.later(0.1, self.context.send_descriptor, name, fd)


class Unpicklable(Quiet):
    """Sends the supervisor a pickle over its descriptor channel."""

    async def begin(self) -> None:
        self.later(0.1, lambda: self.context._channel._socket.send(pickle.dumps(Bomb())))


class Chatters(Quiet):
    """Talks without end."""

    async def begin(self) -> None:
        self.task = asyncio.ensure_future(self.chatter())

    async def chatter(self) -> None:
        for number in range(5000):
            await self.say(f"chatter {number}")
            await self.context.send(
                Party.SUPERVISOR,
                messages.DestProfileReport(profile=DestProfile(reachable=True, checked_at=number)),
            )
        await self.say("last words\nMAINPID=1\x1b[2J")


class Floods(Quiet):
    """Sends the largest that it may as fast as it can, for a while."""

    async def begin(self) -> None:
        self.task = asyncio.ensure_future(self.flood())

    async def flood(self) -> None:
        spoken = tuple(
            Spoken(asked=True, at_us=n, length=1200, eliciting=True, acknowledged=0) for n in range(MAX_SPOKEN)
        )
        visits = (RecordedVisit(round_trip_us=1, spoken=spoken),) * MAX_VISITS
        profile = DestProfile(reachable=True, checked_at=1, visits=visits)
        cids = messages.CidSync(connection_ids=tuple(os.urandom(20) for _ in range(4096)))
        asked = [
            messages.Envelope(peer=Party.SUPERVISOR, body=messages.DestProfileReport(profile=profile)),
            messages.Envelope(peer=Party.BPF_LOADER, id=1 << 40, body=cids),
        ]
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for envelope in asked:
                await self.context._transmit(envelope)
        await asyncio.sleep(1)
        await self.say("flooded")


class Asks(Quiet):
    """A client that takes more sockets than there are for it."""

    async def begin(self) -> None:
        self.later(0.1, lambda: asyncio.ensure_future(self.ask()))

    async def ask(self) -> None:
        granted = 0
        try:
            while granted < 100:
                await self.context.request(Party.SUPERVISOR, messages.SocketRequest(peer="192.0.2.1", port=443))
                granted += 1
        except QreError as error:
            await self.say(f"{granted} sockets: {error}")


class Points(Quiet):
    """Tries each of its descriptors on the datagram socket of another program, which is beside the journal's."""

    async def begin(self) -> None:
        self.context.log.warning("a line of its own\nQRE_DEVICE=forged")
        self.later(0.1, lambda: asyncio.ensure_future(self.point()))

    async def point(self) -> None:
        place = os.environ["QRE_STRANGE_JOURNAL"] + ".other"
        reached = []
        for fd in range(256):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as made:
                if (made.family, made.type) == (socket.AF_UNIX, socket.SOCK_DGRAM):
                    reached.append(f"{fd}, {made.sendto(b'tulip', place)} bytes")
                if made.family == socket.AF_UNIX:
                    made.connect(place)
                    reached.append(f"{fd}, connected")
        await self.say(f"reached by {reached}")


class Holds(Quiet):
    """A client with one socket: says which ones it has, after a restart too."""

    async def begin(self) -> None:
        held = [number for name, number in self.context.numbered if name == "client_udp"]
        if held:
            await self.say(f"socket {held} is here again")
        else:
            self.later(0.1, lambda: asyncio.ensure_future(self.ask()))

    async def ask(self) -> None:
        await self.context.request(Party.SUPERVISOR, messages.SocketRequest(peer="192.0.2.1", port=443))
        await self.say("socket 1 is here")


BEHAVIOURS = {
    "quiet": Quiet, "up": Up, "dies": Dies, "dies-starting": DiesStarting, "fails": Fails, "refuses": Refuses,
    "hangs": Hangs, "hangs-starting": HangsStarting, "hangs-stopping": HangsStopping, "forges": Forges,
    "hands-up": HandsUp, "no-reload": NoReload, "unpicklable": Unpicklable,
    "chatters": Chatters, "asks": Asks, "holds": Holds, "floods": Floods, "points": Points,
}  # fmt: skip


def create() -> Quiet:
    return BEHAVIOURS[os.environ["QRE_STRANGE_NOW"]]()


def strange(party: Party) -> str:
    """The behaviour that QRE_STRANGE gives this role; empty: its own."""
    pairs = (entry.split("=") for entry in os.environ.get("QRE_STRANGE", "").split(",") if entry)
    return next((behaviour for role, behaviour in pairs if role == party.value), "")


def run_strange_worker(party: Party, sock: socket.socket, endpoint: str, says: WritingEnd | None = None) -> None:
    behaviour = strange(party)
    if behaviour:
        os.environ["QRE_STRANGE_NOW"] = behaviour
        ROLES[party] = replace(ROLES[party], module=__name__)
    run_worker(party, sock, endpoint, says)


def run_strange_supervisor(sock: socket.socket, parent: int, log_level: str) -> None:
    """The real one, less patient, with other workers."""
    supervised.run_worker = run_strange_worker
    for party in Party:
        for module, name, seconds in IMPATIENCE.get(strange(party), ()):
            setattr(module, name, seconds)
    life.LONGEST_PAUSE = 0.8
    journal.SOCKET = os.environ.get("QRE_STRANGE_JOURNAL", journal.SOCKET)  # type: ignore[misc]
    main.run_supervisor(sock, parent, log_level)
