"""A site that asks everybody for a token answers what only looks like an Initial, unread: so does the port."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from tests.support.handshake_server import InProcessServer
from tests.support.sites import retrying, site_of

MANY, SOURCES = 300, 300


def garbage() -> bytes:
    """The clear header of an Initial, and nothing that anybody could open."""
    cids = b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    head = b"\xc3\x00\x00\x00\x01" + cids + b"\x00"
    rest = 1200 - len(head) - 2
    return head + (0x4000 | rest).to_bytes(2, "big") + os.urandom(rest)


async def answered(port: int) -> int:
    """How many of so much garbage have an answer, from several sources in turn."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SOURCES)]
    try:
        for each in sockets:
            each.setblocking(False)
            each.connect(("127.0.0.1", port))
        for number in range(MANY):
            sockets[number % SOURCES].send(garbage())
            if number % 10 == 0:
                await asyncio.sleep(0.02)
        await asyncio.sleep(2.0)
        return sum(_waiting(each) for each in sockets)
    finally:
        for each in sockets:
            each.close()


def _waiting(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(65_535)
        except BlockingIOError:
            return count
        count += 1


def test_a_flood_of_garbage_has_as_many_answers_as_the_site_gives() -> None:
    async def both(port: int, authority: Path) -> tuple[int, int]:
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            return await answered(port), await answered(server.port)

    with site_of(retrying) as (port, authority):
        site, ours = asyncio.run(both(port, authority))
    assert site > 0.9 * MANY
    assert ours > 0.9 * site, "some may be lost on a busy machine"
