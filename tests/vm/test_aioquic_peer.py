"""A stock QUIC stack outside the guest, with a session's keys, is content with what qre.ko does."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest

from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from tests.support.kernels import GUEST, Kernel, build, guest_programs, kernels
from tests.support.namespaces import Namespace
from tests.support.stock_peer import StockPeer
from tests.support.vm import Vm, booted

pytestmark = pytest.mark.timeout(1800)
HOST, INSIDE = "10.9.1.1", "10.9.1.2"
INNER_HOST, INNER_INSIDE = "10.77.0.2", "10.77.0.1"
SERVER_PORT, CLIENT_PORT = 443, 5555
#: DATAGRAMs to the guest, which answers each.
DATAGRAMS = int(os.environ.get("QRE_AIOQUIC_DATAGRAMS", "10000"))
#: Numbers that a client leaves out in one test, before it repeats: each time its peer was late.
MOST_LEFT_OUT = 20
WINDOW = 32
_CLONE_NEWNET = 0x4000_0000
_LIBRARY = ". /tmp/environment\n"


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """This thread, and what it starts, in the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int) -> None:
        if libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace.name}") as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(before.fileno())


class Guest:
    """A guest with a tap device, whose other end is in a namespace of its own."""

    def __init__(self, vm: Vm, namespace: Namespace) -> None:
        self.vm = vm
        self.namespace = namespace

    def peer(self, role: Role) -> StockPeer:
        with inside(self.namespace):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        sock.bind((HOST, CLIENT_PORT if role is Role.SERVER else SERVER_PORT))
        return StockPeer(role, (INSIDE, SERVER_PORT if role is Role.SERVER else CLIENT_PORT), sock)


@pytest.fixture(scope="module", params=kernels(), ids=lambda kernel: kernel.series)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    kernel: Kernel = request.param
    directory, _ = build(kernel)
    with ExitStack() as stack:
        namespace = Namespace("tap")
        stack.callback(namespace.delete)
        namespace.ip("tuntap", "add", "dev", "tap0", "mode", "tap")
        namespace.ip("addr", "add", f"{HOST}/24", "dev", "tap0")
        namespace.ip("link", "set", "tap0", "up")
        qemu = "-netdev tap,id=n0,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=n0"
        with inside(namespace):
            vm = stack.enter_context(booted(kernel, qemu=qemu))
        vm.check(
            f"""
            printf 'TOOLS=%s\\nGUEST=%s\\n' {guest_programs()} {GUEST} >/tmp/environment
            modprobe -a virtio_net udp_tunnel ip6_udp_tunnel aesni_intel gcm
            insmod {directory}/qre.ko
            for each in /sys/class/net/*; do
                [ -e "$each/device" ] && link=${{each##*/}}
            done
            sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1
            ip link set lo up
            ip addr add {INSIDE}/24 dev "$link"
            ip link set "$link" up
            ping -c 3 -i 0.2 -W 5 -q {HOST}
            """
        )
        yield Guest(vm, namespace)
        assert vm.splats() == []


def keys_of(peer: StockPeer, epoch: int) -> str:
    """Attributes of SESSION_INSTALL and SESSION_UPDATE."""
    now, later = peer.handover.keys(epoch), peer.handover.keys(epoch + 1)
    words = [f"Device=qre0 SessionId=$ID KeyEpoch={epoch}"]
    for prefix, keys in (("", now), ("Next", later)):
        words.append(f"{prefix}TxKey={keys.tx_key.hex()} {prefix}TxIv={keys.tx_iv.hex()}")
        words.append(f"{prefix}RxKey={keys.rx_key.hex()} {prefix}RxIv={keys.rx_iv.hex()}")
    return " ".join(words)


