"""UDP_GRO on the data plane's socket of a SO_REUSEPORT group that the BPF program steers.

The kernel looks a socket up for GRO without asking the program: it joins datagrams when the socket that the flow's
hash picks has UDP_GRO. What was joined is delivered by the program's choice like everything else, so steering is
right, and only how much is joined depends on the other slot's socket.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from qre.config.model import GlobalConfig
from qre.supervisor.parent.process_settings import bpf_elf
from tests.support.daemons import PATIENCE
from tests.support.dataplane import ROUTED_CID
from tests.support.namespaces import Namespace

SERVER, CLIENT, PORT = "10.90.7.1", "10.90.7.2", 443
SIZE, BURST, PORTS = 1200, 40, 16

RECEIVER = f"""
import os, socket, sys, time
from collections import Counter
from qre.kernel.bpf_program import SLOT_KERNEL, SLOT_USER, load
from qre.workers.dataplane.underlay import UnderlaySocket
pair = []
for _ in range(2):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("{SERVER}", {PORT}))
    pair.append(sock)
elf = os.open(sys.argv[1], os.O_RDONLY)
maps = load(elf, 20)
maps.slot_in(SLOT_USER, pair[0].fileno())
maps.slot_in(SLOT_KERNEL, pair[1].fileno())
maps.attach(pair[0].fileno())
maps.adopt(bytes.fromhex("{ROUTED_CID.hex()}"))
underlay = UnderlaySocket(os.dup(pair[1].fileno()), Counter())
pair[0].setblocking(False)
print("ready", flush=True)
calls = packets = wrong = strays = 0
deadline = time.monotonic() + 60
while packets < {BURST * PORTS} and time.monotonic() < deadline:
    received = underlay.receive()
    if received is None:
        time.sleep(0.01)
        continue
    calls += 1
    packets += len(received[0])
    wrong += sum(len(one) != {SIZE} for one in received[0])
while True:
    try:
        pair[0].recv(65535)
        strays += 1
    except BlockingIOError:
        break
print(packets, calls, wrong, strays)
"""

SENDER = f"""
import socket
for port in range({PORTS}):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packet = (b"\\x40" + bytes.fromhex("{ROUTED_CID.hex()}")).ljust({SIZE}, b"x")
    segment = [(socket.IPPROTO_UDP, 103, ({SIZE}).to_bytes(2, "little"))]
    sock.sendmsg([packet] * {BURST}, segment, 0, ("{SERVER}", {PORT}))
"""


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    client, server = Namespace("t-dpgc"), Namespace("t-dpgs")
    try:
        client.ip("link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", server.name)
        for namespace, device, address in ((client, "va", CLIENT), (server, "vb", SERVER)):
            namespace.ip("addr", "add", f"{address}/24", "dev", device)
            namespace.ip("link", "set", device, "up")
        yield client, server
    finally:
        client.delete()
        server.delete()


def received(pair: tuple[Namespace, Namespace]) -> tuple[int, int, int, int]:
    """Packets, system calls, packets of a wrong size, and what the other slot got."""
    client, server = pair
    process = subprocess.Popen(
        [*server.prefix, sys.executable, "-c", RECEIVER, str(bpf_elf(GlobalConfig()))],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        client.run(sys.executable, "-c", SENDER)
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    packets, calls, wrong, strays = map(int, out.split())
    return packets, calls, wrong, strays


def test_super_packets_that_pass_the_link_whole_arrive_whole_at_the_steered_socket(
    pair: tuple[Namespace, Namespace],
) -> None:
    packets, calls, wrong, strays = received(pair)
    assert (packets, wrong, strays) == (BURST * PORTS, 0, 0)
    assert calls < packets / 10


@pytest.mark.parametrize("gro", ["on", "off"])
def test_datagrams_that_pass_the_link_one_by_one_all_reach_the_steered_socket(
    pair: tuple[Namespace, Namespace], gro: str
) -> None:
    client, server = pair
    client.run("ethtool", "-K", "va", "gso", "off", "tso", "off", "tx-udp-segmentation", "off", check=False)
    server.run("ethtool", "-K", "vb", "gro", gro, check=False)
    packets, calls, wrong, strays = received(pair)
    assert (packets, wrong, strays) == (BURST * PORTS, 0, 0)
    print(f"gro {gro}: {packets} packets in {calls} calls")
