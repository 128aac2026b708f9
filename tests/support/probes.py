"""Datagrams by which a prober would tell a server from the site behind it, and a way to send them.

``python -m tests.support.probes`` reads {"address", "port", "datagrams", "sockets", "wait"} as JSON from
standard input, sends the datagrams (hex) from so many sockets in turn, all at once, and prints what has come
back until nothing came for ``wait`` seconds, as hex, in the order of its coming.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from typing import Any

from qre.wire.packet import PacketType, build_long_header
from qre.wire.protection import TAG_LENGTH, Protection, initial_secrets
from tests.support.namespaces import Namespace

_IP_MTU_DISCOVER, _PMTUDISC_DONT = 10, 0


def unknown_version(length: int) -> bytes:
    """A long header of a version that nobody knows (RFC 9000 §15)."""
    head = b"\xc3\x1a\x2a\x3a\x4a" + bytes([8]) + os.urandom(8) + b"\x00"
    return head.ljust(length, b"\0")


def ping_initial(length: int = 1200) -> bytes:
    """An Initial with a PING and nothing else of meaning."""
    cid = os.urandom(8)
    bare = len(build_long_header(PacketType.INITIAL, cid, b"", b"\0\0", 0)) + TAG_LENGTH
    payload = b"\x01".ljust(length - bare, b"\0")
    header = build_long_header(PacketType.INITIAL, cid, b"", b"\0\0", 2 + len(payload) + TAG_LENGTH)
    return Protection(initial_secrets(cid)[0]).protect(header, 0, payload)


def probe(
    namespace: Namespace, address: str, port: int, datagrams: list[bytes], *, sockets: int = 1, wait: float = 0.7
) -> list[bytes]:
    """What comes back to a prober in ``namespace``."""
    order = {"address": address, "port": port, "datagrams": [data.hex() for data in datagrams]}
    done = subprocess.run(
        [*namespace.prefix, sys.executable, "-m", "tests.support.probes"],
        input=json.dumps(order | {"sockets": sockets, "wait": wait}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return [bytes.fromhex(line) for line in done.stdout.split()]


def _run(order: dict[str, Any]) -> None:
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(order["sockets"])]
    for sock in made:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.connect((order["address"], order["port"]))
        sock.setblocking(False)
    for number, data in enumerate(order["datagrams"]):
        made[number % len(made)].send(bytes.fromhex(data))
    while readable := select.select(made, [], [], order["wait"])[0]:
        for sock in readable:
            print(sock.recv(65_535).hex())


if __name__ == "__main__":
    _run(json.load(sys.stdin))
