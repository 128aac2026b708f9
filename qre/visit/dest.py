"""Resolves names outside the packet path: Dest's, repeatedly, and a client's Endpoint at each attempt.

``getaddrinfo`` runs in a thread and reads the resolver's files anew (Landlock lets it). ``preload`` must be called
before the sandbox closes: the C library and Python load code for it on first use. It never raises into the packet
path: an address that cannot be refreshed stays unchanged.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import encodings.idna
import ipaddress
import socket
from collections.abc import Callable
from typing import Final

from qre.errors import MachineError

#: getaddrinfo tells no time to live; sites move within minutes at the earliest.
REFRESH: Final = 60.0
RETRY: Final = 2.0
#: A resolver that is down must not delay an attempt for ever (seconds).
TIMEOUT: Final = 10.0
_PRELOADED: Final = (concurrent.futures.thread, encodings.idna)

#: (address family, numeric address and port)
Resolved = tuple[int, tuple[str, int]]


def preload() -> None:
    """Make the C library read its configuration and load its modules."""
    for name in ("localhost", "127.0.0.1"):
        with contextlib.suppress(OSError):  # an unusual machine; names may still resolve
            socket.getaddrinfo(name, 443, type=socket.SOCK_DGRAM)


def numeric(host: str, port: int) -> Resolved | None:
    """``host`` when it is an address already."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (socket.AF_INET if address.version == 4 else socket.AF_INET6), (str(address), port)


async def resolve(host: str, port: int, *, family: int = socket.AF_UNSPEC) -> Resolved:
    """The first address, IPv4 before IPv6. Raises MachineError with the resolver's reason."""
    known = numeric(host, port)
    if known is not None:
        if family not in {socket.AF_UNSPEC, known[0]}:
            raise MachineError(host, "an address of the wrong family")
        return known
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM), TIMEOUT)
    except TimeoutError:
        raise MachineError(f"cannot resolve {host}", f"no answer in {TIMEOUT:g} s") from None
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a name"
        raise MachineError(f"cannot resolve {host}", reason) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    for kind, _, _, _, address in found:
        if kind in {socket.AF_INET, socket.AF_INET6}:
            return int(kind), (str(address[0]), int(address[1]))
    raise MachineError(f"cannot resolve {host}", "it has no address")


def local_address(peer: tuple[str, int]) -> str:
    """The local address that packets to ``peer`` come from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            made.connect(peer)
        except OSError as error:
            raise MachineError(f"cannot reach {peer[0]}", error.strerror or "network error") from error
        return str(made.getsockname()[0])


class DestAddress:
    """Dest's current address, or None as long as there is none. ``failed`` is called with each error."""

    def __init__(self, host: str, port: int, failed: Callable[[str], None]) -> None:
        self._host = host
        self._port = port
        self._failed = failed
        self.current: Resolved | None = numeric(host, port)

    @property
    def host_port(self) -> tuple[str, int]:
        """(host name or address, port) as configured."""
        return self._host, self._port

    async def first(self) -> None:
        """Resolve once, within a short time."""
        await self._refresh()

    async def keep_fresh(self) -> None:
        """Resolve again and again, until cancelled."""
        while numeric(self._host, self._port) is None:
            await asyncio.sleep(REFRESH if await self._refresh() else RETRY)

    async def _refresh(self) -> bool:
        try:
            self.current = await resolve(self._host, self._port)
        except MachineError as error:
            self._failed(str(error))
            return False
        return True
