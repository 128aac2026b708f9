"""find-dest without a network: what it takes and refuses, how it ranks, and what it makes of hostile answers."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.cli.dest.find_dest import MOST_SITES
from qre.cli.main import FAILURE, main
from qre.config.model import HostPort
from qre.dest_profile import DestProfile
from qre.quic.client.drawbacks import WORDS, Against, Drawback, Weight, sorted_by_weight
from qre.visit.assessment import Assessment, Grade, Site, rank
from qre.visit.https_look import announces_http3_untrusted
from qre.visit.our_network import OurNetwork
from tests.support.json_schemas import check_against_schema, schema


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "find-dest : no site is given"),
        (("localhost",), "is not the name of a web site"),
        (("192.0.2.7",), "is not the name of a web site"),
        (("a.example:0",), "site 'a.example:0'"),
        (("a.example:443:443",), "site 'a.example:443:443'"),
        (("http://a.example/",), "site 'http://a.example/'"),
        (("a.example@",), "site 'a.example@'"),
        (("a..example",), "site 'a..example'"),
        (("\x1b[2J.example",), "site"),
        (("a.example", "Parallel=0"), "field Parallel"),
        (("a.example", "Parallel=33"), "field Parallel"),
        (("a.example", "TimeLimit=0s"), "field TimeLimit"),
        (("a.example", "TimeLimit=2h"), "field TimeLimit"),
        (("a.example", "Endpoint=vpn.example"), "is not an IP address"),
        (("a.example", "Dest=b.example"), "there is no such field"),
        (("--file",), "option --file : its value is missing"),
        (("--file", "/nonexistent/sites"), "/nonexistent/sites"),
        (("--file", "/"), "/"),
    ],
)
def test_what_is_not_a_site_or_a_field_is_refused_before_anything_is_visited(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find-dest", *words]) == FAILURE
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "\x1b" not in told.err


def test_every_wrong_line_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "sites"
    listed.write_bytes(b"# some\n\nlocalhost\n\xff\xfe\na.example:99999 # no port\n")
    assert main(["find-dest", "--file", str(listed)]) == FAILURE
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" : ")[0] for line in told] == [f"qre-tool: {listed}:{number}" for number in (3, 4, 5)]
    listed.write_text("# none\n")
    assert main(["find-dest", f"--file={listed}"]) == FAILURE
    assert f"{listed} names none" in capsys.readouterr().err
    listed.write_text("\n".join(f"n{number}.example" for number in range(MOST_SITES + 1)))
    assert main(["find-dest", f"--file={listed}"]) == FAILURE
    assert f"{MOST_SITES} is the most" in capsys.readouterr().err
    assert main(["find-dest", f"--file={listed}", "--file", str(listed)]) == FAILURE
    assert "given twice" in capsys.readouterr().err


def test_a_port_where_nobody_is_cannot_be_used_and_json_is_as_published(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["find-dest", f"a.example@127.0.0.1:{port}", f"a.example@127.0.0.1:{port}"]
    assert main(["--json", *words]) == FAILURE
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    check_against_schema("find-dest", told)
    (site,) = told["sites"]
    assert (site["grade"], site["against"][0]["drawback"]) == ("unusable", "unreachable")
    assert captured.err.startswith("qre-tool: find-dest : it cannot be used")
    assert main(words) == FAILURE
    assert capsys.readouterr().out.startswith(f" 1. unusable  127.0.0.1:{port} as a.example, 127.0.0.1\n")


def test_every_drawback_is_published_and_has_words() -> None:
    properties = schema("find-dest")["properties"]["sites"]["items"]["properties"]
    published = properties["against"]["items"]["properties"]["drawback"]["enum"]
    assert published == [each.value for each in Drawback]
    assert all(WORDS[each].why and WORDS[each].observed for each in Drawback)


def assessment(*drawbacks: Drawback, rtt_ms: int | None = 1) -> Assessment:
    profile = None if rtt_ms is None else DestProfile(reachable=True, checked_at=1, rtt_ms=rtt_ms)
    against = sorted_by_weight(map(Against, drawbacks))
    return Assessment(Site(HostPort("a.example", 443), "a.example"), profile=profile, against=against)


def test_the_best_comes_first_and_a_grade_is_that_of_the_worst_drawback() -> None:
    order = [
        assessment(),
        assessment(rtt_ms=9),
        assessment(Drawback.NOT_POST_QUANTUM),
        assessment(Drawback.FAR),
        assessment(Drawback.FAR, Drawback.OTHER_NETWORK),
        assessment(Drawback.FAR, Drawback.NO_TCP),
        assessment(Drawback.CIPHER, Drawback.NO_TCP),
        assessment(Drawback.NO_HTTP3, rtt_ms=None),
    ]
    assert rank(order[::-1]) == order
    assert [each.grade for each in order] == [
        *[Grade.GOOD] * 3, *[Grade.TELLING] * 3, *[Grade.UNUSABLE] * 2
    ]  # fmt: skip
    assert [each.weight for each in order[6].against] == [Weight.UNUSABLE, Weight.TELLING]


@pytest.mark.parametrize(
    ("field", "announced"),
    [
        ('h3=":443"; ma=86400', True),
        ('h2=":443", h3=":443"', True),
        ('h3="a.example:443"', True),
        ('h3-29=":443"', False),
        ('h3=":8443"', False),
        ('h3="other.example:443"', False),
        ("clear", False),
        ('h3=":99999999999"', False),
        ("h3=:443", False),
    ],
)
def test_alt_svc_is_read_as_a_browser_does(field: str, announced: bool) -> None:
    head = f"HTTP/1.1 200 OK\r\nServer: x\r\nalt-svc: {field}\r\n\r\n".encode()
    assert announces_http3_untrusted(head, "a.example", 443) is announced


@given(st.binary(max_size=400))
def test_any_head_is_read_or_announces_nothing(head: bytes) -> None:
    assert announces_http3_untrusted(head, "a.example", 443) in (True, False)
    assert announces_http3_untrusted(b"HTTP/1.1 200\r\nAlt-Svc: " + head, "a.example", 443) in (True, False)


def test_this_server_is_known_at_every_address_that_leads_to_it() -> None:
    listen = frozenset({(IPv4Address("192.0.2.1"), 443)})
    assert OurNetwork(listen).is_itself(IPv4Address("192.0.2.1"), 443)
    assert not OurNetwork(listen).is_itself(IPv4Address("192.0.2.1"), 8443)
    assert not OurNetwork(listen).is_itself(IPv4Address("192.0.2.2"), 443)
    everywhere = OurNetwork(frozenset({(IPv4Address(0), 443)}))
    assert everywhere.is_itself(IPv4Address("127.0.0.1"), 443)
    assert OurNetwork(frozenset({(IPv6Address("2001:db8::1"), 443)})).is_itself(IPv6Address("2001:db8::1"), 443)
    both = OurNetwork(frozenset({(IPv6Address(0), 443)}))
    assert [both.is_itself(ip_address(each), 443) for each in ("::1", "127.0.0.1", "2001:db8::5")] == [
        True,
        True,
        False,
    ]
    assert not everywhere.is_itself(IPv6Address("::1"), 443)
    several = OurNetwork(listen | {(IPv6Address("2001:db8::1"), 443)})
    assert [
        several.is_itself(ip_address(each), 443) for each in ("192.0.2.1", "2001:db8::1", "127.0.0.1", "::1")
    ] == [
        True,
        True,
        False,
        False,
    ]
    behind_nat = OurNetwork(listen, IPv4Address("9.1.2.3"))
    assert behind_nat.is_itself(IPv4Address("9.1.2.3"), 443)
    assert behind_nat.is_near(IPv4Address("9.1.99.1"))
    assert not behind_nat.is_near(IPv4Address("9.2.2.3"))
