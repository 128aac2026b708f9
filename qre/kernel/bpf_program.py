"""The BPF objects, through the libbpf that comes with bcc: open a prebuilt ELF, load, look up, update.

Only prebuilt bytecode is loaded, never text: compiling at run time would need kernel headers and a compiler in a
privileged process. Needs CAP_BPF for loading; operations on held descriptors (attach, update) need nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qre.addresses import Address
from qre.ends import LIKE_DEST, MAX_LISTEN
from qre.errors import MachineError
from qre.kernel.udp import reuseport_program
from qre.wire.packet import MAX_CID, SHORTEST_DEST_CID

PROGRAM: Final = "qre_reuseport_demux"
MAX_ROUTES: Final = 4096
SLOTS: Final = 2
SLOT_USER, SLOT_KERNEL = 0, 1
KEY_SIZE, VALUE_SIZE = 1 + MAX_CID, 4
MAX_ELF: Final = 1 << 20

_MAP_TYPE_HASH, _MAP_TYPE_REUSEPORT_SOCKARRAY = 1, 20
_PROG_TYPE_SK_REUSEPORT: Final = 21
#: Maps of a program that are examined: it has the two, and its read-only data.
_MAX_PROGRAM_MAPS: Final = 8
_SO_COOKIE: Final = 57
_BPF_ANY: Final = 0
#: Numbers from here on are libbpf's own, not the system's.
_LIBBPF_ERRORS: Final = 4000
_RODATA: Final = ".rodata"
#: What the program's read-only data is: lengths of routed CIDs, whether Listen has several addresses, and those.
_SETTINGS: Final = struct.Struct(f"=II{16 * MAX_LISTEN}s")
_MAPPED: Final = bytes(10) + b"\xff\xff"


@dataclass(frozen=True)
class Shape:
    """The shape of a map: name, the kernel's number of its type, sizes of key and value, number of entries."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int


CID_ROUTES: Final = Shape("QRE_CID_ROUTES", _MAP_TYPE_HASH, KEY_SIZE, VALUE_SIZE, MAX_ROUTES)
SOCKETS: Final = Shape("QRE_SOCKETS", _MAP_TYPE_REUSEPORT_SOCKARRAY, 4, 8, SLOTS)


class _MapInfo(ctypes.Structure):
    """The start of struct bpf_map_info."""

    _fields_ = tuple(
        (name, ctypes.c_uint32) for name in ("type", "id", "key_size", "value_size", "max_entries", "flags")
    )


class _ProgramInfo(ctypes.Structure):
    """The start of struct bpf_prog_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("code_lengths", ctypes.c_uint32 * 2),
        ("code", ctypes.c_uint64 * 2),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


def _library() -> ctypes.CDLL:
    """bcc without its compiler, which takes 24 MB of a process; with it, where bcc is not made of two parts."""
    try:
        return ctypes.CDLL("libbcc_bpf.so.0", use_errno=True)
    except OSError:
        from bcc.libbcc import lib

        whole: ctypes.CDLL = lib
        return whole


_bcc: Final = _library()


def _function(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments, use_errno=True)((name, _bcc))


_pointer, _integer, _size, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_open_mem = _function("bpf_object__open_mem", _pointer, _pointer, _size, _pointer)
_load = _function("bpf_object__load", _integer, _pointer)
_close = _function("bpf_object__close", None, _pointer)
_find_map = _function("bpf_object__find_map_by_name", _pointer, _pointer, _text)
_next_map = _function("bpf_object__next_map", _pointer, _pointer, _pointer)
_map_name = _function("bpf_map__name", _text, _pointer)
_map_fd = _function("bpf_map__fd", _integer, _pointer)
_initial_value = _function("bpf_map__initial_value", _pointer, _pointer, ctypes.POINTER(_size))
_find_program = _function("bpf_object__find_program_by_name", _pointer, _pointer, _text)
_program_fd = _function("bpf_program__fd", _integer, _pointer)
_set_print = _function("libbpf_set_print", _pointer, _pointer)
_update = _function("bpf_update_elem", _integer, _integer, _pointer, _pointer, ctypes.c_ulonglong)
_lookup = _function("bpf_lookup_elem", _integer, _integer, _pointer, _pointer)
_delete = _function("bpf_delete_elem", _integer, _integer, _pointer)
_next_key = _function("bpf_get_next_key", _integer, _integer, _pointer, _pointer)
_info = _function("bpf_obj_get_info_by_fd", _integer, _integer, _pointer, ctypes.POINTER(ctypes.c_uint32))


_create = _function(
    "bpf_map_create", _integer, _integer, _text, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, _pointer
)
_pin = _function("bpf_obj_pin", _integer, _integer, _text)
_get = _function("bpf_obj_get", _integer, _text)
_strerror = _function("libbpf_strerror", _integer, _integer, _pointer, _size)


def _failure(what: str, remedy: str = "") -> MachineError:
    number = ctypes.get_errno()
    if number < _LIBBPF_ERRORS:
        return MachineError(what, os.strerror(number), remedy)
    text = ctypes.create_string_buffer(128)
    _strerror(number, text, len(text))
    return MachineError(what, text.value.decode(errors="replace"), remedy)


def key_of(connection_id: bytes) -> bytes:
    """The map's key: length, then the CID padded with zeros."""
    return bytes([len(connection_id)]) + connection_id.ljust(MAX_CID, b"\0")


