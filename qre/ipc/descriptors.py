"""Checks a received descriptor before a worker uses it: its row in ``qre.ipc.roles`` against what the kernel says.

Only calls that a sandboxed worker may still make: fstat, fcntl, getsockopt, getsockname.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from qre.addresses import host_port
from qre.errors import MachineError
from qre.ipc.messages import WorkerConfig
from qre.ipc.roles import Expected

_TUN = os.makedev(10, 200)


def check(fd: int, expected: Expected) -> None:
    """Raise MachineError unless ``fd`` is what ``expected`` says; it stays open."""
    try:
        wrong = _wrong(fd, expected)
    except OSError as error:
        wrong = os.strerror(error.errno or 0)
    if wrong:
        raise MachineError(f"descriptor {expected.name}", wrong)


def _wrong(fd: int, expected: Expected) -> str:
    """Why it is refused; empty when it is right."""
    mode = os.fstat(fd).st_mode
    match expected.kind:
        case "socket":
            return _wrong_socket(fd, expected) if stat.S_ISSOCK(mode) else "not a socket"
        case "file":
            access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
            wanted = os.O_RDWR if expected.writable else os.O_RDONLY
            return (
                "" if stat.S_ISREG(mode) and access == wanted else "not a regular file with the expected access mode"
            )
        case "memfd":
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | (0 if expected.writable else fcntl.F_SEAL_WRITE)
            return "" if stat.S_ISREG(mode) and seals & wanted == wanted else "not a sealed memfd"
        case "tun":
            is_tun = stat.S_ISCHR(mode) and os.fstat(fd).st_rdev == _TUN
            return "" if is_tun else "not a TUN device"
        case "bpf":  # an anonymous inode: no file type at all. bpf(2) says the rest
            return "not a BPF object" if stat.S_IFMT(mode) else ""
        case _:
            return f"no kind of descriptor is called {expected.kind}"


def _wrong_socket(fd: int, expected: Expected) -> str:
    made = socket.socket(fileno=fd)
    try:
        if made.family not in expected.families or (made.type, made.proto) != (expected.type, expected.protocol):
            return "a socket of another family, type or protocol"
        if socket.AF_INET not in expected.families:
            return ""
        if bool(made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) is not expected.reuseport:
            return f"SO_REUSEPORT is {'off' if expected.reuseport else 'on'}"
        return "" if made.getsockname()[1] else "a socket that is not bound"
    finally:
        made.detach()


def check_bound(fd: int, expected: Expected, config: WorkerConfig) -> None:
    """Raise MachineError unless a server's socket is bound to the configured address."""
    if not expected.reuseport:
        return
    made = socket.socket(fileno=fd)
    try:
        bound = made.getsockname()
    finally:
        made.detach()
    if bound[:2] != (config.listen_ip, config.listen_port):
        raise MachineError(f"descriptor {expected.name}", f"bound to {host_port(*bound[:2])}, not to Listen")
