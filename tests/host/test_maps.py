"""The map commands against the running kernel: what is pinned has the shapes that were promised."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.kernel.bpf_program import CID_ROUTES, SOCKETS, check_shape, open_pinned
from tests.support.daemons import PATIENCE, TOOL
from tests.support.json_schemas import check_against_schema
from tests.support.namespaces import run

CID, OTHER = bytes(range(20)).hex(), "ff" * 17
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")


@pytest.fixture
def bpffs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qre-test-") as name:
        Path(name).chmod(0o711)
        run("mount", "-t", "bpf", "bpf", name)
        try:
            yield Path(name)
        finally:
            run("umount", name)


def tool(*arguments: str, prefix: tuple[str, ...] = (), fds: tuple[int, ...] = ()) -> tuple[int, str, list[str]]:
    done = subprocess.run(
        [*prefix, TOOL, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False, pass_fds=fds
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def words(hexadecimal: str) -> list[str]:
    return [hexadecimal[at : at + 2] for at in range(0, len(hexadecimal), 2)]


def route(path: Path, cid: str, slot: int) -> None:
    """Written by another program than ours."""
    key = [f"{len(cid) // 2:02x}", *words(cid.ljust(40, "0"))]
    value = words(slot.to_bytes(4, "little").hex())
    run("bpftool", "map", "update", "pinned", str(path), "key", "hex", *key, "value", "hex", *value)


def test_a_cid_map_is_made_with_its_shape_and_listed_as_text_and_json(bpffs: Path) -> None:
    path = bpffs / "routes"
    assert tool("create-cid-map", f"BpfMapPath={path}")[::2] == (0, [])
    told = json.loads(run("bpftool", "--json", "map", "show", "pinned", str(path)))
    assert (told["type"], told["name"]) == ("hash", "QRE_CID_ROUTES")
    assert (told["bytes_key"], told["bytes_value"], told["max_entries"]) == (21, 4, 4096)

    status, text, said = tool("show-cid-map", f"bpf-map-path={path}")
    assert (status, said) == (0, [])
    assert "0 of 4096 entries" in text
    route(path, CID, 1)
    route(path, OTHER, 0)
    _, text, _ = tool("show-cid-map", f"BpfMapPath={path}")
    assert text.splitlines() == [
        f"QRE_CID_ROUTES {path}: 2 of 4096 entries",
        f"  connection_id {CID}  socket_index 1",
        f"  connection_id {OTHER}  socket_index 0",
    ]
    listed = json.loads(tool("--json", "show-cid-map", f"BpfMapPath={path}")[1])
    check_against_schema("show-cid-map", listed)
    assert listed["entries"] == [
        {"connection_id": CID, "socket_index": 1},
        {"connection_id": OTHER, "socket_index": 0},
    ]


def test_a_map_is_shown_through_a_descriptor_that_was_handed_in(bpffs: Path) -> None:
    path = bpffs / "routes"
    tool("create-cid-map", f"BpfMapPath={path}")
    route(path, CID, 1)
    fd = open_pinned(path)
    try:
        assert CID in tool("show-cid-map", f"BpfMapFd={fd}", fds=(fd,))[1]
    finally:
        os.close(fd)


def test_a_socket_map_is_made_with_its_shape(bpffs: Path) -> None:
    path = bpffs / "sockets"
    assert tool("create-reuseport-socket-map", f"BpfMapPath={path}")[::2] == (0, [])
    told = json.loads(run("bpftool", "--json", "map", "show", "pinned", str(path)))
    assert (told["type"], told["name"], told["max_entries"]) == ("reuseport_sockarray", "QRE_SOCKETS", 2)
    fd = open_pinned(path)
    try:
        check_shape(fd, SOCKETS)
    finally:
        os.close(fd)
    status, _, said = tool("show-cid-map", f"BpfMapPath={path}")
    assert (status, len(said)) == (2, 1)
    assert f"it is not a {CID_ROUTES.name}" in said[0]


@pytest.mark.parametrize("command", ["create-cid-map", "create-reuseport-socket-map"])
def test_what_cannot_be_made_is_refused_with_one_line(bpffs: Path, command: str, tmp_path: Path) -> None:
    existing = bpffs / "there"
    tool("create-cid-map", f"BpfMapPath={existing}")
    before = run("bpftool", "--json", "map", "show", "pinned", str(existing))
    for arguments, prefix, expected in (
        ((f"BpfMapPath={existing}",), (), "it exists already"),
        ((f"BpfMapPath={tmp_path}/map",), (), f"not a BPF file system; mount -t bpf bpf {tmp_path}"),
        ((f"BpfMapPath={bpffs}/none/map",), (), "No such file or directory"),
        (("BpfMapPath=",), (), "names no file"),
        ((), (), "BpfMapPath"),
        (("BpfMapPath=/x", "Colour=red"), (), "no such field"),
        ((f"BpfMapPath={bpffs}/new",), NO_CAPABILITIES, "it needs CAP_BPF, which is missing"),
    ):
        status, text, said = tool(command, *arguments, prefix=prefix)
        assert (status, text, len(said)) == (2, "", 1), (arguments, said)
        assert expected in said[0], said
    assert run("bpftool", "--json", "map", "show", "pinned", str(existing)) == before
    assert {path.name for path in bpffs.iterdir()} - {"maps.debug", "progs.debug"} == {"there"}


def test_what_is_no_map_is_not_shown(bpffs: Path) -> None:
    with open(os.devnull) as null:
        for argument, expected in (
            (f"BpfMapPath={bpffs}/none", "No such file"),
            ("BpfMapPath=/etc/passwd", "pinned map"),
            ("BpfMapFd=99", "Bad file descriptor"),
            ("BpfMapFd=-1", "is not the number"),
            (f"BpfMapFd={null.fileno()}", "map descriptor"),
        ):
            status, _, said = tool("show-cid-map", argument, fds=(null.fileno(),))
            assert (status, len(said)) == (2, 1), (argument, said)
            assert expected in said[0], said
    assert tool("show-cid-map")[0] == 2
    assert tool("show-cid-map", "BpfMapFd=3", "BpfMapPath=/x")[0] == 2
