"""The normalised form of a configuration: stable JSON for `strip` and `showconf`, and the canonical file.

The same model always gives the same bytes, and reading the values back gives the same model (except hidden secrets).
The JSON is written here, in the layout of ``json.dumps(indent=2, sort_keys=True)``: loading ``json`` would take
longer than the rest of `strip`.
"""

from __future__ import annotations

from qre.config.keys import GLOBAL_KEYS, HOOK_KEYS, PROFILE_KEYS, snake_case
from qre.config.model import ClientSection, ClientSettings, GlobalConfig, Profile
from qre.config.replay_store import show_replay_store
from qre.config.settings import attribute_of
from qre.config.values import show_duration, show_key, show_short_id, show_site_tcp, show_time
from qre.ends import EndpointOrder, Forward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    Plain = str | int | bool | None | list[str] | list[dict[str, str | list[str]]]

HIDDEN = "(hidden)"
_SECRET = ("RealityPrivateKey", "RealityPreviousKey", "ReplayStore")


def to_json(config: Profile | GlobalConfig, show_keys: bool) -> str:
    """The normalised JSON, one newline at its end; without ``show_keys`` private keys, and short ids of clients with
    a name, are ``"(hidden)"``."""
    values = global_values(config) if isinstance(config, GlobalConfig) else profile_values(config)
    if not show_keys:
        values |= {key: HIDDEN for key in _SECRET if key in values}
        if isinstance(config, Profile) and "RealityShortIds" in values:
            named = {section.short_id.hex() for section in _clients(config)}
            values["RealityShortIds"] = _without(values["RealityShortIds"], named)
    kind = "global" if isinstance(config, GlobalConfig) else "interface"
    found: dict[str, Plain] = {"kind": kind, **{snake_case(key): value for key, value in values.items()}}
    if isinstance(config, Profile) and (clients := _clients(config)):
        found["clients"] = [_client(section, show_keys) for section in clients]
    return to_text(found)


def _client(section: ClientSection, show_keys: bool) -> dict[str, str | list[str]]:
    values = {snake_case(key): value for key, value in client_values(section).items()}
    return {"name": section.name, **values} | ({} if show_keys else {"short_id": HIDDEN})


def _without(short_ids: Plain, named: Collection[str]) -> list[str]:
    """The list of a server's short ids, with those hidden that have a name."""
    if not isinstance(short_ids, list):
        raise AssertionError("RealityShortIds is a list")
    return [HIDDEN if str(each).ljust(16, "0") in named else str(each) for each in short_ids]


def profile_values(profile: Profile) -> dict[str, Plain]:
    """Canonical key -> plain value, in the order of the documentation."""
    found: dict[str, Plain] = {
        "Device": profile.device,
        "Role": profile.role.value,
        "Address": [str(interface) for interface in profile.address],
        "MTU": profile.mtu,
        "PersistentKeepalive": profile.keepalive_s,
        "AllowedIPs": [str(network) for network in profile.allowed_ips],
        "PreUp": list(profile.hooks.pre_up),
        "PostUp": list(profile.hooks.post_up),
        "PreDown": list(profile.hooks.pre_down),
        "PostDown": list(profile.hooks.post_down),
    }
    if profile.server is not None:
        found |= {
            "Listen": str(profile.server.listen),
            "Dest": str(profile.server.dest),
            "ServerName": profile.server.server_name,
            "RealityPrivateKey": show_key(profile.server.private_key),
            "RealityShortIds": [show_short_id(short_id) for short_id in profile.server.short_ids],
            "RealityMaxTimeDiff": profile.server.max_time_diff_ms,
        }
        if profile.server.previous_key:
            found["RealityPreviousKey"] = show_key(profile.server.previous_key)
            found["RealityPreviousKeyUntil"] = show_time(profile.server.previous_key_until)
        if endpoints := profile.server.client_endpoints:
            found["ClientEndpoint"] = [*map(str, endpoints)] if endpoints[1:] else str(endpoints[0])
        if profile.server.client_allowed_ips:
            found["ClientAllowedIPs"] = [str(network) for network in profile.server.client_allowed_ips]
        if (dns := profile.server.client_dns) is not None:
            found["ClientDNS"] = dns.entries
        if (store := profile.server.replay_store) is not None:
            found["ReplayStore"] = show_replay_store(store)
        if profile.server.forward is not Forward.OFF:
            found["Forward"] = profile.server.forward.value
    if profile.client is not None:
        found |= {
            "Endpoint": str(profile.client.endpoint),
            "ServerName": profile.client.server_name,
            "RealityPublicKey": show_key(profile.client.public_key),
            "RealityShortId": show_short_id(profile.client.short_id),
        }
        if profile.client.others:
            found |= _of_servers(profile.client)
        if profile.client.endpoint_order is not EndpointOrder.LISTED:
            found["EndpointOrder"] = profile.client.endpoint_order.value
        if (dns := profile.client.dns) is not None:
            found["DNS"] = dns.entries
        if not profile.client.leak_protection:
            found["LeakProtection"] = "off"
    return {key: found[key] for key in PROFILE_KEYS if key in found}


