"""The profile of one client, as its server's profile determines it, and the next free addresses for a new one.

A client has no key of its own: the server's public key and a short id are its credentials. Sans-IO: keys and lists of
addresses in use are passed in.
"""

from __future__ import annotations

from qre.config.client_link import ClientLink, encode_link
from qre.config.normalise import profile_values
from qre.config.profile import profile_from_values
from qre.config.sections import is_host_of
from qre.config.values import DEVICE_LENGTH, MAX_ADDRESSES, show_key
from qre.ends import DEFAULT_MTU
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from qre.addresses import Address, Interface
    from qre.config.model import ClientSection, HostPort, Profile

#: Addresses of one network that are looked at for a free one.
_MOST_TRIES = 1 << 16
#: What a link carries of a profile.
_CARRIED = (
    "Endpoint",
    "EndpointOrder",
    "ServerName",
    "RealityPublicKey",
    "RealityShortId",
    "Address",
    "AllowedIPs",
    "DNS",
    "LeakProtection",
)


def endpoints_of(server: Profile, section: ClientSection, given: Sequence[HostPort]) -> Sequence[HostPort]:
    """Where this client finds the server: ``given``, its own Endpoint, ClientEndpoint, or Listen. Raises UserError
    when none is known."""
    settings = server.server
    if settings is None:
        raise AssertionError("the caller has a server's profile")
    if known := given or section.endpoints or settings.client_endpoints:
        return known
    if settings.listen.addresses[0].is_unspecified:
        why = "Listen is every address of this machine, so it is unknown where clients find the server"
        remedy = "write ClientEndpoint = host:port into the profile, or give the field Endpoint=host:port"
        raise UserError(f"profile {server.name}", why, remedy)
    from qre.config.model import HostPort

    return tuple(HostPort(str(ip), port) for ip, port in settings.listen.ends)


def client_profile(
    server: Profile, section: ClientSection, endpoints: Sequence[HostPort], public_key: bytes
) -> Profile:
    """What the client needs. Its device has the client's name, cut where an interface name ends. Raises UserErrors
    where the server's profile allows a client what a client's own cannot say."""
    settings = server.server
    if settings is None:
        raise AssertionError("the caller has a server's profile")
    texts: dict[str, str | list[str]] = {
        "Role": "client",
        "Device": section.name[:DEVICE_LENGTH],
        "Address": [str(_with_network(address, server)) for address in section.address],
        "Endpoint": ", ".join(map(str, endpoints)),
        "ServerName": settings.server_name,
        "RealityPublicKey": show_key(public_key),
        "RealityShortId": section.short_id.hex(),
    }
    if server.mtu != DEFAULT_MTU:
        texts["MTU"] = str(server.mtu)
    if settings.client_allowed_ips:
        texts["AllowedIPs"] = [str(network) for network in settings.client_allowed_ips]
    if (dns := settings.client_dns) is not None:
        texts["DNS"] = dns.entries
    return profile_from_values(section.name, texts, f"client {section.name}")


def link_of(client: Profile) -> str:
    """The client's profile as a link."""
    values = profile_values(client)
    carried = {key: _text(values[key]) for key in _CARRIED if values.get(key)}
    if client.mtu != DEFAULT_MTU:
        carried["MTU"] = str(client.mtu)
    if client.keepalive_s:
        carried["PersistentKeepalive"] = str(client.keepalive_s)
    return encode_link(ClientLink(client.name, carried))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _with_network(address: Interface, server: Profile) -> Interface:
    """The client's address with the prefix length of the tunnel's network."""
    from ipaddress import ip_interface

    for own in server.address:
        if own.version == address.version and address.ip in own.network:
            return ip_interface(f"{address.ip}/{own.network.prefixlen}")
    return address


def free_addresses(server: Profile, taken: Collection[Address]) -> tuple[Address, ...]:
    """One free address of each network of the server, the lowest. Raises UserError when a network has none left."""
    found: dict[object, Address] = {}
    for own in server.address:
        if own.network in found or own.network.prefixlen == own.network.max_prefixlen:
            continue
        if len(found) == MAX_ADDRESSES:
            break
        free = _lowest(own, {each.ip for each in server.address} | set(taken))
        if free is None:
            remedy = "remove a client, or give the interface a larger network"
            raise UserError(f"profile {server.name}", f"no address of {own.network} is free", remedy)
        found[own.network] = free
    if not found:
        why = "its Address has no network to take a client's address from"
        raise UserError(f"profile {server.name}", why, "write it with a prefix length, as in 10.77.0.1/24")
    return tuple(found.values())


def _lowest(own: Interface, taken: set[Address]) -> Address | None:
    from ipaddress import ip_interface

    first = own.network.network_address
    for offset in range(min(own.network.num_addresses, _MOST_TRIES)):
        address = first + offset
        if address not in taken and is_host_of(ip_interface(address), own):
            return address
    return None
