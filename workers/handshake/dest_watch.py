"""A running server's Dest: resolves its address, measures its profile, and starts over when a reload names
another."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import msgspec

from qre.addresses import Address, host_port
from qre.causes import WORDS, of_network
from qre.dest_profile import DestProfile
from qre.ends import WhenDestIsDown
from qre.errors import MachineError, QreError
from qre.ipc.messages import DestAddressReport, DestVisited, Party, VisitDest
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.kernel.udp.control_messages import family_of
from qre.quic.client.client_handshake import STEP_TIMEOUT
from qre.visit.dest import Resolved, numeric
from qre.visit.dest_address import DestAddress
from qre.visit.probe import Prober, imitable
from qre.workers.handshake.names import lookup_of

#: How long the first probe of an unknown Dest may delay readiness (seconds): a process is started for it.
_FIRST_LOOK: Final = 3.0
#: From the request to its answer, a process and a visit before it included (seconds).
_LONGEST_VISIT: Final = 150.0
#: How often it is looked whether Dest answers over IPv6, too (seconds).
_OVER_IPV6: Final = 600.0


class DestWatch:
    """``found`` is called with every profile. ``profile`` is the last one, at first that of an earlier process."""

    def __init__(
        self,
        context: WorkerContext,
        found: Callable[[DestProfile], Awaitable[None]],
    ) -> None:
        self._context = context
        self._found = found
        self._tasks = Tasks(context.internal_error)
        self.profile = context.config.dest_profile
        self._moved, self._moved_over_ipv6 = asyncio.Event(), asyncio.Event()
        self._address = self._new_address()
        was = context.config.dest_for_ipv6
        #: Once it has answered there.
        self._over_ipv6 = numeric(str(was), context.config.dest_port) if was is not None else None
        self._prober = self._new_prober()

    @property
    def current(self) -> Resolved | None:
        """Dest's address; None while its name is not resolved."""
        return self._address.current

    def for_visitor(self, ip: str) -> Resolved | None:
        """The same; for a visitor over IPv6 of IPv6, if Dest has answered there."""
        found = self._over_ipv6 if family_of(ip) == socket.AF_INET6 else None
        return found if found is not None and found == self._address.of_family(socket.AF_INET6) else self.current

    @property
    def is_down(self) -> bool:
        """Whether the last visit failed; False before there was one."""
        return self.profile is not None and not self.profile.reachable

    def is_imitated(self) -> bool:
        """Whether Dest is down, or not known, and clients are to be answered nevertheless."""
        down = self.profile is None or self.is_down
        return down and self._context.config.when_dest_is_down is WhenDestIsDown.IMITATE

    @property
    def trouble(self) -> str:
        """What is wrong with Dest, and who gets no answer; empty when all is well."""
        if self.current is None:
            return "Dest is not resolved: strangers get no answer"
        if not self.is_down:
            return ""
        imitated = "clients are answered nevertheless, which can be seen"
        return f"Dest is down: {imitated if self.is_imitated() else 'nobody gets an answer'}"

    def doubt(self) -> None:
        """Visitors get no answers: look soon which address of Dest answers."""
        self._prober.doubt()

    async def take(self, profile: DestProfile) -> None:
        """Another visit's result counts as an own one; one that failed is a reason to look."""
        if profile.reachable:
            await self._prober.take(profile)
        else:
            self.doubt()

    async def start(self) -> None:
        """Resolve its name once, then resolve and probe continuously."""
        if self._context.config.dest_address is None:  # another process's of this daemon: resolved a moment ago
            await self._address.first()
        self._begin()

    async def first_look(self) -> None:
        """Wait a moment for the first profile, unless one is known."""
        if imitable(self.profile) is not None:
            return
        try:
            async with asyncio.timeout(_FIRST_LOOK):
                await self._prober.looked.wait()
        except TimeoutError:
            self._context.log.info("Dest has not answered yet; until it does, a typical site is imitated")

    def reload(self) -> None:
        """Start over if the configuration names another Dest. Relayed flows stay with the old one."""
        config = self._context.config
        if self._address.host_port == (config.dest_host, config.dest_port):
            return
        self.close()
        self.profile = None
        self._address = self._new_address()
        self._prober = self._new_prober()
        self._begin()

    def close(self) -> None:
        """Stop resolving Dest's name and measuring Dest."""
        self._tasks.cancel()

    def _begin(self) -> None:
        self._tasks.spawn(self._report_address())
        self._tasks.spawn(self._address.keep_fresh())
        self._tasks.spawn(self._prober.run())
        if family_of(self._context.config.listen_ip) == socket.AF_INET6:
            self._tasks.spawn(self._look_over_ipv6())

    async def _report_address(self) -> None:
        """Tell the supervisor whenever Dest's address is another one, until cancelled."""
        told: DestAddressReport | None = None
        while True:
            self._moved.clear()
            report = DestAddressReport(
                address=_ip_of(self._address.of_family(socket.AF_INET)), for_ipv6=_ip_of(self.for_visitor("::"))
            )
            if report != told:
                await self._context.send(Party.SUPERVISOR, report)
                told = report
            await self._moved.wait()

    async def _look_over_ipv6(self) -> None:
        """A name may have an address that cannot be reached from here, and an answer from it is no visitor's to wait
        for. Dest's other address, which its profile is of, has been visited."""
        if imitable(self.profile) is None:
            await self._prober.looked.wait()
        looked_at, until = None, 0.0
        while True:
            self._moved_over_ipv6.clear()
            found, now = self._address.of_family(socket.AF_INET6), time.monotonic()
            if found is not None and found != self.current and (found != looked_at or now >= until):
                self._over_ipv6 = found if await self._answers(found) else None
                self._moved.set()
                looked_at, until = found, time.monotonic() + _OVER_IPV6
            with suppress(TimeoutError):
                async with asyncio.timeout(_OVER_IPV6):
                    await self._moved_over_ipv6.wait()

    async def _answers(self, dest: Resolved) -> bool:
        why = "it is this server"
        try:
            if not self._is_ourselves(dest):
                if (await self._visit(dest, STEP_TIMEOUT)).reachable:
                    return True
                why = "it does not answer"
        except OSError as error:
            why = WORDS[of_network(error.errno)].why
        except QreError as error:
            why = str(error)
        text = f"Dest over IPv6, {host_port(*dest[1])}: {why}; visitors over IPv6 get its other address"
        self._context.limited("dest over IPv6", text)
        return False

    def _is_ourselves(self, dest: Resolved) -> bool:
        family, (address, port) = dest
        if port != self._context.config.listen_port:
            return False
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # unmarked, unlike source_address's
            probe.connect((address, port))
            return ip_address(probe.getsockname()[0]) == ip_address(address)

    def _has_moved(self) -> None:
        self._moved.set()
        self._moved_over_ipv6.set()

    def _last_addresses(self) -> tuple[Resolved, ...]:
        """Where Dest was: as this daemon's worker before us has reported it, or as an earlier daemon has visited it.
        The name may not resolve now."""
        config = self._context.config
        told = [str(each) for each in (config.dest_address, config.dest_for_ipv6) if each is not None]
        if not told and self.profile is not None:
            told = [self.profile.address_of(host_port(config.dest_host, config.dest_port))]
        found = (numeric(each, config.dest_port) for each in dict.fromkeys(told))
        return tuple(each for each in found if each is not None)

    def _new_address(self) -> DestAddress:
        config = self._context.config
        return DestAddress(
            config.dest_host,
            config.dest_port,
            lambda text: self._context.limited("dest", text),
            lookup_of(self._context),
            self._has_moved,
            self._last_addresses(),
        )

    def _new_prober(self) -> Prober:
        config = self._context.config
        return Prober(
            self._address,
            self._visit,
            self._probed,
            lambda text: self._context.limited("probe", text),
            ttl=config.dest_profile_ttl_ms / 1000,
            last=self.profile,
        )

    async def _visit(self, dest: Resolved, patience: float) -> DestProfile:
        """In a process of its own, which the supervisor starts: the site may be hostile."""
        _, (address, port) = dest
        asked = VisitDest(
            address=ip_address(address),
            port=port,
            server_name=self._context.config.server_name,
            patience_ms=round(patience * 1000),
            comes_back=self.profile is not None and bool(self.profile.visits),  # not for the first look of all
        )
        answer = await self._context.request(Party.SUPERVISOR, asked, _LONGEST_VISIT)
        seen = answer if isinstance(answer, DestVisited) else DestVisited(profile=None, why="the visit has no answer")
        if seen.profile is None:
            error = MachineError(seen.why)
            error.cause = seen.cause
            raise error
        return seen.profile

    async def _probed(self, profile: DestProfile) -> None:
        config = self._context.config
        self.profile = msgspec.structs.replace(profile, dest=host_port(config.dest_host, config.dest_port))
        await self._found(self.profile)


def _ip_of(found: Resolved | None) -> Address | None:
    return ip_address(found[1][0]) if found is not None else None
