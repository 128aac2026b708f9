"""Visits by the client's own handshake: ``python -m tests.bench.likeness.visits ORDER``.

Each line of standard input names a side, is one visit there, and is answered by a line: whether it ended as it
should.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from qre.errors import QreError
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.handshake_events import Closed
from qre.visit.exchange import Exchange
from qre.visit.visitor_files import load_fingerprint


@dataclass(frozen=True)
class Order:
    """``sides``: the name of each, its address and port."""

    sides: dict[str, tuple[str, int]]
    server_name: str
    authority: str


async def visit(order: Order, peer: tuple[str, int]) -> bool:
    """Whether it ended well."""
    handshake = ClientHandshake(
        server_name=order.server_name,
        public_key=b"",
        short_id=bytes(8),
        addresses=(),
        fingerprint=load_fingerprint(),
        trust=TrustStore.from_pem(Path(order.authority).read_bytes(), "the judge"),
        unix_time=int(time.time()),
        now=time.monotonic(),
        random=SystemRandom(),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as made:
        made.connect(peer)
        try:
            with Exchange(handshake, made, peer) as exchange:
                async with asyncio.timeout(20):
                    while not isinstance(await exchange.next_event(), Closed):
                        pass
        except (QreError, TimeoutError):
            return False
    return True


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        address, port = order.sides[line.strip()]
        print(json.dumps({"well": asyncio.run(visit(order, (address, port)))}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
