"""Measures Dest like a browser, at the start and before the last result is too old: the server imitates the result.

A Dest that cannot be reached is not an error here: it is reported, and measured again soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from random import SystemRandom
from typing import Final

import msgspec

from qre.addresses import host_port
from qre.causes import Cause, of_network
from qre.dest_profile import MAX_VISITS, DestProfile
from qre.errors import MachineError
from qre.kernel.udp.control_messages import report_time
from qre.quic.client.client_handshake import STEP_TIMEOUT, ClientHandshake
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.quic.handshake_events import Closed, HandshakeFailed, ManInTheMiddle, SiteAnswered
from qre.quic.resumption.held_ticket import HeldTicket
from qre.visit.candidates import PATIENCE
from qre.visit.dest import Resolved
from qre.visit.dest_address import DestAddress
from qre.visit.exchange import Exchange

#: The next probe begins after this part of the time to live.
_FRESH: Final = 0.9
_FIRST_RETRY: Final = 5.0
_LONGEST_RETRY: Final = 300.0
_LONGEST_PROBE: Final = 30.0
#: Between a visit and its return (seconds).
_AWAY: Final = (0.3, 1.2)
#: Between two visits, until as many are recorded as are kept (seconds).
_BETWEEN_RECORDINGS: Final = (10.0, 40.0)
#: Between two looks at least, whatever is doubted (seconds).
_SOONEST: Final = 10.0

#: Visits an address, which may say nothing for so many seconds.
Visit = Callable[[Resolved, float], Awaitable[DestProfile]]


async def probe(
    dest: Resolved,
    server_name: str,
    fingerprint: Fingerprint,
    trust: TrustStore,
    patience: float = STEP_TIMEOUT,
    *,
    comes_back: bool = False,
) -> DestProfile:
    """One visit; Dest may say nothing for ``patience`` seconds. ``comes_back``: and, if Dest gives tickets, another
    with one of them, of which the answer alone is kept. Raises MachineError when Dest cannot be measured."""
    profile, tickets = await _visited(dest, server_name, fingerprint, trust, patience)
    if not (comes_back and tickets and profile.http_status):
        return profile
    await asyncio.sleep(SystemRandom().uniform(*_AWAY))
    ticket = msgspec.structs.replace(tickets[-1], token=b"")  # which is for a client of ours
    try:
        again, _ = await _visited(dest, server_name, fingerprint, trust, patience, ticket)
    except MachineError:
        return profile  # it was measured a moment ago
    return msgspec.structs.replace(profile, returns=again.returns)


async def _visited(
    dest: Resolved,
    server_name: str,
    fingerprint: Fingerprint,
    trust: TrustStore,
    patience: float,
    ticket: HeldTicket | None = None,
) -> tuple[DestProfile, tuple[HeldTicket, ...]]:
    """One visit, with ``ticket``; what was seen, and the tickets that it brought."""
    family, peer = dest
    try:
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise MachineError.of(f"Dest {host_port(*peer)}", of_network(error.errno)) from error
    handshake = ClientHandshake(
        server_name=server_name,
        public_key=b"",
        short_id=bytes(8),
        addresses=(),
        fingerprint=fingerprint,
        trust=trust,
        unix_time=int(time.time()),
        now=time.monotonic(),
        random=SystemRandom(),
        ticket=ticket,
        round_trip_us=ticket.round_trip_us if ticket is not None else 0,
    )
    with contextlib.closing(made):
        try:
            made.connect(peer)
        except OSError as error:
            raise MachineError.of(f"Dest {host_port(*peer)}", of_network(error.errno)) from error
        report_time(made)
        with Exchange(handshake, made, peer, patience) as exchange:
            try:
                async with asyncio.timeout(_LONGEST_PROBE):
                    return await _answer(exchange), handshake.brought()[0]
            except TimeoutError:
                raise MachineError(f"Dest {host_port(*peer)}", "the visit did not end in time") from None


async def _answer(exchange: Exchange) -> DestProfile:
    profile: DestProfile | None = None
    reason, failed = "it ended without an answer", None
    while True:
        match await exchange.next_event():
            case SiteAnswered(profile=seen):
                profile = seen
            case HandshakeFailed(reason=text, cause=cause) | ManInTheMiddle(detail=text, cause=cause):
                reason, failed = text, cause
            case Closed():
                break
    if profile is None:
        error = MachineError("Dest", reason)
        error.cause = failed
        raise error
    return profile


async def probe_any(addresses: Sequence[Resolved], visit: Visit) -> tuple[Resolved, DestProfile]:
    """A visit of the first of ``addresses`` that can be measured. Raises MachineError of all when none can, with the
    cause if they have one in common."""
    failures: list[str] = []
    causes: set[Cause | None] = set()
    for address in addresses:
        last = address == addresses[-1]
        try:
            return address, await visit(address, STEP_TIMEOUT if last else PATIENCE)
        except MachineError as error:
            if len(addresses) == 1:
                raise
            failures.append(f"{address[1][0]}: {error}")
            causes.add(error.cause)
    every = MachineError("Dest", "; ".join(failures))
    every.cause = causes.pop() if len(causes) == 1 else None
    raise every


def imitable(profile: DestProfile | None) -> DestProfile | None:
    """The profile to imitate: a Dest that cannot be reached now is assumed unchanged."""
    if profile is None or not profile.scid_length:
        return None
    return msgspec.structs.replace(profile, reachable=True)


class Prober:
    """``found`` is called with every profile, ``complain`` with every reason why there is none."""

    def __init__(
        self,
        dest: DestAddress,
        visit: Visit,
        found: Callable[[DestProfile], Awaitable[None]],
        complain: Callable[[str], None],
        *,
        ttl: float,
        last: DestProfile | None,
    ) -> None:
        self._dest = dest
        self._visit = visit
        self._found = found
        self._complain = complain
        self._ttl = ttl
        self._last = last
        #: Whether the last visit was this process's first, at the busiest moment of its life; None before.
        self._in_a_hurry: bool | None = None
        self._doubted = asyncio.Event()
        self.looked = asyncio.Event()

    async def run(self) -> None:
        """Probe again and again, until cancelled."""
        pause = self._left()
        retry = _FIRST_RETRY
        while True:
            known = self._last
            if pause and not await self._pause(pause) and self._last is not known:
                pause, retry = self._left(), _FIRST_RETRY  # somebody else has visited it meanwhile
                continue
            if await self._look():
                pause, retry = self._left() or _FIRST_RETRY, _FIRST_RETRY
            else:
                pause, retry = retry, min(retry * 2, _LONGEST_RETRY)
            self.looked.set()

    def doubt(self) -> None:
        """Dest seems to be silent: look soon. The look decides; visitors may have sent what no site answers."""
        self._doubted.set()

    async def take(self, profile: DestProfile) -> None:
        """Another visit has found this: the next one has time again."""
        self._last = profile.after(self._kept())
        self._in_a_hurry = False
        await self._found(self._last)

    async def _pause(self, seconds: float) -> bool:
        """Whether Dest was doubted meanwhile."""
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._doubted.wait()
        doubted = self._doubted.is_set()
        self._doubted.clear()
        await asyncio.sleep(max(0.0, min(seconds, _SOONEST) - (time.monotonic() - began)))
        return doubted

    def _left(self) -> float:
        """Seconds until the last profile is too old, or until another visit is to be recorded."""
        last = self._last
        if last is None or not last.reachable:
            return 0.0
        age = max(0.0, time.time() - last.checked_at)
        fresh = self._ttl * _FRESH
        if last.visits and len(last.visits) < MAX_VISITS:
            fresh = min(fresh, SystemRandom().uniform(*_BETWEEN_RECORDINGS))
        return max(0.0, fresh - age)

    def _kept(self) -> DestProfile | None:
        """The last profile, without a visit that is not to be played once there is another."""
        if self._last is None or not self._in_a_hurry:
            return self._last
        return msgspec.structs.replace(self._last, visits=self._last.visits[:-1])

    async def _look(self) -> bool:
        try:
            if self._dest.current is None:
                raise MachineError("Dest", "its name is not resolved")
            address, found = await probe_any(self._dest.candidates(), self._visit)
            profile = found.after(self._kept())
            self._in_a_hurry = self._in_a_hurry is None
            self._dest.answered(address)
        except MachineError as error:
            self._complain(f"Dest cannot be measured: {error}")
            before = self._last or DestProfile(reachable=False, checked_at=0)
            profile = msgspec.structs.replace(
                before, reachable=False, checked_at=int(time.time()), warnings=(str(error)[:512],)
            )
        self._last = profile
        await self._found(profile)
        return profile.reachable
