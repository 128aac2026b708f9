"""A client handshake on a UDP socket: the loop between ``ClientHandshake`` and the kernel.

After ``HandOverReady`` nothing more is read: later packets belong to the data plane. ``shake_hands`` runs a whole
handshake, bounded in time, and raises one exception for every failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from random import SystemRandom
from typing import Final

from qre.addresses import host_port
from qre.causes import Cause, of_network
from qre.errors import MachineError, PeerError
from qre.kernel.udp.control_messages import (
    ECN_SPACE,
    PKTINFO_SPACE,
    TIME_SPACE,
    age_of,
    ecn_of,
    local_of,
    report_ecn,
    report_local,
)
from qre.quic.client.client_handshake import STEP_TIMEOUT, ClientHandshake
from qre.quic.handshake_events import (
    ClientEvent,
    ClockOff,
    Closed,
    HandOverReady,
    HandshakeFailed,
    ManInTheMiddle,
    NotRecognised,
)

_BATCH: Final = 32
_LONGEST: Final = 65_535
#: From the first datagram to the hand-over at the latest (seconds); every step has a shorter limit of its own.
_LONGEST_HANDSHAKE: Final = 40.0


async def shake_hands(
    handshake: ClientHandshake,
    made: socket.socket,
    peer: tuple[str, int],
    where: str,
    patience: float = STEP_TIMEOUT,
) -> str | None:
    """Return when ``handshake.hand_over`` may be called: the local address that the server's packets came to, as far
    as the kernel told it. ``where`` names the server in an error. ``patience``: how long it may say nothing at all
    (seconds).

    Raises PeerError (it refused, could not prove its identity, or was too slow) or MachineError (cannot be reached).
    """
    with Exchange(handshake, made, peer, patience) as exchange:
        try:
            async with asyncio.timeout(_LONGEST_HANDSHAKE):
                await _until_ready(exchange, where)
                return exchange.local
        except TimeoutError:
            raise PeerError(where, "the handshake did not end in time") from None
        except asyncio.CancelledError:
            handshake.close()
            exchange.flush()
            raise


async def _until_ready(exchange: Exchange, where: str) -> None:
    """A handshake that failed is driven to its end first."""
    failure: PeerError | None = None
    while True:
        match await exchange.next_event():
            case HandOverReady():
                return
            case NotRecognised():
                failure = PeerError.of(f"no session with {where}", Cause.NOT_RECOGNISED)
            case ClockOff(ahead=ahead):
                failure = PeerError.of(f"no session with {where}", Cause.CLOCK_OFF, _by(ahead))
            case ManInTheMiddle(detail=detail, cause=cause):
                failure = PeerError.of(f"no session with {where}", cause, detail)
            case HandshakeFailed(reason=reason, cause=None):
                failure = failure or PeerError(f"no session with {where}", reason)
            case HandshakeFailed(cause=cause, detail=detail):
                assert cause is not None
                failure = failure or PeerError.of(f"no session with {where}", cause, detail)
            case Closed():
                raise failure or PeerError(f"no session with {where}", "the handshake ended")


def _by(ahead: int) -> str:
    """How far our clock is off, in the unit that people would use."""
    off = abs(ahead)
    amount = f"{off // 86_400} days" if off >= 2 * 86_400 else f"{off // 60} min" if off >= 120 else f"{off} s"
    return f"by {amount}, it is {'ahead' if ahead > 0 else 'behind'}"


class Exchange:
    """Use it as a context manager; ``next_event`` drives it. The socket stays the caller's."""

    def __init__(
        self,
        handshake: ClientHandshake,
        made: socket.socket,
        peer: tuple[str, int],
        patience: float = STEP_TIMEOUT,
    ) -> None:
        self._handshake = handshake
        self._patience = patience
        self._socket = made
        self._peer = peer
        self._events: deque[ClientEvent] = deque()
        self._wake = asyncio.Event()
        self._unreachable: OSError | None = None
        self._reading = False
        self._random = SystemRandom()
        self._sent_at = 0.0  # of time.perf_counter
        self._heard_at = 0.0  # monotonic; when the last datagram came, which is before it is read
        #: The address of ours that the last datagram was sent to.
        self.local: str | None = None
        made.setblocking(False)
        report_local(made)
        report_ecn(made)

    def __enter__(self) -> Exchange:
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        self._reading = True
        self._handshake.connect(self._peer, time.monotonic(), self._patience)
        self._send()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; pending datagrams of the handshake are sent."""
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def flush(self) -> None:
        """Send what the connection has to send now."""
        self._send()

    async def next_event(self) -> ClientEvent:
        """Wait for the next event. Raises MachineError when the network cannot be reached."""
        while not self._events:
            if self._unreachable is not None:
                cause = of_network(self._unreachable.errno)
                raise MachineError.of(f"cannot reach {host_port(*self._peer)}", cause)
            self._wake.clear()
            at = self._handshake.timer()
            try:
                # Not wait_for: it may swallow a cancellation of the caller.
                async with asyncio.timeout(None if at is None else max(0.0, at - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                self._handshake.handle_timer(time.monotonic())
                self._send()
        return self._events.popleft()

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if not self._reading:
                break
            try:
                data, ancillary, _, source = self._socket.recvmsg(_LONGEST, PKTINFO_SPACE + ECN_SPACE + TIME_SPACE)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error for an earlier datagram; the handshake has its own time limit
                continue
            self.local = local_of(ancillary) or self.local
            self._heard_at = max(self._heard_at, time.monotonic() - age_of(ancillary))
            self._handshake.datagram_received(data, (source[0], source[1]), self._heard_at, ecn_of(ancillary))
            self._send()  # a browser answers each by itself
        self._wake.set()  # the timer may be an earlier one now

    def _send(self) -> None:
        """One by one, as far apart as a browser's: one call for several (UDP GSO) leaves no time between them, and
        gives them one IP identification."""
        self._heard_at = now = time.monotonic()
        for number, data in enumerate(self._handshake.datagrams_to_send(now)):
            if number:
                self._pause()
            self._send_one(data)
        self._handshake.left(time.monotonic())
        self._collect()

    def _pause(self) -> None:
        """Too short for a sleep: a kernel's timers are later than that."""
        least, most = self._handshake.datagram_gap_us
        until = self._sent_at + self._random.uniform(least, most) / 1e6
        while time.perf_counter() < until:
            pass

    def _send_one(self, data: bytes) -> None:
        """A connected socket is told once of an ICMP error for an earlier datagram, true or forged: a second try
        tells whether this one fails."""
        self._sent_at = time.perf_counter()
        try:
            with contextlib.suppress(OSError):
                self._socket.sendto(data, self._peer)
                return
            self._socket.sendto(data, self._peer)
        except (BlockingIOError, ConnectionError):
            return  # lost, as datagrams may be
        except OSError as error:
            self._unreachable = error
            self._wake.set()

    def _collect(self) -> None:
        while (event := self._handshake.next_event()) is not None:
            self._events.append(event)
            if isinstance(event, HandOverReady):
                self.close()
            self._wake.set()
