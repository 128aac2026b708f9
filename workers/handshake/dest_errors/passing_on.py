"""Passes ICMP errors about Dest on to the visitors whose datagrams they are about, as if the port's own host said so.

This process has no raw socket: it asks the BPF loader for each (``PortError``), which holds one and reads no packet.
An error is passed on for one of the last two datagrams of a flow (a browser's hello has two), known by its first
bytes, and only where the header that it came with is known. Never about a session, nor where Dest is imitated.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

from qre.addresses import Address
from qre.errors import QreError
from qre.ipc.messages import Party
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.kernel.udp.control_messages import Ancillary, is_every
from qre.kernel.udp.error_queue import QueuedError
from qre.kernel.udp.port_errors import LEAST_MTU, QUOTED, Failing, Limits, PortError, udp_checksum
from qre.kernel.udp.quotable_header import Sent, arrival_of, report_arrival
from qre.workers.handshake.port.flow_parts import Flow, FlowState

#: Datagrams of a flow that errors may be about.
KEPT: Final = 2
#: Bytes of a datagram that is kept: what is longer has come in fragments, and no router says anything of it.
_LONGEST: Final = 2048
#: Requests that are under way at a time: those of sessions have to get through beside them. And those that wait.
_AT_A_TIME, _MOST_WAITING = 2, 16
#: Where the datagrams of a flow go to Dest, and its answers to whoever sent them.
_VISITORS: Final = frozenset({FlowState.WATCHED, FlowState.RELAY, FlowState.SHADOW})


class DestErrors:
    """``latest``: the datagram that was read last at the port, and its control messages. ``imitated``: whether
    clients are answered in the name of a Dest that is down."""

    def __init__(self, context: WorkerContext, imitated: Callable[[], bool]) -> None:
        self._context = context
        self._imitated = imitated
        self._tasks = Tasks(context.internal_error)
        self._limits = Limits(time.monotonic())
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self.latest: tuple[bytes, list[Ancillary]] = b"", []
        self.on = context.config.sends_errors

    @property
    def trouble(self) -> str:
        """Why nothing is passed on; empty when it is."""
        told = self.on or self._context.config.joined  # the front tells
        return "" if told else "without CAP_NET_RAW: visitors are not told of ICMP errors about Dest"

    def watch(self, port: socket.socket) -> None:
        """Have the kernel tell how datagrams come to this socket."""
        if self.on:
            with contextlib.suppress(OSError):  # without it nothing is passed on
                report_arrival(port)

    def keep(self, kept: tuple[Sent, ...], data: bytes) -> tuple[Sent, ...]:
        """``data`` of a flow has left for Dest after ``kept``; what errors may be about from now on."""
        if self.latest[0] is not data or len(data) > _LONGEST:  # it has not just come, or it was in fragments
            return kept
        return (*kept[1 - KEPT :], Sent(*self.latest))

    def tells(self, flow: Flow, data: bytes) -> bool:
        """Whether the visitor of ``flow`` is told that ``data`` is too large: it has just come, in one piece."""
        known = self.on and self.latest[0] is data and len(data) <= _LONGEST and self._is_visitors(flow)
        arrival = arrival_of(self.latest[1]) if known else None
        return arrival is not None and arrival.whole

    def _is_visitors(self, flow: Flow) -> bool:
        return flow.state in _VISITORS and not (flow.shadows and self._imitated())

    def told(self, flow: Flow, kept: Sequence[Sent], error: QueuedError) -> None:
        """ICMP has said something of a datagram of ``flow``."""
        if not self._is_visitors(flow):
            return
        about = (each for each in reversed(kept) if each.data.startswith(error.begins))
        found = next(about, None)
        request = self._request(flow, found, error) if found is not None else None
        if request is None or len(self._tasks) >= _MOST_WAITING:
            return
        if self._limits.take(request.visitor, time.monotonic()):
            self._tasks.spawn(self._ask(request))

    def _request(self, flow: Flow, about: Sent, error: QueuedError) -> PortError | None:
        arrival, local = arrival_of(about.came), self._local(flow)
        if arrival is None or not arrival.whole or local is None:
            return None
        visitor, port, data = ip_address(flow.source[0]), self._context.config.listen_port, about.data
        mtu = _mtu(error, visitor.version)
        if (error.failing is Failing.TOO_BIG) is not (0 < mtu < len(data) + (28 if visitor.version == 4 else 48)):
            return None  # it does not exceed that: a forgery, or an error about an address translator's other side
        return PortError(
            visitor=visitor,
            visitor_port=flow.source[1],
            local=local,
            local_port=port,
            failing=error.failing,
            mtu=mtu,
            hops=arrival.hops,
            traffic=arrival.traffic,
            length=len(data),
            checksum=udp_checksum((visitor, flow.source[1]), (local, port), data),
            payload=data[: QUOTED[visitor.version]],
        )

    def _local(self, flow: Flow) -> Address | None:
        """The address that the visitor speaks to; None when it is not known."""
        ip = flow.source[2] if len(flow.source) == 3 else self._context.config.listen_ip
        return None if is_every(ip) else ip_address(ip)

    async def _ask(self, request: PortError) -> None:
        try:
            async with self._turns:
                await self._context.request(Party.BPF_LOADER, request)
        except QreError as error:  # it is being restarted: visitors are not told meanwhile
            self._context.limited("dest errors", f"an ICMP error about Dest is not passed on: {error}")

    def close(self) -> None:
        """Nothing is asked for any more."""
        self._tasks.cancel()


def _mtu(error: QueuedError, version: int) -> int:
    """What fits, for a visitor over this version of IP: a header of IPv6 has 20 bytes more (RFC 7915 §4.2, §5.2)."""
    if error.failing is not Failing.TOO_BIG:
        return 0
    mtu = error.mtu + {(4, 6): 20, (6, 4): -20}.get((error.version, version), 0)
    return min(max(mtu, LEAST_MTU[version]), 0xFFFF)
