"""The fields of the shared-port commands: what is wrong is named, all of it, before anything is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qre.cli.main import main
from qre.cli.port.port_fields import (
    parse_check_fields,
    parse_client_fields,
    parse_demo_fields,
    parse_loader_fields,
)
from qre.errors import UserErrors

ELF, LISTEN, BIND = "BpfElf=/x/elf", "Listen=127.0.0.1:4433", "UserspaceBind=true"
CID = "ConnectionId=" + "ab" * 20


@pytest.fixture(autouse=True)
def no_global_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))


def loader(*words: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        parse_loader_fields(words)
    return [str(error) for error in caught.value.errors]


def test_what_is_not_given_has_the_defaults() -> None:
    fields = parse_loader_fields([ELF, LISTEN, BIND])
    assert (fields.loading.bpf_elf, fields.loading.pin_dir) == (Path("/x/elf"), Path("/sys/fs/bpf"))
    assert (fields.loading.register, fields.loading.routed_cid_len) == (True, 20)
    assert (fields.lasting.ready_file, fields.lasting.run_for_s) == (None, None)
    assert (str(fields.listen), fields.device, fields.socket_fd) == ("127.0.0.1:4433", None, None)
    demo, client = parse_demo_fields([ELF]), parse_client_fields([])
    assert (demo.loading.register, demo.server_underlay, demo.client_underlay) == (True, None, None)
    assert (client.install, client.server_underlay, client.client_underlay) == (False, None, None)


def test_every_field_is_read() -> None:
    fields = parse_loader_fields(
        [ELF, LISTEN, BIND, "PinDir=/p", "RegisterCidMap=false", "RoutedCidLen=17", "Device=qre0", "ReadyFile=/r",
         "RunForMs=1500"]
    )  # fmt: skip
    assert (fields.loading.pin_dir, fields.loading.register, fields.loading.routed_cid_len) == (Path("/p"), False, 17)
    assert (fields.device, fields.lasting.ready_file, fields.lasting.run_for_s) == ("qre0", Path("/r"), 1.5)
    demo = parse_demo_fields([ELF, "ServerUnderlay=127.0.0.1:1", "ClientUnderlay=127.0.0.2:2", "RunForMs=1"])
    assert (str(demo.server_underlay), str(demo.client_underlay)) == ("127.0.0.1:1", "127.0.0.2:2")
    assert parse_client_fields(["InstallSession=true"]).install


def test_a_descriptor_that_this_process_has_is_taken() -> None:
    read, write = os.pipe()
    try:
        assert parse_loader_fields([ELF, LISTEN, f"UserspaceSocketFd={read}"]).socket_fd == read
    finally:
        os.close(read)
        os.close(write)


def test_the_global_configurations_length_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "qre.conf"
    path.write_text("RoutedCidLen = 18\n")
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(path))
    assert parse_loader_fields([ELF, LISTEN, BIND]).loading.routed_cid_len == 18
    assert parse_loader_fields([ELF, LISTEN, BIND, "RoutedCidLen=19"]).loading.routed_cid_len == 19
    assert len(parse_check_fields([ELF, LISTEN, "ConnectionId=" + "ab" * 18]).connection_id) == 18


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("BpfElf", "bpf-elf"),
        ("BpfElf", "bpf_elf"),
        ("Listen", "listen"),
        ("UserspaceBind", "userspace-bind"),
        ("UserspaceBind", "userspace_bind"),
    ],
)
def test_other_forms_of_a_name_are_taken(name: str, form: str) -> None:
    words = [word.replace(name + "=", form + "=") for word in (ELF, LISTEN, BIND)]
    assert parse_loader_fields([*words, "run-for-ms=1", "routed_cid_len=20", "pin-dir=/p"]).lasting.run_for_s == 0.001


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([ELF, LISTEN], "field UserspaceSocketFd: neither it nor UserspaceBind is given"),
        ([ELF, LISTEN, BIND, "UserspaceSocketFd=0"], "field UserspaceSocketFd: UserspaceBind is given, too"),
        ([ELF, LISTEN, "UserspaceBind=false"], "field UserspaceBind: 'false' is not true"),
        ([ELF, LISTEN, "UserspaceBind="], "field UserspaceBind: '' is not true"),
        ([ELF, LISTEN, "UserspaceSocketFd=-1"], "field UserspaceSocketFd: '-1' is not the number of a descriptor"),
        ([ELF, LISTEN, "UserspaceSocketFd=9999"], "field UserspaceSocketFd: 9999: Bad file descriptor"),
        ([ELF, LISTEN, BIND, "RoutedCidLen=16"], "field RoutedCidLen: '16' is not a number from 17 to 20"),
        ([ELF, LISTEN, BIND, "RoutedCidLen=21"], "field RoutedCidLen: '21' is not a number from 17 to 20"),
        ([ELF, LISTEN, BIND, "RoutedCidLen="], "field RoutedCidLen: '' is not a number"),
        ([ELF, LISTEN, BIND, "RunForMs=0"], "field RunForMs: '0' is not a number from 1"),
        ([ELF, LISTEN, BIND, f"RunForMs={1 << 64}"], "field RunForMs: '18446744073709551616' is not a number"),
        ([ELF, LISTEN, BIND, "RegisterCidMap=maybe"], "field RegisterCidMap: 'maybe' is neither true nor false"),
        ([ELF, LISTEN, BIND, "Device=a/b"], "field Device: 'a/b' has '/'"),
        ([ELF, LISTEN, BIND, "PinDir="], "field PinDir: '' names nothing below /"),
        ([ELF, LISTEN, BIND, "ReadyFile=/"], "field ReadyFile: '/' names nothing below /"),
        ([ELF, BIND, "Listen=127.0.0.1"], "field Listen: '127.0.0.1' has no port"),
        ([ELF, BIND, "Listen=localhost:1"], "field Listen: 'localhost' is not a numeric address"),
        ([ELF, BIND, "Listen=127.0.0.1:0"], "field Listen: '0' is not a port from 1 to 65535"),
        ([ELF, BIND, "Listen=[::1]:443"], "field Listen: '[::1]:443' is an IPv6 address"),
        ([ELF, BIND], "field Listen: it is missing"),
        ([LISTEN, BIND], "field BpfElf: it is missing"),
        ([ELF, ELF, LISTEN, BIND], "field BpfElf: it is given twice"),
        ([ELF, LISTEN, BIND, "bpf-elf=/y"], "field BpfElf: it is given twice"),
        ([ELF, LISTEN, BIND, "Colour=red"], "field 'Colour': there is no such field"),
        ([ELF, LISTEN, BIND, CID], "field 'ConnectionId': there is no such field"),
        ([ELF, LISTEN, BIND, "true"], "argument 'true': it is not a field"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], said: str) -> None:
    found = loader(*words)
    assert any(error.startswith(said) for error in found), found


def test_everything_that_is_wrong_is_named_at_once() -> None:
    found = loader(
        ELF, "Listen=x", "UserspaceBind=no", "RoutedCidLen=1", "RunForMs=0", "RegisterCidMap=2", "Device=:"
    )
    assert [error.split(":")[0] for error in found] == [
        f"field {name}"
        for name in ("RegisterCidMap", "RoutedCidLen", "RunForMs", "Listen", "Device", "UserspaceBind")
    ]


@pytest.mark.parametrize(
    ("cid", "length", "said"),
    [
        ("ab" * 19, "20", "it has 19 bytes, and RoutedCidLen is 20; write 40 hex digits, or another RoutedCidLen"),
        ("ab" * 20, "17", "it has 20 bytes, and RoutedCidLen is 17; write 34 hex digits, or another RoutedCidLen"),
        ("ab" * 21, "20", "it is not an even number of 2 to 40 hex digits"),
        ("xy" * 20, "20", "it is not an even number of 2 to 40 hex digits"),
        ("", "20", "it is not an even number of 2 to 40 hex digits"),
    ],
)
def test_a_connection_id_of_another_length_is_refused_by_name(cid: str, length: str, said: str) -> None:
    with pytest.raises(UserErrors) as caught:
        parse_check_fields([ELF, LISTEN, f"ConnectionId={cid}", f"RoutedCidLen={length}"])
    (error,) = caught.value.errors
    assert str(error).startswith(f"field ConnectionId: {said}")


def test_each_command_has_its_own_fields() -> None:
    for parse, words in (
        (parse_check_fields, [ELF, LISTEN, CID, "RunForMs=1"]),
        (parse_check_fields, [ELF, LISTEN, CID, BIND]),
        (parse_demo_fields, [ELF, LISTEN]),
        (parse_demo_fields, [ELF, "Device=qre0"]),
        (parse_client_fields, [ELF]),
        (parse_client_fields, ["RunForMs=1"]),
    ):
        with pytest.raises(UserErrors, match="there is no such field"):
            parse(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shared-port-loader", ELF, LISTEN], "field UserspaceSocketFd : neither it nor"),
        (["shared-port-loader-check", ELF, LISTEN], "field ConnectionId : it is missing"),
        (["shared-port-loader-check", ELF, CID], "field Listen : it is missing"),
        (["shared-port-loader-check", LISTEN, CID], "field BpfElf : it is missing"),
        (["shared-port-handshake-daemon", "a"], "field BpfElf : it is missing"),
        (["shared-port-session-demo", "a"], "shared-port-session-demo : CLIENT-CONFIG is missing"),
        (["shared-port-session-demo", "a", "b"], "field BpfElf : it is missing"),
        (["shared-port-handshake-client"], "shared-port-handshake-client : CLIENT-CONFIG is missing"),
        (["shared-port-handshake-client", "a", "InstallSession=x"], "field InstallSession : 'x' is neither true"),
        (["shared-port-handshake-client", "/none/a.conf"], "/none/a.conf : "),
    ],
)
def test_the_commands_refuse_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"qre-tool: {said}"), printed.err
