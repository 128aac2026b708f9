"""The global configuration: file, environment and options; the later ones win. Without a file all keys have their
defaults."""

from __future__ import annotations

import os

from qre.config import values as v
from qre.config.keys import GLOBAL_KEYS
from qre.config.model import GlobalConfig
from qre.config.syntax import Entry, NoSuchFileError, Problems, Values, check_owner, parse_entries, read_config, shown
from qre.errors import UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

DEFAULT_PATH = "/etc/qre/qre.conf"
_HOUR = 3_600_000
_DAY = 24 * _HOUR

#: Key -> the model's attribute and the parser of its value.
_KEYS: dict[str, tuple[str, Callable[[str], object]]] = {
    "StateDir": ("state_dir", v.parse_path),
    "RuntimeDir": ("runtime_dir", v.parse_path),
    "ModuleLoad": ("module_load", v.parse_bool),
    "Dataplane": ("dataplane", v.parse_dataplane),
    "BpfElf": ("bpf_elf", v.parse_path),
    "BpfPinDir": ("bpf_pin_dir", v.parse_path),
    "RoutedCidLen": ("routed_cid_len", v.parse_routed_cid_len),
    "DestProfileTtl": ("dest_profile_ttl_ms", v.duration(1_000, 365 * _DAY)),
    "WhenDestIsDown": ("when_dest_is_down", v.parse_when_dest_is_down),
    "SiteTcp": ("site_tcp", v.parse_site_tcp),
    "RekeyInterval": ("rekey_interval_ms", v.duration(1_000, _DAY)),
    "IdleTimeout": ("idle_timeout_ms", v.duration(1_000, _DAY)),
    "ReconnectMin": ("reconnect_min_ms", v.duration(10, _DAY)),
    "ReconnectMax": ("reconnect_max_ms", v.duration(10, _DAY)),
    "SessionLifetime": ("session_lifetime_ms", v.duration_or_off(10_000, _DAY)),
    "RelayMaxFlows": ("relay_max_flows", v.number(1, 1_000_000)),
    "RelayMaxFlowsPerPrefix": ("relay_max_flows_per_prefix", v.number(1, 1_000_000)),
    "RelayIdle": ("relay_idle_ms", v.duration(1_000, _DAY)),
    "MetricsClientNames": ("metrics_client_names", v.parse_bool),
    "User": ("user", v.parse_user),
    "LogLevel": ("log_level", v.parse_log_level),
}
#: Variable -> key.
_ENVIRONMENT = {
    "QRE_STATE_DIR": "StateDir",
    "RUNTIME_DIRECTORY": "RuntimeDir",
    "QRE_MODULE_LOAD": "ModuleLoad",
    "QRE_DATAPLANE": "Dataplane",
    "QRE_BPF_ELF": "BpfElf",
    "QRE_BPF_PIN_DIR": "BpfPinDir",
    "QRE_LOG": "LogLevel",
}
#: Override of ``load_global`` -> key.
_OPTIONS = {"state_dir": "StateDir", "bpf_elf": "BpfElf", "pin_dir": "BpfPinDir"}


def load_global(environ: Mapping[str, str], **overrides: str | os.PathLike[str] | None) -> GlobalConfig:
    """Option, then environment, then file, then default. An empty variable counts as unset.

    ``overrides``: ``config_dir``, ``global_config``, ``state_dir``, ``bpf_elf``, ``pin_dir``; None: not given.
    A file that an option names must exist. Raises UserErrors with the errors of all sources.
    """
    given = {name: os.fspath(value) for name, value in overrides.items() if value is not None}
    errors: list[UserError] = []
    asked = given.pop("global_config", "")
    path = asked or environ.get("QRE_GLOBAL_CONFIG") or DEFAULT_PATH
    settings = _from_file(path, errors, needed=bool(asked))
    for variable, key in _ENVIRONMENT.items():
        if text := environ.get(variable):
            if key == "RuntimeDir":
                text = text.partition(":")[0]  # systemd lists every RuntimeDirectory=
            _set(settings, key, _absolute(key, text), f"variable {variable}", errors)
    directory = given.pop("config_dir", "") or environ.get("QRE_CONFIG_DIR")
    if directory:
        settings["config_dir"] = os.path.abspath(directory)
    for option, text in given.items():
        key = _OPTIONS[option]
        _set(settings, key, _absolute(key, text), f"option --{option.replace('_', '-')}", errors)
    if errors:
        raise UserErrors(tuple(errors))
    return GlobalConfig(**settings)


def load_global_file(path: str | os.PathLike[str]) -> GlobalConfig:
    """The settings of a global file alone, which must exist."""
    text = os.fspath(path)
    data, status = read_config(text)
    problems = Problems(shown(text))
    settings = _parse(data, problems)
    check_owner(text, status, False, problems)
    problems.raise_if_any()
    return GlobalConfig(**settings)


def _from_file(path: str, errors: list[UserError], *, needed: bool) -> dict[str, Any]:
    """The file's settings; none when it does not exist and is optional."""
    try:
        data, status = read_config(path)
    except NoSuchFileError as error:
        if needed:
            errors.append(error)
        return {}
    except UserError as error:
        errors.append(error)
        return {}
    problems = Problems(shown(path))
    settings = _parse(data, problems)
    check_owner(path, status, False, problems)
    errors += problems.errors()
    return settings


def _parse(data: bytes, problems: Problems) -> dict[str, Any]:
    return _build(parse_entries(data, GLOBAL_KEYS, problems), problems)


def _build(entries: list[Entry], problems: Problems) -> dict[str, Any]:
    values = Values(entries, problems, GLOBAL_KEYS)
    settings: dict[str, Any] = {}
    for key in values.all:
        attribute, parse = _KEYS[key]
        value = values.get(key, parse)
        if value is not None:
            settings[attribute] = value
    _check_order(settings, "ReconnectMin", "ReconnectMax", values)
    _check_order(settings, "RelayMaxFlowsPerPrefix", "RelayMaxFlows", values)
    return settings


def _check_order(settings: Mapping[str, Any], low: str, high: str, values: Values) -> None:
    """One setting may not be larger than another."""
    low_name, high_name = _KEYS[low][0], _KEYS[high][0]
    low_value = settings.get(low_name, getattr(GlobalConfig, low_name))
    high_value = settings.get(high_name, getattr(GlobalConfig, high_name))
    if low_value > high_value:
        key = low if low in values else high
        values.problems.add(values.line(key), key, f"{low} is larger than {high}", f"write {low} <= {high}")


def _absolute(key: str, text: str) -> str:
    """Paths in the environment and in options may be relative to the current directory."""
    return os.path.abspath(text) if _KEYS[key][1] is v.parse_path else text


def _set(settings: dict[str, Any], key: str, text: str, place: str, errors: list[UserError]) -> None:
    attribute, parse = _KEYS[key]
    try:
        settings[attribute] = parse(text)
    except UserError as error:
        errors.append(UserError(place, error.why, error.remedy or f"write a value like {GLOBAL_KEYS[key]}"))


def attribute_of(key: str) -> str:
    """The model's attribute for a canonical key."""
    return _KEYS[key][0]
