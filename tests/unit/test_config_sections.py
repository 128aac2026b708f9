"""``[Client NAME]`` sections of a server's profile: what belongs to which client, and what is said of wrong ones."""

from __future__ import annotations

import json
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.config.keys import PROFILE_KEYS, SECTION_KEYS, snake_case
from qre.config.kind import is_profile
from qre.config.model import ClientSection, Profile
from qre.config.normalise import to_file, to_json
from qre.config.profile import profile_from_values
from qre.config.sections import less_own
from qre.errors import UserErrors
from tests.support.config_parsers import parse_profile
from tests.support.profiles import CLIENT, SERVER

ONE, TWO = "00112233445566aa", "00112233445566bb"
#: Its sections begin at line 7.
BASE = SERVER.replace("10.77.0.1/24", "10.77.0.1/24, fd77::1/64")


def section(name: str, short_id: str, address: str, allowed_ips: str = "") -> str:
    more = f"AllowedIPs = {allowed_ips}\n" if allowed_ips else ""
    return f"[Client {name}]\nShortId = {short_id}\nAddress = {address}\n{more}"


LAPTOP = section("laptop", ONE, "10.77.0.2/24, fd77::2", "192.168.7.0/24")


def parse(text: str) -> Profile:
    return parse_profile(text.encode(), "qre0", "qre0.conf")


def clients(text: str) -> tuple[ClientSection, ...]:
    profile = parse(text)
    assert profile.server is not None
    return profile.server.clients


