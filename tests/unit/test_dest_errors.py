"""Which visitors are told of ICMP errors about Dest, and what the relay loses by them: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address, ip_interface
from typing import Any, cast

import pytest

from qre.ends import Role
from qre.errors import MachineError
from qre.ipc.messages import Done, Party, WorkerConfig
from qre.ipc.worker import WorkerContext
from qre.kernel.udp.control_messages import Ancillary, in_fragments, never_fragment, report_ecn
from qre.kernel.udp.error_queue import KNOWN_BY, QueuedError, next_error, report_errors
from qre.kernel.udp.port_errors import QUOTED, Failing, Limits, PortError, udp_checksum
from qre.kernel.udp.quotable_header import Arrival, Sent, arrival_of, report_arrival
from qre.structs import Message
from qre.workers.handshake.dest_errors.passing_on import DestErrors
from qre.workers.handshake.port.datagrams import receive_into, send_to
from qre.workers.handshake.port.flow_parts import Address, Flow, FlowState
from qre.workers.handshake.port.relay import DestSocket, Relays
from tests.support.daemons import PATIENCE
from tests.support.error_log import ErrorLog

VISITOR, LISTEN, PORT = "192.0.2.7", "192.0.2.1", 443
DATA = bytes(range(250)) * 5
_TOS, _TTL, _FRAGSIZE = (socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IP, 2), (socket.IPPROTO_IP, 25)
CAME: list[Ancillary] = [(*_TTL, struct.pack("=i", 57)), (*_TOS, b"\x02")]
CAME6: list[Ancillary] = [
    (socket.IPPROTO_IPV6, 52, struct.pack("=i", 57)),
    (socket.IPPROTO_IPV6, 11, (0x02ABCDE).to_bytes(4, "big")),
]
PORT_CLOSED = QueuedError(4, Failing.PORT, 0, DATA[:KNOWN_BY])


class Asked:
    """The worker's context: what was asked of whom."""

    def __init__(self, **settings: Any) -> None:
        self.config = WorkerConfig(
            profile="server0", device="server0", role=Role.SERVER, address=(ip_interface("10.77.0.1/24"),), mtu=1380,
            keepalive_s=0, allowed_ips=(), server_name="localhost",
            **{"listen_ip": LISTEN, "listen_port": PORT} | settings,
        )  # fmt: skip
        self.requests: list[PortError] = []
        self.lines: list[str] = []
        self.failures: list[BaseException] = []
        self.away = False
        self.internal_error = self.failures.append

    async def request(self, to: Party, message: Message, timeout: float = 5.0) -> Message:
        assert to is Party.BPF_LOADER and isinstance(message, PortError)
        if self.away:
            raise MachineError("PortError to bpf_loader", "it is not running")
        self.requests.append(message)
        await asyncio.sleep(0.001)
        return Done()

    def limited(self, key: str, text: str) -> None:
        self.lines.append(text)


class Port:
    """``told`` is what a visitor is told of ``error`` after it has sent ``data``."""

    def __init__(self, *, imitated: bool = False, **settings: Any) -> None:
        self.asked = Asked(**settings)
        self.errors = DestErrors(cast(WorkerContext, self.asked), lambda: imitated)
        self.kept: tuple[Sent, ...] = ()

    def spoke(self, data: bytes = DATA, came: list[Ancillary] = CAME) -> None:
        self.errors.latest = data, came
        self.kept = self.errors.keep(self.kept, data)

    def told(
        self, error: QueuedError = PORT_CLOSED, state: FlowState = FlowState.RELAY, source: Address = (VISITOR, 5)
    ) -> list[PortError]:
        self.errors.told(flow_in(state, source), self.kept, error)
        return self.asked.requests


def flow_in(state: FlowState, source: Address = (VISITOR, 5)) -> Flow:
    made = Flow(source, 0.0)
    made.state = state
    return made


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


async def asked_of(port: Port) -> list[PortError]:
    await asyncio.sleep(0)
    while len(port.errors._tasks):
        await asyncio.sleep(0.001)
    assert not port.asked.failures
    return port.asked.requests


