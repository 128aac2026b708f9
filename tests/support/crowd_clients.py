"""Many clients in one process, each with a session of its own and nothing else; runs inside a namespace.

``python -m tests.support.crowd_clients SPEC.json``: where the server is, its key, each client's short id and address.
A line of input is how many are to be up; a line of output is JSON: how many are, and what those sessions said that
ended. The handshakes and the sessions are the product's; there is no device, and packets inside are nobody's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from ipaddress import ip_interface
from pathlib import Path
from random import SystemRandom
from typing import Any

from qre.dataplane.install import handed_over_install
from qre.dataplane.protocol import SessionBegun, SessionConfirmed, SessionLost, underlay_of
from qre.ends import Role
from qre.errors import QreError
from qre.kernel.udp.underlay_sockets import client_socket
from qre.quic.client.client_handshake import ClientHandshake
from qre.visit.exchange import shake_hands
from qre.visit.visitor_files import load_fingerprint, load_trust
from qre.wire.overhead import BROWSER_UDP_PAYLOAD
from qre.workers.dataplane.registry import Registry
from tests.support.dataplane import fresh_marks

#: Handshakes at a time.
AT_ONCE = 8
PATIENCE = 20.0
#: Datagrams read in one turn of a socket.
TURN = 16


class Client:
    """One of them, from its handshake on."""

    def __init__(self, crowd: Crowd, short_id: str, address: str) -> None:
        self.crowd, self.short_id, self.address = crowd, bytes.fromhex(short_id), ip_interface(address)
        self.confirmed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self) -> None:
        """Raises QreError; TimeoutError when the server never uses the session."""
        crowd = self.crowd
        made = self.socket = client_socket("", 0)
        made.connect(crowd.peer)
        handshake = ClientHandshake(
            server_name=crowd.spec["server_name"],
            public_key=bytes.fromhex(crowd.spec["public_key"]),
            short_id=self.short_id,
            addresses=(self.address,),
            fingerprint=crowd.fingerprint,
            trust=crowd.trust,
            unix_time=int(time.time()),
            now=time.monotonic(),
            random=crowd.random,
        )
        await shake_hands(handshake, made, crowd.peer, "the server", PATIENCE)
        handed_over = handshake.hand_over(time.monotonic())
        install = handed_over_install(
            handed_over,
            Role.CLIENT,
            underlay_of(made.getsockname(), crowd.peer),
            largest_payload=BROWSER_UDP_PAYLOAD,
        )
        answer = crowd.registry.answer(install, time.monotonic())
        if answer.refusal is not None:
            raise QreError("install", answer.error)
        self.session = crowd.registry.sessions[install.session_id]
        asyncio.get_running_loop().add_reader(made.fileno(), self._readable)
        self._settle()
        async with asyncio.timeout(PATIENCE):
            await self.confirmed.wait()

    def _readable(self) -> None:
        for _ in range(TURN):
            try:
                data = self.socket.recv(2048)
            except BlockingIOError:
                break
            except OSError:
                continue
            self.session.open_datagrams([data], self.crowd.peer, 0, time.monotonic())
        self._settle()

    def _fired(self) -> None:
        self.session.handle_timer(time.monotonic())
        self._settle()

    def _settle(self) -> None:
        session = self.session
        for packet, *_ in session.outbox:
            try:
                self.socket.send(packet)
            except OSError:
                self.crowd.ended["send"] += 1
        session.outbox.clear()
        for event in session.events:
            match event:
                case SessionBegun() | SessionConfirmed():
                    self.confirmed.set()
                case SessionLost(reason=reason):
                    self.crowd.ended[reason] += 1
                    asyncio.get_running_loop().remove_reader(self.socket.fileno())
                    return
        session.events.clear()
        if self._timer is not None:
            self._timer.cancel()
        wait = max(0.0, session.deadline() - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait, self._fired)


class Crowd:
    """All of them."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.peer = (spec["ip"], spec["port"])
        self.fingerprint, self.trust, self.random = load_fingerprint(), load_trust(), SystemRandom()
        self.ended: Counter[str] = Counter()
        self.registry = Registry(fresh_marks(), Counter(), os.urandom)
        self.waiting = [Client(self, *each) for each in spec["clients"]]
        self.up: list[Client] = []
        self.failed: Counter[str] = Counter()

    async def grow(self, count: int) -> None:
        """Until so many are up, or everybody has tried."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(client: Client) -> None:
            async with places:
                try:
                    await client.connect()
                except (QreError, TimeoutError) as error:
                    self.failed[str(error)[:80] or type(error).__name__] += 1
                else:
                    self.up.append(client)

        beginning = [self.waiting.pop() for _ in range(min(count - len(self.up), len(self.waiting)))]
        await asyncio.gather(*map(one, beginning))

    def told(self) -> dict[str, Any]:
        return {"up": len(self.up) - sum(self.ended.values()), "ended": self.ended, "failed": self.failed}


async def main() -> None:
    crowd = Crowd(json.loads(Path(sys.argv[1]).read_text()))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await crowd.grow(int(line))
        print(json.dumps(crowd.told()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
