"""Requests to a running daemon: one JSON line to ``RuntimeDir/<device>.sock``, one back (``supervisor/control.py``).

The answer is bounded in size and time, and accepted only from root or from the user of this command.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import time
from pathlib import Path
from typing import Any

from qre.config.model import GlobalConfig
from qre.errors import MachineError, UserError

SUFFIX = ".sock"
#: The operation that tells a daemon what a visit to its Dest has shown.
DEST_FOUND = "dest-found"
MAX_ANSWER = 8 << 20
SHOW_TIMEOUT = 15.0
RELOAD_TIMEOUT = 45.0


class NoDaemonError(MachineError):
    """No process serves this device's control socket."""


class DaemonRefusedError(UserError):
    """The daemon refused; the text is its own."""


def socket_path(config: GlobalConfig, device: str) -> Path:
    """The control socket of the daemon of ``device``, in RuntimeDir."""
    return config.runtime_dir / f"{device}{SUFFIX}"


def front_path(runtime: Path, port: str) -> Path:
    """The socket at which other daemons join a server's port; ``port`` is its name (``device_lock.port_name``)."""
    return runtime / f"{port}.front"


def runtime_paths(config: GlobalConfig, profile: str, device: str) -> list[Path]:
    """Everything of a daemon in RuntimeDir except its lock."""
    return [
        socket_path(config, device),
        config.runtime_dir / f"{device}.workers",
        ready_path(config, profile),
    ]


def ready_path(config: GlobalConfig, profile: str) -> Path:
    """The file that is there while a client's daemon has a session."""
    return config.runtime_dir / f"{profile}.ready"


def remove_left(path: Path) -> None:
    """Remove a file, a socket, a pin or a directory; no error when it is gone already."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ask_daemon(
    config: GlobalConfig, device: str, operation: str, timeout: float, told: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The daemon's answer to ``operation`` (``show``, ``reload``, ``dest-found``); ``told`` is what belongs to it.

    Raises NoDaemonError when there is no daemon, DaemonRefusedError when it refuses, another QreError when the answer
    is missing or malformed.
    """
    path = socket_path(config, device)
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
            _check_peer(sock, path)
            with contextlib.suppress(BrokenPipeError):  # it may have refused before it has read: then that is read
                sock.sendall(json.dumps({"op": operation} | (told or {})).encode() + b"\n")
            line = _read_line(sock, deadline)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoDaemonError(f"device {device}", "no daemon runs", f"see {path}") from error
        except PermissionError as error:
            raise MachineError(f"device {device}", "its daemon answers only its owner", "run as root") from error
        except TimeoutError as error:
            raise MachineError(f"device {device}", f"its daemon did not answer within {timeout:g} s") from error
        except OSError as error:
            raise MachineError(f"control socket {path}", error.strerror or str(error)) from error
    return _parse(line, device)


def _check_peer(sock: socket.socket, path: Path) -> None:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        raise UserError(
            f"control socket {path}",
            f"user {uid} serves it, not root",
            "find out which program that is, and check RuntimeDir",
        )


def _read_line(sock: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        piece = sock.recv(1 << 16)
        if not piece:
            break
        received += piece
        if len(received) > MAX_ANSWER:
            raise MachineError("the daemon's answer", "it is too large")
    return bytes(received)


def _parse(line: bytes, device: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MachineError(f"device {device}", "its daemon did not answer", "see its log") from error
    match answer:
        case {"ok": True}:
            return dict(answer)
        case {"ok": False, "error": str(text)}:
            raise DaemonRefusedError(text)
        case _:
            raise MachineError(f"device {device}", "its daemon sent an unknown answer", "see its log")


def daemon_runs(config: GlobalConfig, device: str) -> bool:
    """Whether a process listens on the device's control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(socket_path(config, device)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # a daemon that is busy or does not accept us
    return True


def control_devices(config: GlobalConfig) -> list[str]:
    """The devices that have a control socket, sorted. MachineError when the directory may not be read."""
    return names_in(config.runtime_dir, SUFFIX, "RuntimeDir")


def names_in(directory: Path, suffix: str, what: str) -> list[str]:
    """The visible entries that end in ``suffix``, without it; none when the directory does not exist."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "run as root" if isinstance(error, PermissionError) else f"see {what}"
        raise MachineError(f"{what} {directory}", error.strerror or str(error), remedy) from error
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix) and not name.startswith("."))