@in_loop
async def test_a_visitor_is_told_with_its_own_datagram_and_the_header_that_it_came_with() -> None:
    port = Port()
    port.spoke()
    port.told()
    (request,) = await asked_of(port)
    visitor, local = ip_address(VISITOR), ip_address(LISTEN)
    assert request == PortError(
        visitor=visitor, visitor_port=5, local=local, local_port=PORT, failing=Failing.PORT, hops=57, traffic=2,
        length=1250, checksum=udp_checksum((visitor, 5), (local, PORT), DATA), payload=DATA[: QUOTED[4]],
    )  # fmt: skip


@in_loop
async def test_of_two_datagrams_the_one_is_quoted_that_the_error_is_about() -> None:
    port = Port()
    first, second, third = (bytes([number]) * 1250 for number in range(3))
    for data in (first, second, third):
        port.spoke(data)
    for data in (third, second, first):
        port.told(QueuedError(4, Failing.PORT, 0, data[:KNOWN_BY]))
    assert [each.payload[:1] for each in await asked_of(port)] == [third[:1], second[:1]]
    port.told(QueuedError(4, Failing.PORT, 0, b""))  # of a router that quotes eight bytes: the last one
    assert (await asked_of(port))[-1].payload[:1] == third[:1]


@in_loop
async def test_no_session_and_nobody_who_is_answered_in_dests_place_is_told() -> None:
    for state in FlowState:
        port = Port()
        port.spoke()
        port.told(state=state)
        assert bool(await asked_of(port)) is (state in {FlowState.WATCHED, FlowState.RELAY, FlowState.SHADOW}), state
    port = Port(imitated=True)
    port.spoke()
    port.told(state=FlowState.SHADOW)
    assert not await asked_of(port)
    port.told(state=FlowState.RELAY)
    assert await asked_of(port)


@in_loop
async def test_what_is_not_known_is_not_made_up() -> None:
    unknown: list[tuple[bytes, list[Ancillary]]] = [
        (DATA, []),  # no TTL
        (DATA, [*CAME, (*_FRAGSIZE, struct.pack("=i", 600))]),  # in fragments
        (bytes(2049), CAME),  # too long to have come whole
    ]
    for data, came in unknown:
        port = Port()
        port.spoke(data, came)
        port.told(QueuedError(4, Failing.PORT, 0, data[:KNOWN_BY]))
        assert not await asked_of(port)
    port = Port()
    port.errors.latest = b"another", CAME
    port.kept = port.errors.keep((), DATA)  # one that has not just come: nothing is known of its header
    port.told()
    assert not port.kept and not await asked_of(port)
    port = Port(listen_ip="0.0.0.0")
    port.spoke()
    port.told(source=(VISITOR, 5, "0.0.0.0"))
    assert not await asked_of(port)
    port.told(source=(VISITOR, 5, "192.0.2.9"))
    assert [str(each.local) for each in await asked_of(port)] == ["192.0.2.9"]


@in_loop
async def test_of_what_is_too_large_the_mtu_is_told_and_only_if_the_datagram_exceeds_it() -> None:
    for version, mtu, visitor, told in (
        (4, 1200, VISITOR, 1200),
        (4, 1277, VISITOR, 1277),
        (4, 1278, VISITOR, None),
        (4, 0, VISITOR, 68),
        (6, 1280, VISITOR, 1260),  # Dest is reached over IPv6, by a visitor over IPv4
        (6, 1280, "2001:db8::7", 1280),
        (4, 1200, "2001:db8::7", 1280),
        (4, 1300, "2001:db8::7", None),
    ):
        over_ipv6 = ":" in visitor
        port = Port(listen_ip="2001:db8::1" if over_ipv6 else LISTEN)
        port.spoke(came=CAME6 if over_ipv6 else CAME)
        port.told(QueuedError(version, Failing.TOO_BIG, mtu, DATA[:KNOWN_BY]), source=(visitor, 5))
        assert [each.mtu for each in await asked_of(port)] == ([] if told is None else [told]), (version, mtu)


