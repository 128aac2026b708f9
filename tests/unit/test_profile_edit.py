"""Changes to a profile's text leave everything else as it was written."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from qre.config.model import ClientSection
from qre.config.profile_edit import add_section, remove_section, remove_short_id, rename_section

TEXT = """\
# mine
[Interface]
Address = 10.77.0.1/24   # the tunnel
RealityShortIds = 0102, 03040506   # two
RealityShortIds = ab

# Alice's telephone:
# blue
[Client alice]  # since May
ShortId = 0123456789abcdef
# her address
Address = 10.77.0.3

# Bob
[client  bob]
ShortId = 0123456789abcde0
Address = 10.77.0.4
"""


def test_a_section_is_added_at_the_end() -> None:
    networks = (ip_network("192.168.7.0/24"), ip_network("fd07::/64"))
    section = ClientSection("office", bytes(range(8)), (ip_interface("10.77.0.9"),), networks)
    assert add_section(f"{TEXT}\n\n", section) == (
        f"{TEXT}\n[Client office]\nShortId = 0001020304050607\nAddress = 10.77.0.9\n"
        "AllowedIPs = 192.168.7.0/24, fd07::/64\n"
    )


def test_a_section_goes_with_the_comment_above_it_and_nothing_else() -> None:
    assert remove_section(TEXT, "alice") == TEXT.replace(TEXT[TEXT.index("# Alice") : TEXT.index("# Bob")], "")
    assert remove_section(TEXT, "bob") == TEXT[: TEXT.index("\n# Bob")]
    with pytest.raises(KeyError):
        remove_section(TEXT, "carol")


def test_added_and_removed_is_as_before() -> None:
    section = ClientSection("office", bytes(range(8)), (ip_interface("10.77.0.9"),))
    assert remove_section(add_section(TEXT, section), "office") == TEXT


def test_a_section_gets_another_name_and_keeps_its_comment() -> None:
    assert rename_section(TEXT, "alice", "al") == TEXT.replace("[Client alice]", "[Client al]")
    assert rename_section(TEXT, "bob", "rob") == TEXT.replace("[client  bob]", "[Client rob]")


def test_a_short_id_is_taken_out_of_the_list() -> None:
    without = remove_short_id(TEXT, bytes.fromhex("0102").ljust(8, b"\0"))
    assert without == TEXT.replace("RealityShortIds = 0102, 03040506   # two", "RealityShortIds = 03040506")
    assert remove_short_id(TEXT, b"\xab".ljust(8, b"\0")) == TEXT.replace("RealityShortIds = ab\n", "")
    assert remove_short_id(TEXT, bytes(8)) == TEXT
