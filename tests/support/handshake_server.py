"""The server's half of the handshake worker in this process, on real sockets: for looking inside while it works.

Real: the worker's own code, the kernel's sockets, Dest. Fake, and named so: the supervisor's context, a BPF loader
that agrees to everything, and a data plane that keeps real sessions but moves no packets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.dataplane.protocol import DataplaneRequest
from qre.ends import Role
from qre.errors import MachineError
from qre.ipc.channel import Channel
from qre.ipc.messages import Done, Party, VisitDest, WorkerConfig
from qre.ipc.worker import WorkerContext
from qre.kernel.udp.control_messages import never_fragment, report_local
from qre.profile_secrets import ProfileSecrets
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.handshake_events import ClientEvent, Closed, HandOverReady
from qre.structs import Message
from qre.supervisor.parent.process_settings import empty_memfd
from qre.visit.visitor_files import load_fingerprint
from qre.wire.packet import PacketType, packets_untrusted
from qre.workers.dataplane.registry import Registry
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.handshake.server import Server
from qre.workers.handshake.sessions.secrets import SecretsStore
from qre.workers.visit.main import VisitWorker
from tests.support.daemons import PATIENCE
from tests.support.site import NAME

SHORT_ID = bytes.fromhex("0123456789abcdef")
ADDRESS = "10.77.0.2/24"


class Here:
    """The namespace that this process is in, for what wants one."""

    prefix: Sequence[str] = ()

    def run(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    def popen(
        self, command: Sequence[str], *, env: dict[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        with open(log or os.devnull, "ab") as output:
            return subprocess.Popen(
                command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )


class FakeContext:
    """What a worker has of the world, without a supervisor."""

    def __init__(self, config: WorkerConfig, descriptors: dict[str, int], trust: TrustStore) -> None:
        self.role = Party.HANDSHAKE
        self.trust = trust
        self.config = config
        self.descriptors = descriptors
        self.numbered: dict[tuple[str, int], int] = {}
        self.log = logging.getLogger("test")
        self.sent: list[Message] = []
        self.asked: list[Message] = []
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.loader_away = False

    def limited(self, key: str, text: str, level: int = logging.WARNING) -> None:
        self.lines.append(text)

    async def send(self, to: Party, message: Message) -> None:
        self.sent.append(message)

    async def request(self, to: Party, message: Message, timeout: float = 5.0) -> Message:
        if self.loader_away:
            raise MachineError("bpf_loader", "it is being restarted")
        self.asked.append(message)
        return await self.visit(message) if isinstance(message, VisitDest) else Done()

    async def visit(self, message: VisitDest) -> Message:
        """By the visit worker's own code, in this process."""
        return await VisitWorker(load_fingerprint(), self.trust).handle(Party.HANDSHAKE, message)

    def fail(self, reason: str) -> None:
        self.failures.append(reason)

    def internal_error(self, error: BaseException) -> None:
        self.fail(repr(error))


