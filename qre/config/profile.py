"""Interface profiles: from ``<config dir>/<profile>.conf`` to a ``Profile``, or to all its errors."""

from __future__ import annotations

import os

from qre.config import server_places as places
from qre.config import values as v
from qre.config.keys import CLIENT_KEYS, HOOK_KEYS, PROFILE_KEYS, SERVER_KEYS, did_you_mean
from qre.config.model import ClientSection, ClientSettings, Hooks, Profile, ServerPlace, ServerSettings
from qre.config.replay_store import parse_replay_store
from qre.config.syntax import (
    SECTION,
    Entry,
    NoSuchFileError,
    Problems,
    Values,
    check_owner,
    holds_credential,
    parse_entries,
    read_config,
    shown,
)
from qre.ends import DEFAULT_MTU, DEFAULT_TIME_DIFF_MS, EndpointOrder, Forward, Role
from qre.errors import UserError
from qre.wire.overhead import MIN_MTU_IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qre.addresses import Interface, Network
    from qre.config.model import GlobalConfig

    Texts = Mapping[str, str | list[str]]

SUFFIX = ".conf"
#: Placeholders of `set` for keys and ids (from the reference).
PLACEHOLDERS = {
    Role.SERVER: {"RealityPrivateKey": "A" * 43 + "=", "RealityShortIds": "00"},
    Role.CLIENT: {"RealityPublicKey": "AQEB" * 10 + "AQE=", "RealityShortId": "00"},
}


def profile_path(name: str, config: GlobalConfig) -> str:
    """The path of the profile's file. Raises UserError for an invalid name, before it becomes part of a path."""
    return os.path.join(vars(config)["config_dir"], v.check_profile_name(name) + SUFFIX)


def load_profile(name: str, config: GlobalConfig, environ: Mapping[str, str]) -> Profile:
    """The profile of that name in the configuration directory. Raises UserErrors with all its errors."""
    del environ  # ``config`` has the directory already; nothing else of the environment matters for a profile
    path = profile_path(name, config)
    try:
        return _load(path, name)
    except NoSuchFileError as error:
        raise UserError(error.what, error.why, _names_nearby(path, name)) from None


def profile_of_text(data: bytes, name: str, place: str) -> Profile:
    """The profile in ``data``, which ``place`` names in errors; its owner and mode are the caller's business."""
    problems = Problems(place)
    return build_profile(parse_entries(data, PROFILE_KEYS, problems), problems, name)


def load_profile_file(path: str | os.PathLike[str]) -> Profile:
    """The profile in any file; its name is that of the file, or else of its device."""
    text = os.fspath(path)
    return _load(text, os.path.basename(text).removesuffix(SUFFIX))


def _load(path: str, name: str) -> Profile:
    data, status = read_config(path)
    problems = Problems(shown(path))
    entries = parse_entries(data, PROFILE_KEYS, problems)
    check_owner(path, status, holds_credential(entries), problems)
    return build_profile(entries, problems, name)


def _names_nearby(path: str, name: str) -> str:
    try:
        there = sorted(entry.removesuffix(SUFFIX) for entry in os.listdir(os.path.dirname(path)))
    except OSError:
        return "write one with `qre-tool init`, or name the directory of yours with QRE_CONFIG_DIR"
    return did_you_mean(
        name, [entry for entry in there if v.is_profile_name(entry)], "write one with `qre-tool init`"
    )


def profile_from_values(
    name: str, texts: Texts, place: str = "arguments", clients: Sequence[tuple[str, Texts]] = ()
) -> Profile:
    """A profile from canonical keys and texts, with the rules of a file; a list stands for its entries. ``clients``
    are the names and texts of its sections."""
    entries = _entries(texts)
    for section, values in clients:
        entries += [Entry(0, SECTION, section), *_entries(values)]
    return build_profile(entries, Problems(place), name)


def _entries(texts: Texts) -> list[Entry]:
    entries = []
    for key, text in texts.items():
        if isinstance(text, str):
            entries.append(Entry(0, key, text))
        elif key in HOOK_KEYS:
            entries += [Entry(0, key, command) for command in text]
        elif text:
            entries.append(Entry(0, key, ", ".join(text)))
    return entries


def profile_from_fields(device: str, role: Role, fields: Mapping[str, str]) -> Profile:
    """The minimal profile that `set` makes of canonical fields: placeholders stand for keys and short ids."""
    texts = {"Device": device, "Role": role.value, **fields, **PLACEHOLDERS[role]}
    return profile_from_values(device, texts, f"set {device}")