def errors(text: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        parse(text)
    return [str(error) for error in caught.value.errors]


def test_a_section_gives_a_client_its_name_id_addresses_and_networks() -> None:
    laptop, office = clients(BASE + "\n# two\n" + LAPTOP + section("office-1", TWO, "10.77.0.3"))
    assert laptop == ClientSection(
        "laptop",
        bytes.fromhex(ONE),
        (ip_interface("10.77.0.2/32"), ip_interface("fd77::2/128")),
        (ip_network("192.168.7.0/24"),),
    )
    assert (office.name, office.allowed_ips) == ("office-1", ())


def test_a_short_id_of_a_section_is_let_in_and_needs_no_list() -> None:
    alone = parse("".join(line for line in BASE.splitlines(True) if "ShortIds" not in line) + LAPTOP)
    assert alone.server is not None
    assert (alone.server.short_ids, alone.server.accepted_ids) == ((), (bytes.fromhex(ONE),))
    both = parse(BASE.replace("0123456789abcdef", f"0123456789abcdef, {ONE}") + LAPTOP)
    assert both.server is not None
    assert both.server.accepted_ids == both.server.short_ids, "once, wherever it stands"
    assert "RealityShortIds: is missing" in errors(BASE.partition("RealityShortIds")[0])[0]


def test_a_short_id_that_has_a_name_is_hidden_wherever_it_stands() -> None:
    both = parse(BASE.replace("0123456789abcdef", f"0123456789abcdef, {ONE}") + LAPTOP)
    hidden = json.loads(to_json(both, show_keys=False))
    assert hidden["reality_short_ids"] == ["0123456789abcdef", "(hidden)"]
    assert [each["short_id"] for each in hidden["clients"]] == ["(hidden)"]
    assert ONE not in json.dumps(hidden) and to_json(both, show_keys=True).count(ONE) == 2


def test_networks_behind_clients_are_routes_of_the_device() -> None:
    text = BASE.replace("Listen", "AllowedIPs = 10.77.0.0/24\nListen", 1) + LAPTOP
    assert [str(network) for network in parse(text).routes] == ["10.77.0.0/24", "192.168.7.0/24"]
    assert [str(network) for network in parse(text).allowed_ips] == ["10.77.0.0/24"]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ("[Client a]\n", "7: [Client a] ShortId: is missing; add ShortId = (the output of `qre-tool genshortid`)"),
        (f"[Client a]\nShortId = {ONE}\n", "7: [Client a] Address: is missing; add Address = 10.77.0.2"),
        (section("", ONE, "10.77.0.2"), "7: [Client]: it has no valid name; write [Client NAME] with"),
        (section("a b", ONE, "10.77.0.2"), "7: [Client a b]: it has no valid name"),
        (section("a", "0011", "10.77.0.2"), "8: [Client a] ShortId: the short id of a client is 16 hex digits"),
        (section("a", "00112233445566zz", "10.77.0.2"), "8: [Client a] ShortId: a short id is an even number"),
        (section("a", ONE, "10.77.0.1"), "9: [Client a] Address: 10.77.0.1 is the server's own address"),
        (section("a", ONE, "10.78.0.2"), "10.78.0.2 is not an address of a host in 10.77.0.0/24, fd77::/64; write"),
        (section("a", ONE, "10.77.0.255"), "10.77.0.255 is not an address of a host in"),
        (section("a", ONE, "10.77.0.0/24"), "10.77.0.0/24 is a network, not an address; write each address"),
        (section("a", ONE, "10.77.0.2, 10.77.0.2/24"), "10.77.0.2/32 is given twice"),
        (section("a", ONE, ", ".join(f"10.77.0.{n}" for n in range(2, 11))), "9 entries are more than 8"),
        (section("a", ONE, "10.77.0.2", "10.77.0.128/25"), "is inside the tunnel's own network 10.77.0.0/24; remove"),
        (LAPTOP.replace("AllowedIPs", "AllowdIPs"), "10: AllowdIPs: unknown key; did you mean AllowedIPs?"),
        (LAPTOP.replace("ShortId", "RealityShortId"), "8: RealityShortId: unknown key; did you mean ShortId?"),
        (LAPTOP + f"ShortId = {TWO}\n", "11: ShortId: is given twice: line 8 has it already"),
        (LAPTOP + "Address = 10.77.0.2\n", "9: [Client laptop] Address: 10.77.0.2/32 is given twice"),
        (LAPTOP + "PostUp = true\n", "PostUp: is a key of the interface, not of a client; move the line above"),
        (LAPTOP + "StateDir = /x\n", "StateDir: is a key of the global file"),
        (
            LAPTOP.replace("Client", "Clent"),
            "7: '[Clent laptop]' is not a section of QRE; did you mean [Client laptop]?",
        ),
        (
            LAPTOP.replace("laptop]", "laptop"),
            "'[Client laptop' is not a section of QRE; did you mean [Client laptop]?",
        ),
        (f"ShortId = {ONE}\n", "7: ShortId: is a key of a [Client NAME] section; move the line below such a header"),
    ],
)
def test_a_wrong_section_is_refused_by_line_section_and_key(sections: str, told: str) -> None:
    found = errors(BASE + sections)
    assert any(told in error and error.startswith("qre0.conf:") for error in found), found
    assert ONE not in "".join(found)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (section("laptop", TWO, "10.77.0.3"), "11: [Client laptop]: this name is given twice: line 7 has it already"),
        (section("b", ONE, "10.77.0.3"), "12: [Client b] ShortId: it is that of [Client laptop] (line 7), too; give"),
        (section("b", TWO, "10.77.0.2"), "13: [Client b] Address: 10.77.0.2 belongs to [Client laptop] (line 7) alr"),
        (section("b", TWO, "fd77:0::2/64"), "fd77::2 belongs to [Client laptop] (line 7) already; give it to one"),
        (
            section("b", TWO, "10.77.0.3", "192.168.0.0/16"),
            "192.168.0.0/16 overlaps 192.168.7.0/24, which belongs to [Client laptop] (line 7); give each network to",
        ),
        (section("b", TWO, "10.77.0.3", "192.168.7.9/32"), "192.168.7.9/32 overlaps 192.168.7.0/24, which belongs"),
        (section("b", TWO, "10.77.0.3", "0.0.0.0/0"), "0.0.0.0/0 overlaps 192.168.7.0/24"),
    ],
)
def test_nothing_belongs_to_two_clients(second: str, told: str) -> None:
    found = errors(BASE + LAPTOP + second)
    assert len(found) == 1
    assert told in found[0]
    assert ONE not in found[0]


def test_an_overlap_is_found_whoever_came_first() -> None:
    text = section("a", ONE, "10.77.0.2", "10.1.0.0/24, 10.2.0.0/24") + section(
        "b", TWO, "10.77.0.3", "10.3.0.0/24, 10.2.0.0/16"
    )
    assert "10.2.0.0/16 overlaps 10.2.0.0/24, which belongs to [Client a]" in errors(BASE + text)[0]
    wide = section("a", ONE, "10.77.0.2", "10.9.1.0/24") + section("b", TWO, "10.77.0.3", "10.9.2.0/24, 10.8.0.0/15")
    assert "10.8.0.0/15 overlaps 10.9.1.0/24, which belongs to [Client a]" in errors(BASE + wide)[0]


