"""Names are looked up by a process that the supervisor starts for each: this worker reads no resolver's answer."""

from __future__ import annotations

import socket
from typing import Final, Literal

from qre.causes import Cause
from qre.errors import MachineError
from qre.ipc.messages import NameResolved, Party, ResolveName
from qre.ipc.worker import WorkerContext
from qre.visit.dest import Lookup, Resolved

#: The process has to start first, which takes a busy machine a while (seconds).
_LONGEST: Final = 40.0
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
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(families[address.version], (str(address), port)) for address in answer.addresses]

    return look_up