def socket_cookie(fd: int) -> int:
    """The kernel's id of a socket, which a lookup in QRE_SOCKETS returns."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)


def check_shape(fd: int, shape: Shape, what: str = "") -> int:
    """The kernel's number of the map ``fd``, which has this type, key size, value size and number of entries."""
    info = _MapInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    what = what or f"map {shape.name}"
    if _info(fd, ctypes.byref(info), ctypes.byref(length)):
        if ctypes.get_errno() == errno.EINVAL:
            raise MachineError(what, "it is not a BPF map", f"name a {shape.name}")
        raise _failure(what)
    # The info of a program also begins with type and number; its other fields do not match any shape.
    if (info.type, info.key_size, info.value_size, info.max_entries) != (
        shape.type, shape.key_size, shape.value_size, shape.max_entries,
    ):  # fmt: skip
        raise MachineError(what, f"it is not a {shape.name}: its type or sizes differ", "remove its pin")
    return int(info.id)


def check_program(fd: int, maps: set[int]) -> None:
    """Raise MachineError unless ``fd`` is our program, and steers by the maps with these numbers."""
    ids = (ctypes.c_uint32 * _MAX_PROGRAM_MAPS)()
    info = _ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    length = ctypes.c_uint32(ctypes.sizeof(info))
    if _info(fd, ctypes.byref(info), ctypes.byref(length)):
        raise _failure(f"program {PROGRAM}")
    if info.type != _PROG_TYPE_SK_REUSEPORT or info.name != PROGRAM.encode()[: len(info.name)] or not info.name:
        raise MachineError(f"program {PROGRAM}", "it is another program")
    if not maps <= set(ids[: info.nr_map_ids]):
        raise MachineError(f"program {PROGRAM}", "it uses other maps")


def create(shape: Shape) -> int:
    """A new, empty map of this shape; the caller closes it. Needs CAP_BPF."""
    fd = int(_create(shape.type, shape.name.encode(), shape.key_size, shape.value_size, shape.max_entries, None))
    if fd < 0:
        raise _failure(f"creating {shape.name}", "is CAP_BPF granted?")
    return fd


def pin_at(path: Path, fd: int) -> None:
    """Pin a BPF object at ``path``; an existing entry stays, and is an error."""
    if _pin(fd, os.fsencode(path)):
        raise _failure(f"pinning {path}", "remove what is there, or choose another path")


def open_pinned(path: Path) -> int:
    """The BPF object that is pinned at ``path``; the caller closes it."""
    fd = int(_get(os.fsencode(path)))
    if fd < 0:
        raise _failure(f"pinned map {path}", "check the path; reading it may need root")
    os.set_inheritable(fd, False)
    return fd


def routes(fd: int) -> dict[bytes, int]:
    """Connection ID -> slot, as the map ``fd`` has them; bounded even if the map changes meanwhile."""
    found: dict[bytes, int] = {}
    before: Any = None
    following = ctypes.create_string_buffer(KEY_SIZE)
    slot = ctypes.c_uint32()
    for _ in range(MAX_ROUTES):
        if _next_key(fd, before, following):
            break
        if not _lookup(fd, following, ctypes.byref(slot)):
            found[following.raw[1 : 1 + min(following.raw[0], MAX_CID)]] = slot.value
        before = ctypes.create_string_buffer(following.raw, KEY_SIZE)
    return found


def slotted(fd: int) -> dict[int, int]:
    """Slot -> cookie of the socket in it, of the map of sockets ``fd``; a socket that is closed leaves its slot."""
    found = {}
    for slot in range(SLOTS):
        key, cookie = ctypes.c_uint32(slot), ctypes.c_uint64()
        if not _lookup(fd, ctypes.byref(key), ctypes.byref(cookie)):
            found[slot] = cookie.value
    return found


def empty_slot(fd: int, slot: int) -> None:
    """Remove the socket from a slot of the map of sockets ``fd``: it can be in only one such map at a time."""
    _delete(fd, ctypes.byref(ctypes.c_uint32(slot)))


