"""``create-cid-map``, ``create-reuseport-socket-map``, ``show-cid-map``: single BPF maps, for tests and debugging.

A daemon makes and pins its own maps; these have the same shapes. Modules that load libbpf are imported when a command
runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.errors import MachineError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qre.kernel.bpf_program import Shape

_HIGHEST_FD = 1 << 20


def create_cid_map(arguments: Sequence[str], options: Options) -> int:
    """Make QRE_CID_ROUTES and pin it."""
    from qre.kernel.bpf_program import CID_ROUTES

    return _create("create-cid-map", CID_ROUTES, arguments)


def create_reuseport_socket_map(arguments: Sequence[str], options: Options) -> int:
    """Make QRE_SOCKETS, both slots empty, and pin it."""
    from qre.kernel.bpf_program import SOCKETS

    return _create("create-reuseport-socket-map", SOCKETS, arguments)


def show_cid_map(arguments: Sequence[str], options: Options) -> int:
    """List a map of routed connection IDs: pinned, or a descriptor that this process inherited."""
    from qre.kernel.bpf_program import CID_ROUTES, MAX_ROUTES, check_shape, routes

    source, fd = open_map("show-cid-map", arguments)
    try:
        check_shape(fd, CID_ROUTES, f"map {source}")
        found = sorted(routes(fd).items())
    finally:
        os.close(fd)
    if options.json:
        entries = [{"connection_id": cid.hex(), "socket_index": slot} for cid, slot in found]
        told = {"version": 1, "map": source, "max_entries": MAX_ROUTES, "entries": entries}
        print(json.dumps(told, indent=2, sort_keys=True))
        return 0
    print(f"{CID_ROUTES.name} {source}: {len(found)} of {MAX_ROUTES} entries")
    for cid, slot in found:
        sys.stdout.write(f"  connection_id {cid.hex()}  socket_index {slot}\n")
    return 0


def open_map(command: str, arguments: Sequence[str], needs: tuple[str, ...] = ()) -> tuple[str, int]:
    """The map that BpfMapPath or BpfMapFd names: its name for messages, and a descriptor, which the caller closes.

    ``needs`` are the command's capabilities, checked before the file, which other users cannot see.
    """
    from qre.kernel.bpf_program import open_pinned
    from qre.kernel.capabilities import require_capabilities

    fields = parse_fields(arguments, (), ("BpfMapPath", "BpfMapFd"), command=command)
    if len(fields) != 1:
        raise UserError(command, "it wants BpfMapPath or BpfMapFd, one of them", "write BpfMapPath=PATH")
    require_capabilities(command, needs)
    if "BpfMapPath" in fields:
        path = _path(fields["BpfMapPath"])
        return str(path), open_pinned(path)
    return f"descriptor {fields['BpfMapFd']}", _descriptor(fields["BpfMapFd"])


def _create(command: str, shape: Shape, arguments: Sequence[str]) -> int:
    from qre.kernel.bpf_pins import check_pin_dir
    from qre.kernel.bpf_program import create, pin_at
    from qre.kernel.capabilities import require_capabilities

    path = _path(parse_fields(arguments, ("BpfMapPath",), command=command)["BpfMapPath"])
    require_capabilities(command, ("CAP_BPF",))
    check_pin_dir(path.parent, "directory")
    if os.path.lexists(path):
        raise UserError(f"BpfMapPath {path}", "it exists already", "remove it, or choose another path")
    fd = create(shape)
    try:
        pin_at(path, fd)
    finally:
        os.close(fd)
    print(f"{shape.name} is pinned at {path}")
    return 0


def _path(text: str) -> Path:
    path = Path(os.path.abspath(text))
    if not text or path.name in ("", ".", ".."):
        raise UserError("field BpfMapPath", f"{text!r} names no file", "write a path below /sys/fs/bpf")
    return path


def _descriptor(text: str) -> int:
    """A copy of the descriptor with this number."""
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text) <= _HIGHEST_FD):
        raise UserError("field BpfMapFd", f"{text[:32]!r} is not the number of a descriptor", "write BpfMapFd=3")
    try:
        return os.dup(int(text))
    except OSError as error:
        raise MachineError(
            f"BpfMapFd {text}", error.strerror or str(error), "hand it to this process, or use BpfMapPath"
        ) from error
