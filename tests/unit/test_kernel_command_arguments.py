"""install-session and its like: which fields they take, in which forms, and what they say of wrong ones."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from qre.cli.main import main
from qre.cli.session.session_fields import parse_session_fields
from qre.cli.session.session_plan import install_arguments, planned_ends
from qre.config.profile import load_profile_file
from qre.errors import UserErrors
from qre.kernel.abi import Attribute
from qre.kernel.attributes import install_request, read_attributes_untrusted

FIELDS = {
    "SessionId": "ab" * 32,
    "ConnectionId": "cd" * 20,
    "TxKey": "01" * 16,
    "RxKey": "02" * 16,
    "TxHpKey": "03" * 16,
    "RxHpKey": "04" * 16,
    "TxIv": "05" * 12,
    "RxIv": "06" * 12,
    "KeyEpoch": "0",
    "PacketNumber": "65536",
}
UNDERLAY = {
    "UnderlayLocalIPv4": "192.0.2.1",
    "UnderlayLocalPort": "443",
    "UnderlayPeerIPv4": "192.0.2.2",
    "UnderlayPeerPort": "50443",
}
OVER_IPV6 = {
    "UnderlayLocalIPv6": "2001:db8::1",
    "UnderlayLocalPort": "443",
    "UnderlayPeerIPv6": "2001:db8::2",
    "UnderlayPeerPort": "50443",
}
ALL = {
    **FIELDS,
    **UNDERLAY,
    "NextRxKey": "07" * 16,
    "NextRxHpKey": "04" * 16,
    "NextRxIv": "08" * 12,
    "NextTxKey": "09" * 16,
    "NextTxIv": "0a" * 12,
    "ClientConnectionId": "",
    "AllowedIPs": "10.77.0.2/32,fd00::/64",
    "IdleTimeout": "90s",
    "PersistentKeepalive": "25",
}


def arguments(fields: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in fields.items()]


def attributes(fields: dict[str, str]) -> dict[Attribute, bytes]:
    parsed = parse_session_fields("install-session", arguments(fields))
    return decoded(parsed.request.encode())


def decoded(data: bytes) -> dict[Attribute, bytes]:
    found = read_attributes_untrusted(data)
    values = {attribute: found.octets(attribute, 0, 1 << 16) for attribute in Attribute}
    return {attribute: value for attribute, value in values.items() if value is not None}


def complaints(fields: dict[str, str]) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        parse_session_fields("install-session", arguments(fields))
    return [str(error) for error in caught.value.errors]


def test_every_field_becomes_its_attribute() -> None:
    given = attributes(ALL)
    assert given[Attribute.SESSION_ID] == b"\xab" * 32
    assert given[Attribute.CID] == b"\xcd" * 20
    assert given[Attribute.CLIENT_CID] == b""
    assert given[Attribute.TX_HP_KEY] == b"\x03" * 16
    assert given[Attribute.NEXT_RX_HP_KEY] == b"\x04" * 16
    assert given[Attribute.NEXT_TX_IV] == b"\x0a" * 12
    assert given[Attribute.PEER_PORT] == (50443).to_bytes(2, "big")
    assert len(given[Attribute.ALLOWED_IPS]) == 40
    assert given[Attribute.IDLE_MS] == (90_000).to_bytes(8, sys.byteorder)
    assert given[Attribute.KEEPALIVE_MS] == (25_000).to_bytes(8, sys.byteorder)
    assert len(given) == len(ALL)


@pytest.mark.parametrize(
    ("given", "sent"), [(0, 65_536), (1, 65_536), (65_535, 65_536), (65_536, 65_536), (65_537, 65_537)]
)
@pytest.mark.parametrize("command", ["install-session", "update-session"])
def test_a_number_of_the_handshake_is_raised(command: str, given: int, sent: int) -> None:
    parsed = parse_session_fields(command, arguments(FIELDS | {"PacketNumber": str(given)}))
    assert decoded(parsed.request.encode())[Attribute.PACKET_NUMBER] == sent.to_bytes(8, sys.byteorder)
    assert parsed.packet_number == given


def test_what_is_not_given_is_not_sent() -> None:
    assert len(attributes(FIELDS)) == len(FIELDS)


@pytest.mark.parametrize("form", ["session-id", "session_id", "sessionid", "SESSIONID"])
def test_other_forms_of_a_name_are_taken(form: str) -> None:
    fields = {form if name == "SessionId" else name: value for name, value in FIELDS.items()}
    assert attributes(fields)[Attribute.SESSION_ID] == b"\xab" * 32


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("TxHpKey", "tx-hp-key"),
        ("NextRxHpKey", "next_rx_hp_key"),
        ("UnderlayLocalIPv4", "underlay-local-ipv4"),
        ("UnderlayPeerPort", "underlay_peer_port"),
        ("AllowedIPs", "allowed-ips"),
        ("ClientConnectionId", "client_connection_id"),
    ],
)
def test_forms_with_several_words_are_taken(name: str, form: str) -> None:
    assert attributes({form if field == name else field: value for field, value in ALL.items()}) == attributes(ALL)


def test_outer_addresses_of_ipv6_are_attributes_of_their_own() -> None:
    found = attributes({**FIELDS, **OVER_IPV6})
    assert found[Attribute.LOCAL_IPV6] == ip_address("2001:db8::1").packed
    assert found[Attribute.PEER_IPV6] == ip_address("2001:db8::2").packed
    assert found[Attribute.LOCAL_PORT] == (443).to_bytes(2, "big")
    assert Attribute.LOCAL_IP not in found and Attribute.PEER_IP not in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SessionId": "ab" * 31}, "field SessionId: it is not 64 hex digits"),
        ({"TxKey": "0" * 31}, "field TxKey: it is not 32 hex digits"),
        ({"TxIv": "zz" * 12}, "field TxIv: it is not 24 hex digits"),
        ({"ConnectionId": ""}, "field ConnectionId: it is not an even number of 2 to 40 hex digits"),
        ({"ConnectionId": "ab" * 21}, "field ConnectionId: it is not an even number of 2 to 40 hex digits"),
        ({"ConnectionId": "abc"}, "field ConnectionId: it is not an even number of 2 to 40 hex digits"),
        ({"KeyEpoch": "-1"}, "field KeyEpoch: '-1' is not a number"),
        ({"KeyEpoch": str(1 << 64)}, "field KeyEpoch"),
        ({"PacketNumber": "0x10"}, "field PacketNumber: '0x10' is not a number"),
        ({**UNDERLAY, "UnderlayPeerPort": "0"}, "field UnderlayPeerPort: '0' is not a port from 1 to 65535"),
        ({**UNDERLAY, "UnderlayPeerIPv4": "::1"}, "field UnderlayPeerIPv4: '::1' is not an IPv4 address"),
        (
            {**OVER_IPV6, "UnderlayPeerIPv6": "192.0.2.1"},
            "field UnderlayPeerIPv6: '192.0.2.1' is not an IPv6",
        ),
        ({**OVER_IPV6, "UnderlayLocalIPv6": "::"}, "field UnderlayLocalIPv6: :: is not a unicast address"),
        ({**OVER_IPV6, "UnderlayPeerIPv6": "fe80::1"}, "field UnderlayPeerIPv6: fe80::1 is not a unicast address"),
        ({**OVER_IPV6, "UnderlayPeerIPv6": "ff02::1"}, "field UnderlayPeerIPv6: ff02::1 is not a unicast address"),
        ({**OVER_IPV6, "UnderlayPeerIPv6": "::ffff:192.0.2.1"}, "field UnderlayPeerIPv6: ::ffff:c000:201 is not"),
        ({**UNDERLAY, **OVER_IPV6}, "field UnderlayPeerIPv6: both ends' addresses are of one version of IP"),
        (
            {name: value for name, value in OVER_IPV6.items() if name != "UnderlayPeerIPv6"},
            "field UnderlayPeerIPv6: it is missing, and UnderlayLocalIPv6 is given",
        ),
        ({**UNDERLAY, "UnderlayLocalIPv4": "0.0.0.0"}, "field UnderlayLocalIPv4: 0.0.0.0 is not a unicast address"),
        ({"AllowedIPs": "10.0.0.0/33"}, "field AllowedIPs: '10.0.0.0/33' is not an address"),
        ({"IdleTimeout": "999ms"}, "field IdleTimeout: "),
        ({"IdleTimeout": "2h"}, "field IdleTimeout: "),
        ({"PersistentKeepalive": "3601"}, "field PersistentKeepalive: 3601 is more than 3600 seconds"),
        ({"PersistentKeepalive": "often"}, "field PersistentKeepalive: 'often' is not a number of seconds"),
        ({"SocketFd": "9999"}, "field SocketFd: 9999: Bad file descriptor"),
        ({"NextRxKey": "07" * 16}, "field NextRxIv: it is missing, and NextRxKey is given"),
        ({"NextTxIv": "07" * 12}, "field NextTxKey: it is missing, and NextTxIv is given"),
        ({"NextRxHpKey": "04" * 16}, "field NextRxKey: it is missing, and NextRxHpKey is given"),
        (
            {"NextRxKey": "07" * 16, "NextRxIv": "07" * 12, "NextRxHpKey": "05" * 16},
            "field NextRxHpKey: it differs from RxHpKey",
        ),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], said: str) -> None:
    found = complaints(FIELDS | changes)
    assert len(found) == 1
    assert found[0].startswith(said)


@pytest.mark.parametrize("one", list(UNDERLAY))
def test_one_underlay_field_wants_the_other_three(one: str) -> None:
    found = complaints(FIELDS | {one: UNDERLAY[one]})
    assert [error.split(":")[0] for error in found] == [f"field {name}" for name in UNDERLAY if name != one]


def test_every_missing_field_is_named() -> None:
    assert len(complaints({})) == len(FIELDS)


def test_no_complaint_repeats_a_key() -> None:
    secret = "deadbeef" * 5
    for name in ("TxKey", "RxKey", "TxHpKey", "RxHpKey", "TxIv", "RxIv", "SessionId"):
        assert secret not in " ".join(complaints(FIELDS | {name: secret}))


def test_a_socket_that_this_process_has_is_handed_on() -> None:
    read, write = os.pipe()
    try:
        assert attributes(FIELDS | {"SocketFd": str(read)})[Attribute.FD] == read.to_bytes(4, "little")
    finally:
        os.close(read)
        os.close(write)


# --- the other commands, as far as they get without the kernel ---


def test_what_session_plan_prints_is_what_install_session_takes(profiles: tuple[Path, Path]) -> None:
    server, client = (load_profile_file(path) for path in profiles)
    for end in planned_ends(server, client, {}):
        install = end.install()
        parsed = parse_session_fields("install-session", install_arguments(install))
        typed = decoded(parsed.request.encode())
        sent = decoded(install_request(install).encode())
        beyond = {Attribute.NEXT_RX_HP_KEY}  # checked by us, and by the kernel when it is given
        assert {kind: value for kind, value in typed.items() if kind not in beyond} == {
            kind: value for kind, value in sent.items() if kind in typed
        }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "qre0", "as", "server"], "argument 'as' : it is not `role`"),
        (["set", "qre0", "role", "peer"], "role : 'peer' is not one of server, client"),
        (["set", "qre0", "role", "client", "Listen=192.0.2.1:1"], "field 'Listen' : there is no such field"),
        (["set", "a/b", "role", "client"], "field Address : it is missing"),
        (["adopt-cid", "qre0", "ConnectionId=xyz"], "field ConnectionId : it is not an even number"),
        (["release-cid", "qre0"], "field ConnectionId : it is missing"),
        (["adopt-cid", "a/b", "ConnectionId=ab"], "device 'a/b' : 'a/b' has '/'"),
        (["delete", "a b"], "device 'a b' : 'a b' has ' '"),
        (["register-cid-map"], "register-cid-map : it wants BpfMapPath or BpfMapFd"),
        (["register-shared-socket", "SocketFd=x"], "field SocketFd : 'x' is not the number of a descriptor"),
        (["unregister-cid-map", "now"], "unregister-cid-map : 1 arguments are given"),
        (["session-demo", "a"], "session-demo : CLIENT-CONFIG is missing"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_else(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"qre-tool: {said}")


def test_syncconf_wants_the_device_that_the_file_names(
    profiles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["syncconf", "qre7", str(profiles[0])]) == 2
    assert "its Device is 'server0', not 'qre7'" in capsys.readouterr().err
