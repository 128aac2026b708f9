"""A flood of hellos, or of what looks like one, each from an address and a port of its own; runs inside a namespace.

``python -m tests.support.hello_flood DESTINATION PORT RATE FLIGHTS NETWORK`` sends RATE flights a second until it is
terminated, and prints how many in how many seconds. FLIGHTS is a file with a flight in each line, its datagrams in
hexadecimal: made beforehand (``hellos``, ``lookalikes``), so that sending costs two system calls a hello.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_interface
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.visit.visitor_files import load_fingerprint

_HEADERS = struct.Struct("!BBHHHBBHLLHHHH")


def hellos(server_name: str, count: int, rng: random.Random) -> Iterator[list[bytes]]:
    """Whole first flights of clients that have another server's key."""
    fingerprint, nobody = load_fingerprint(), TrustStore([], "nobody")
    for _ in range(count):
        made = ClientHandshake(
            server_name=server_name,
            public_key=X25519PrivateKey.generate().public_key().public_bytes_raw(),
            short_id=rng.randbytes(8),
            addresses=(ip_interface("10.77.0.99/24"),),
            fingerprint=fingerprint,
            trust=nobody,
            unix_time=int(time.time()),
            now=0.0,
            random=rng,
        )
        made.connect(("192.0.2.1", 443), 0.0)
        yield made.datagrams_to_send(0.0)


def lookalikes(count: int, rng: random.Random) -> Iterator[list[bytes]]:
    """One datagram each: an Initial by its header, and nothing inside."""
    for _ in range(count):
        header = bytes([0xC3, 0, 0, 0, 1, 8]) + rng.randbytes(8) + bytes([0, 0, 0x44, 0xD0])
        yield [header + rng.randbytes(1232)]


def write(path: Path, flights: Iterator[list[bytes]]) -> Path:
    path.write_text("".join(" ".join(data.hex() for data in flight) + "\n" for flight in flights))
    return path


def main(arguments: list[str]) -> int:
    """See the module. The kernel fills in lengths and checksums of IP; UDP goes without (RFC 768)."""
    destination, port, rate, flights, network = arguments
    sources, to = IPv4Network(network), int.from_bytes(socket.inet_aton(destination), "big")
    pool = [[bytes.fromhex(word) for word in line.split()] for line in Path(flights).read_text().splitlines()]
    first, hosts = int(sources.network_address) + 1, sources.num_addresses - 2
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    rng, where = random.Random(7), (destination, 0)
    sent, began = 0, time.monotonic()
    while not ended:
        due = min(int((time.monotonic() - began) * int(rate)), sent + 100)
        if due <= sent:
            time.sleep(0.001)
        for number in range(sent, due):
            source, source_port = first + rng.randrange(hosts), rng.randrange(1024, 65_536)
            for data in pool[number % len(pool)]:
                headers = _HEADERS.pack(
                    0x45, 0, 0, 0, 0x4000, 64, 17, 0, source, to, source_port, int(port), 8 + len(data), 0
                )
                try:
                    raw.sendmsg([headers, data], (), 0, where)
                except OSError:  # the queue is full
                    time.sleep(0.0005)
        sent = max(sent, due)
    print(f"{sent} in {time.monotonic() - began:.1f} s", flush=True)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
