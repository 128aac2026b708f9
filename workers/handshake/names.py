"""Names are looked up by a process that the supervisor starts for each: this worker reads no resolver's answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Literal

from qre.addresses import Address, covering
from qre.causes import Cause
from qre.errors import MachineError, UserError
from qre.ipc.messages import NameResolved, Party, ResolveName, WorkerConfig
from qre.ipc.worker import WorkerContext
from qre.visit.dest import Lookup, Resolved, resolve
from qre.visit.nat64 import translated
from qre.visit.servers import KnownServer

#: The process has to start first, which takes a busy machine a while (seconds).
_LONGEST: Final = 40.0
_FAMILIES: Final[dict[int, int]] = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
_VERSIONS: Final[dict[int, Literal[0, 4, 6]]] = {socket.AF_INET: 4, socket.AF_INET6: 6}


def lookup_of(context: WorkerContext) -> Lookup:
    """For ``qre.visit.dest.resolve``."""

    async def look_up(host: str, port: int, family: int) -> list[Resolved]:
        asked = ResolveName(host=host, version=_VERSIONS.get(family, 0))
        answer = await context.request(Party.SUPERVISOR, asked, _LONGEST)
        if not isinstance(answer, NameResolved):
            raise MachineError.of(f"cannot resolve {host}", Cause.RESOLVER_FAILED)
        if answer.cause is not None:
            raise MachineError.of(f"cannot resolve {host}", answer.cause, answer.detail)
        return [(_FAMILIES[address.version], (str(address), port)) for address in answer.addresses]

    return look_up


async def addresses_of(
    server: KnownServer, version: int, lookup: Lookup, say: Callable[[str, str], None]
) -> tuple[Resolved, ...]:
    """The name's, or those that it had last: while there is no session, name servers beyond the tunnel cannot answer.
    ``version`` of IP: 4, 6, or 0 for both. ``say`` is called with a key and a line. Raises MachineError."""
    try:
        found = await resolve(server.host, server.port, family=_FAMILIES[version], lookup=lookup, ipv4_first=False)
    except MachineError as error:
        if not server.addresses:
            raise
        say(f"known {server}", f"{error}; its last addresses are tried")
        found = server.addresses
    server.addresses = found
    if server.unroutable and version != 4:
        return (*await translated(found, lookup), *found)
    return found


def refuse_loop(config: WorkerConfig, peer: Address, source: Address | None) -> None:
    """Raise UserError when packets from ``source`` to this address of the server would enter the tunnel itself."""
    if all(interface.ip != source for interface in config.address):
        return
    what = covering(peer, config.address, config.allowed_ips, config.outer) or f"a route to {config.device}"
    remedy = "write the address as Endpoint" if what.startswith("AllowedIPs") else "choose another network"
    raise UserError(f"Endpoint {peer}", f"packets to it would enter the tunnel itself: {what} covers it", remedy)
