"""Where servers are. A client's profile may name several servers: lists of the same length, or of one. A server may
listen at several addresses, with one port.
"""

from __future__ import annotations

from qre.config.model import Listen
from qre.config.syntax import quoted
from qre.config.values import (
    one_of,
    parse_host_port,
    parse_key,
    parse_short_id,
    parse_socket_address,
    several,
    wrong,
)
from qre.ends import MAX_LISTEN, EndpointOrder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qre.config.model import HostPort

MAX_SERVERS = 8


def parse_endpoints(text: str) -> tuple[HostPort, ...]:
    """One or more servers."""
    return several(text, parse_host_port, MAX_SERVERS)


def parse_listen(text: str) -> Listen:
    """Numeric addresses with one port, as ``parse_socket_address`` takes each. 0.0.0.0 and :: stand alone."""
    found = several(text, parse_socket_address, MAX_LISTEN)
    first = found[0]
    for each in found if len(found) > 1 else ():
        if each.ip.is_unspecified:
            takes = "IPv4 address" if each.ip.version == 4 else "address"
            why = f"{each} is every {takes} of this machine, so nothing goes beside it"
            raise wrong(why, f"write it alone, or the addresses themselves, {MAX_LISTEN} at most")
        if each.port != first.port:
            why = f"{quoted(str(each))} has another port than {first}"
            raise wrong(why, f"write port {first.port} everywhere; a second profile may have the other port")
    return Listen(tuple(each.ip for each in found), first.port)


def parse_keys_of_servers(text: str) -> tuple[bytes, ...]:
    """One key, or one for each server."""
    return tuple(map(parse_key, _pieces(text)))


def parse_ids_of_servers(text: str) -> tuple[bytes, ...]:
    """One short id, or one for each server."""
    return tuple(map(parse_short_id, _pieces(text)))


def _pieces(text: str) -> list[str]:
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) > MAX_SERVERS:
        raise wrong(f"{len(pieces)} entries are more than {MAX_SERVERS}", "shorten the list")
    return pieces


def parse_endpoint_order(text: str) -> EndpointOrder:
    """One of the values of EndpointOrder."""
    return EndpointOrder(one_of(text, EndpointOrder))
