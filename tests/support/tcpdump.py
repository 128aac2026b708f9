"""Captures by tcpdump on one device of a namespace, read back as UDP datagrams."""

from __future__ import annotations

import ipaddress
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import dpkt

from tests.support.daemons import PATIENCE, wait_for
from tests.support.namespaces import Namespace

#: What a capture sends itself on the device: behind it nothing is missing that was there before.
_MARK = b"the end of this capture"
#: Of a file; dpkt's DLT_RAW is the number inside a BSD kernel.
_LINKTYPE_RAW = 101
_SEND_MARK = """
import socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
made.sendto(sys.argv[3].encode(), ("255.255.255.255", int(sys.argv[2])))
"""


@dataclass(frozen=True)
class Datagram:
    """One UDP datagram as it was on the wire; addresses are (ip, port)."""

    time: float
    source: tuple[str, int]
    destination: tuple[str, int]
    tos: int
    dont_fragment: bool
    payload: bytes
    ttl: int = 64
    identification: int = 0


def read_udp(path: Path) -> Iterator[Datagram]:
    """The UDP datagrams of an Ethernet pcap file; a last record cut short is left out."""
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
            if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6) or not isinstance(ip.data, dpkt.udp.UDP):
                continue
            udp = ip.data
            if len(udp) != udp.ulen:
                continue  # dpkt hands out what there is of it
            if udp.data == _MARK:
                continue
            yield Datagram(
                time=float(time),
                source=(_text(ip.src), udp.sport),
                destination=(_text(ip.dst), udp.dport),
                payload=bytes(udp.data),
                **_header(ip),
            )


def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def _header(ip: dpkt.ip.IP | dpkt.ip6.IP6) -> dict[str, Any]:
    """Of IPv6: no router fragments it, and nothing counts it."""
    if isinstance(ip, dpkt.ip6.IP6):
        return {"tos": ip.fc, "dont_fragment": True, "ttl": ip.hlim}
    return {"tos": ip.tos, "dont_fragment": bool(ip.df), "ttl": ip.ttl, "identification": ip.id}


class Tcpdump:
    """Captures ``device`` of ``namespace`` into ``path`` while the context lasts: UDP, or that of ``port`` alone, or
    what ``rule`` says as well."""

    def __init__(
        self, namespace: Namespace, device: str, path: Path, port: int | None = None, rule: str = ""
    ) -> None:
        self.path = path
        self._mark = [*namespace.prefix, "/usr/bin/python3", "-c", _SEND_MARK, device, str(port or 9), _MARK.decode()]
        what = "udp" if port is None else f"udp port {port}"
        what += f" or {rule}" if rule else ""
        command = ["tcpdump", "-Z", "root", "-n", "-i", device, "-s", "0", "-B", "16384", "-U", "-w", str(path)]
        self.process = subprocess.Popen(
            [*namespace.prefix, *command, *what.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(f"tcpdump on {device}", lambda: path.exists() and path.stat().st_size >= 24)

    def settle(self) -> None:
        """Until everything that was on the device before is in the file. No error when the device is gone."""
        marked = subprocess.run(self._mark, stderr=subprocess.DEVNULL, check=False, timeout=PATIENCE).returncode == 0
        if marked and self.process.poll() is None:
            wait_for("the end of the capture", lambda: _MARK in self.path.read_bytes())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.settle()
            self.process.send_signal(signal.SIGINT)
            self.process.wait(PATIENCE)

    def datagrams(self) -> list[Datagram]:
        return list(read_udp(self.path))

    def packets(self, version: int = 4) -> list[dpkt.ip.IP | dpkt.ip6.IP6]:
        """Every packet of this version of IP but UDP; of a tunnel's device, too, whose packets have no frame."""
        kind = dpkt.ip.IP if version == 4 else dpkt.ip6.IP6
        with self.path.open("rb") as file:
            reader = dpkt.pcap.Reader(file)
            bare = reader.datalink() == _LINKTYPE_RAW
            frames = [
                kind(frame) if bare else dpkt.ethernet.Ethernet(frame).data
                for _, frame in reader
                if not bare or frame[0] >> 4 == version
            ]
        return [each for each in frames if isinstance(each, kind) and not isinstance(each.data, dpkt.udp.UDP)]

    def __enter__(self) -> Tcpdump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
