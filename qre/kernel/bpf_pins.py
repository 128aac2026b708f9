"""Pins of BPF objects below PinDir, made and removed by the daemon's parent through descriptors it received.

Only BPF_OBJ_PIN of bpf(2) is used here: the bpf_loader worker does the loading and everything else with maps.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Final

from qre.errors import MachineError, UserError

_BPF_OBJ_PIN: Final = 6
_BPF_FS_MAGIC: Final = 0xCAFE4A11
_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
#: In the order in which the supervisor hands them over.
NAMES: Final = ("QRE_CID_ROUTES", "QRE_SOCKETS", "qre_reuseport_demux")

_libc = ctypes.CDLL(None, use_errno=True)


class _ObjectAttribute(ctypes.Structure):
    """The part of union bpf_attr that BPF_OBJ_PIN reads."""

    _fields_ = (("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32))


class _StatFs(ctypes.Structure):
    """struct statfs; only the type is read."""

    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def check_pin_dir(directory: Path, what: str = "BpfPinDir") -> None:
    """Raise UserError unless ``directory`` is on a BPF file system."""
    status = _StatFs()
    remedy = f"mount -t bpf bpf {directory}"
    if _libc.statfs(os.fsencode(directory), ctypes.byref(status)):
        raise UserError(f"{what} {directory}", os.strerror(ctypes.get_errno()), remedy)
    if status.f_type & 0xFFFFFFFF != _BPF_FS_MAGIC:
        raise UserError(f"{what} {directory}", "not a BPF file system", remedy)


def places(directory: Path) -> tuple[Path, Path]:
    """Where a daemon may have pinned whose environment is not known: ``directory``, and below it where the unit does
    (packaging/qred@.service), whose own directory that is."""
    return directory, directory / "qre"


def paths(directory: Path, device: str) -> list[Path]:
    """The pins of a device's daemon. A BPF file system allows no dots, so they become colons, which no device name
    has."""
    return [directory / f"{name}-{device.replace('.', ':')}" for name in NAMES]


def pin(directory: Path, device: str, fds: list[int]) -> None:
    """Pin the objects; all or none. Pins of a dead daemon of this device are replaced."""
    number = _SYSCALL.get(platform.machine())
    if number is None or len(fds) != len(NAMES):
        raise MachineError("BPF pins", f"bpf(2) is not known on {platform.machine()}")
    unpin(directory, device)
    for path, fd in zip(paths(directory, device), fds, strict=True):
        name = ctypes.create_string_buffer(os.fsencode(path))
        attribute = _ObjectAttribute(ctypes.addressof(name), fd, 0)
        if _libc.syscall(number, _BPF_OBJ_PIN, ctypes.byref(attribute), ctypes.sizeof(attribute)):
            why = os.strerror(ctypes.get_errno())
            unpin(directory, device)
            raise MachineError(f"pin {path}", why, f"mount -t bpf bpf {directory}")


def unpin(directory: Path, device: str) -> None:
    """Remove the pins; no error for those that are gone."""
    for path in paths(directory, device):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(f"unpin {path}", os.strerror(error.errno or 0)) from error
