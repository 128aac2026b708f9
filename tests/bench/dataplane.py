"""The user data plane beside wireguard-go: one TCP stream through each, in one run, and where the time goes.

``python -m tests.bench.dataplane [seconds]``. Both tunnels cross the same veth pair between the same two namespaces,
turn by turn, so what else the machine does meets both. Prints ratios and asserts nothing.
"""

from __future__ import annotations

import pstats
import statistics
import sys
import tempfile
from pathlib import Path

from qre.ends import Role
from tests.support.dataplane_endpoint import Endpoint
from tests.support.namespaces import Namespace
from tests.support.wireguard import CLIENT as WG_CLIENT
from tests.support.wireguard import SERVER as WG_SERVER
from tests.support.wireguard import WireguardGo, tcp_rate

OUTER = {Role.CLIENT: "10.90.1.2", Role.SERVER: "10.90.1.1"}
INNER = {Role.CLIENT: "10.91.5.2", Role.SERVER: "10.91.5.1"}
ROUNDS = 3
#: What a function of the profile is counted as; the first match of file or name decides.
KINDS = (
    ("waiting", ("epoll", "select")),
    ("system calls", ("recvmsg", "sendmsg", "sendto", "posix.read", "posix.writev")),
    ("AES-GCM and header masks", ("AESGCM", "CipherContext", "update")),
    ("checksums", ("from_bytes", "word_sum", "is_whole", "checksum_of")),
    ("joining received segments", ("coalesce.py",)),
    ("splitting super-packets", ("offload.py",)),
    ("packets: numbers, headers", ("packets.py", "ackwin.py", "to_bytes")),
    ("sockets", ("underlay.py",)),
    ("session and device", ("session.py", "device.py", "recovery.py", "payload.py", "frames.py", "table.py")),
)


class Bench:
    """Two namespaces with a veth pair, its offloads as the kernel makes them."""

    def __init__(self) -> None:
        self.client, self.server = Namespace("benchc"), Namespace("benchs")
        self.client.ip("link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", self.server.name)
        for namespace, device, role in ((self.client, "va", Role.CLIENT), (self.server, "vb", Role.SERVER)):
            namespace.ip("addr", "add", f"{OUTER[role]}/24", "dev", device)
            namespace.ip("link", "set", device, "up")

    def endpoints(self, **profiles: str) -> list[Endpoint]:
        made = []
        for role, namespace in ((Role.SERVER, self.server), (Role.CLIENT, self.client)):
            other = Role.CLIENT if role is Role.SERVER else Role.SERVER
            environment = {"QRE_PROFILE": profiles[role]} if role in profiles else {}
            made.append(
                Endpoint(namespace, role, "qb0", (OUTER[role], OUTER[other]), [f"{INNER[role]}/24"], **environment)
            )
        return made

    def close(self) -> None:
        self.client.delete()
        self.server.delete()


def rates(bench: Bench, addresses: tuple[str, str], seconds: float) -> tuple[float, float]:
    """Bits a second up and down."""
    client, server = addresses
    return (
        tcp_rate(bench.client, bench.server, server, seconds),
        tcp_rate(bench.server, bench.client, client, seconds),
    )


def compare(bench: Bench, seconds: float) -> None:
    found: dict[str, list[tuple[float, float]]] = {"qre": [], "wireguard-go": []}
    with tempfile.TemporaryDirectory() as directory:
        endpoints = bench.endpoints()
        try:
            with WireguardGo(bench.client, bench.server, OUTER[Role.SERVER], Path(directory)):
                for _ in range(ROUNDS):
                    found["qre"].append(rates(bench, (INNER[Role.CLIENT], INNER[Role.SERVER]), seconds))
                    found["wireguard-go"].append(rates(bench, (WG_CLIENT, WG_SERVER), seconds))
            ends = [endpoint.end() for endpoint in endpoints]
        finally:
            for endpoint in endpoints:
                endpoint.kill()
    for way, index in (("up", 0), ("down", 1)):
        own, other = (statistics.median(pair[index] for pair in found[name]) for name in ("qre", "wireguard-go"))
        print(
            f"{way:5} qre {own / 1e6:6.0f} Mbit/s   wireguard-go {other / 1e6:6.0f} Mbit/s   ratio {own / other:.2f}"
        )
    for role, end in zip(("server", "client"), ends, strict=True):
        packets = end["rx_packets"] + end["tx_packets"]
        print(f"{role}: {packets} packets, {end['cpu'] / packets * 1e6:.1f} µs of CPU each, drops {end['drops']}")


def kind_of(file: str, name: str) -> str:
    for kind, marks in KINDS:
        if any(mark in name or mark in Path(file).name for mark in marks):
            return kind
    return "the rest of Python"


def where_time_goes(bench: Bench, seconds: float) -> None:
    """A profile of both ends; a profiled run is slower, and small functions look larger than they are."""
    with tempfile.TemporaryDirectory() as directory:
        files = {role: str(Path(directory) / f"{role}.prof") for role in Role}
        endpoints = bench.endpoints(**{str(role): file for role, file in files.items()})
        try:
            tcp_rate(bench.client, bench.server, INNER[Role.SERVER], seconds)
            for endpoint in endpoints:
                endpoint.end()
        finally:
            for endpoint in endpoints:
                endpoint.kill()
        for role, what in ((Role.CLIENT, "sender"), (Role.SERVER, "receiver")):
            spent: dict[str, float] = {}
            profile = pstats.Stats(files[role]).get_stats_profile()
            for name, function in profile.func_profiles.items():
                kind = kind_of(function.file_name, name)
                spent[kind] = spent.get(kind, 0.0) + function.tottime
            spent.pop("waiting", None)
            whole = sum(spent.values())
            print(f"\nWhere the time of the {what} goes:")
            for kind, own in sorted(spent.items(), key=lambda item: -item[1]):
                print(f"  {own / whole:5.1%}  {kind}")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3
    bench = Bench()
    try:
        compare(bench, seconds)
        where_time_goes(bench, seconds)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
