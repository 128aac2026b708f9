"""The outer addresses of both ends of a session, for commands that are given both profiles.

A given underlay wins; otherwise the server is at its Listen address and the client at an address for tests. A server
that listens on every address (0.0.0.0, which ``init`` writes) has none that a packet could come from, so another
address stands in for it. ``install-session`` accepts the results.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from qre.addresses import ipv4_of_listen
from qre.cli.defaults import LOOPBACK_CLIENT, LOOPBACK_SERVER_IP, PATH_CLIENT, PATH_SERVER_IP
from qre.config.values import parse_ipv4_socket_address, parse_socket_address
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qre.config.model import Profile, SocketAddress

UNDERLAYS = ("ServerUnderlay", "ClientUnderlay")
_ANY, _ANY_IPV6 = IPv4Address(0), IPv6Address(0)


class StandIns:
    """The client's address, and the address of a server that listens on all of them."""

    __slots__ = ("client", "server_ip")

    def __init__(self, server_ip: str, client: str) -> None:
        self.server_ip = server_ip
        self.client = client


#: For sessions that are installed, and for captures.
LOOPBACK = StandIns(LOOPBACK_SERVER_IP, LOOPBACK_CLIENT)
PATH = StandIns(PATH_SERVER_IP, PATH_CLIENT)


def check_roles(server: Profile, client: Profile) -> None:
    """Raise UserError unless these are a server's and a client's profile."""
    for profile, side, role in ((server, server.server, "server"), (client, client.client, "client")):
        if side is None:
            remedy = "give the server's file, then the client's"
            raise UserError(f"profile {profile.name}", f"it is not a {role} profile", remedy)


def only_listen(server: Profile) -> SocketAddress:
    """Where a server listens, where a command takes one address. Raises UserError when there are more."""
    from qre.config.model import SocketAddress

    assert server.server is not None
    listen = server.server.listen
    if listen.several:
        remedy = f"give {UNDERLAYS[0]}=IP:PORT and {UNDERLAYS[1]}=IP:PORT"
        raise UserError(f"Listen {listen}", "this command takes one address", remedy)
    return SocketAddress(listen.ip, listen.port)


def check_both_or_none(command: str, fields: Mapping[str, str]) -> None:
    """Raise UserError when one underlay is given without the other."""
    if len([name for name in UNDERLAYS if name in fields]) == 1:
        raise UserError(command, "ServerUnderlay and ClientUnderlay go together", "give both, or none")


def session_ends(
    server: Profile, client: Profile, fields: Mapping[str, str], stand_ins: StandIns, *, ipv6: bool = False
) -> tuple[SocketAddress, SocketAddress]:
    """The server's and the client's address. ``fields``: UNDERLAYS, as they were given; both may be of IPv6 where
    ``ipv6`` is set."""
    check_roles(server, client)
    assert server.server is not None
    parse = parse_end_of_any_version if ipv6 else parse_end
    ends = [parse(name, fields[name]) if name in fields else None for name in UNDERLAYS]
    if ends[0] is not None and ends[1] is not None and ends[0].ip.version != ends[1].ip.version:
        remedy = f"write both of IPv{ends[0].ip.version}"
        raise UserError(f"field {UNDERLAYS[1]}", f"{ends[1]} is of another version of IP than {ends[0]}", remedy)
    listen = server.server.listen
    if (ip := next(iter(ipv4_of_listen(listen.addresses)), None)) is None and ends[0] is None:
        remedy = f"give {UNDERLAYS[0]}=192.0.2.1:{listen.port} {UNDERLAYS[1]}=198.51.100.7:50443"
        raise UserError(f"Listen {listen}", "addresses for tests are of IPv4 alone", remedy)
    ours = stand_ins.server_ip if ip is None or ip == _ANY else ip
    at = parse_ipv4_socket_address(f"{ours}:{listen.port}")
    return ends[0] or at, ends[1] or parse_ipv4_socket_address(stand_ins.client)


def parse_end(name: str, text: str) -> SocketAddress:
    """The numeric address of one machine, from the field ``name``, where nothing but IPv4 is."""
    return _parse_end(name, text, parse_ipv4_socket_address)


def parse_end_of_any_version(name: str, text: str) -> SocketAddress:
    """The same of IPv4 or IPv6."""
    return _parse_end(name, text, parse_socket_address)


def _parse_end(name: str, text: str, parse: Callable[[str], SocketAddress]) -> SocketAddress:
    try:
        address = parse(text)
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy) from None
    if address.ip in (_ANY, _ANY_IPV6):
        why = f"{address.ip} is every address of a machine, and packets come from one"
        raise UserError(f"field {name}", why, f"write {name}=192.0.2.1:{address.port}")
    return address
