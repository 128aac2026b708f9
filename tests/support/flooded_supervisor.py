"""What a worker that was taken over costs the supervisor, and the other workers: real routers, real processes.

``python -m tests.support.flooded_supervisor KIND SECONDS DIRECTORY`` runs the supervisor's part and says as JSON how
large it was (MB) and how long the innocent worker's heartbeats took (seconds).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import zmq
import zmq.asyncio

from qre.dest_profile import MAX_SPOKEN, MAX_VISITS, DestProfile, RecordedVisit, Spoken
from qre.ends import Role
from qre.ipc.messages import (
    MAX_MESSAGE,
    CidSync,
    DestAddressReport,
    DestProfileReport,
    Done,
    Envelope,
    Heartbeat,
    Hello,
    NetworkChanged,
    Party,
    WorkerConfig,
)
from qre.ipc.tasks import Tasks
from qre.ipc.worker import LimitedLog
from qre.structs import Message, decoder, encoder
from qre.supervisor.dest_reports import DestReports
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.router import Router, endpoint

#: Who floods with what, and who is to be left alone.
FLOODS: Final = {
    "profiles": (Party.HANDSHAKE, Party.NETLINK),
    "connection-ids": (Party.HANDSHAKE, Party.BPF_LOADER),
    "news": (Party.NETLINK, Party.HANDSHAKE),
    "largest": (Party.HANDSHAKE, Party.NETLINK),
}
#: Seconds that the innocent worker takes for each message.
_SLOW: Final = 0.002
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def messages(kind: str) -> Iterator[Envelope]:
    """Without end."""
    spoken = tuple(
        Spoken(asked=True, at_us=n, length=1200, eliciting=True, acknowledged=0) for n in range(MAX_SPOKEN)
    )
    visits = (RecordedVisit(round_trip_us=1, spoken=spoken),) * MAX_VISITS
    body: Any = {
        "profiles": DestProfileReport(profile=DestProfile(reachable=True, checked_at=1, visits=visits)),
        "connection-ids": CidSync(connection_ids=tuple(os.urandom(20) for _ in range(4096))),
        "news": NetworkChanged(),
    }[kind]
    peer = {"profiles": Party.SUPERVISOR, "connection-ids": Party.BPF_LOADER, "news": Party.HANDSHAKE}[kind]
    number = 0
    while True:
        number += 1
        yield Envelope(peer=peer, id=number if kind == "connection-ids" else 0, body=body)


def flood(runtime: str, kind: str, seconds: float) -> None:
    """The worker that was taken over."""
    at, end = endpoint(Path(runtime), FLOODS[kind][0]), time.monotonic() + seconds
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.setsockopt(zmq.SNDTIMEO, 100)
    dealer.connect(at)
    write = encoder().encode
    dealer.send(write(Envelope(peer=Party.SUPERVISOR, body=Hello(role=FLOODS[kind][0], pid=os.getpid()))))
    time.sleep(0.3)
    if kind == "largest":
        pushers = [threading.Thread(target=push_largest, args=(at.removeprefix("ipc://"), end)) for _ in range(3)]
        for each in pushers:
            each.start()
        for each in pushers:
            each.join()
        return
    for envelope in messages(kind):
        if time.monotonic() > end:
            return
        with contextlib.suppress(zmq.Again):
            dealer.send(write(envelope))


def push_largest(path: str, end: float) -> None:
    """Frames of the largest size, over one more connection."""
    frame = b"\x02" + struct.pack(">Q", MAX_MESSAGE) + b"\x93" * MAX_MESSAGE
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(seconds := max(0.1, end - time.monotonic()))
        made.connect(path)
        made.sendall(_GREETING + b"\x04" + bytes([len(_READY)]) + _READY)
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                made.settimeout(seconds)
                made.sendall(frame)


def answer(runtime: str, party: Party) -> None:
    """The innocent worker."""
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(endpoint(Path(runtime), party))
    read, write = decoder(Envelope).decode, encoder().encode
    dealer.send(write(Envelope(peer=Party.SUPERVISOR, body=Hello(role=party, pid=os.getpid()))))
    while True:
        asked = read(dealer.recv())
        time.sleep(_SLOW)
        if asked.id:
            dealer.send(write(Envelope(peer=asked.peer, id=asked.id, answer=True, body=Done())))


class Flooded:
    """The supervisor's part, without its processes and privileges."""

    def __init__(self, runtime: Path, parties: tuple[Party, ...]) -> None:
        context = zmq.asyncio.Context()
        said = LimitedLog(SimpleNamespace(log=lambda level, *words: None))  # type: ignore[arg-type]
        self.stages = dict.fromkeys(parties, WorkerStage.SPAWNED)
        self.routers: dict[Party, Router] = {}
        for party in parties:
            (runtime / party.value).mkdir()
            self.routers[party] = Router(context, runtime, party, said)
            self.routers[party].stage = self._stage_of(party)
        self.config = WorkerConfig(
            profile="p", device="d", role=Role.SERVER, address=(), mtu=1400, keepalive_s=0, allowed_ips=(),
            server_name="x", user_dataplane=False,
        )  # fmt: skip
        ready = SimpleNamespace(stage=WorkerStage.READY)
        members: Any = {party: SimpleNamespace(router=router, life=ready) for party, router in self.routers.items()}
        self.tasks = Tasks(lambda error: sys.exit(str(error)))
        self.reports = DestReports(members, lambda: self.config, self._use, lambda found: None, self.tasks)
        for router in self.routers.values():
            self.tasks.spawn(router.serve(self._handle, self.routers))

    def _use(self, config: WorkerConfig) -> None:
        self.config = config

    def _stage_of(self, party: Party) -> Callable[[], WorkerStage]:
        return lambda: self.stages[party]

    async def _handle(self, source: Party, message: Message) -> Message | None:
        if isinstance(message, Hello):
            self.stages[source] = WorkerStage.READY
        elif isinstance(message, DestProfileReport | DestAddressReport):
            self.reports.take(message)
        return None


def largest(pid: int) -> int:
    """The most memory that a process has had at a time (bytes). (getrusage(2) would know of the one before exec(2),
    too.)"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


async def measure(kind: str, seconds: float, runtime: Path) -> dict[str, Any]:
    parties = FLOODS[kind]
    flooded = Flooded(runtime, parties)
    start = multiprocessing.get_context("spawn").Process
    workers = [
        start(target=answer, args=(str(runtime), parties[1])),
        start(target=flood, args=(str(runtime), kind, seconds)),
    ]
    for each in workers:
        each.start()
    took: list[float] = []
    try:
        while WorkerStage.SPAWNED in flooded.stages.values():
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        while workers[1].is_alive():
            began = loop.time()
            got = await flooded.routers[parties[1]].forward(Party.SUPERVISOR, Heartbeat(), 10.0)
            took.append(loop.time() - began if isinstance(got, Done) else 10.0)
            await asyncio.sleep(0.05)
    finally:
        for each in workers:
            each.kill()
    return {
        "megabytes": largest(os.getpid()) >> 20,
        "heartbeats": len(took),
        "slowest": max(took),
        "dropped": flooded.routers[parties[0]].dropped,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])))), flush=True)
    os._exit(0)