class Pair:
    """One session of the guest and its stock peer; ``ask`` runs shell in the guest while the peer goes on."""

    def __init__(self, guest: Guest, role: Role) -> None:
        self.vm, self.role = guest.vm, role
        self.peer = guest.peer(role)
        self._sequence = 0
        self._pool = ThreadPoolExecutor(1)
        own, theirs = self.peer.session_address, self.peer.sock.getsockname()
        handover = self.peer.handover
        tx_hp, rx_hp = (key.hex() for key in handover.header_keys())
        hold = "Hold=" if role is Role.SERVER else ""
        self.ask(
            f"""
            $TOOLS/qrectl device-set Device=qre0 Role={1 if role is Role.SERVER else 2} MTU=1100
            setsid $TOOLS/qrectl events 3600 >/tmp/events 2>&1 </dev/null &
            ip addr add {INNER_INSIDE}/24 dev qre0
            ip link set qre0 up
            until grep -q listening /tmp/events; do sleep 0.1; done
            $TOOLS/qrectl session-install {keys_of(self.peer, 0)} TxHpKey={tx_hp} RxHpKey={rx_hp} \\
                ConnectionId={handover.routed_cid.hex()} ClientConnectionId={handover.client_cid.hex()} \\
                PacketNumber={PACKET_NUMBER_BASE} IdleMs=60000 {hold} MaxUdpPayload=1200 \\
                UnderlayLocalIPv4={own[0]} UnderlayLocalPort={own[1]} \\
                UnderlayPeerIPv4={theirs[0]} UnderlayPeerPort={theirs[1]}
            """
        )
        #: What it sent before met nobody.
        self._first = self.peer.connection._packet_number

    def close(self) -> None:
        self._pool.shutdown()
        self.peer.sock.close()
        self.vm.check(_LIBRARY + "$TOOLS/qrectl device-del Device=qre0; pkill -x qrectl; rm /tmp/events")

    def ask(self, script: str) -> str:
        future = self._pool.submit(self.vm.check, _LIBRARY + f"ID={'07' * 32}\n{script}")
        while not future.done():
            self.peer.turn(0.02)
        return future.result()

    def fields(self, command: str) -> dict[str, str]:
        printed = self.ask(f"$TOOLS/qrectl {command}")
        return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)

    def session(self) -> dict[str, str]:
        return self.fields("session-get Device=qre0 SessionId=$ID")

    def events(self) -> list[dict[str, str]]:
        blocks = self.ask("cat /tmp/events").split("\n\n")
        found = [dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE)) for block in blocks]
        return [event for event in found if "Event" in event]

    def echo(self, count: int) -> None:
        """So many echo requests to the guest, each of which is answered with its own bytes; none may be missing."""
        first, deadline = self._sequence, time.monotonic() + 60 + count / 20
        self._sequence += count
        sent, seen = 0, 0
        answered: set[int] = set()
        while len(answered) < count:
            if self.peer.terminated or time.monotonic() > deadline:
                told = self.fields("device-get Device=qre0")
                pytest.fail(f"{len(answered)} of {sent} were answered; {self.peer.terminated}; qre.ko: {told}")
            while sent < count and sent - len(answered) < WINDOW:
                self.peer.send(echo_request(first + sent))
                sent += 1
            self.peer.turn(0.05)
            for packet in self.peer.received[seen:]:
                number = echo_reply(packet)
                assert first <= number < first + sent
                assert number not in answered
                answered.add(number)
            seen = len(self.peer.received)
        self.peer.received.clear()

    def settle(self) -> None:
        """Until nothing is in flight; no longer than ten seconds."""
        deadline = time.monotonic() + 10
        while self.peer.unacknowledged() and time.monotonic() < deadline:
            self.peer.turn(0.05)
        self.peer.run(0.3)

    def content(self) -> None:
        """Everything arrived, everything was acknowledged, nothing was declared lost or dropped."""
        self.settle()
        assert [number for number in self.peer.lost() if number >= self._first] == []
        assert self.peer.unacknowledged() == []
        assert not self.peer.terminated
        told = self.session()
        arrived = self.peer.arrived()
        assert arrived == sorted(set(arrived)) and (arrived[0], arrived[-1]) == (
            PACKET_NUMBER_BASE,
            int(told["PacketNumber"]) - 1,
        )
        # A client whose peer is late repeats, and leaves one number out before that.
        assert all(later - one <= 2 for one, later in pairwise(arrived))
        assert int(told["PacketNumber"]) - PACKET_NUMBER_BASE - len(arrived) <= MOST_LEFT_OUT
        assert int(told["RxNumber"]) == self.peer.connection._packet_number - 1
        device = self.fields("device-get Device=qre0")
        assert not [name for name in device if name.startswith("Drop")], device


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - (total + (total >> 16) & 0xFFFF)


