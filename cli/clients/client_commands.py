"""``add-client``, ``export``, ``rename-client``, ``remove-client``: the clients of a server, by their names.

A client is a ``[Client NAME]`` section of its server's profile; it has no key of its own. A running daemon takes each
change at once, and the sessions of other clients go on.
"""

from __future__ import annotations

import os

from qre.addresses import default_versions
from qre.cli.clients.handout import Handout
from qre.cli.clients.profile_change import changing, load_server, planned
from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.cli.profile.configuration import fresh_short_id, public_key
from qre.config.client_profile import client_profile, endpoints_of, free_addresses
from qre.config.keys import SECTION_KEYS, did_you_mean
from qre.config.model import ClientSection, GlobalConfig, HostPort, Profile
from qre.config.profile import profile_of_text
from qre.config.profile_edit import add_section, remove_section, remove_short_id, rename_section
from qre.config.server_places import parse_endpoints
from qre.config.settings import load_global
from qre.config.values import is_profile_name, parse_hosts, parse_networks, parse_short_id
from qre.device.state import read_private
from qre.errors import UntrustedInputError, UserError
from qre.quic.server.address_leases import Leases
from qre.quic.server.identities import identities_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from qre.addresses import Address, Interface

    T = TypeVar("T")

_ADD = ("Address", "AllowedIPs", "Endpoint", "File")
_EXPORT = ("As", "Endpoint", "File")


def add_client(arguments: list[str], options: Options) -> int:
    """``add-client PROFILE NAME [Key=Value]…``."""
    words, fields = _split(arguments, _ADD, "add-client")
    name = check_client_name(words[1])
    address, behind = parse_field(fields, "Address", parse_hosts), parse_field(fields, "AllowedIPs", parse_networks)
    given = parse_field(fields, "Endpoint", parse_endpoints) or ()
    config = load_global(os.environ)
    handout = None if options.dry_run else Handout("", fields.get("File", ""), as_json=options.json)
    made: list[Profile] = []

    def edit(server: Profile, text: str) -> str:
        _refuse_taken(server, name)
        hosts = address or tuple(map(_host, free_addresses(server, in_use(server, config))))
        section = ClientSection(name, fresh_short_id(), hosts, behind or (), given)
        fresh = add_section(text, section)
        changed = profile_of_text(fresh.encode(), server.name, f"profile {server.name}")
        _refuse_loss(server, changed)
        _refuse_default_route(server, changed, section)
        made.append(client_of(server, section))
        return fresh

    if handout is None:
        planned(words[0], config, edit)
        print(
            f"add [Client {name}] with {_addresses(made[0])} to the profile {words[0]}; a running daemon reloads it"
        )
        return 0
    with changing(words[0], config) as apply:
        done = apply(edit)
        try:
            handout.write_file(made[0])
        except BaseException:
            apply(lambda server, text: remove_section(text, name))
            raise
    handout.show(made[0], f"added client {name} of {words[0]} with {_addresses(made[0])}: {done.words}")
    return 0


def export(arguments: list[str], options: Options) -> int:
    """``export PROFILE NAME [Key=Value]…``: the profile of a client again."""
    words, fields = _split(arguments, _EXPORT, "export")
    given = parse_field(fields, "Endpoint", parse_endpoints) or ()
    server = load_server(words[0], load_global(os.environ))
    client = client_of(server, section_of(server, words[1]), given)
    handout = Handout(fields.get("As", ""), fields.get("File", ""), as_json=options.json)
    handout.write_file(client)
    handout.show(client)
    return 0


def rename_client(arguments: list[str], options: Options) -> int:
    """``rename-client PROFILE NAME NEW``: the short id and the addresses stay, and so does the session."""
    del options
    profile, name, new = arguments
    check_client_name(new)

    def edit(server: Profile, text: str) -> str:
        section_of(server, name)
        _refuse_taken(server, new)
        return rename_section(text, name, new)

    with changing(profile, load_global(os.environ)) as apply:
        done = apply(edit)
    print(f"client {name} of {profile} is now {new}: {done.words}")
    return 0


def remove_client(arguments: list[str], options: Options) -> int:
    """``remove-client PROFILE NAME``: by its name, or by its short id where it has none."""
    del options
    profile, name = arguments

    def edit(server: Profile, text: str) -> str:
        settings = server.server
        if settings is None:
            raise AssertionError("the profile is a server's")
        section = next((each for each in settings.clients if each.name == name), None)
        short_id = section.short_id if section is not None else _listed(server, name)
        if set(settings.accepted_ids) == {short_id}:
            why = f"{name} is its last client, and a server has at least one"
            raise UserError(f"profile {profile}", why, "add another client first, or stop the server")
        return remove_short_id(text if section is None else remove_section(text, name), short_id)

    with changing(profile, load_global(os.environ)) as apply:
        done = apply(edit)
    print(f"removed client {name} of {profile}: {done.words}")
    return 0


