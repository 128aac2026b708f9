"""What handshakes, strangers and clients cost a server: ``python -m tests.bench.server``.

In memory, CPU of the server's half alone: an accepted handshake that follows Dest, beside one of stock aioquic that
answers a request of HTTP/3, in turns; and a hello of a stranger, from the flow table to the verdict. On this machine:
the memory of a server and a client at rest, process by process (PSS: what is shared counts by shares). It prints, and
asserts nothing.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ProtocolNegotiated
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.server.inspector import HelloInspector
from qre.quic.server.server_handshake import ServerHandshake
from qre.visit.visitor_files import load_fingerprint
from qre.workers.handshake.port.flow_parts import Limits
from qre.workers.handshake.port.flows import FlowTable
from tests.support.daemons import Daemon
from tests.support.pair import ADDRESSES, NAME, SHORT_ID, TRUST, UNIX_TIME
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_handover import self_signed
from tests.support.tunnel import Tunnel

HANDSHAKES = 60
HELLOS = 300
SERVER, CLIENT = ("192.0.2.1", 443), ("192.0.2.2", 50_000)


class Meter:
    """Adds up the CPU seconds that calls of the objects take that it wraps."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._depth = 0

    def wrap(self, thing: Any) -> Any:
        """Behaves as ``thing``, whose methods are timed; what they call of another wrapped one is counted once."""
        return _Metered(thing, self)

    def timed(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if self._depth:
            return call(*given, **named)
        self._depth += 1
        began = time.thread_time()
        try:
            return call(*given, **named)
        finally:
            self.spent += time.thread_time() - began
            self._depth -= 1


class _Metered:
    def __init__(self, thing: Any, meter: Meter) -> None:
        self.__dict__.update(_thing=thing, _meter=meter)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if not callable(found):
            return found
        return lambda *given, **named: self._meter.timed(found, *given, **named)


def accepted(seed: int) -> float:
    """CPU seconds of a server for one handshake, from the first datagram on until the session is handed over."""
    meter = Meter()

    def made(**given: Any) -> ServerHandshake:
        return cast(ServerHandshake, meter.wrap(meter.timed(ServerHandshake, **given)))

    pair = ShadowPair(seed=seed, server_kind=made)
    pair._inspector = meter.wrap(pair._inspector)
    pair.run()
    assert pair.complete
    return meter.spent


def stock() -> float:
    """The same of stock aioquic: the handshake, and a request that is answered."""
    meter = Meter()
    certificate, key = self_signed()
    common: dict[str, Any] = {"alpn_protocols": ["h3"], "max_datagram_frame_size": 65536}
    ours = QuicConfiguration(is_client=False, certificate=certificate, private_key=key, **common)
    client = QuicConnection(
        configuration=QuicConfiguration(is_client=True, server_name="test", verify_mode=0, **common)
    )
    client.connect(SERVER, now=0.0)
    flight = client.datagrams_to_send(0.0)
    cid = client.original_destination_connection_id
    real = meter.timed(QuicConnection, configuration=ours, original_destination_connection_id=cid)
    server = meter.wrap(real)
    asking, answering = H3Connection(client), None
    asked, now = False, 0.0
    for _ in range(12):
        for data, _address in flight:
            server.receive_datagram(data, CLIENT, now=now)
        while (event := server.next_event()) is not None:
            if isinstance(event, ProtocolNegotiated):
                answering = meter.wrap(meter.timed(H3Connection, real))
            for said in answering.handle_event(event) if answering is not None else ():
                if isinstance(said, HeadersReceived):
                    answering.send_headers(said.stream_id, [(b":status", b"200")])
        for data, _address in server.datagrams_to_send(now):
            client.receive_datagram(data, SERVER, now=now)
        while (event := client.next_event()) is not None:
            if isinstance(event, ProtocolNegotiated) and not asked:
                asked = True
                headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"test"), (b":path", b"/")]
                asking.send_headers(client.get_next_available_stream_id(), headers, end_stream=True)
        flight, now = client.datagrams_to_send(now), now + 0.02
    assert asked
    return meter.spent


def strangers() -> float:
    """CPU seconds for the two datagrams of a browser's hello that is nobody's."""
    key, random = X25519PrivateKey.generate(), Random(1)
    flights = []
    for _ in range(HELLOS):
        client = ClientHandshake(
            server_name=NAME,
            public_key=X25519PrivateKey.generate().public_key().public_bytes_raw(),
            short_id=SHORT_ID,
            addresses=ADDRESSES,
            fingerprint=load_fingerprint(),
            trust=TRUST,
            unix_time=UNIX_TIME,
            now=0.0,
            random=random,
        )
        client.connect(SERVER, 0.0)
        flights.append(client.datagrams_to_send(0.0))

    def inspector() -> HelloInspector:
        return HelloInspector(server_name=NAME, private_key=key, short_ids=[SHORT_ID], max_time_diff_ms=60_000)

    table = FlowTable(Limits(4096, 4096, 180.0), inspector, lambda data: None, lambda cids: False)
    began = time.thread_time()
    for number, flight in enumerate(flights):
        now = number / 100
        for data in flight:
            table.datagram((f"198.51.{number // 250}.{number % 250}", 40_000), data, 0, now, UNIX_TIME * 1000)
        table.look(now)
    spent = time.thread_time() - began
    assert table.strangers == HELLOS
    return spent / HELLOS


def memory(daemon: Daemon) -> dict[str, float]:
    """MB of each process."""
    pids = {"parent": daemon.pid, **daemon.workers()}
    return {name: _pss(pid) for name, pid in pids.items()}


def _pss(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1000


def main() -> int:
    """Print the figures."""
    ours: list[float] = []
    theirs: list[float] = []
    for seed in range(HANDSHAKES):
        ours.append(accepted(seed))
        theirs.append(stock())
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"an accepted handshake   {mine * 1e3:6.2f} ms of CPU, stock aioquic {other * 1e3:.2f} ms: {mine / other:.2f}"
    )
    print(f"a stranger's hello      {strangers() * 1e3:6.3f} ms of CPU")
    if os.geteuid() != 0:
        print("memory at rest: not measured, because only root may start daemons")
        return 0
    with Tunnel() as tunnel:
        tunnel.up()
        for daemon in (tunnel.server, tunnel.client):
            found = memory(daemon)
            parts = ", ".join(f"{name} {size:.0f}" for name, size in found.items())
            print(f"{daemon.profile:<8} at rest        {sum(found.values()):6.1f} MB PSS: {parts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
