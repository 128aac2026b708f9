"""The fields of the shared-port commands: from ``Key=Value`` to checked values. Nothing is opened or made here.

All errors are reported together. The user guide explains the fields: "The shared port by hand".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from qre.cli.defaults import PIN_DIR
from qre.cli.fields import parse_fields
from qre.cli.kernel.kernel_commands import device_name
from qre.cli.session.session_ends import UNDERLAYS, parse_end
from qre.cli.session.session_fields import connection_id, descriptor
from qre.config.model import SocketAddress
from qre.config.settings import load_global
from qre.config.syntax import quoted
from qre.config.values import ROUTED_CID_LENGTHS as ROUTED_CID_LEN
from qre.config.values import parse_bool, parse_ipv4_socket_address, parse_number
from qre.errors import UserError, UserErrors

_MAX_U64: Final = (1 << 64) - 1

#: Fields of every command that loads the program.
_LOADING: Final = ("PinDir", "RegisterCidMap", "RoutedCidLen")
_LASTING: Final = ("ReadyFile", "RunForMs")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Loading:
    """How the program is loaded, and where it is pinned."""

    bpf_elf: Path
    pin_dir: Path
    register: bool
    routed_cid_len: int


@dataclass(frozen=True)
class Lasting:
    """The ready file of a command that stays, and when it ends by itself."""

    ready_file: Path | None
    run_for_s: float | None


@dataclass(frozen=True)
class LoaderFields:
    """Of ``shared-port-loader``; without ``socket_fd`` it binds the socket itself."""

    loading: Loading
    lasting: Lasting
    listen: SocketAddress
    device: str | None
    socket_fd: int | None


@dataclass(frozen=True)
class CheckFields:
    """Of ``shared-port-loader-check``."""

    loading: Loading
    listen: SocketAddress
    device: str | None
    connection_id: bytes


@dataclass(frozen=True)
class DemoFields:
    """Of ``shared-port-session-demo``."""

    loading: Loading
    lasting: Lasting
    server_underlay: SocketAddress | None
    client_underlay: SocketAddress | None


@dataclass(frozen=True)
class DaemonFields:
    """Of ``shared-port-handshake-daemon``."""

    loading: Loading
    lasting: Lasting


@dataclass(frozen=True)
class ClientFields:
    """Of ``shared-port-handshake-client``."""

    server_underlay: SocketAddress | None
    client_underlay: SocketAddress | None
    install: bool


def parse_loader_fields(arguments: Sequence[str]) -> LoaderFields:
    """Raises UserErrors with all errors, as the others do."""
    optional = (*_LOADING, *_LASTING, "Device", "UserspaceSocketFd", "UserspaceBind")
    read = _FieldReader("shared-port-loader", arguments, ("BpfElf", "Listen"), optional)
    loading, lasting = _loading(read), _lasting(read)
    listen, device = read("Listen", _address), read("Device", _device)
    socket_fd, bind = read("UserspaceSocketFd", descriptor), read("UserspaceBind", _only_true)
    del bind
    given = [name for name in ("UserspaceSocketFd", "UserspaceBind") if name in read.fields]
    if len(given) != 1:
        why = "UserspaceBind is given, too" if given else "neither it nor UserspaceBind is given"
        remedy = "give UserspaceSocketFd=FD or UserspaceBind=true, one of them"
        read.errors.append(UserError("field UserspaceSocketFd", why, remedy))
    read.raise_if_any()
    assert loading is not None and listen is not None
    return LoaderFields(loading, lasting, listen, device, socket_fd)


def parse_check_fields(arguments: Sequence[str]) -> CheckFields:
    """Also compares the length of ConnectionId with RoutedCidLen. Raises UserErrors."""
    optional = (*_LOADING, "Device")
    read = _FieldReader("shared-port-loader-check", arguments, ("BpfElf", "Listen", "ConnectionId"), optional)
    loading = _loading(read)
    listen, device, cid = read("Listen", _address), read("Device", _device), read("ConnectionId", connection_id)
    if loading is not None and cid is not None and len(cid) != loading.routed_cid_len:
        why = f"it has {len(cid)} bytes, and RoutedCidLen is {loading.routed_cid_len}"
        remedy = f"write {2 * loading.routed_cid_len} hex digits, or another RoutedCidLen"
        read.errors.append(UserError("field ConnectionId", why, remedy))
    read.raise_if_any()
    assert loading is not None and listen is not None and cid is not None
    return CheckFields(loading, listen, device, cid)


def parse_demo_fields(arguments: Sequence[str]) -> DemoFields:
    """Raises UserErrors; only BpfElf is required."""
    read = _FieldReader("shared-port-session-demo", arguments, ("BpfElf",), (*_LOADING, *_LASTING, *UNDERLAYS))
    loading, lasting = _loading(read), _lasting(read)
    server, client = (read(name, _address) for name in UNDERLAYS)
    read.raise_if_any()
    assert loading is not None
    return DemoFields(loading, lasting, server, client)


def parse_daemon_fields(arguments: Sequence[str]) -> DaemonFields:
    """Raises UserErrors; only BpfElf is required."""
    read = _FieldReader("shared-port-handshake-daemon", arguments, ("BpfElf",), (*_LOADING, *_LASTING))
    loading, lasting = _loading(read), _lasting(read)
    read.raise_if_any()
    assert loading is not None
    return DaemonFields(loading, lasting)


def parse_client_fields(arguments: Sequence[str]) -> ClientFields:
    """Raises UserErrors; no field is required."""
    read = _FieldReader("shared-port-handshake-client", arguments, (), (*UNDERLAYS, "InstallSession"))
    server, client = read("ServerUnderlay", parse_end), read("ClientUnderlay", _address)
    install = read("InstallSession", _bool)
    read.raise_if_any()
    return ClientFields(server, client, install or False)


class _FieldReader:
    """Calls a field's parser when the field is given, and collects the errors."""

    def __init__(
        self, command: str, arguments: Sequence[str], required: Sequence[str], optional: Sequence[str]
    ) -> None:
        self.fields = parse_fields(arguments, required, optional, command=command)
        self.errors: list[UserError] = []

    def __call__(self, name: str, parse: Callable[[str, str], _T]) -> _T | None:
        """None when the field is missing or wrong: call ``raise_if_any`` before using the value."""
        if name not in self.fields:
            return None
        try:
            return parse(name, self.fields[name])
        except UserError as error:
            self.errors.append(error)
            return None

    def raise_if_any(self) -> None:
        if self.errors:
            raise UserErrors(tuple(self.errors))