def _of_servers(client: ClientSettings) -> dict[str, Plain]:
    """Lists in place of single values; of what is the same for all, one."""
    keys = [client.public_key, *(each.public_key for each in client.others)]
    short_ids = [client.short_id, *(each.short_id for each in client.others)]
    return {
        "Endpoint": [*map(str, client.endpoints)],
        "RealityPublicKey": list(map(show_key, keys if len(set(keys)) > 1 else keys[:1])),
        "RealityShortId": list(map(show_short_id, short_ids if len(set(short_ids)) > 1 else short_ids[:1])),
    }


def client_values(section: ClientSection) -> dict[str, str | list[str]]:
    """The same of a [Client NAME] section."""
    return {
        "ShortId": section.short_id.hex(),
        "Address": [str(address.ip) for address in section.address],
        "AllowedIPs": [str(network) for network in section.allowed_ips],
        "Endpoint": [str(endpoint) for endpoint in section.endpoints],
    }


def _clients(profile: Profile) -> tuple[ClientSection, ...]:
    return profile.server.clients if profile.server is not None else ()


def global_values(config: GlobalConfig) -> dict[str, Plain]:
    """Canonical key -> plain value; BpfElf None: the installed one; User None: one user a role."""
    found = {key: vars(config)[attribute_of(key)] for key in GLOBAL_KEYS}
    return found | {"SiteTcp": show_site_tcp(config.site_tcp)}


def to_file(profile: Profile) -> str:
    """The profile as a file: canonical keys, defaults left out, secrets in full."""
    lines = ["[Interface]"]
    for key, value in profile_values(profile).items():
        if key in HOOK_KEYS and isinstance(value, list):
            lines += [f"{key} = {command}" for command in value]
        elif isinstance(value, list):
            lines += [f"{key} = {', '.join(map(str, value))}"] if value else []
        elif key == "RealityMaxTimeDiff" and isinstance(value, int):
            lines.append(f"{key} = {show_duration(value)}")
        elif value or key != "PersistentKeepalive":
            lines.append(f"{key} = {value}")
    for section in _clients(profile):
        lines += ["", f"[Client {section.name}]"]
        for key, value in client_values(section).items():
            text = value if isinstance(value, str) else ", ".join(value)
            lines += [f"{key} = {text}"] if text else []
    return "\n".join(lines) + "\n"


def to_text(values: Mapping[str, Plain]) -> str:
    """A JSON object of plain values, lists of strings, and lists of such objects."""
    return _object(values, "") + "\n"


def _object(values: Mapping[str, Plain], indent: str) -> str:
    if not values:
        return "{}"
    members = [f"{indent}  {_string(name)}: {_value(values[name], indent + '  ')}" for name in sorted(values)]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"


def _value(value: Plain, indent: str) -> str:
    if isinstance(value, str):
        return _string(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not value:
        return "[]"
    inner = indent + "  "
    items = (_string(item) if isinstance(item, str) else _object(item, inner) for item in value)
    return "[\n" + ",\n".join(inner + item for item in items) + f"\n{indent}]"


def _string(text: str) -> str:
    """A JSON string in ASCII, as ``json.dumps`` writes it."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_escaped(letter) for letter in text) + '"'


def _escaped(letter: str) -> str:
    code = ord(letter)
    if letter in '"\\':
        return "\\" + letter
    if 0x20 <= code < 0x7F:
        return letter
    if code <= 0xFFFF:
        return {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}.get(code, f"\\u{code:04x}")
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