def _split(arguments: list[str], optional: tuple[str, ...], command: str) -> tuple[list[str], dict[str, str]]:
    """The words without a ``=``, which are two, and the fields."""
    words = [word for word in arguments if "=" not in word]
    fields = parse_fields([word for word in arguments if "=" in word], (), optional, command=command)
    if len(words) != 2:
        why = f"{len(words)} words are given, and it takes two beside its fields"
        raise UserError(command, why, f"see `qre-tool help {command}`")
    return words, fields


def parse_field(fields: dict[str, str], key: str, parse: Callable[[str], T]) -> T | None:
    """The field's value; None when it is not given. Raises UserError."""
    if key not in fields:
        return None
    try:
        return parse(fields[key])
    except UserError as error:
        raise UserError(f"field {key}", error.why, error.remedy or f"write {key}={SECTION_KEYS[key]}") from None


def check_client_name(name: str) -> str:
    """The name itself, when it may be that of a client. Raises UserError."""
    if not is_profile_name(name):
        rule = "use 1 to 64 of the ASCII letters, digits, `.`, `-`, `_`, with no leading `.`"
        raise UserError("client", "this is not the name of a client", rule)
    return name


def section_of(server: Profile, name: str) -> ClientSection:
    """The section of the client. Raises UserError when there is none."""
    clients = server.server.clients if server.server is not None else ()
    for section in clients:
        if section.name == name:
            return section
    otherwise = f"see `qre-tool list-clients {server.name}`, or add it with `qre-tool add-client`"
    remedy = did_you_mean(name, [section.name for section in clients], otherwise)
    raise UserError(f"client {name if is_profile_name(name) else '?'}", f"{server.name} has no such client", remedy)


def _listed(server: Profile, text: str) -> bytes:
    """An entry of RealityShortIds."""
    settings = server.server
    try:
        short_id = parse_short_id(text)
    except UserError:
        short_id = None
    if settings is None or short_id is None or short_id not in settings.short_ids:
        section_of(server, text)
        raise AssertionError("a section of this name would have been found")
    return short_id


def _refuse_taken(server: Profile, name: str) -> None:
    clients = server.server.clients if server.server is not None else ()
    if any(section.name == name for section in clients):
        remedy = f"choose another name; `qre-tool export {server.name} {name}` prints its profile again"
        raise UserError(f"client {name}", f"{server.name} has a client of this name already", remedy)


def _refuse_loss(server: Profile, changed: Profile) -> None:
    """A server's only client has its AllowedIPs; with a second one they would be nobody's."""
    before, after = identities_of(server), identities_of(changed)
    lost = sorted(
        {str(each) for one in before.short_ids for each in set(before.behind(one)) - set(after.behind(one))}
    )
    if lost:
        why = f"its only client has {', '.join(lost)} by AllowedIPs, and would lose them to a second one"
        raise UserError(f"profile {server.name}", why, "name them in a section [Client NAME] of that client first")


def _refuse_default_route(server: Profile, changed: Profile, section: ClientSection) -> None:
    """Networks behind a client get routes to it: with all of them this machine's own way out would lead there."""
    fresh = set(default_versions(changed.routes)) - set(default_versions(server.routes))
    if versions := sorted(fresh.union(default_versions(section.allowed_ips))):
        ways = " and ".join(f"IPv{version}" for version in versions)
        why = f"they are networks behind the client, and all of {ways} would take this server's own default route"
        remedy = "leave it out; what clients send through the tunnel is ClientAllowedIPs in the server's profile"
        raise UserError("field AllowedIPs", why, remedy)


def in_use(server: Profile, config: GlobalConfig) -> set[Address]:
    """Addresses that a section has, and those that a short id without one had last."""
    clients = server.server.clients if server.server is not None else ()
    taken = {address.ip for section in clients for address in section.address}
    path = config.state_dir / f"{server.name}.leases"
    try:
        leases = Leases(read_private(path))
    except FileNotFoundError:
        return taken
    except UntrustedInputError as error:
        raise UserError(str(path), error.what, "inspect and remove it") from None
    known = server.server.short_ids if server.server is not None else ()
    return taken.union(*(leases.had(short_id) for short_id in known))


def _host(address: Address) -> Interface:
    from ipaddress import ip_interface

    return ip_interface(address)


def _addresses(client: Profile) -> str:
    return ", ".join(str(each.ip) for each in client.address)


def client_of(server: Profile, section: ClientSection, given: Sequence[HostPort] = ()) -> Profile:
    """The client's profile; ``given``: where it finds the server, in place of what the server's profile says."""
    if server.server is None:
        raise AssertionError("the profile is a server's")
    endpoints = endpoints_of(server, section, given)
    return client_profile(server, section, endpoints, public_key(server.server.private_key))
