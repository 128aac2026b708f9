"""Visits one after the other, by the client's own handshake: ``python -m tests.bench.likeness.visits``.

Reads a JSON object from standard input and prints one line for each visit: its side, its port, and whether it ended
as it should. The sides take turns, so that whatever else happens on the machine happens to all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from random import SystemRandom

from qre.errors import QreError
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.handshake_events import Closed
from qre.visit.exchange import Exchange, shake_hands
from qre.visit.visitor_files import load_fingerprint

#: Between two visits (seconds): what one leaves behind is over when the next begins.
_PAUSE = 0.1


@dataclass(frozen=True)
class Order:
    """``sides``: name, address and port of each; "ours" proves itself with one of ``short_ids`` after the other."""

    sides: list[tuple[str, str, int]]
    count: int
    server_name: str
    authority: str
    public_key: str
    short_ids: list[str]


async def visit(order: Order, side: str, peer: tuple[str, int], number: int) -> tuple[int, bool]:
    """The port that it came from, and whether it ended well."""
    ours = side == "ours"
    which = number % len(order.short_ids)
    handshake = ClientHandshake(
        server_name=order.server_name,
        public_key=bytes.fromhex(order.public_key) if ours else b"",
        short_id=bytes.fromhex(order.short_ids[which]) if ours else bytes(8),
        addresses=(ip_interface(f"10.77.0.{10 + which}/24"),) if ours else (),
        fingerprint=load_fingerprint(),
        trust=TrustStore.from_pem(Path(order.authority).read_bytes(), "the judge"),
        unix_time=int(time.time()),
        now=time.monotonic(),
        random=SystemRandom(),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as made:
        made.connect(peer)
        port = int(made.getsockname()[1])
        try:
            if ours:
                await shake_hands(handshake, made, peer, side)
            else:
                with Exchange(handshake, made, peer) as exchange:
                    async with asyncio.timeout(20):
                        while not isinstance(await exchange.next_event(), Closed):
                            pass
        except (QreError, TimeoutError):
            return port, False
    return port, True


async def run(order: Order) -> None:
    for number in range(order.count):
        for side, address, port in order.sides:
            came_from, well = await visit(order, side, (address, port), number)
            print(json.dumps({"side": side, "port": came_from, "well": well}), flush=True)
            await asyncio.sleep(_PAUSE)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(Order(**json.load(sys.stdin))))