def test_every_error_is_told_at_once() -> None:
    found = errors(BASE.replace("/24", "/33") + "[Client]\nShortId = x\n[Client b]\nMTU = 1\n")
    assert [error.split(":")[1] for error in found] == ["2", "7", "7", "8", "9", "9", "10"]


def test_a_client_has_no_clients() -> None:
    found = errors(CLIENT + LAPTOP)
    assert found == ["qre0.conf:7: sections name the clients of a server, and this is a client; remove them"]


def test_too_many_sections_and_networks_are_refused() -> None:
    many = "".join(section(f"c{n}", f"{n:016x}", f"10.77.0.{n % 200 + 2}") for n in range(2001))
    assert any("more than 2000 clients" in error for error in errors(BASE + many))
    wide = "".join(
        section(f"c{n}", f"{n:016x}", f"10.77.0.{n}", ", ".join(f"10.{n}.{m}.0/24" for m in range(250)))
        for n in range(2, 8)
    )
    assert "all clients together have more than 1024 networks" in errors(BASE + wide)[0]
    assert (
        "more than 256; write fewer"
        in errors(BASE + section("a", ONE, "10.77.0.2", ", ".join(f"10.5.{m}.0/24" for m in range(256))))[0]
    )


def test_a_profile_with_sections_is_one_by_its_sections_alone() -> None:
    assert is_profile(b"[Client a]\nShortId = 00112233445566aa\n")


def fed_back(text: str) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    values = json.loads(text)
    names = {snake_case(key): key for key in (*PROFILE_KEYS, *SECTION_KEYS)}
    sections = [
        (one.pop("name"), {names[key]: value for key, value in one.items()}) for one in values.pop("clients", [])
    ]
    kept = {name: value for name, value in values.items() if name != "kind"}
    return {names[key]: v if isinstance(v, list) else str(v) for key, v in kept.items()}, sections


HOSTS = st.lists(st.integers(2, 254), min_size=1, max_size=12, unique=True)


@given(HOSTS, st.booleans())
def test_what_is_written_gives_the_same_profile(hosts: list[int], listed: bool) -> None:
    text = BASE if listed else "".join(line for line in BASE.splitlines(True) if "ShortIds" not in line)
    text += "".join(
        section(f"c{n}", f"{n:016x}", f"10.77.0.{n}, fd77::{n}", f"10.{n}.0.0/16, fd{n:02x}::/16")
        for n in hosts
        if n != 0x77
    ) + section("last", ONE, "fd77::ffff")
    profile = parse(text)
    written = to_file(profile)
    assert parse(written) == profile
    shown = to_json(profile, show_keys=True)
    assert shown == json.dumps(json.loads(shown), indent=2, sort_keys=True) + "\n"
    values, sections = fed_back(shown)
    assert profile_from_values("qre0", values, clients=sections) == profile


def test_without_sections_the_json_has_no_word_of_them() -> None:
    assert "clients" not in json.loads(to_json(parse(SERVER), show_keys=False))


def test_what_lies_behind_a_client_never_holds_the_tunnels_own_addresses() -> None:
    own = [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
    left = less_own([ip_network("0.0.0.0/0"), ip_network("fd77::/64"), ip_network("192.168.7.0/24")], own)
    assert not any(network.version == 4 and network.overlaps(ip_network("10.77.0.0/24")) for network in left)
    assert not any(network.version == 6 for network in left)
    assert sum(network.num_addresses for network in left) == 2**32, "one of them lies in another"
    assert ip_network("192.168.7.0/24") in left


def test_no_representation_shows_a_short_id() -> None:
    assert ONE not in repr(parse(BASE + LAPTOP)).lower()


def test_a_server_has_no_more_networks_than_a_session_can_have() -> None:
    networks = ", ".join(f"10.{n}.0.0/16" for n in range(1, 250) if n != 77)
    assert len(parse(BASE.replace("Listen", f"AllowedIPs = {networks}\nListen", 1)).allowed_ips) == 248
    (error,) = errors(BASE.replace("Listen", f"AllowedIPs = {networks}, 10.250.0.0/16\nListen", 1))
    assert "AllowedIPs: they are more than 248 prefixes beyond the tunnel's own networks; write fewer" in error