def build_profile(entries: list[Entry], problems: Problems, name: str) -> Profile:
    """Apply the rules that concern several lines; raises all collected errors."""
    first = next((at for at, entry in enumerate(entries) if entry.key == SECTION), len(entries))
    values = Values(entries[:first], problems, PROFILE_KEYS)
    device = _device(values, name)
    role = _role(values)
    address = values.require("Address", v.parse_interfaces)
    mtu = _mtu(values, address)
    clients = _clients(entries[first:], values, role, address)
    server = _server(values, clients) if role is Role.SERVER else None
    client = _client(values) if role is Role.CLIENT else None
    keepalive = values.get("PersistentKeepalive", v.parse_keepalive)
    allowed_ips = values.get("AllowedIPs", v.parse_networks)
    if server is not None and allowed_ips and address:
        _check_beyond(values, allowed_ips, address)
    hooks = Hooks(*(_hook(values, key) for key in HOOK_KEYS))
    problems.raise_if_any()
    if device is None or role is None or address is None:
        raise AssertionError("what is missing is a problem")
    return Profile(
        name=name if v.is_profile_name(name) else device,
        device=device,
        role=role,
        address=address,
        server=server,
        client=client,
        mtu=mtu,
        keepalive_s=keepalive or 0,
        allowed_ips=allowed_ips or (),
        hooks=hooks,
    )


def _device(values: Values, name: str) -> str | None:
    if "Device" in values:
        return values.get("Device", v.parse_device)
    try:
        return v.parse_device(name)
    except UserError as error:
        remedy = f"add {values.example('Device')}"
        values.problems.add(
            0, "Device", f"is missing, and the profile's name cannot stand for it: {error.why}", remedy
        )
    return None


def _role(values: Values) -> Role | None:
    """The role as written or inferred; keys of the other role are problems."""
    listen, endpoint = "Listen" in values, "Endpoint" in values
    if "Role" in values:
        role = values.get("Role", v.parse_role)
    elif listen != endpoint:
        role = Role.SERVER if listen else Role.CLIENT
    else:
        role = None
        why = "both Listen and Endpoint are given, so it cannot be inferred" if listen else "is missing"
        values.problems.add(
            0, "Role", why, "add Listen for a server, Endpoint for a client, or Role = server or client"
        )
    if role is None:
        _check_all(values)
        return None
    for key in CLIENT_KEYS if role is Role.SERVER else SERVER_KEYS:
        if key in values:
            other = "client" if role is Role.SERVER else "server"
            values.problems.add(values.line(key), key, f"is a {other}'s key, and this is a {role}", "remove the line")
    return role


def _check_all(values: Values) -> None:
    """Parse the present keys although the role is unknown, so that all errors are reported together."""
    for key, parse in _SERVER_PARSERS.items() | _CLIENT_PARSERS.items():
        values.get(key, parse)


def _mtu(values: Values, address: tuple[Interface, ...] | None) -> int:
    mtu = values.get("MTU", v.number(v.MIN_MTU, v.MAX_MTU)) or DEFAULT_MTU
    if mtu < MIN_MTU_IPV6 and address and any(interface.version == 6 for interface in address):
        why = f"{mtu} is less than the {MIN_MTU_IPV6} that the IPv6 address needs"
        values.problems.add(values.line("MTU"), "MTU", why, f"write MTU = {MIN_MTU_IPV6} or more")
    return mtu


def _clients(
    entries: list[Entry], values: Values, role: Role | None, address: tuple[Interface, ...] | None
) -> tuple[ClientSection, ...] | None:
    """The sections; None when one is wrong."""
    if not entries:
        return ()
    from qre.config.sections import parse_sections  # few profiles have them

    if role is Role.CLIENT:
        why = "sections name the clients of a server, and this is a client"
        values.problems.add(entries[0].line, "", why, "remove them")
        return None
    return parse_sections(entries, values.problems, address or ())


def _check_beyond(values: Values, allowed_ips: tuple[Network, ...], address: tuple[Interface, ...]) -> None:
    """A server's only client has them beside its addresses."""
    from qre.config.sections import MAX_PREFIXES, less_own

    most = MAX_PREFIXES - v.MAX_ADDRESSES
    if len(less_own(allowed_ips, address)) > most:
        why = f"they are more than {most} prefixes beyond the tunnel's own networks"
        values.problems.add(values.line("AllowedIPs"), "AllowedIPs", why, "write fewer, larger networks")


