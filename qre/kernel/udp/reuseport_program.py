"""The program that chooses among the sockets of a reuseport group. Needs the descriptors and no capability."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from qre.errors import MachineError

_SO_ATTACH_REUSEPORT_EBPF: Final = 52
_SO_DETACH_REUSEPORT_BPF: Final = 68


def attach(program: int, fd: int) -> None:
    """Let ``program`` choose for the whole group of the socket ``fd``, in place of another. Raises MachineError."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, struct.pack("i", program))
        except OSError as error:
            raise MachineError("attach qre_reuseport_demux", os.strerror(error.errno or 0)) from error


def detach(fd: int) -> None:
    """Let the kernel choose again; no error when no program is attached."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, struct.pack("i", 0))
        except FileNotFoundError:
            return
