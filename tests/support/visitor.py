"""Visitor: the real client handshake over a real UDP socket, for as long as one handshake lasts.

``python -m tests.support.visitor ADDRESS PORT NAME COUNT [PUBLIC_KEY_HEX]`` prints a JSON object for each visit.
Run it inside a namespace; the authorities are those of SSL_CERT_FILE.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from ipaddress import ip_interface
from random import SystemRandom

import msgspec

from qre.dest_profile import DestProfile
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.handshake_events import ClientEvent, Closed, SiteAnswered
from qre.visit.visitor_files import load_fingerprint, load_trust

_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_PROBE = 3


@dataclass
class Visit:
    """What one handshake told, and what the caller may want to look at."""

    handshake: ClientHandshake
    events: list[ClientEvent] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    @property
    def profile(self) -> DestProfile | None:
        return next((event.profile for event in self.events if isinstance(event, SiteAnswered)), None)


def visit(address: str, port: int, name: str, public_key: bytes = b"", timeout: float = 60) -> Visit:
    """One handshake, until Closed."""
    peer = (address, port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        sock.setblocking(False)
        now = time.monotonic()
        client = ClientHandshake(
            server_name=name,
            public_key=public_key,
            short_id=bytes(8),
            addresses=(ip_interface("10.0.0.2/24"),),
            fingerprint=load_fingerprint(),
            trust=load_trust(),
            unix_time=int(time.time()),
            now=now,
            random=SystemRandom(),
        )
        seen = Visit(client)
        client.connect(peer, now)
        while time.monotonic() < now + timeout:
            for datagram in client.datagrams_to_send(time.monotonic()):
                sock.sendto(datagram, peer)
            while (event := client.next_event()) is not None:
                seen.events.append(event)
                if isinstance(event, Closed):
                    return seen
            at = client.timer()
            wait = timeout if at is None else max(at - time.monotonic(), 0)
            if select.select([sock], [], [], wait)[0]:
                _drain(sock, client)
            client.handle_timer(time.monotonic())
        raise TimeoutError(f"only {seen.names} after {timeout} s")


def _drain(sock: socket.socket, client: ClientHandshake) -> None:
    """Everything that is there, before anything is sent: so ACKs go together, as a browser's."""
    while True:
        try:
            data, source = sock.recvfrom(65_536)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            continue
        client.datagram_received(data, source, time.monotonic())


def main() -> None:
    address, port, name, count, *key = sys.argv[1:]
    for _ in range(int(count)):
        seen = visit(address, int(port), name, bytes.fromhex(key[0]) if key else b"")
        profile = seen.profile
        texts = [str(event) for event in seen.events]
        fields = msgspec.to_builtins(profile)
        json.dump({"events": seen.names, "texts": texts, "profile": fields}, sys.stdout)
        sys.stdout.write(os.linesep)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
