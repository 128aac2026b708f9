"""Resolves names outside the packet path: Dest's, repeatedly, and a client's Endpoint at each attempt.

A daemon's workers pass a ``lookup`` that asks a process of its own; commands look names up themselves.
``getaddrinfo`` runs in a thread. ``preload`` must be called before a sandbox closes: the C library and Python load
code for it on first use. It never raises into the packet path: an address that cannot be refreshed stays unchanged.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import encodings.idna
import ipaddress
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from qre.causes import Cause, of_resolver
from qre.errors import MachineError

#: A resolver that is down must not delay an attempt for ever (seconds).
TIMEOUT: Final = 10.0
#: Of one name; more are not tried.
MOST_ADDRESSES: Final = 8
_RESOLV_CONF: Final = "/etc/resolv.conf"
_LONGEST_CONF: Final = 65_536
#: The C library reads as many (MAXNS), and an address with its zone is no longer.
_NAMESERVERS, _LONGEST_SHOWN = 3, 64
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


#: From host, port and family to addresses, in the resolver's order. Raises MachineError with the cause.
Lookup = Callable[[str, int, int], Awaitable[list[Resolved]]]


async def look_up(host: str, port: int, family: int) -> list[Resolved]:
    """By the C library, in this process."""
    loop = asyncio.get_running_loop()
    what = f"cannot resolve {host}"
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM), TIMEOUT)
    except TimeoutError:
        raise MachineError.of(what, Cause.RESOLVER_SILENT, f"asked {_resolvers()} for {TIMEOUT:g} s") from None
    except UnicodeError as error:
        raise MachineError.of(what, Cause.NAME_UNKNOWN) from error
    except OSError as error:
        raise MachineError.of(what, of_resolver(error.errno), f"asked {_resolvers()}") from error
    families = {socket.AF_INET, socket.AF_INET6}
    return [(int(kind), (str(at[0]), int(at[1]))) for kind, _, _, _, at in found if kind in families]


async def resolve(
    host: str,
    port: int,
    *,
    family: int = socket.AF_UNSPEC,
    lookup: Lookup = look_up,
    ipv4_first: bool = True,
) -> tuple[Resolved, ...]:
    """The addresses, at least one, and of many some of either family: in the resolver's order (RFC 6724) and both
    families by turns (RFC 8305 section 4), or those of IPv4 before those of IPv6. Raises MachineError with the
    cause."""
    known = numeric(host, port)
    if known is not None:
        if family not in {socket.AF_UNSPEC, known[0]}:
            raise MachineError.of(host, Cause.NAME_WITHOUT_ADDRESS)
        return (known,)
    addresses = await lookup(host, port, family)
    if not addresses:
        raise MachineError.of(f"cannot resolve {host}", Cause.NAME_WITHOUT_ADDRESS)
    tried = _by_turns(list(dict.fromkeys(addresses)))[:MOST_ADDRESSES]
    if ipv4_first:
        tried.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(tried)


def _by_turns(addresses: list[Resolved]) -> list[Resolved]:
    """One of each family after the other, beginning with the first one's; each family in its order."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    other = [each for each in addresses if each[0] != addresses[0][0]]
    return [each for turn in itertools.zip_longest(first, other) for each in turn if each is not None]


def _resolvers() -> str:
    """Which resolvers the C library asks, for a message."""
    try:
        with open(_RESOLV_CONF, "rb") as file:
            lines = file.read(_LONGEST_CONF).decode("ascii", "replace").splitlines()
    except OSError as error:
        return f"no resolver: {_RESOLV_CONF} cannot be read ({error.strerror})"
    words = (line.split() for line in lines)
    named = [entry[1] for entry in words if len(entry) > 1 and entry[0] == "nameserver" and entry[1].isprintable()]
    return ", ".join(each[:_LONGEST_SHOWN] for each in named[:_NAMESERVERS]) or "127.0.0.1, as none is configured"
