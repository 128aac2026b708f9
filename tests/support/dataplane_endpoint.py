"""One data plane process for tests: ``python -m tests.support.dataplane_endpoint ROLE DEVICE LOCAL PEER``.

Makes a TUN device in the network namespace it was started in, installs one session with keys from a seed, says
``ready`` and runs until its standard input ends; then it writes its counters as JSON. For a line of input it writes
what it knows of the path. As a handshake worker would, it gives the keys after the next ones as soon as the peer has
begun another epoch. Environment: QRE_PROFILE names a file for a profile, QRE_REKEY the seconds between two key
updates of the server, QRE_MARKS an inherited descriptor of number marks, QRE_EPOCH the key epoch to begin with (a
session that was confirmed before, then), QRE_RAISE the seconds until a larger path is looked for again.
"""

from __future__ import annotations

import asyncio
import cProfile
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qre.dataplane.protocol import DataplaneReport, KeyPhaseChanged, underlay_of
from qre.ends import Role
from qre.workers.dataplane.device import Device
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.dataplane.session.path_mtu import SEARCHES
from tests.support.daemons import PATIENCE
from tests.support.dataplane import fresh_marks, install_of, update_of
from tests.support.namespaces import Namespace

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
CSUM, TSO4, TSO6, USO4, USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
ALL_OFFLOADS = CSUM | TSO4 | TSO6 | USO4 | USO6


def open_tun(name: str, offloads: int = ALL_OFFLOADS) -> int:
    """A TUN device with virtio_net_hdr, as the daemon's parent makes it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), 0x1 | 0x1000 | 0x4000))
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", 10))
    fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
    return fd


def udp_socket(local: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    sock.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE
    sock.bind((local, port))
    return sock


def path_of(device: Device) -> dict[str, Any]:
    """What a test may want to know of the one session's path, meanwhile."""
    told: dict[str, Any] = {"drops": device.counters().drops, "settled": False}
    for session, status in zip(device.registry.sessions.values(), device.registry.status(device.now()), strict=True):
        told |= {"path_mtu": status.path_mtu, "inner_mtu": status.inner_mtu, "settled": session.path_mtu.settled}
    return told


async def run(role: Role, name: str, local: str, peer: str) -> None:
    port, peer_port = (40_000, 443) if role is Role.CLIENT else (443, 40_000)
    reports: list[DataplaneReport] = []
    sock = udp_socket(local, port)
    tun = open_tun(name, int(os.environ.get("QRE_OFFLOADS", ALL_OFFLOADS)))
    server = sock.detach() if role is Role.SERVER else None
    marks = NumberMarks(int(os.environ["QRE_MARKS"])) if "QRE_MARKS" in os.environ else fresh_marks()
    loop = asyncio.get_running_loop()

    def reported(report: DataplaneReport) -> None:
        nonlocal epoch
        reports.append(report)
        if isinstance(report, KeyPhaseChanged):
            epoch = report.key_epoch
            loop.call_soon(device.handle, update_of(install, report.key_epoch), [])

    device = Device(tun, marks, reported, server_socket=server)
    underlay = underlay_of((local, port), (peer, peer_port))
    again = "QRE_EPOCH" in os.environ
    epoch = int(os.environ.get("QRE_EPOCH", "0"))
    install = install_of(role, underlay=underlay, key_epoch=epoch, held=role is Role.SERVER and not again)
    answer = device.handle(install, [] if server is not None else [os.dup(sock.fileno())])
    if answer.key_epoch is not None:  # as the handshake worker does: derive up to the epoch that the marks know
        install = install_of(role, underlay=underlay, key_epoch=answer.key_epoch, held=False)
        epoch = answer.key_epoch
        answer = device.handle(install, [] if server is not None else [os.dup(sock.fileno())])
    if answer.error:
        raise SystemExit(answer.error)
    print("ready", flush=True)
    ended = asyncio.Event()

    def asked() -> None:
        if os.read(sys.stdin.fileno(), 100):
            print(json.dumps(path_of(device)), flush=True)
        else:
            ended.set()

    loop.add_reader(sys.stdin.fileno(), asked)
    interval = float(os.environ.get("QRE_REKEY", "0"))
    while not ended.is_set():
        try:
            await asyncio.wait_for(ended.wait(), interval or None)
        except TimeoutError:
            session = next(iter(device.registry.sessions.values()), None)
            if session is None:  # the other end closed it
                continue
            if role is Role.SERVER and session.phases.epoch == epoch:
                device.handle(update_of(install, epoch + 1), [])
            epoch = session.phases.epoch
    counters = device.counters()
    device.close()
    print(
        json.dumps(
            {
                "rx_packets": counters.rx_packets,
                "tx_packets": counters.tx_packets,
                "rx_bytes": counters.rx_bytes,
                "drops": counters.drops,
                "epoch": epoch,
                "cpu": sum(os.times()[:2]),
                "system": os.times()[1],
                "reports": [type(report).__name__ for report in reports],
            }
        ),
        flush=True,
    )


def main() -> None:
    role, name, local, peer = sys.argv[1:]
    profile_file = os.environ.get("QRE_PROFILE")
    if "QRE_RAISE" in os.environ:
        changed = replace(SEARCHES[Role(role)], raise_after=float(os.environ["QRE_RAISE"]))
        patch.dict(SEARCHES, {Role(role): changed}).start()
    if profile_file:
        profile = cProfile.Profile()
        profile.enable()
    asyncio.run(run(Role(role), name, local, peer))
    if profile_file:
        profile.disable()
        profile.dump_stats(profile_file)


class Endpoint:
    """Such a process in ``namespace``, seen from outside; ``end`` ends it and gives its counters."""

    def __init__(
        self,
        namespace: Namespace,
        role: Role,
        device: str,
        addresses: tuple[str, str],
        inner: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        **environment: str,
    ) -> None:
        command = [sys.executable, "-m", "tests.support.dataplane_endpoint", role, device, *addresses]
        self.process = subprocess.Popen(
            [*namespace.prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env=os.environ | environment,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.kill()
            raise RuntimeError("the data plane process did not start")
        for address in inner:
            namespace.ip("addr", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        namespace.ip("link", "set", device, "mtu", "1380", "up")

    def path(self) -> dict[str, Any]:
        """What it knows of the path now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("path\n")
        self.process.stdin.flush()
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told

    def end(self) -> dict[str, Any]:
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        counters: dict[str, Any] = json.loads(output)
        return counters

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


if __name__ == "__main__":
    main()
