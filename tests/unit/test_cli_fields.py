"""Fields of the command line: every form of a name, every error named."""

from __future__ import annotations

import pytest

from qre.cli.fields import parse_fields
from qre.errors import UserErrors


def refused(*arguments: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        parse_fields(
            arguments, ["ServerName", "Dest"], ["MTU", "UnderlayLocalIPv4"], {"sni": "ServerName"}, command="x"
        )
    return [str(error) for error in caught.value.errors]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("UnderlayLocalIPv4", "UnderlayLocalIPv4"),
        ("underlay-local-ipv4", "UnderlayLocalIPv4"),
        ("underlay_local_ipv4", "UnderlayLocalIPv4"),
        ("underlaylocalipv4", "UnderlayLocalIPv4"),
        ("mtu", "MTU"),
        ("MTU", "MTU"),
        ("tx-hp-key", "TxHpKey"),
        ("tx_hp_key", "TxHpKey"),
        ("run-for-ms", "RunForMs"),
        ("AllowedIPs", "AllowedIPs"),
        ("allowed-ips", "AllowedIPs"),
        ("sni", "ServerName"),
        ("server-name", "ServerName"),
    ],
)
def test_a_field_has_four_forms_and_aliases(name: str, field: str) -> None:
    names = ["UnderlayLocalIPv4", "MTU", "TxHpKey", "RunForMs", "AllowedIPs", "ServerName"]
    assert parse_fields([f"{name}=a=b"], [], names, {"sni": "ServerName"}) == {field: "a=b"}


def test_unknown_repeated_missing_and_malformed_fields_are_all_named() -> None:
    assert refused("ServrName=x", "MTU=1", "mtu=2", "dest", "word") == [
        "field 'ServrName': there is no such field; did you mean ServerName?",
        "field MTU: it is given twice; give it once",
        "argument 'dest': it is not a field; write Dest=…",
        "argument 'word': it is not a field; write Key=Value",
        "field ServerName: it is missing; see `qre-tool help x`",
        "field Dest: it is missing; see `qre-tool help x`",
    ]


def test_a_field_is_bounded() -> None:
    assert "longer than 16384" in refused("Dest=" + "x" * 20_000, "sni=a")[0]
    assert "the fields are ServerName, Dest" in refused("Dest=a", "sni=b", "qqqq=1")[0]
