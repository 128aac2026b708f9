"""What an interface profile may say, and what is answered to one that says something else."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from qre.config.model import HostPort, Listen, Profile, SocketAddress, UnderlayOverride
from qre.config.profile import profile_from_fields
from qre.ends import MAX_CLIENTS, Role
from qre.errors import UserError, UserErrors
from tests.support.config_parsers import parse_profile
from tests.support.profiles import CLIENT, PRIVATE_KEY, PUBLIC_KEY, SERVER


def parse(text: str, name: str = "qre0") -> Profile:
    return parse_profile(text.encode(), name, "qre0.conf")


def errors(text: str | bytes, name: str = "qre0") -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(UserErrors) as caught:
        parse_profile(data, name, "qre0.conf")
    return [str(error) for error in caught.value.errors]


def server(*lines: str, without: str = "") -> str:
    kept = [line for line in SERVER.splitlines() if not without or not line.startswith(without)]
    return "\n".join([*kept, *lines]) + "\n"


def client(*lines: str, without: str = "") -> str:
    kept = [line for line in CLIENT.splitlines() if not without or not line.startswith(without)]
    return "\n".join([*kept, *lines]) + "\n"


def test_a_server_profile_gets_its_defaults() -> None:
    profile = parse(SERVER)
    assert (profile.name, profile.device, profile.role) == ("qre0", "qre0", Role.SERVER)
    assert profile.address == (ip_interface("10.77.0.1/24"),)
    assert (profile.mtu, profile.keepalive_s, profile.allowed_ips, profile.client) == (1380, 0, (), None)
    assert profile.server is not None
    assert str(profile.server.listen) == "10.9.0.1:443"
    assert profile.server.dest == HostPort("www.example.org", 443)
    assert profile.server.server_name == "www.example.org"
    assert profile.server.max_time_diff_ms == 60_000
    assert profile.server.short_ids == (bytes.fromhex("0123456789abcdef"),)


def test_a_client_profile_is_known_by_its_endpoint() -> None:
    profile = parse(client("AllowedIPs = 0.0.0.0/0, 10.1.2.3/8", "PersistentKeepalive = 25"))
    assert profile.role is Role.CLIENT
    assert profile.client is not None
    assert profile.client.endpoint == HostPort("vpn.example.org", 443)
    assert profile.allowed_ips == (ip_network("0.0.0.0/0"), ip_network("10.0.0.0/8"))
    assert profile.keepalive_s == 25


@pytest.mark.parametrize(
    ("written", "bound"),
    [
        ("192.0.2.1:443, [2001:DB8::1]:443", "::"),
        ("192.0.2.1:443, 192.0.2.2:443", "0.0.0.0"),
        ("[2001:db8::1]:443,[2001:db8::2]:443", "::"),
    ],
)
def test_a_server_may_listen_at_several_addresses(written: str, bound: str) -> None:
    profile = parse(server(f"Listen = {written}", without="Listen"))
    assert profile.server is not None and profile.listen == profile.server.listen
    addresses = tuple(ip_address(each.strip().removesuffix(":443").strip("[]")) for each in written.split(","))
    assert profile.listen == Listen(addresses, 443)
    assert (profile.listen.several, profile.listen.ip) == (addresses, ip_address(bound))
    assert str(profile.listen) == ", ".join(each.strip().lower() for each in written.split(","))
    assert profile.outer_ipv6 is (bound == "::")
    override = UnderlayOverride(server=SocketAddress(ip_address("198.51.100.1"), 4443))
    assert profile.replace(underlay=override).listen == Listen((ip_address("198.51.100.1"),), 4443)


@pytest.mark.parametrize(
    ("written", "ip", "text"),
    [
        ("[2001:DB8:0::1]:443", "2001:db8::1", "[2001:db8::1]:443"),
        ("[::]:443", "::", "[::]:443"),
        ("0.0.0.0:443", "0.0.0.0", "0.0.0.0:443"),
    ],
)
def test_an_address_of_ipv6_stands_in_brackets(written: str, ip: str, text: str) -> None:
    profile = parse(server(f"Listen = {written}", f"ClientEndpoint = {written}", without="Listen"))
    assert profile.server is not None
    assert profile.listen == Listen((ip_address(ip),), 443)
    assert str(profile.listen) == text
    assert profile.server.client_endpoints == (HostPort(ip, 443),)
    assert profile.outer_ipv6 is (":" in ip)
    named = parse(client(f"Endpoint = vpn.example:443, {written}", without="Endpoint"))
    assert [str(each) for each in (named.endpoint, *(each.endpoint for each in named.other_servers))][1] == text
    assert named.outer_ipv6 is (":" in ip)
    assert not parse(client()).outer_ipv6


def test_keys_are_read_in_any_case_and_comments_are_skipped() -> None:
    text = "# a comment\n\n" + SERVER.replace("Listen", "LISTEN").replace("/24", "/24 # inner") + "mtu=1300\r\n"
    assert parse(text).mtu == 1300


def test_a_byte_order_mark_before_the_first_line_is_skipped() -> None:
    assert parse("\ufeff" + SERVER).role is Role.SERVER


def test_hooks_repeat_in_order_and_keep_what_the_shell_understands() -> None:
    profile = parse(server("PostUp = echo '#1' %i # note", "PreUp = a", "PostUp = b = c"))
    assert profile.hooks.post_up == ("echo '#1' %i # note", "b = c")
    assert profile.hooks.pre_up == ("a",)


def test_every_error_of_a_file_is_told_with_line_key_and_what_would_be_right() -> None:
    text = server("Listn = 1", "MTU = 9000", "PersistentKeepalive = soon", "nonsense", "[Peer]", without="Dest")
    assert errors(text) == [
        "qre0.conf:6: Listn: unknown key; did you mean Listen?",
        "qre0.conf:7: MTU: '9000' is not a number from 576 to 1428; write MTU = 1380",
        "qre0.conf:8: PersistentKeepalive: 'soon' is not a number of seconds from 0 to 65535; write 25, or off",
        "qre0.conf:9: the line has no `=`; write Key = Value, or begin a comment with #",
        "qre0.conf:10: '[Peer]' is not a section of QRE; a file has at most the one header [Interface]; "
        "the other end is named by Endpoint or RealityShortIds",
        "qre0.conf: Dest: is missing; add Dest = www.example.org:443",
    ]


def test_a_repeated_key_names_the_first_line() -> None:
    assert errors(server("listen = 10.9.0.1:444")) == [
        "qre0.conf:7: Listen: is given twice: line 3 has it already; keep one of the two lines"
    ]


def test_a_list_may_be_given_on_several_lines_which_are_one_list() -> None:
    once = ("AllowedIPs = 10.0.0.0/8, 192.168.0.0/16, fd00::/8", "RealityShortIds = 01, 02, 03")
    several = (
        "AllowedIPs = 10.0.0.0/8",
        "RealityShortIds = 01",
        "AllowedIPs = 192.168.0.0/16,fd00::/8",
        "RealityShortIds = 02, 03",
    )
    ids = "RealityShortIds"
    assert parse(server(*several, without=ids)) == parse(server(*once, without=ids))


def test_as_many_short_ids_as_clients_fit_one_line_or_one_line_each() -> None:
    ids = [f"{number:016x}" for number in range(1, MAX_CLIENTS + 1)]
    one = parse(server("RealityShortIds = " + ", ".join(ids), without="RealityShortIds"))
    assert one.server is not None and len(one.server.short_ids) == MAX_CLIENTS
    assert parse(server(*(f"RealityShortIds = {each}" for each in ids), without="RealityShortIds")) == one


def test_an_error_in_a_list_of_several_lines_names_the_line() -> None:
    assert errors(server("AllowedIPs = 10.0.0.0/8", "AllowedIPs = 11.0.0.0/33"))[0].startswith("qre0.conf:8: Allow")
    assert errors(server("AllowedIPs = 10.0.0.0/8", "AllowedIPs = 10.0.0.1/8")) == [
        "qre0.conf:7: AllowedIPs: 10.0.0.0/8 is given twice; keep it once"
    ]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("https://vpn.example:443", "is a URL or has a path; write host and port alone"),
        ("vpn.example:443/tunnel", "is a URL or has a path"),
        ("vpn.example:443:80", "has more than one colon"),
        ("2001:db8::1", "has no port"),
        ("[2001:db8::1]", "has no port"),
        ("2001:db8:0:0:0:0:0:1:443", "is an IPv6 address without brackets; write [2001:db8:0:0:0:0:0:1]:443"),
        ("[fe80::1%eth0]:443", "cannot be the address of a socket"),
        ("[vpn.example]:443", "is not a DNS name"),
    ],
)
def test_an_endpoint_of_another_kind_is_called_what_it_is(written: str, told: str) -> None:
    assert told in errors(client(f"Endpoint = {written}", without="Endpoint"))[0]


def test_a_second_header_is_refused() -> None:
    assert "line 1 has it already" in errors(server("[interface]"))[0]


def test_a_key_of_the_global_file_is_told_where_it_belongs() -> None:
    assert errors(server("StateDir = /x")) == [
        "qre0.conf:7: StateDir: is a key of the global file (qre.conf); move the line there"
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Device = a/b", "'/', which is not allowed in an interface name"),
        ("Device = abcdefghijklmnop", "is not 1 to 15 bytes long"),
        ("Device = ..", "does not accept .. as an interface name"),
        ("Device = qre%d", "'%', which"),
        ("Device = a b", "' ', which"),
        ("Device =", "is not 1 to 15 bytes long"),
        ("Role = sever", "did you mean server?"),
        ("MTU = 575", "is not a number from 576 to 1428"),
        ("MTU = 1429", "is not a number from 576 to 1428"),
        ("MTU = -1", "is not a number"),
        ("MTU = ٣٣٣", "is not a number"),
        ("ServerName = 192.0.2.1", "is not a DNS name"),
        ("ServerName = a..b", "is not a DNS name"),
        ("ServerName = -a.example", "is not a DNS name"),
        ("ServerName = müller.example", "write its xn-- form"),
        (f"ServerName = {'a' * 64}.example", "is not a DNS name"),
        ("RealityMaxTimeDiff = 2 weeks", "is not a duration"),
        ("RealityMaxTimeDiff = 25h", "is not from 0 to 24h"),
        ("PersistentKeepalive = 65536", "is not a number of seconds"),
        ("AllowedIPs = 10.0.0.0/33", "is not an address with a prefix length"),
        ("AllowedIPs = 10.0.0.0/255.0.0.0", "is not an address with a prefix length"),
        ("AllowedIPs = fe80::1%eth0/64", "is not an address with a prefix length"),
        ("AllowedIPs = 10.0.0.0/8, 10.0.0.1/8", "is given twice"),
        ("AllowedIPs = 10.0.0.0/8,, 11.0.0.0/8", "an entry of the list is empty"),
        ("AllowedIPs =", "an entry of the list is empty"),
        ("PreUp =", "the command is empty"),
        ("Endpoint = vpn.example.org:443", "is a client's key, and this is a server"),
    ],
)
def test_a_wrong_value_is_refused_by_name(line: str, told: str) -> None:
    text = server(line) if not line.startswith("Endpoint") else server(line, "Role = server")
    found = errors(text)
    assert len(found) == 1
    assert f"qre0.conf:7: {line.partition(' ')[0]}: " in found[0]
    assert told in found[0]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("Listen", "10.9.0.1", "has no port"),
        ("Listen", "10.9.0.1:0", "is not a port"),
        ("Listen", "10.9.0.1:65536", "is not a port"),
        ("Listen", "example.org:443", "is not a numeric address"),
        ("Listen", "2001:db8::1", "has no port"),
        ("Listen", "2001:db8:0:0:0:0:0:1:443", "is an IPv6 address without brackets"),
        ("Listen", "[fe80::1%eth0]:443", "cannot be the address of a socket"),
        ("Listen", "[fe80::1]:443", "cannot be the address of a socket"),
        ("Listen", "[ff02::1]:443", "cannot be the address of a socket"),
        ("Listen", "[::ffff:192.0.2.1]:443", "cannot be the address of a socket"),
        ("Listen", "[example.org]:443", "is not a numeric address"),
        ("Listen", "[192.0.2.1]:443", "is not a numeric address"),
        ("Listen", "224.0.0.1:443", "cannot be the address of a socket"),
        ("Listen", "192.0.2.1:443, 0.0.0.0:443", "0.0.0.0:443 is every IPv4 address of this machine"),
        ("Listen", "[::]:443, 192.0.2.1:443", "[::]:443 is every address of this machine"),
        ("Listen", "192.0.2.1:443, [2001:db8::1]:8443", "has another port than 192.0.2.1:443"),
        ("Listen", "192.0.2.1:443, [2001:db8::1]:443, 192.0.2.1:443", "192.0.2.1:443 is given twice"),
        ("Listen", "192.0.2.1:443,", "an entry of the list is empty"),
        ("Listen", ", ".join(f"192.0.2.{last}:443" for last in range(1, 10)), "9 entries are more than 8"),
        ("Dest", "www.example.org", "has no port"),
        ("Dest", "[2001:db8::1]", "has no port"),
        ("Dest", "224.0.0.1:443", "cannot be the address of a socket"),
        ("Dest", "300.1.2.3:443", "is not a DNS name"),
        ("Address", "10.77.0.300/24", "is not an address"),
        ("Address", "0.0.0.0/0", "cannot be the address of a tunnel interface"),
        ("Address", "127.0.0.1/8", "cannot be the address of a tunnel interface"),
        ("RealityPrivateKey", "AAAA", "is not 32 bytes in base64"),
        ("RealityPrivateKey", "A" * 42 + "B=", "is not 32 bytes in base64"),
        ("RealityPrivateKey", "!", "is not base64"),
        ("RealityShortIds", "012", "an even number of 0 to 16 hex digits"),
        ("RealityShortIds", "0g", "an even number of 0 to 16 hex digits"),
        ("RealityShortIds", "00112233445566778", "an even number of 0 to 16 hex digits"),
        ("RealityShortIds", "ab, 00, cd, ab00", "ids 1 and 4 overlap"),
        ("RealityShortIds", "00,", "ids 1 and 2 overlap"),
    ],
)
def test_a_wrong_required_value_of_a_server_is_refused(key: str, value: str, told: str) -> None:
    found = errors(server(f"{key} = {value}", without=key))
    assert len(found) == 1
    assert found[0].startswith(f"qre0.conf:6: {key}: ")
    assert told in found[0]


@pytest.mark.parametrize("key", ["Address", "Listen", "Dest", "RealityPrivateKey", "RealityShortIds"])
def test_what_a_server_needs_is_named_when_it_is_missing(key: str) -> None:
    text = server("Role = server", without=key)
    assert errors(text)[0].startswith(f"qre0.conf: {key}: is missing; add {key} = ")


@pytest.mark.parametrize("key", ["Address", "Endpoint", "ServerName", "RealityPublicKey", "RealityShortId"])
def test_what_a_client_needs_is_named_when_it_is_missing(key: str) -> None:
    text = client("Role = client", without=f"{key} ")
    assert errors(text)[0].startswith(f"qre0.conf: {key}: is missing; add {key} = ")


def test_a_role_that_cannot_be_inferred_does_not_hide_the_other_errors() -> None:
    found = errors(server("Endpoint = nowhere"))
    assert any("both Listen and Endpoint are given" in error for error in found)
    assert any("Endpoint: 'nowhere' has no port" in error for error in found)
    assert "Role: is missing" in errors("Address = 10.77.0.1/24\n")[-1]


def test_a_server_whose_dest_is_an_address_needs_a_name() -> None:
    text = server("Dest = 192.0.2.7:443", without="Dest")
    assert "ServerName: is missing, and Dest is an address" in errors(text)[0]
    assert parse(text + "ServerName = Site.Example.\n").server.server_name == "site.example"  # type: ignore[union-attr]  # a server


def test_an_inner_ipv6_address_needs_an_mtu_of_1280() -> None:
    text = server("Address = fd00::1/64", "MTU = 1279", without="Address")
    assert "1279 is less than the 1280 that the IPv6 address needs" in errors(text)[0]
    assert parse(text.replace("1279", "1280")).mtu == 1280


def test_an_address_without_a_length_is_the_hosts_own() -> None:
    text = server("Address = 10.0.0.1, fd00::1", without="Address")
    assert [str(address) for address in parse(text).address] == ["10.0.0.1/32", "fd00::1/128"]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0),
        ("90s", 90_000),
        ("1500", 1500),
        ("250ms", 250),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("1 D", 86_400_000),
    ],
)
def test_durations_have_units(text: str, milliseconds: int) -> None:
    profile = parse(server(f"RealityMaxTimeDiff = {text}"))
    assert profile.server is not None
    assert profile.server.max_time_diff_ms == milliseconds


def test_the_empty_short_id_is_one() -> None:
    profile = parse(client("RealityShortId =", without="RealityShortId "))
    assert profile.client is not None
    assert profile.client.short_id == bytes(8)


def test_a_long_profile_name_needs_a_device() -> None:
    name = "a-name-that-is-longer-than-a-device"
    assert "Device: is missing, and the profile's name cannot stand for it" in errors(SERVER, name)[0]
    assert parse(SERVER + "Device = qre7\n", name).name == name


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"MTU = 13\x0080\n", "qre0.conf:1: byte 9 of the line is NUL; write plain text"),
        (b"\nMTU = \xff\n", "qre0.conf:2: byte 7 of the line is not UTF-8; save the file as UTF-8"),
        (b"MTU = \x1b[31m\n", "qre0.conf:1: the line has a control or invisible character; write plain text"),
        (b"= 5\n", "qre0.conf:1: there is no key before `=`; write Key = Value"),
        (b"a" * 70_000 + b"\n", "qre0.conf:1: the line is longer than 65536 bytes; shorten it"),
        (b"PreUp = x\n" * 2100, "qre0.conf:2049: more than 2048 lines with keys; shorten the file"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_place(data: bytes, told: str) -> None:
    assert told in errors(data)


def test_thousands_of_errors_are_told_as_a_hundred() -> None:
    found = errors("x\n" * 5000)
    assert len(found) == 101
    assert "more errors" in found[-1]


@pytest.mark.parametrize(
    "text",
    [
        server(f"RealityPrivateKey = {PRIVATE_KEY[:-1]}", without="RealityPrivateKey"),
        server(f"RealityPrivateKey = x{PRIVATE_KEY}", without="RealityPrivateKey"),
        SERVER + PRIVATE_KEY + "\n",
        SERVER + PRIVATE_KEY[:-1] + "\n",
        SERVER + f"RealityPrivteKey = {PRIVATE_KEY}\n",
        SERVER + f"RealityPrivateKey = {PRIVATE_KEY}\n",
    ],
)
def test_no_error_repeats_a_key(text: str) -> None:
    for error in errors(text):
        assert PRIVATE_KEY[4:40] not in error


def test_set_makes_a_minimal_profile_with_placeholders() -> None:
    texts = {"Address": "10.0.0.1/24", "Listen": "10.9.0.1:443", "MTU": "1400", "Dest": "a.example:443"}
    profile = profile_from_fields("qre5", Role.SERVER, texts)
    assert profile.device == "qre5"
    assert profile.server is not None
    assert (profile.server.private_key, profile.server.short_ids) == (bytes(32), (bytes(8),))
    texts = {"Address": "10.0.0.2/24", "Endpoint": "b.example:443", "ServerName": "a.example"}
    made = profile_from_fields("qre6", Role.CLIENT, texts).client
    assert made is not None
    assert (made.public_key, made.short_id) == (b"\x01" * 32, bytes(8))
    with pytest.raises(UserError, match="ServerName: is missing"):
        profile_from_fields("qre6", Role.CLIENT, {"Address": "10.0.0.2/24", "Endpoint": "b.example:443"})


def test_no_representation_of_a_profile_shows_its_keys() -> None:
    assert PRIVATE_KEY not in repr(parse(SERVER))
    assert "private_key" not in repr(parse(SERVER))
    assert PUBLIC_KEY not in repr(parse(CLIENT))
