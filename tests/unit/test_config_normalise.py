"""The normalised form: stable, hidden secrets, and nothing lost that is fed back. Any bytes parse or are refused."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.config.keys import GLOBAL_KEYS, PROFILE_KEYS, SECTION_KEYS, snake_case
from qre.config.kind import is_profile
from qre.config.model import ClientSettings, GlobalConfig, Hooks, HostPort, Listen, Profile, ServerSettings
from qre.config.normalise import to_file, to_json, to_text
from qre.config.profile import profile_from_values
from qre.ends import Dataplane, Role
from qre.errors import UserError
from tests.support.config_parsers import global_from_values, parse_global, parse_profile
from tests.support.profiles import PRIVATE_KEY, SERVER

LABEL = st.from_regex(r"[a-z][a-z0-9-]{0,9}[a-z0-9]", fullmatch=True)
NAME = st.builds(".".join, st.lists(LABEL, min_size=1, max_size=4))
PORT = st.integers(1, 65_535)
UNICAST4 = st.integers(0x0B000000, 0x7EFFFFFF).map(IPv4Address)
UNICAST = st.one_of(UNICAST4, st.integers(0x20 << 120, 0x3F << 120).map(IPv6Address))
HOST_PORT = st.builds(HostPort, st.one_of(NAME, UNICAST.map(str)), PORT)
INTERFACE = st.one_of(
    st.builds(lambda ip, length: IPv4Interface((ip, length)), UNICAST4, st.integers(0, 32)),
    st.builds(
        lambda low, length: IPv6Interface(((0xFD << 120) + low, length)), st.integers(1, 1 << 64), st.integers(0, 128)
    ),
)
NETWORK = st.one_of(
    st.builds(lambda ip, length: IPv4Network((ip, length), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda ip, length: IPv6Network((ip, length), strict=False), st.ip_addresses(v=6), st.integers(0, 128)),
)
SHORT_ID = st.binary(max_size=8).map(lambda raw: raw.ljust(8, b"\0"))
SERVER_SETTINGS = st.builds(
    ServerSettings,
    listen=st.builds(Listen, st.lists(UNICAST, min_size=1, max_size=8, unique=True).map(tuple), PORT),
    dest=HOST_PORT,
    server_name=NAME,
    private_key=st.binary(min_size=32, max_size=32),
    short_ids=st.lists(SHORT_ID, min_size=1, max_size=4, unique=True).map(tuple),
    max_time_diff_ms=st.integers(0, 86_400_000),
    previous_key=st.binary(min_size=32, max_size=32),
    previous_key_until=st.integers(0, 253_402_300_799),
    client_endpoints=st.lists(HOST_PORT, max_size=3, unique_by=str).map(tuple),
    client_allowed_ips=st.lists(NETWORK, max_size=3, unique=True).map(tuple),
)
CLIENT_SETTINGS = st.builds(ClientSettings, HOST_PORT, NAME, st.binary(min_size=32, max_size=32), SHORT_ID)
WORD = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=8)
COMMAND = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
COMMANDS = st.lists(COMMAND, max_size=3).map(tuple)
DEVICE = st.from_regex(r"[a-zA-Z0-9_.;-]{1,15}", fullmatch=True).filter(
    lambda name: name not in (".", "..", "all", "default")
)


def make_profile(device: str, settings: Any, **fields: Any) -> Profile:
    role = Role.SERVER if isinstance(settings, ServerSettings) else Role.CLIENT
    return Profile(name="qre0", device=device, role=role, **{role.value: settings}, **fields)


PROFILE = st.builds(
    make_profile,
    DEVICE,
    st.one_of(SERVER_SETTINGS, CLIENT_SETTINGS),
    address=st.lists(INTERFACE, min_size=1, max_size=3, unique=True).map(tuple),
    mtu=st.integers(1280, 1428),
    keepalive_s=st.integers(0, 65_535),
    allowed_ips=st.lists(NETWORK, max_size=3, unique=True).map(tuple),
    hooks=st.builds(Hooks, COMMANDS, COMMANDS, COMMANDS, COMMANDS),
)
PATH = st.from_regex(r"(/[a-zA-Z0-9_.-]{1,8}){1,3}", fullmatch=True).filter(
    lambda path: not {".", ".."} & set(path.split("/"))
)
GLOBAL = st.builds(
    GlobalConfig,
    state_dir=PATH.map(Path),
    runtime_dir=PATH.map(Path),
    module_load=st.booleans(),
    dataplane=st.sampled_from(Dataplane),
    bpf_elf=st.none() | PATH.map(Path),
    bpf_pin_dir=PATH.map(Path),
    routed_cid_len=st.integers(17, 20),
    rekey_interval_ms=st.integers(1_000, 86_400_000),
    reconnect_min_ms=st.integers(10, 1_000),
    relay_max_flows_per_prefix=st.integers(1, 4096),
    user=st.none() | st.just("qre"),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
)


def fed_back(text: str, keys: dict[str, str]) -> dict[str, Any]:
    """The values of a normalised JSON under their canonical keys, as texts and lists of texts."""
    values = json.loads(text)
    names = {snake_case(key): key for key in keys}
    return {
        names[name]: value if isinstance(value, list) else str(value)
        for name, value in values.items()
        if name != "kind" and value is not None
    }


@settings(max_examples=60)
@given(PROFILE)
def test_the_values_of_a_profile_fed_back_give_the_same_profile(profile: Profile) -> None:
    text = to_json(profile, show_keys=True)
    again = profile_from_values("qre0", fed_back(text, PROFILE_KEYS))
    assert again == profile
    assert to_json(again, show_keys=True) == text


@settings(max_examples=60)
@given(PROFILE)
def test_the_file_of_a_profile_gives_the_same_profile(profile: Profile) -> None:
    data = to_file(profile).encode()
    assert parse_profile(data, "qre0", "file") == profile
    assert is_profile(data)


@settings(max_examples=60)
@given(GLOBAL)
def test_the_values_of_a_global_configuration_fed_back_give_the_same_one(config: GlobalConfig) -> None:
    text = to_json(config, show_keys=False)
    assert global_from_values(fed_back(text, GLOBAL_KEYS)) == config


JSON_VALUES = st.dictionaries(
    st.text(max_size=8),
    st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none(), st.lists(st.text(max_size=9))),
)


@settings(max_examples=100)
@given(JSON_VALUES.filter(bool))
def test_the_json_is_what_the_standard_library_writes(values: dict[str, Any]) -> None:
    assert to_text(values) == json.dumps(values, indent=2, sort_keys=True) + "\n"


LINES = st.lists(
    st.one_of(
        st.builds(
            lambda key, value: f"{key} = {value}".encode(),
            st.sampled_from([*PROFILE_KEYS, *GLOBAL_KEYS, *SECTION_KEYS]),
            st.one_of(
                st.text(max_size=30), st.sampled_from(["10.0.0.1/8", "a.example:443", "1380", "00", "off", "1h"])
            ),
        ),
        st.sampled_from([b"[Client a]", b"[client b] # b", b"[Client]", b"[Clent c]", b"[Interface]"]),
        st.binary(max_size=40),
    ),
    max_size=12,
).map(b"\n".join)


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=200), LINES, LINES.map(lambda data: SERVER.encode() + data)))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    for parse in (lambda: parse_profile(data, "qre0", "file"), lambda: parse_global(data, "file")):
        try:
            config = parse()
        except UserError as error:
            assert PRIVATE_KEY[:-1] not in str(error)
            continue
        json.loads(to_json(config, show_keys=True))


def test_the_private_key_is_hidden_unless_it_is_asked_for() -> None:
    profile = parse_profile(SERVER.encode(), "qre0", "file")
    hidden, full = json.loads(to_json(profile, show_keys=False)), json.loads(to_json(profile, show_keys=True))
    assert hidden["reality_private_key"] == "(hidden)"
    assert full["reality_private_key"] == PRIVATE_KEY
    assert hidden | {"reality_private_key": PRIVATE_KEY} == full


def test_the_key_before_it_is_hidden_too_and_needs_its_time() -> None:
    text = f"{SERVER}RealityPreviousKey = {PRIVATE_KEY}\n"
    until = "RealityPreviousKeyUntil = 2026-12-31T00:00:00Z\n"
    profile = parse_profile(f"{text}{until}".encode(), "qre0", "file")
    assert PRIVATE_KEY not in to_json(profile, show_keys=False)
    assert to_json(profile, show_keys=True).count(PRIVATE_KEY) == 2
    assert profile.server is not None and profile.server.previous_key_until == 1_798_675_200
    for lacking, told in (
        (text, "RealityPreviousKeyUntil is missing"),
        (f"{SERVER}{until}", "RealityPreviousKey is"),
    ):
        with pytest.raises(UserError, match=told):
            parse_profile(lacking.encode(), "qre0", "file")
    for wrong in (
        "tomorrow",
        "2026-12-31",
        "2026-13-31T00:00:00Z",
        "2026-12-31T00:00:00+",
        "\N{FULLWIDTH DIGIT TWO}026-12-31T00:00:00Z",
    ):
        with pytest.raises(UserError, match="is not a time in UTC"):
            parse_profile(f"{text}RealityPreviousKeyUntil = {wrong}\n".encode(), "qre0", "file")


def test_the_json_of_a_profile_is_complete_sorted_and_canonical() -> None:
    text = SERVER.replace("0123456789abcdef", "AB, 0123456789ABCDEF").replace(
        "10.77.0.1/24", "FD00:0::1/64,10.77.0.1/24"
    )
    text += "AllowedIPs = 192.168.5.7/16\n"
    assert (
        to_json(parse_profile(text.encode(), "qre0", "file"), show_keys=False)
        == """\
{
  "address": [
    "fd00::1/64",
    "10.77.0.1/24"
  ],
  "allowed_ips": [
    "192.168.0.0/16"
  ],
  "dest": "www.example.org:443",
  "device": "qre0",
  "kind": "interface",
  "listen": "10.9.0.1:443",
  "mtu": 1380,
  "persistent_keepalive": 0,
  "post_down": [],
  "post_up": [],
  "pre_down": [],
  "pre_up": [],
  "reality_max_time_diff": 60000,
  "reality_private_key": "(hidden)",
  "reality_short_ids": [
    "ab",
    "0123456789abcdef"
  ],
  "role": "server",
  "server_name": "www.example.org"
}
"""
    )