@in_loop
async def test_only_a_visitor_is_told_of_what_is_too_large_and_only_of_what_came_whole() -> None:
    in_pieces: list[Ancillary] = [*CAME, (*_FRAGSIZE, struct.pack("=i", 600))]
    for state, came, told in (
        (FlowState.RELAY, CAME, True),
        (FlowState.WATCHED, CAME, True),
        (FlowState.SHADOW, CAME, True),
        (FlowState.LEFT, CAME, False),
        (FlowState.OVER, CAME, False),
        (FlowState.RELAY, in_pieces, False),
        (FlowState.RELAY, [], False),
    ):
        port = Port()
        port.spoke(came=came)
        assert port.errors.tells(flow_in(state), DATA) is told, (state, came)
        assert not port.errors.tells(flow_in(state), DATA + b"x"), "it has not just come"


@in_loop
async def test_a_visitor_over_ipv6_is_told_with_class_and_flow_label() -> None:
    port = Port(listen_ip="2001:db8::1")
    port.spoke(came=CAME6)
    port.told(source=("2001:db8::7", 5))
    (request,) = await asked_of(port)
    assert (request.traffic, request.hops, len(request.payload)) == (0x02ABCDE, 57, QUOTED[6])


@in_loop
async def test_a_flood_of_errors_asks_for_few_and_only_some_at_once() -> None:
    port = Port()
    port.spoke()
    for _ in range(1000):
        port.told()
    assert len(port.errors._tasks) <= Limits.PEER_BURST
    assert len(await asked_of(port)) == Limits.PEER_BURST
    for number in range(1000):
        port.told(source=(f"198.51.{number >> 8}.{number & 255}", 5))
    assert len(port.errors._tasks) <= 16
    assert len(await asked_of(port)) <= Limits.PEER_BURST + 16


@in_loop
async def test_a_loader_that_is_away_costs_a_line_and_nothing_else() -> None:
    port = Port()
    port.asked.away = True
    port.spoke()
    port.told()
    assert not await asked_of(port)
    assert ["not passed on" in line for line in port.asked.lines] == [True]
    port.asked.away = False
    port.told()
    assert await asked_of(port)
    port.errors.close()


@in_loop
async def test_without_the_capability_the_status_says_so_and_nothing_is_asked_of_the_kernel() -> None:
    port = Port(sends_errors=False)
    assert "CAP_NET_RAW" in port.errors.trouble and not Port().errors.trouble
    port.errors.watch(cast(socket.socket, None))
    assert not port.errors.tells(flow_in(FlowState.RELAY), DATA)


# --- what the kernel tells ---

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
EITHER = pytest.mark.parametrize("family", list(LOOPBACK), ids=["IPv4", "IPv6"])


