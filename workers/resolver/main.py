"""One name, in a process of its own: it reads the resolver's files as they are now, and what name servers answer.

Files are opened to it one by one (Landlock), and what is opened is the file that has the name at that moment. A
process that lives on would never see the one that takes its place. So it is started by the supervisor for one name,
and ends.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from qre.causes import Cause
from qre.ends import MAX_ADDRESSES
from qre.errors import MachineError, QreError
from qre.ipc.errand import ErrandWorker
from qre.ipc.messages import NameResolved, Party, ResolveName
from qre.structs import Message
from qre.visit.dest import look_up, preload

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6, 0: socket.AF_UNSPEC}


class ResolverWorker(ErrandWorker):
    """See ``qre.ipc.errand``."""

    async def handle(self, source: Party, message: Message) -> Message:
        """Look the name up; the answer is NameResolved. Raises QreError for any other message."""
        if not isinstance(message, ResolveName):
            raise QreError("resolver worker", f"{type(message).__name__} from {source} is not for it")
        try:
            found = await look_up(message.host, 0, _FAMILIES[message.version])
        except MachineError as error:
            return NameResolved(cause=error.cause or Cause.RESOLVER_FAILED, detail=error.detail[:512])
        # An IPv6 address may have a zone behind it: no address of a host elsewhere.
        addresses = dict.fromkeys(ip_address(ip) for _, (ip, _) in found if "%" not in ip)
        return NameResolved(addresses=tuple(addresses)[:MAX_ADDRESSES])


def create() -> ResolverWorker:
    """The worker, before its sandbox."""
    preload()
    return ResolverWorker()
