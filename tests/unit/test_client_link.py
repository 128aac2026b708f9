"""Links of clients: docs/client-link.md, and whatever else somebody might paste."""

from __future__ import annotations

import base64
import re
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.config.client_link import (
    _TYPES,
    MAX_LINK,
    PREFIX,
    ClientLink,
    decode_link_untrusted,
    encode_link,
    is_link,
)
from qre.errors import UntrustedInputError
from qre.wire.varint import encode_varint, encode_vector
from tests.support.conformance import ROOT
from tests.support.profiles import PUBLIC_KEY

PAGE = (ROOT / "docs" / "client-link.md").read_text()
VALUES = {
    "Endpoint": "192.0.2.1:443",
    "ServerName": "www.example.org",
    "RealityPublicKey": PUBLIC_KEY,
    "RealityShortId": "0123456789abcdef",
    "Address": "10.77.0.3/24",
}


def sealed(body: bytes) -> str:
    """As the page has it, without the program."""
    whole = body + sha256(b"qre link v1" + body).digest()[:4]
    return "qre://v1/" + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def field(number: int, value: bytes) -> bytes:
    return encode_varint(number) + encode_vector(value)


def test_the_pages_example_is_what_the_program_makes_and_reads() -> None:
    (example,) = re.findall(r"^qre://v1/[\w-]+$", PAGE, re.MULTILINE)
    assert encode_link(ClientLink("alice", VALUES)) == example
    found = decode_link_untrusted(example)
    assert (found.name, found.values) == ("alice", VALUES)
    parts = [field(1, b"alice"), field(2, b"192.0.2.1:443"), field(4, b"www.example.org")]
    parts += [field(6, base64.b64decode(PUBLIC_KEY)), field(8, bytes.fromhex("0123456789abcdef"))]
    assert sealed(b"".join([*parts, field(10, b"10.77.0.3/24")])) == example


def test_the_pages_table_has_every_type() -> None:
    told = {int(number): key for number, key in re.findall(r"^\| (\d+) \| (\w+) \|", PAGE, re.MULTILINE)}
    assert told == _TYPES
    assert f"{MAX_LINK:,} characters" in PAGE


PLAIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)


@given(PLAIN, st.dictionaries(st.sampled_from(["Endpoint", "ServerName", "Address", "AllowedIPs", "MTU"]), PLAIN))
def test_what_is_written_is_read(name: str, values: dict[str, str]) -> None:
    found = decode_link_untrusted(encode_link(ClientLink(name, values)))
    assert (found.name, found.values) == (name, values)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=120).map(sealed)))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        found = decode_link_untrusted(text)
    except UntrustedInputError:
        return
    assert all(value.isascii() and value.isprintable() for value in (found.name, *found.values.values()))


@given(st.integers(0, 10_000), st.sampled_from("AZaz09-_"))
def test_one_wrong_character_is_noticed(at: int, letter: str) -> None:
    right = encode_link(ClientLink("alice", VALUES))
    at = len(PREFIX) + at % (len(right) - len(PREFIX) - 1)  # the last one has bits that say nothing
    wrong = f"{right[:at]}{letter}{right[at + 1 :]}"
    if wrong != right:
        with pytest.raises(UntrustedInputError, match=r"."):
            decode_link_untrusted(wrong)


def test_mail_programs_break_lines() -> None:
    right = encode_link(ClientLink("alice", VALUES))
    broken = f"  QRE://V1/{right[9:60]}\r\n {right[60:]}\n"
    assert is_link(broken)
    assert decode_link_untrusted(broken).values == VALUES


BODY = b"".join([field(2, b"192.0.2.1:443")])


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("https://example.org/", "it is not qre://v1/"),
        ("qre://v2/AAAA", "another version than v1"),
        ("qre://v1/", "checksum"),
        ("qre://v1/AAAA", "checksum"),
        (encode_link(ClientLink("", VALUES))[:-3], "checksum"),
        (encode_link(ClientLink("", VALUES)) + "A", "checksum"),
        (encode_link(ClientLink("", VALUES)) + "==", "checksum"),
        ("qre://v1/" + "A" * MAX_LINK, "longer"),
        (sealed(BODY + field(20, b"")), "does not know"),
        (sealed(BODY + BODY), "not in order"),
        (sealed(BODY + field(1, b"alice")), "not in order"),
        (sealed(field(6, bytes(31))), "its RealityPublicKey does not have 32 bytes"),
        (sealed(field(6, bytes(33))), "its RealityPublicKey does not have 32 bytes"),
        (sealed(field(6, b"")), "its RealityPublicKey does not have 32 bytes"),
        (sealed(field(8, bytes(9))), "its RealityShortId does not have 8 bytes"),
        (sealed(field(2, b"a:1\nPostUp = reboot")), "not plain text"),
        (sealed(field(1, b"\xff")), "not plain text"),
        (sealed(encode_varint(2) + encode_varint(9) + b"short"), "cut off"),
    ],
)
def test_what_is_wrong_with_a_link_is_said(link: str, told: str) -> None:
    with pytest.raises(UntrustedInputError) as error:
        decode_link_untrusted(link)
    assert told in str(error.value)


def test_an_odd_type_that_is_unknown_is_ignored() -> None:
    found = decode_link_untrusted(sealed(BODY + field(11, b"\0later") + field(1001, b"much later")))
    assert found.values == {"Endpoint": "192.0.2.1:443"}


def test_of_several_servers_each_has_its_key_and_its_short_id() -> None:
    other = base64.b64encode(bytes(range(32))).decode()
    values = VALUES | {
        "Endpoint": "192.0.2.1:443, 198.51.100.7:443",
        "RealityPublicKey": f"{PUBLIC_KEY}, {other}",
        "RealityShortId": "0123456789abcdef, fedcba9876543210",
        "DNS": "10.77.0.1, example.internal",
        "EndpointOrder": "random",
        "LeakProtection": "off",
    }
    assert decode_link_untrusted(encode_link(ClientLink("", values))).values == values


def test_a_link_never_carries_a_command() -> None:
    with pytest.raises(ValueError, match="does not carry PostUp"):
        encode_link(ClientLink("", {"PostUp": "true"}))
