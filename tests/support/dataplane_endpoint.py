"""One data plane process for tests: ``python -m tests.support.dataplane_endpoint ROLE DEVICE LOCAL PEER``.

Makes a TUN device in the network namespace it was started in, installs one session with keys from a seed, says
``ready`` and runs until its standard input ends; then it writes its counters as JSON. With QRE_PROFILE=FILE the
profile goes there.
"""

from __future__ import annotations

import asyncio
import cProfile
import fcntl
import json
import os
import socket
import struct
import sys

from qre.session import DataplaneReport, Role, SessionUpdate, Underlay
from qre.workers.dataplane.device import Device
from tests.support.dataplane import fresh_marks, install_of, update_of

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


async def run(role: Role, name: str, local: str, peer: str) -> None:
    port, peer_port = (40_000, 443) if role is Role.CLIENT else (443, 40_000)
    reports: list[DataplaneReport] = []
    sock = udp_socket(local, port)
    tun = open_tun(name, int(os.environ.get("QRE_OFFLOADS", ALL_OFFLOADS)))
    server = sock.detach() if role is Role.SERVER else None
    device = Device(tun, fresh_marks(), reports.append, server_socket=server)
    underlay = Underlay(local_ip=local, local_port=port, peer_ip=peer, peer_port=peer_port)
    install = install_of(role, underlay=underlay)
    answer = device.handle(install, [] if server is not None else [sock.detach()])
    if answer.error:
        raise SystemExit(answer.error)
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    interval = float(os.environ.get("QRE_REKEY", "0"))
    epoch = 0
    while not ended.is_set():
        try:
            await asyncio.wait_for(ended.wait(), interval or None)
        except TimeoutError:
            session = next(iter(device.registry.sessions.values()))
            if role is Role.SERVER and session.phases.epoch == epoch:
                device.handle(update_of(install, epoch + 1), [])
            elif role is Role.CLIENT and session.phases.epoch > epoch:
                update: SessionUpdate = update_of(install, session.phases.epoch)
                device.handle(update, [])
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
    if profile_file:
        profile = cProfile.Profile()
        profile.enable()
    asyncio.run(run(Role(role), name, local, peer))
    if profile_file:
        profile.disable()
        profile.dump_stats(profile_file)


if __name__ == "__main__":
    main()