class Maps:
    """Held descriptors of the two maps and the program; closed by ``close``."""

    def __init__(self, cid_routes: int, sockets: int, program: int) -> None:
        self.cid_routes, self.sockets, self.program = cid_routes, sockets, program
        try:
            self.map_id = check_shape(cid_routes, CID_ROUTES)
            check_program(program, {self.map_id, check_shape(sockets, SOCKETS)})
        except MachineError:
            self.close()
            raise

    def slot_in(self, slot: int, fd: int) -> None:
        """Put a socket of the group into a slot; an old one is replaced.

        A socket that the previous loader put there stays: the kernel refuses it a second time (EBUSY).
        """
        if slotted(self.sockets).get(slot) == socket_cookie(fd):
            return
        key, value = ctypes.c_uint32(slot), ctypes.c_uint64(fd)
        if _update(self.sockets, ctypes.byref(key), ctypes.byref(value), _BPF_ANY):
            raise _failure(f"slot {slot} of QRE_SOCKETS")

    def adopt(self, connection_id: bytes) -> None:
        """Steer this CID to the data plane's socket."""
        key = ctypes.create_string_buffer(key_of(connection_id), KEY_SIZE)
        value = ctypes.c_uint32(SLOT_KERNEL)
        if _update(self.cid_routes, key, ctypes.byref(value), _BPF_ANY):
            raise _failure("adopting a connection ID", f"the map holds {MAX_ROUTES} at most")

    def release(self, connection_id: bytes) -> bool:
        """Remove this CID; False when it was not in the map."""
        key = ctypes.create_string_buffer(key_of(connection_id), KEY_SIZE)
        return not _delete(self.cid_routes, key)

    def adopted(self) -> Iterator[bytes]:
        """Every CID of the map."""
        yield from routes(self.cid_routes)

    def attach(self, fd: int) -> None:
        """Let the program choose for the whole reuseport group of ``fd``."""
        reuseport_program.attach(self.program, fd)

    @staticmethod
    def detach(fd: int) -> None:
        """Let the kernel choose again; no error when no program is attached."""
        reuseport_program.detach(fd)

    def close(self) -> None:
        """The pins stay, and so does an attached program."""
        for fd in (self.cid_routes, self.sockets, self.program):
            os.close(fd)


def load(elf: int, routed_cid_len: int, listen: Sequence[Address] = ()) -> Maps:
    """Load the program of the ELF file ``elf`` for routed CIDs of this length, or LIKE_DEST. ``listen``: of Listen's
    addresses, where they are several, each; at any other the port is closed. Raises MachineError."""
    image = os.pread(elf, MAX_ELF + 1, 0)
    if not image.startswith(b"\x7fELF") or len(image) > MAX_ELF:
        raise MachineError("BPF ELF", "not an ELF file of at most 1 MiB", "run make, or set BpfElf")
    _set_print(None)  # libbpf would write to stderr without a bound
    handle = _open_mem(image, len(image), None)
    if not handle:
        raise _failure("opening the BPF ELF", "run make, or set BpfElf")
    try:
        _set_constants(handle, sum(1 << length for length in cid_lengths(routed_cid_len)), listen)
        if _load(handle):
            raise _failure(f"loading {PROGRAM}", "is CAP_BPF granted?")
        maps = (_find_map(handle, b"QRE_CID_ROUTES"), _find_map(handle, b"QRE_SOCKETS"))
        program = _find_program(handle, PROGRAM.encode())
        if not all(maps) or not program:
            raise MachineError("BPF ELF", f"{PROGRAM} or its maps are not in it", "run make, or set BpfElf")
        fds = [os.dup(_map_fd(found)) for found in maps]
        return Maps(fds[0], fds[1], os.dup(_program_fd(program)))
    finally:
        _close(handle)


def cid_lengths(routed_cid_len: int) -> range:
    """The lengths of the connection IDs that may be routed."""
    if routed_cid_len == LIKE_DEST:
        return range(SHORTEST_DEST_CID, MAX_CID + 1)
    return range(routed_cid_len, routed_cid_len + 1)


def _set_constants(handle: int, lengths: int, listen: Sequence[Address]) -> None:
    """Write the program's read-only data."""
    packed = [each.packed if each.version == 6 else _MAPPED + each.packed for each in listen]
    repeated = b"".join(packed[at % len(packed)] for at in range(MAX_LISTEN)) if packed else b""
    found = _next_map(handle, None)
    while found:
        if _map_name(found).decode(errors="replace").endswith(_RODATA):
            size = _size()
            value = _initial_value(found, ctypes.byref(size))
            if value and size.value == _SETTINGS.size:
                ctypes.memmove(value, _SETTINGS.pack(lengths, bool(packed), repeated), _SETTINGS.size)
                return
        found = _next_map(handle, found)
    raise MachineError("BPF ELF", "its settings cannot be found", "run make, or set BpfElf")
