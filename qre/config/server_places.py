"""What a client's profile says of its servers, of which there may be several: lists of the same length, or of one."""

from __future__ import annotations

from qre.config.values import one_of, parse_host_port, parse_key, parse_short_id, several, wrong
from qre.ends import EndpointOrder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qre.config.model import HostPort

MAX_SERVERS = 8


def parse_endpoints(text: str) -> tuple[HostPort, ...]:
    """One or more servers."""
    return several(text, parse_host_port, MAX_SERVERS)


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