def _loading(read: _FieldReader) -> Loading | None:
    elf, pin_dir = read("BpfElf", _path), read("PinDir", _path)
    register = read("RegisterCidMap", _bool)
    length = read("RoutedCidLen", lambda name, text: _number(name, text, *ROUTED_CID_LEN))
    if "RoutedCidLen" not in read.fields:
        length = load_global(os.environ).routed_cid_len or ROUTED_CID_LEN[1]
    if elf is None or length is None:
        return None
    return Loading(elf, pin_dir or Path(PIN_DIR), register is not False, length)


def _lasting(read: _FieldReader) -> Lasting:
    run_for_ms = read("RunForMs", lambda name, text: _number(name, text, 1, _MAX_U64))
    return Lasting(read("ReadyFile", _path), None if run_for_ms is None else run_for_ms / 1000)


def _in_field(name: str, parse: Callable[[str], _T], text: str) -> _T:
    """The parser of a configuration's value, its error with the field's name."""
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy) from None


def _address(name: str, text: str) -> SocketAddress:
    return _in_field(name, parse_ipv4_socket_address, text)


def _bool(name: str, text: str) -> bool:
    return _in_field(name, parse_bool, text)


def _device(name: str, text: str) -> str:
    try:
        return device_name(text)
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy or "write the name of an interface") from None


def _number(name: str, text: str, low: int, high: int) -> int:
    try:
        return parse_number(text, low, high)
    except UserError as error:
        raise UserError(f"field {name}", error.why, f"write {name}={low}") from None


def _only_true(name: str, text: str) -> bool:
    if text.lower() != "true":
        remedy = "write UserspaceBind=true, or leave it out and give UserspaceSocketFd=FD"
        raise UserError(f"field {name}", f"{quoted(text)} is not true, the only value that it has", remedy)
    return True


def _path(name: str, text: str) -> Path:
    path = Path(os.path.abspath(text))
    if not text or not path.name:
        raise UserError(f"field {name}", f"{quoted(text)} names nothing below /", "write a path")
    return path
