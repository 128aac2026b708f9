"""Captures by tcpdump on one device of a namespace, read back as UDP datagrams."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import dpkt

from tests.support.daemons import PATIENCE, wait_for
from tests.support.namespaces import Namespace


@dataclass(frozen=True)
class Datagram:
    """One UDP datagram as it was on the wire; addresses are (ip, port)."""

    time: float
    source: tuple[str, int]
    destination: tuple[str, int]
    tos: int
    dont_fragment: bool
    payload: bytes


def read_udp(path: Path) -> Iterator[Datagram]:
    """The IPv4 UDP datagrams of an Ethernet pcap file; a last record cut short is left out."""
    with path.open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        while True:
            try:
                time, frame = next(iter(reader))
            except (StopIteration, dpkt.NeedData):
                return
            try:
                ip = dpkt.ethernet.Ethernet(frame).data
            except dpkt.NeedData:
                continue
            if not isinstance(ip, dpkt.ip.IP) or not isinstance(ip.data, dpkt.udp.UDP):
                continue
            udp = ip.data
            if len(udp) != udp.ulen:
                continue  # dpkt hands out what there is of it
            yield Datagram(
                time=float(time),
                source=(socket.inet_ntoa(ip.src), udp.sport),
                destination=(socket.inet_ntoa(ip.dst), udp.dport),
                tos=ip.tos,
                dont_fragment=bool(ip.df),
                payload=bytes(udp.data),
            )


class Tcpdump:
    """Captures ``device`` of ``namespace`` into ``path`` while the context lasts."""

    def __init__(self, namespace: Namespace, device: str, path: Path, what: str = "udp") -> None:
        self.path = path
        command = ["tcpdump", "-Z", "root", "-n", "-i", device, "-s", "0", "-B", "16384", "-U", "-w", str(path)]
        self.process = subprocess.Popen(
            [*namespace.prefix, *command, *what.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(f"tcpdump on {device}", lambda: path.exists() and path.stat().st_size >= 24)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(PATIENCE)

    def datagrams(self) -> list[Datagram]:
        return list(read_udp(self.path))

    def __enter__(self) -> Tcpdump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
