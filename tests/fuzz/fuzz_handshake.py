"""Bounded fuzzing of the server's side of the handshake: ``python -m tests.fuzz.fuzz_handshake [SECONDS [SEED]]``.

The targets: the inspector with broken first flights, and with broken hellos in well protected Initials; a live
handshake with broken datagrams; and a live handshake whose client is authenticated and sends any frames it likes.
Nothing may raise, a broken hello may not be authenticated, and memory may not grow. Exits 0 and says how many inputs
it tried; the seed that it prints repeats a run.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from random import Random

from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.quic.server.inspector import Authenticated, HelloInspector
from qre.quic.server.server_handshake import ServerHandshake
from qre.reality.authenticator import RANDOM_END
from tests.support.fake_client import CLIENT, SERVER, FakeClient

NOW = 1_800_000_000
PRIVATE = bytes(range(32))
KEY = X25519PrivateKey.from_private_bytes(PRIVATE)
SHORT_ID = bytes.fromhex("0123456789abcdef")
#: RFC 9000 §19, RFC 9221.
FRAME_TYPES = (*range(0x1F), 0x30, 0x31)
#: Growth of the process that counts as a leak (KiB).
MAX_GROWTH = 40_000


def new_client() -> FakeClient:
    return FakeClient(public_key=KEY.public_key().public_bytes_raw(), short_id=SHORT_ID, unix_time=NOW)


def new_inspector() -> HelloInspector:
    return HelloInspector(server_name="site.test", private_key=KEY, short_ids={SHORT_ID}, max_time_diff_ms=60_000)


def authenticated_flight() -> tuple[FakeClient, Authenticated, list[bytes]]:
    """A client at time 0, what the inspector found in its first flight, and that flight."""
    client = new_client()
    flight = client.first_flight(0.0)
    subject = new_inspector()
    found = [subject.datagram_received(data, NOW * 1000) for data in flight][-1]
    assert isinstance(found, Authenticated)
    return client, found, flight


def new_server(found: Authenticated) -> ServerHandshake:
    """The server of that flight, at time 0, which has received nothing yet."""
    return ServerHandshake(
        authenticated=found,
        private_key=PRIVATE,
        dest=None,
        routed_cid_len=20,
        peer=CLIENT,
        now=0.0,
        random=os.urandom,
    )


def broken(data: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite something of it."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.randrange(1, 200)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 50))
            case 3:
                changed[at : at + 8] = rng.choice((b"\xff", b"\x00", b"\x40", b"\xc0")) * 8
            case 4:
                changed[at:at] = changed[rng.randrange(len(changed) + 1) :][:100]
            case _:
                del changed[at:]
    return bytes(changed)


class Fuzzer:
    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.inputs = 0
        self.flights = [new_client().first_flight(0.0) for _ in range(8)]
        self.hellos: list[bytes] = []
        for flight in self.flights:
            subject = new_inspector()
            found = [subject.datagram_received(data, NOW * 1000) for data in flight][-1]
            assert isinstance(found, Authenticated)
            self.hellos.append(found.client_hello)

    def broken_first_flight(self) -> None:
        """Datagrams of a real flight, broken, shuffled, mixed with another's and with noise."""
        rng = self.rng
        flight = [broken(data, rng) if rng.random() < 0.8 else data for data in rng.choice(self.flights)]
        flight.append(rng.randbytes(rng.choice((0, 1, 20, 1200, 1400))))
        flight += rng.choice(self.flights)[: rng.randrange(2)]
        rng.shuffle(flight)
        subject = new_inspector()
        for data in flight:
            subject.datagram_received(data, NOW * 1000)
        self.inputs += len(flight)

    def broken_hello(self) -> None:
        """A broken hello in good Initials."""
        rng = self.rng
        hello = rng.choice(self.hellos)
        message = broken(hello, rng)
        if rng.random() < 0.5 and len(message) > RANDOM_END:
            message = message[:1] + (len(message) - 4).to_bytes(3, "big") + message[4:]
        client = new_client()
        client.connect(SERVER, 0.0)
        stream = client._crypto_streams[tls.Epoch.INITIAL].sender
        stream.__init__(None, True)  # type: ignore[misc]  # an empty one in its place
        stream.write(message[:8000])
        subject = new_inspector()
        for data, _ in client.datagrams_to_send(0.0):
            said = subject.datagram_received(data, NOW * 1000)
            if isinstance(said, Authenticated) and message != hello:
                raise AssertionError("a changed hello was authenticated")
            self.inputs += 1

    def _connected(self) -> tuple[FakeClient, ServerHandshake, float]:
        """A client and a server after some round trips, not always complete."""
        now = 0.0
        client, found, flight = authenticated_flight()
        server = new_server(found)
        for data in flight:
            server.datagram_received(data, CLIENT, now)
        for _ in range(self.rng.randrange(1, 5)):
            for data in server.datagrams_to_send(now):
                client.receive_datagram(data, SERVER, now)
            client.handle()
            for data, _ in client.datagrams_to_send(now):
                server.datagram_received(data, CLIENT, now)
            now += 0.002
        return client, server, now

    def broken_datagrams(self) -> None:
        client, server, now = self._connected()
        client.send_ping(1)
        good = [data for data, _ in client.datagrams_to_send(now)] + self.rng.choice(self.flights)
        for _ in range(40):
            server.datagram_received(broken(self.rng.choice(good), self.rng), CLIENT, now)
            self.inputs += 1
        self._drain(server, now)

    def any_frames(self) -> None:
        """Payloads that are well protected: what an authenticated client could do."""
        rng = self.rng
        client, server, now = self._connected()
        epochs = [
            epoch for epoch in (tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT) if client._cryptos[epoch].send.is_valid()
        ]
        if not epochs:
            return
        for number in range(100, 140):
            pair = client._cryptos[rng.choice(epochs)]
            if pair is client._cryptos[tls.Epoch.ONE_RTT]:
                header = b"\x41" + client._peer_cid.cid + number.to_bytes(2, "big")
                payload = self._frames()
            else:
                payload = self._frames()
                cids = bytes([len(client._peer_cid.cid)]) + client._peer_cid.cid
                cids += bytes([len(client.host_cid)]) + client.host_cid
                length = (len(payload) + 2 + 16 | 0x4000).to_bytes(2, "big")
                header = b"\xe1\x00\x00\x00\x01" + cids + length + number.to_bytes(2, "big")
            server.datagram_received(pair.send.encrypt_packet(header, payload, number), CLIENT, now)
            self.inputs += 1
        self._drain(server, now)

    def _frames(self) -> bytes:
        rng = self.rng
        payload = b""
        for _ in range(rng.randrange(1, 4)):
            kind = rng.choice(FRAME_TYPES)
            body = rng.randbytes(rng.randrange(0, 60)) if rng.random() < 0.5 else bytes(rng.choices(range(64), k=20))
            payload += bytes([kind]) + body
        return payload.ljust(4, b"\x00")[:1100]

    def _drain(self, server: ServerHandshake, now: float) -> None:
        for _ in range(4):
            server.datagrams_to_send(now)
            while server.next_event() is not None:
                pass
            at = server.timer()
            if at is None:
                return
            now = max(now, at) + 0.001
            server.handle_timer(now)


def main(seconds: float, seed: int) -> int:
    print(f"seed {seed}, {seconds:g} s", flush=True)
    fuzzer = Fuzzer(Random(seed))
    targets: list[Callable[[], None]] = [
        fuzzer.broken_first_flight,
        fuzzer.broken_hello,
        fuzzer.broken_datagrams,
        fuzzer.any_frames,
    ]
    for target in targets * 5:  # reach a steady size first
        target()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for target in targets:
            target()
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{fuzzer.inputs} inputs, nothing raised; memory grew by {growth} KiB")
    return int(growth > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