class FakeDataplane:
    """Answers requests with a real registry; what its sessions want to send goes nowhere."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel: Channel[DataplaneRequest] = Channel(sock, DataplaneRequest)
        marks = empty_memfd("number_marks")
        self.registry = Registry(NumberMarks(marks), Counter(), os.urandom)
        os.close(marks)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._readable)

    def _readable(self) -> None:
        while (received := self._channel.receive()) is not None:
            request, fds = received
            for fd in fds:
                os.close(fd)
            self._channel.send(self.registry.answer(request, time.monotonic()))

    def tell(self, report: object) -> None:
        self._channel.send(report)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class InProcessServer:
    """``async with`` it; ``dest`` is where strangers are relayed to. With ``front`` it joins the port of that one."""

    def __init__(
        self,
        dest: tuple[str, int],
        authority: Path | None = None,
        *,
        front: InProcessServer | None = None,
        short_id: bytes = SHORT_ID,
        listen: str = "127.0.0.1",
        **settings: Any,
    ) -> None:
        self._listen = listen
        self.key = X25519PrivateKey.generate() if front is None else front.key
        self._front = front
        self._guests = 0
        self.short_id = short_id
        self._dest = dest
        self._authority = authority
        self._settings = settings
        self.port = free_port() if front is None else front.port
        self.replay = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self.leases = tempfile.TemporaryFile()  # noqa: SIM115 - as above
        self.secrets_fd = empty_memfd("session_secrets")

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def __aenter__(self) -> InProcessServer:
        await self.start()
        return self

    async def start(self) -> None:
        config = WorkerConfig(
            profile="server0",
            device="server0",
            role=Role.SERVER,
            address=(ip_interface("10.77.0.1/24"),),
            mtu=1380,
            keepalive_s=0,
            allowed_ips=(),
            server_name=NAME,
            listen_ip=self._listen,
            listen_port=self.port,
            dest_host=self._dest[0],
            dest_port=self._dest[1],
            joined=self._front is not None,
            **self._settings,
        )
        files = {"replay": os.dup(self.replay.fileno()), "leases": os.dup(self.leases.fileno())}
        descriptors = {"udp_userspace": self._make_socket(), **files}
        feed, its_feed = Channel.pair()
        if self._front is not None:
            descriptors["front_feed"] = its_feed.detach()
        trust = TrustStore.from_pem(self._authority.read_bytes(), "test") if self._authority else TrustStore([], "")
        self.context = FakeContext(config, descriptors, trust)
        self.secrets = secrets = ProfileSecrets(private_key=self.key.private_bytes_raw(), short_ids=(self.short_id,))
        self.store = SecretsStore(self.secrets_fd)
        context = cast(WorkerContext, self.context)  # a fake one
        self.server = Server(context, secrets, self.store)
        await self.server.start()
        ours, theirs = Channel.pair()
        self.dataplane = FakeDataplane(theirs)
        self.server.link.use(ours.detach())
        if self._front is not None:
            self._front._guests += 1
            number = self._front._guests
            self._front.server.guest_joins(number, f"server{number}", secrets, feed.detach())
        for each in (feed, its_feed):
            each.close()

    def _make_socket(self) -> int:
        if self._front is not None:
            return os.dup(self._front.udp)
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        never_fragment(made)
        if self._listen == "0.0.0.0":
            report_local(made)
        made.bind((self._listen, self.port))
        self.udp = made.fileno()  # the server's, while it runs
        return made.detach()

    async def stop(self) -> None:
        await self.server.stop()
        self.dataplane.close()
        self.store.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        self.replay.close()
        self.leases.close()
        os.close(self.secrets_fd)


@dataclass
class Visitor:
    """A real client handshake on a socket of its own; ``sent`` keeps its datagrams."""

    server: InProcessServer
    short_id: bytes = SHORT_ID
    public_key: bytes | None = None
    authority: Path | None = None
    hold_second: float = 0.0  # how long the second datagram is late
    address: str = ADDRESS
    to: str = "127.0.0.1"  # of the server's addresses
    injected: Callable[[bytes], bytes] | None = None  # what somebody sends behind the first flight, which this sees
    events: list[ClientEvent] = field(default_factory=list)
    port: int = 0  # that it spoke from
    sent: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)  # where that came from
    received_at: list[float] = field(default_factory=list)  # monotonic
    finished_at: float = 0.0  # when its first Handshake packet left

    @staticmethod
    def _has_finished(data: bytes) -> bool:
        return any(each.type is PacketType.HANDSHAKE for each in packets_untrusted(data, short_cid_length=0))

    async def run(self, timeout: float = 60.0) -> Visitor:
        """Until HandOverReady or Closed."""
        trust = TrustStore.from_pem(self.authority.read_bytes(), "test") if self.authority else TrustStore([], "")
        server = self.to, self.server.port
        known = self.server.key.public_key().public_bytes_raw()
        self.handshake = ClientHandshake(
            server_name=NAME,
            public_key=known if self.public_key is None else self.public_key,
            short_id=self.short_id,
            addresses=(ip_interface(self.address),),
            fingerprint=load_fingerprint(),
            trust=trust,
            unix_time=int(time.time()),
            now=time.monotonic(),
            random=SystemRandom(),
        )
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
            self.handshake.connect(server, time.monotonic())
            end = time.monotonic() + timeout
            while time.monotonic() < end:
                for data in self.handshake.datagrams_to_send(time.monotonic()):
                    if len(self.sent) == 1 and self.hold_second:
                        await asyncio.sleep(self.hold_second)
                    sock.sendto(data, server)
                    self.sent.append(data)
                    if len(self.sent) == 2 and self.injected is not None:
                        sock.sendto(self.injected(data), self.server.address)
                    if not self.finished_at and self._has_finished(data):
                        self.finished_at = time.monotonic()
                while (event := self.handshake.next_event()) is not None:
                    self.events.append(event)
                if any(isinstance(event, HandOverReady | Closed) for event in self.events):
                    return self
                at = self.handshake.timer()
                wait = min(0.5, 1.0 if at is None else max(0.0, at - time.monotonic()))
                try:
                    data, source = await asyncio.wait_for(loop.sock_recvfrom(sock, 65_535), wait)
                except TimeoutError:
                    self.handshake.handle_timer(time.monotonic())
                else:
                    self.received.append(data)
                    self.sources.add(source[0])
                    self.received_at.append(time.monotonic())
                    self.handshake.datagram_received(data, source, time.monotonic())
        return self

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]