@EITHER
def test_the_header_of_a_datagram_is_told_beside_its_mark_and_address(family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as port, socket.socket(family, socket.SOCK_DGRAM) as visitor:
        report_ecn(port)
        report_arrival(port)
        port.bind((LOOPBACK[family], 0))
        port.settimeout(PATIENCE)
        hops = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if family == socket.AF_INET6 else (0, socket.IP_TTL)
        visitor.setsockopt(*hops, 41)
        send_to(visitor, port.getsockname()[:2], b"hello", 2)
        length, _, mark, came = receive_into(port, bytearray(100), ours=None)
        arrival = arrival_of(came)
        assert (length, mark) == (5, 2) and arrival is not None
        assert (arrival.hops, arrival.whole) == (41, True)
        assert arrival.traffic >> 20 == 2 if family == socket.AF_INET6 else arrival.traffic == 2


def test_what_came_in_fragments_is_told_to_have() -> None:
    assert arrival_of([*CAME, (*_FRAGSIZE, struct.pack("=i", 1500))]) == Arrival(57, 2, whole=False)
    assert arrival_of([]) is None and arrival_of([(*_TTL, b"\1"), (*_TOS, b"")]) is None


def closed_port(family: int) -> tuple[str, int]:
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((LOOPBACK[family], 0))
        address: tuple[str, int] = made.getsockname()[:2]
        return address


def heard(sock: socket.socket) -> QueuedError | None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (found := next_error(sock)) is not None:
            return found
        select.select([], [], [sock], 0.01)
    return None


@EITHER
def test_a_closed_port_is_told_with_the_beginning_of_the_datagram(family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        never_fragment(sock)
        report_errors(sock)
        sock.connect(closed_port(family))
        sock.send(DATA)
        assert heard(sock) == QueuedError(6 if family == socket.AF_INET6 else 4, Failing.PORT, 0, DATA[:KNOWN_BY])
        assert next_error(sock) is None
        sock.send(DATA)  # having heard of it, the socket has no error left


@EITHER
def test_what_was_asked_of_the_path_stays_so_when_something_has_left_in_fragments(family: int) -> None:
    option = (socket.IPPROTO_IPV6, 23) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 10)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for prepare in (never_fragment, report_errors):
            prepare(sock)
            before = sock.getsockopt(*option)
            with in_fragments(sock):
                assert sock.getsockopt(*option) == 0
            assert sock.getsockopt(*option) == before
        assert before == 3  # what ICMP says is told, and obeyed by nobody


# --- the relay ---


class Way:
    """The relay's way to Dest."""

    def __init__(self, log: ErrorLog) -> None:
        self.log = log
        self.replies: list[bytes] = []
        self.relays = Relays(self._reply, contextlib.nullcontext, lambda: None, lambda key, line: None, log)

    def _reply(self, _: Flow, data: bytes, *rest: object) -> None:
        self.replies.append(data)

    def opened(self, family: int, dest: tuple[str, int], number: int = 1) -> DestSocket:
        made = self.relays.open(Flow(("192.0.2.1", number), 0.0), family, dest)
        assert made is not None
        return made

    def turn(self) -> None:
        select.select([self.relays.fileno()], [], [], PATIENCE)
        self.relays.readable()


@pytest.fixture
def way() -> Iterator[Way]:
    made = Way(ErrorLog())
    yield made
    made.relays.close()


@EITHER
def test_the_relay_hears_what_icmp_says_of_each_datagram_and_waits_for_nothing_then(way: Way, family: int) -> None:
    made = way.opened(family, closed_port(family))
    made.send(b"first", 0)
    way.turn()
    made.send(b"second", 1)
    way.turn()
    assert [data for data, _ in way.log.heard] == [b"first", b"second"]
    assert not select.select([way.relays.fileno()], [], [], 0.05)[0], "the event loop would turn for ever"


def test_errors_of_earlier_datagrams_cost_no_later_one(way: Way) -> None:
    """Dest's program is started again while its host still says that nobody listens."""
    at = closed_port(socket.AF_INET)
    made = way.opened(socket.AF_INET, at)
    made.send(b"lost", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dest:
        dest.bind(at)
        dest.settimeout(PATIENCE)
        for number in range(3):  # the first of them meets the error
            made.send(b"%d" % number, 0)
        assert [dest.recv(10) for _ in range(3)] == [b"0", b"1", b"2"]
        _, source = (made.send(b"3", 0), dest.recvfrom(10))[1]
        dest.sendto(b"answer", source)
        way.turn()
    assert way.replies == [b"answer"] and way.relays.lost == 0
    assert [(data, error.failing) for data, error in way.log.heard] == []  # none of the last two, which arrived


def test_what_is_kept_of_many_visitors_is_bounded(way: Way) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dest:
        dest.bind(("127.0.0.1", 0))
        made = [way.opened(socket.AF_INET, dest.getsockname(), number + 1) for number in range(600)]
        for _ in range(2):
            for each in made:
                each.send(b"hello", 0)
        assert [bool(each.kept) for each in made] == [False] * 344 + [True] * 256
        made[-1].close()
        assert not made[-1].kept


def test_without_the_capability_the_relay_is_as_silent_as_before() -> None:
    way = Way(ErrorLog(on=False))
    try:
        made = way.opened(socket.AF_INET, closed_port(socket.AF_INET))
        made.send(b"first", 0)
        way.turn()
        assert not way.log.heard and not made.kept
    finally:
        way.relays.close()
