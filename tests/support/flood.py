"""A flood of hostile datagrams from many source addresses and ports, paced; runs inside a namespace.

``python -m tests.support.flood DESTINATION PORT RATE SECONDS SEED [HELLO.bin]`` sends raw UDP from 172.20.0.0/15:
random bytes, truncated and bit-flipped first flights, first halves of hellos, short headers, unknown versions.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from pathlib import Path


def checksum(data: bytes) -> int:
    total = int.from_bytes(data, "big") % 0xFFFF
    return ~total & 0xFFFF


def ipv4_udp(source: bytes, port: int, destination: bytes, destination_port: int, payload: bytes) -> bytes:
    """A whole IPv4 packet; UDP checksum 0 (none), as RFC 768 allows."""
    length = 28 + len(payload)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, 64, 17, 0, source, destination)
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return header + struct.pack("!HHHH", port, destination_port, 8 + len(payload), 0) + payload


def payloads(rng: random.Random, flight: list[bytes], count: int) -> list[bytes]:
    """A mix of everything that can come to a QUIC port and should not."""

    def one(kind: int) -> bytes:
        whole = rng.choice(flight) if flight else rng.randbytes(1250)
        match kind:
            case 0:
                return rng.randbytes(rng.randrange(1, 1400))
            case 1:
                return whole[: rng.randrange(1, len(whole))]
            case 2:
                damaged = bytearray(whole)
                for _ in range(rng.randrange(1, 8)):
                    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
                return bytes(damaged)
            case 3:
                return whole
            case 4:
                return bytes([0x40 | rng.randrange(64)]) + rng.randbytes(rng.randrange(1, 60))
            case _:
                return bytes([0xC0 | rng.randrange(64)]) + rng.randbytes(4) + b"\x08" + rng.randbytes(1240)

    return [one(number % 6) for number in range(count)]


def main(arguments: list[str]) -> int:
    """Send what ``RATE`` a second for ``SECONDS`` makes, however long it takes; print how many, and their sources."""
    destination, port, rate, seconds, seed = (*arguments[:2], *(int(word) for word in arguments[2:5]))
    rng = random.Random(seed)
    flight = [bytes.fromhex(line) for path in arguments[5:] for line in Path(path).read_text().split()]
    pool = payloads(rng, flight, 600)
    target = socket.inet_aton(str(destination))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sources: set[tuple[bytes, int]] = set()
    sent, started, whole = 0, time.monotonic(), int(rate) * int(seconds)
    while sent < whole:
        due = min(int((time.monotonic() - started) * int(rate)), sent + 1000, whole)
        if due <= sent:
            time.sleep(0.002)
            continue
        while sent < due:
            source = (0xAC140000 + rng.randrange(1, 1 << 17)).to_bytes(4, "big")
            source_port = rng.randrange(1024, 65536)
            if len(sources) < 50_000:
                sources.add((source, source_port))
            packet = ipv4_udp(source, source_port, target, int(port), pool[rng.randrange(len(pool))])
            try:
                raw.sendto(packet, (str(destination), 0))
            except OSError:
                time.sleep(0.001)
            sent += 1
    print(f"{sent} datagrams from {len(sources)} sources")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
