"""Two devices on loopback, a path between them that swallows large datagrams, and a test in place of the kernel."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from qre.dataplane.protocol import underlay_of
from qre.ends import Role
from qre.workers.dataplane.device import Device
from qre.workers.dataplane.inner.offload import NO_OFFLOAD, VNET_HEADER
from tests.support.dataplane import fresh_marks, install_of
from tests.support.inner_packets import V4, V6, assert_whole, tcp, udp

_IP_RECVTOS = 13
C, S = Role.CLIENT, Role.SERVER
OTHER = {C: S, S: C}


class Pair(ExitStack):
    """``path`` carries UDP payloads of that many bytes, and marks unless it is ``bleaching``. ``ecn``: of the
    server's profile. Use it within a running loop."""

    def __init__(self, path: int, *, ecn: int = 0, bleaching: bool = False) -> None:
        super().__init__()
        self.path, self.ecn, self.bleaching = path, ecn, bleaching
        #: Codepoints of what came to the path's middle, by who sent it.
        self.marks: dict[Role, list[int]] = {C: [], S: []}
        self.loop = asyncio.get_running_loop()
        self.tuns: dict[Role, socket.socket] = {}
        self.devices: dict[Role, Device] = {}
        self.said: list[str] = []
        sockets = {role: self._udp() for role in Role}
        #: The far end of the path as each role sees it.
        self._middle = {role: self._udp() for role in Role}
        self._addresses = {role: sockets[role].getsockname() for role in Role}
        for role in Role:
            self.loop.add_reader(self._middle[role].fileno(), self._forward, role)
            self.callback(self.loop.remove_reader, self._middle[role].fileno())
        for role in (S, C):
            self._start(role, sockets[role])

    def _udp(self) -> socket.socket:
        made = self.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind(("127.0.0.1", 0))
        made.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        made.setblocking(False)
        return made

    def _forward(self, role: Role) -> None:
        """What came from ``role`` goes to the other one, if it fits."""
        with suppress(BlockingIOError):
            while True:
                datagram, ancillary, *_ = self._middle[role].recvmsg(65_535, 64)
                mark = next(value[0] & 3 for _, kind, value in ancillary if kind == socket.IP_TOS)
                self.marks[role].append(mark)
                if len(datagram) <= self.path:
                    tos = [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", 0 if self.bleaching else mark))]
                    self._middle[OTHER[role]].sendmsg([datagram], tos, 0, self._addresses[OTHER[role]])

    def _start(self, role: Role, sock: socket.socket) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tuns[role] = self.enter_context(ours)
        ours.setblocking(False)
        device = Device(
            its.detach(),
            fresh_marks(),
            lambda report: None,
            server_socket=sock.detach() if role is S else None,
            ecn=self.ecn if role is S else 0,
            say=lambda kind, text: self.said.append(text),
        )
        self.callback(device.close)
        self.devices[role] = device
        own, peer = self._addresses[role], self._middle[role].getsockname()
        underlay = underlay_of((own[0], own[1]), (peer[0], peer[1]))
        answer = device.handle(install_of(role, underlay=underlay), [sock.detach()] if role is C else [])
        assert not answer.refusal

    def send(self, role: Role, packet: bytes) -> None:
        self.tuns[role].send(NO_OFFLOAD + packet)

    async def read(self, role: Role) -> bytes:
        """The same with its header, perhaps several segments."""
        return await asyncio.wait_for(self.loop.sock_recv(self.tuns[role], 65_535), 20)

    async def received(self, role: Role) -> bytes:
        """The next packet that the device wrote."""
        read = await self.read(role)
        assert read.startswith(NO_OFFLOAD)
        return read[len(NO_OFFLOAD) :]

    async def settled(self) -> None:
        sessions = [session for device in self.devices.values() for session in device.registry.sessions.values()]
        async with asyncio.timeout(20):
            while not all(session.path_mtu.settled for session in sessions):
                await asyncio.sleep(0.01)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def test_senders_are_told_when_the_search_has_ended_and_not_before(runner: asyncio.Runner) -> None:
    async def tell() -> None:
        with Pair(1372) as pair:
            pair.send(C, udp(V4, bytes(1300)))
            answer = await pair.received(C)
            (session,) = pair.devices[C].registry.sessions.values()
            assert session.path_mtu.settled
            assert (answer[9], answer[20:22], answer[26:28]) == (1, b"\3\4", struct.pack(">H", 1282))
            assert pair.devices[C].counters().drops == {"too-big": 1}
            pair.send(C, udp(V6, bytes(1300)))
            answer = await pair.received(C)
            assert (answer[6], answer[40:42], answer[44:48]) == (58, b"\2\0", struct.pack(">I", 1282))

    runner.run(tell())


def test_ipv6_is_refused_where_it_does_not_fit_and_ipv4_is_not(runner: asyncio.Runner) -> None:
    async def refuse() -> None:
        with Pair(1252) as pair:
            await pair.settled()
            pair.send(C, udp(V6, b"small"))
            answer = await pair.received(C)
            assert (answer[6], answer[40:42]) == (58, b"\1\1")
            assert pair.devices[C].counters().drops == {"ipv6-refused": 1}
            assert len(pair.said) == 1
            pair.send(C, udp(V4, b"small"))
            assert (await pair.received(S)).endswith(b"small")

    runner.run(refuse())


@pytest.mark.parametrize(("addresses", "headers"), [(V4, 40), (V6, 60)])
def test_a_syn_comes_out_with_an_mss_that_the_way_back_carries(
    runner: asyncio.Runner, addresses: tuple[bytes, bytes], headers: int
) -> None:
    async def connect() -> None:
        with Pair(1372) as pair:
            await pair.settled()
            for role, inner in ((C, 1282), (S, 1302)):
                pair.send(OTHER[role], tcp(addresses, b"", flags=2, options=struct.pack(">BBH", 2, 4, 1460)))
                packet = await pair.received(role)
                assert_whole(packet)
                assert packet[headers + 2 :] == struct.pack(">H", inner - headers)

    runner.run(connect())


def test_a_stream_goes_on_in_smaller_segments_at_once_while_the_search_runs(runner: asyncio.Runner) -> None:
    async def stream() -> None:
        with Pair(1252) as pair:
            for n in range(3):
                pair.send(C, tcp(V4, bytes([n]) * 1340, 1000 + 1340 * n))
            stream = b""
            while len(stream) < 3 * 1340:
                read = await pair.read(S)
                segment = VNET_HEADER.unpack_from(read)[3] or len(read) - 50
                assert segment <= 1156 - 40
                stream += read[50:]
            assert stream == b"".join(bytes([n]) * 1340 for n in range(3))
            assert pair.devices[C].counters().drops == {}

    runner.run(stream())


@pytest.mark.parametrize("bleaching", [False, True])
def test_marks_leave_as_long_as_the_path_bears_them(runner: asyncio.Runner, bleaching: bool) -> None:
    async def send() -> None:
        with Pair(1500, ecn=2, bleaching=bleaching) as pair:
            await pair.settled()
            for n in range(20):
                pair.send(S, udp(V4, bytes([n])))
                await pair.received(C)
                await asyncio.sleep(0.03)  # longer than an acknowledgement is put off: its counts are known
            assert not any(pair.marks[C])
            marks = pair.marks[S]
            assert set(marks) == ({2, 0} if bleaching else {2})
            assert marks.count(2) <= 10 or not bleaching
            assert marks[-20:].count(2) == (0 if bleaching else 20)

    runner.run(send())
