"""``init``: a matching server and client profile, both written or none, nothing overwritten."""

from __future__ import annotations

import os
from ipaddress import ip_interface

from qre.addresses import default_versions, host_port
from qre.cli.commands import Options
from qre.cli.defaults import INIT
from qre.cli.fields import parse_fields
from qre.cli.profile.configuration import clamped, fresh_short_id, public_key
from qre.cli.profile.private_files import write_all
from qre.config.model import ClientSection, Profile
from qre.config.normalise import to_file
from qre.config.profile import profile_from_values, profile_of_text, profile_path
from qre.config.settings import load_global
from qre.config.values import check_profile_name, is_address, parse_host_port, show_key
from qre.errors import UserError, UserErrors
from qre.wire.overhead import MIN_MTU_IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Bytes of the random part of a local network (RFC 4193, 3.1).
GLOBAL_ID = 5
REQUIRED = ("Endpoint", "Dest")
OPTIONAL = (
    "ServerName",
    "Listen",
    "ServerProfile",
    "ClientProfile",
    "ServerAddress",
    "ClientAddress",
    "AllowedIPs",
    "MTU",
    "PersistentKeepalive",
    "RealityMaxTimeDiff",
)
#: Dest is the choice that matters most, and nobody can make it for the user.
_WITHOUT_DEST = (
    "it is the web site that everybody else sees in your server's place: one with HTTP/3 that people near it would"
    " visit, and not yours; `qre-tool find-dest NAME…` says which of some sites is good, and why; add Dest=NAME:443"
)
ALIASES = {"sni": "ServerName", "server": "ServerProfile", "client": "ClientProfile"}


def init(arguments: list[str], options: Options) -> int:
    """Write the pair, print what was written and the next steps."""
    fields = INIT | parse_fields(
        arguments, REQUIRED, OPTIONAL, ALIASES, command="init", remedies={"Dest": _WITHOUT_DEST}
    )
    config = load_global(os.environ)
    names = check_profile_name(fields["ServerProfile"]), check_profile_name(fields["ClientProfile"])
    if names[0] == names[1]:
        raise UserError("init", f"both profiles would be {names[0]}", "name them ServerProfile= and ClientProfile=")
    server, client = make_pair(fields, os.urandom(32), fresh_short_id(), os.urandom(GLOBAL_ID))
    texts = {profile_path(profile.name, config): to_file(profile) for profile in (server, client)}
    if not options.dry_run:
        write_all(texts)
    verb = "would write" if options.dry_run else "wrote"
    for path, profile in zip(texts, (server, client), strict=True):
        print(f"{verb} {path} ({profile.role.value}, mode 0600)")
    print(f"server: qre-tool daemon {server.name}")
    print(f"client: move {client.name}.conf to the client's configuration directory; qre-tool daemon {client.name}")
    return 0


def make_pair(
    fields: Mapping[str, str], private: bytes, short_id: bytes, global_id: bytes
) -> tuple[Profile, Profile]:
    """The two profiles. Raises UserErrors with all errors of the fields."""
    key = clamped(private)
    own = {
        "Listen": fields.get("Listen") or _listen_for(fields["Endpoint"]),
        "Dest": fields["Dest"],
        "Address": fields["ServerAddress"],
        "RealityPrivateKey": show_key(key),
        "RealityShortIds": short_id.hex(),
        **_given(fields, "ServerName", "MTU", "RealityMaxTimeDiff"),
    }
    errors: list[UserError] = []
    server = _build(fields["ServerProfile"], {"Role": "server", **own}, errors)
    name = fields.get("ServerName") or (server.server.server_name if server and server.server else "")
    own = {
        "Endpoint": fields["Endpoint"],
        "Address": fields["ClientAddress"],
        "RealityPublicKey": show_key(public_key(key)),
        "RealityShortId": short_id.hex(),
        **_given(fields, "MTU", "PersistentKeepalive", "AllowedIPs"),
    }
    if name or server is not None:
        own["ServerName"] = name
    else:
        own["ServerName"] = "unknown.invalid"  # a missing one is reported for the server
    client = _build(fields["ClientProfile"], {"Role": "client", **own}, errors)
    if errors:
        raise UserErrors(tuple(errors))
    if server is None or client is None:
        raise AssertionError("what is missing is an error")
    _check_addresses(server, client)
    server, client = _with_ipv6(server, client, global_id)
    return _with_section(server, client), client


def _with_ipv6(server: Profile, client: Profile, global_id: bytes) -> tuple[Profile, Profile]:
    """A tunnel that takes all of IPv4 takes IPv6, too, with addresses of a network of its own (RFC 4193).

    Not when it has something of IPv6 already, or an MTU that is too small.
    """
    from ipaddress import IPv6Address, IPv6Interface, IPv6Network

    given = (*server.address, *client.address, *client.allowed_ips)
    if default_versions(client.allowed_ips) != (4,) or any(each.version == 6 for each in given):
        return server, client
    if min(server.mtu, client.mtu) < MIN_MTU_IPV6:
        return server, client
    network = int(IPv6Address(b"\xfd" + global_id + bytes(15 - GLOBAL_ID)))
    return (
        server.replace(address=(*server.address, IPv6Interface((network + 1, 64)))),
        client.replace(
            address=(*client.address, IPv6Interface((network + 2, 64))),
            allowed_ips=(*client.allowed_ips, IPv6Network("::/0")),
        ),
    )


def _given(fields: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: fields[name] for name in names if name in fields}


def _with_section(server: Profile, client: Profile) -> Profile:
    """The server's profile with a section for the client in place of the short id alone: the client is known by its
    name, and its address is nobody else's. Raises UserErrors for what a section cannot have."""
    if server.server is None or client.client is None:
        raise AssertionError("a pair is a server and a client")
    hosts = tuple(ip_interface(each.ip) for each in client.address)
    settings = server.server.replace(
        short_ids=(),
        clients=(ClientSection(client.name, client.client.short_id, hosts),),
        client_endpoints=(client.client.endpoint,),
        client_allowed_ips=client.allowed_ips,
    )
    return profile_of_text(to_file(server.replace(server=settings)).encode(), server.name, "init")


def _build(name: str, texts: dict[str, str], errors: list[UserError]) -> Profile | None:
    try:
        return profile_from_values(name, texts, f"init: {texts['Role']}")
    except UserErrors as error:
        errors += error.errors
    return None


def _listen_for(endpoint: str) -> str:
    """The default of Listen. An invalid Endpoint is reported for the client."""
    try:
        address = parse_host_port(endpoint)
    except UserError:
        return "0.0.0.0:443"
    return host_port(address.host if is_address(address.host) else "0.0.0.0", address.port)


def _check_addresses(server: Profile, client: Profile) -> None:
    """ClientAddress must lie inside the server's networks and differ from the server's addresses."""
    for interface in client.address:
        if not any(interface.ip in network.network for network in server.address):
            why = f"{interface} is outside the server's networks, so the server cannot grant it"
            raise UserError("init: ClientAddress", why, "choose one inside ServerAddress")
        if any(interface.ip == other.ip for other in server.address):
            raise UserError("init: ClientAddress", f"{interface.ip} is the server's own", "choose another")