def _server(values: Values, clients: tuple[ClientSection, ...] | None) -> ServerSettings | None:
    listen = values.require("Listen", places.parse_listen)
    dest = values.require("Dest", v.parse_host_port)
    key = values.require("RealityPrivateKey", v.parse_key)
    if clients == ():
        short_ids = values.require("RealityShortIds", v.parse_short_ids)
    else:  # those of sections need no list
        short_ids = values.get("RealityShortIds", v.parse_short_ids) if "RealityShortIds" in values else ()
    difference = values.get("RealityMaxTimeDiff", v.duration(0, v.MAX_TIME_DIFF_MS))
    previous = _previous_key(values)
    client_endpoints = values.get("ClientEndpoint", places.parse_endpoints)
    client_allowed_ips = values.get("ClientAllowedIPs", v.parse_networks)
    client_dns = values.get("ClientDNS", v.parse_dns)
    forward = values.get("Forward", v.parse_forward)
    replay_store = values.get("ReplayStore", parse_replay_store)
    server_name = values.get("ServerName", v.parse_dns_name)
    if "ServerName" not in values and dest is not None:
        if v.is_address(dest.host):
            why = "is missing, and Dest is an address, not a name"
            values.problems.add(0, "ServerName", why, f"add {values.example('ServerName')}")
        else:
            server_name = dest.host
    if listen is None or dest is None or key is None or short_ids is None or server_name is None or clients is None:
        return None
    made = ServerSettings(
        listen,
        dest,
        server_name,
        key,
        short_ids,
        clients=clients,
        previous_key=previous[0],
        previous_key_until=previous[1],
        client_endpoints=client_endpoints or (),
        client_allowed_ips=client_allowed_ips or (),
        client_dns=client_dns,
        max_time_diff_ms=DEFAULT_TIME_DIFF_MS if difference is None else difference,
        forward=forward or Forward.OFF,
        replay_store=replay_store,
    )
    if len(made.accepted_ids) > v.MAX_SHORT_IDS:
        why = f"with those of the sections they are more than {v.MAX_SHORT_IDS}"
        values.problems.add(values.line("RealityShortIds"), "RealityShortIds", why, "shorten the list")
    return made


def _previous_key(values: Values) -> tuple[bytes, int]:
    """The key that was RealityPrivateKey, and until when it is accepted; none, when only one of both is there."""
    key = values.get("RealityPreviousKey", v.parse_key)
    until = values.get("RealityPreviousKeyUntil", v.parse_time)
    pair = ("RealityPreviousKey", "RealityPreviousKeyUntil")
    for one, other in (pair, pair[::-1]):
        if one in values and other not in values:
            values.problems.add(
                values.line(one), one, f"{other} is missing beside it", f"add {values.example(other)}"
            )
    return (key, until) if key is not None and until is not None else (b"", 0)


def _client(values: Values) -> ClientSettings | None:
    endpoints = values.require("Endpoint", places.parse_endpoints)
    order = values.get("EndpointOrder", places.parse_endpoint_order)
    server_name = values.require("ServerName", v.parse_dns_name)
    keys = values.require("RealityPublicKey", places.parse_keys_of_servers)
    short_ids = values.require("RealityShortId", places.parse_ids_of_servers)
    dns = values.get("DNS", v.parse_dns)
    protection = values.get("LeakProtection", v.parse_switch)
    if endpoints is None or server_name is None or keys is None or short_ids is None:
        return None
    for name, given in (("RealityPublicKey", keys), ("RealityShortId", short_ids)):
        if len(given) not in (1, len(endpoints)):
            why = f"there are {len(given)}, and {len(endpoints)} in Endpoint"
            values.problems.add(values.line(name), name, why, "write one for each server, in the same order")
            return None
    first, *others = (
        ServerPlace(endpoint, keys[at % len(keys)], short_ids[at % len(short_ids)])
        for at, endpoint in enumerate(endpoints)
    )
    return ClientSettings(
        first.endpoint,
        server_name,
        first.public_key,
        first.short_id,
        others=tuple(others),
        endpoint_order=order or EndpointOrder.LISTED,
        leak_protection=protection is not False,
        dns=dns,
    )


def _hook(values: Values, key: str) -> tuple[str, ...]:
    commands = []
    for entry in values.all.get(key, ()):
        if entry.text:
            commands.append(entry.text)
        else:
            values.problems.add(entry.line, key, "the command is empty", "write a shell command, or remove the line")
    return tuple(commands)


_SERVER_PARSERS = {
    "Listen": places.parse_listen,
    "Dest": v.parse_host_port,
    "RealityPrivateKey": v.parse_key,
    "RealityPreviousKey": v.parse_key,
    "RealityPreviousKeyUntil": v.parse_time,
    "RealityShortIds": v.parse_short_ids,
    "RealityMaxTimeDiff": v.duration(0, v.MAX_TIME_DIFF_MS),
    "ClientEndpoint": places.parse_endpoints,
    "ClientAllowedIPs": v.parse_networks,
    "ClientDNS": v.parse_dns,
    "Forward": v.parse_forward,
    "ReplayStore": parse_replay_store,
}
_CLIENT_PARSERS = {
    "ServerName": v.parse_dns_name,
    "Endpoint": places.parse_endpoints,
    "EndpointOrder": places.parse_endpoint_order,
    "RealityPublicKey": places.parse_keys_of_servers,
    "RealityShortId": places.parse_ids_of_servers,
    "DNS": v.parse_dns,
    "LeakProtection": v.parse_switch,
}
