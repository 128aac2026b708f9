"""shared-port-handshake-daemon: which configurations one port can serve, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from qre.cli.main import main
from qre.cli.port.port_daemon import check_together
from qre.config.profile import load_profile_file
from qre.errors import UserErrors

KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SERVER = {
    "Role": "server",
    "Address": "10.77.0.1/24",
    "Listen": "192.0.2.1:443",
    "Dest": "192.0.2.2:443",
    "ServerName": "example.com",
    "RealityPrivateKey": KEY,
    "RealityShortIds": "01,02",
}


def write(directory: Path, name: str, *clients: str, **changed: str) -> str:
    """The configuration's path. ``clients``: short ids of sections, in place of RealityShortIds."""
    path = directory / f"{name}.conf"
    path.touch(mode=0o600)
    values = {"Device": name, **SERVER, **changed}
    if clients:
        del values["RealityShortIds"]
    sections = [
        f"[Client c{number}]\nShortId = {each:0<16}\nAddress = 10.77.0.{number}\n"
        for number, each in enumerate(clients, 2)
    ]
    path.write_text("".join([*(f"{key} = {value}\n" for key, value in values.items()), *sections]))
    return str(path)


def test_configurations_that_share_a_port(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "server0"),
        write(tmp_path, "server1", RealityShortIds="03", Address="10.78.0.1/24", ServerName="EXAMPLE.com"),
        write(tmp_path, "server2", RealityShortIds="04,05", MTU="1300"),
    ]
    check_together([load_profile_file(file) for file in files])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"Listen": "192.0.2.1:444"},
            "configuration server1 : Listen is 192.0.2.1:444, and 192.0.2.1:443 in server0",
        ),
        ({"ServerName": "other.example"}, "configuration server1 : ServerName is other.example"),
        ({"Dest": "192.0.2.3:443"}, "configuration server1 : Dest is 192.0.2.3:443"),
        ({"RealityPrivateKey": "B" + KEY[1:]}, "configuration server1 : RealityPrivateKey differs"),
        ({"RealityMaxTimeDiff": "10s"}, "configuration server1 : RealityMaxTimeDiff is 10000ms, and 60000ms"),
        ({"RealityShortIds": "03,02"}, "configuration server1 : short id 0200000000000000 is in server0, too"),
        ({"Device": "server0"}, "configuration server1 : its Device server0 is another's, too"),
    ],
)
def test_what_differs_is_named_and_nothing_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], named: str
) -> None:
    files = [write(tmp_path, "server0"), write(tmp_path, "server1", **{"RealityShortIds": "03", **changed})]
    assert main(["shared-port-handshake-daemon", *files, "BpfElf=/nonexistent"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"qre-tool: {named}")


@pytest.mark.parametrize("first", [(), ("01", "02")], ids=["a list", "sections"])
@pytest.mark.parametrize("second", [(), ("03", "02")], ids=["a list", "sections"])
def test_a_short_id_in_two_configurations_is_named_wherever_it_stands(
    tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    files = [write(tmp_path, "server0", *first), write(tmp_path, "server1", *second, RealityShortIds="03,02")]
    with pytest.raises(UserErrors) as caught:
        check_together([load_profile_file(file) for file in files])
    remedy = "give each client a short id of its own"
    assert str(caught.value) == f"configuration server1: short id {'02' + 14 * '0'} is in server0, too; {remedy}"
    others = write(tmp_path, "server2", "04", "05"), write(tmp_path, "server3", RealityShortIds="06")
    check_together([load_profile_file(file) for file in (files[0], *others)])


def test_every_difference_is_named(tmp_path: Path) -> None:
    files = [write(tmp_path, "server0"), write(tmp_path, "server1", Dest="192.0.2.3:1", ServerName="a.example")]
    with pytest.raises(UserErrors) as caught:
        check_together([load_profile_file(file) for file in files])
    assert len(caught.value.errors) == 4  # two fields, two short ids


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([], "field BpfElf : it is missing"),
        (["BpfElf=/e", "RunForMs=0"], "field RunForMs"),
        (["BpfElf=/e", "RoutedCidLen=16"], "field RoutedCidLen"),
        (["BpfElf=/e", "RoutedCidLen=21"], "field RoutedCidLen"),
        (["BpfElf=/e", "Device=server0"], "field 'Device' : there is no such field"),
        (["BpfElf=/e", "register-cid-map=false"], "field RegisterCidMap : qre.ko mirrors"),
    ],
)
def test_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: list[str], named: str) -> None:
    files = [write(tmp_path, "server0"), write(tmp_path, "server1", RealityShortIds="03")]
    assert main(["shared-port-handshake-daemon", *files, *fields]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"qre-tool: {named}") and printed.err.count("\n") == 1