def echo_request(number: int) -> bytes:
    payload = struct.pack(">I", number) * (8 + number % 200)
    icmp = struct.pack(">BBHHH", 8, 0, 0, number >> 16, number & 0xFFFF) + payload
    icmp = icmp[:2] + struct.pack(">H", _checksum(icmp)) + icmp[4:]
    addresses = socket.inet_aton(INNER_HOST) + socket.inet_aton(INNER_INSIDE)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0x4000, 64, 1, 0) + addresses
    return header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + icmp


def echo_reply(packet: bytes) -> int:
    """Its number; it must be whole."""
    assert packet[0] == 0x45
    assert packet[9] == 1
    assert packet[20] == 0, "not an echo reply"
    number = int.from_bytes(packet[24:28], "big")
    request = echo_request(number)
    assert packet[28:] == request[28:]
    assert _checksum(packet[:20]) % 0xFFFF == _checksum(packet[20:]) % 0xFFFF == 0  # zero has two forms
    assert packet[12:20] == request[16:20] + request[12:16]
    return number


@pytest.fixture(params=[Role.SERVER, Role.CLIENT], ids=["server", "client"])
def pair(guest: Guest, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A confirmed session."""
    made = Pair(guest, request.param)
    try:
        made.echo(1)
        yield made
    finally:
        made.close()


def test_datagrams_pass_both_ways_and_nothing_is_declared_lost(pair: Pair) -> None:
    pair.echo(DATAGRAMS)
    pair.content()
    told = pair.session()
    assert int(told["RxPackets"]) == int(told["TxPackets"]) == DATAGRAMS + 1


def _by_the_module(pair: Pair, epoch: int) -> None:
    pair.ask(f"$TOOLS/qrectl session-update {keys_of(pair.peer, epoch)}")


def _by_aioquic(pair: Pair, epoch: int) -> None:
    """aioquic forgets its old receive keys at once: nothing of the module may be under way."""
    pair.settle()
    pair.peer.connection.request_key_update()
    pair.echo(1)
    changed = [event["KeyEpoch"] for event in pair.events() if event["Event"] == "4"]
    assert changed[-1:] == [str(epoch)]
    _by_the_module(pair, epoch)  # which brings the keys after the next


@pytest.mark.parametrize("update", [_by_the_module, _by_aioquic], ids=["its", "aioquic"])
def test_key_updates_are_followed(pair: Pair, update: Callable[[Pair, int], None]) -> None:
    for epoch in (1, 2, 3):
        pair.echo(20)
        pair.peer.run(3)  # three PTO after the acknowledgement: RFC 9001 section 6.5
        update(pair, epoch)
        pair.echo(20)
        pair.settle()
        assert pair.session()["KeyEpoch"] == str(epoch)
    pair.content()


def test_its_close_is_understood(pair: Pair) -> None:
    pair.ask("$TOOLS/qrectl session-del Device=qre0 SessionId=$ID Close=")
    pair.peer.run(3)
    assert [event.error_code for event in pair.peer.terminated] == [0x100]


def test_the_peers_close_is_understood(pair: Pair) -> None:
    pair.peer.connection.close(error_code=0x101)
    pair.peer.run(2)
    (lost,) = [event for event in pair.events() if event["Event"] == "2"]
    assert (lost["Loss"], lost["ErrorCode"]) == ("2", "257")
