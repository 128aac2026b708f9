"""The saved result of ``up``, for ``down`` and ``reload``: one JSON file a profile, ``StateDir/<profile>.state``.

It is written atomically with mode 0600 and read as hostile input: bounded, typed, no path and no command taken from
it. A device is deleted because of it only if QRE made that device (``qre/kernel/tun.is_ours``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from qre.addresses import Interface, Network, closed_beside
from qre.config.model import GlobalConfig, Profile
from qre.config.server_places import parse_listen
from qre.device.control_client import names_in
from qre.device.name_servers import NameService, service_of
from qre.ends import MAX_LISTEN, Role
from qre.errors import MachineError, UntrustedInputError, UserError
from qre.structs import address_of_text, text_of_address

SUFFIX = ".state"
MAX_SIZE = 512 * 1024
_Listen = Annotated[str, msgspec.Meta(max_length=MAX_LISTEN * (47 + 2))]  # of IPv6, in brackets


class ProfileState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A profile that is up; the file has these fields."""

    version: Literal[1] = 1
    profile: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")]
    device: Annotated[str, msgspec.Meta(pattern=r"^[^/\s\x00-\x1f]{1,15}\Z")]
    role: Role
    #: of the profile; empty for a client
    listen: _Listen
    #: where a server listens instead
    underlay: _Listen = ""
    address: Annotated[tuple[Interface, ...], msgspec.Meta(max_length=1024)]
    mtu: Annotated[int, msgspec.Meta(ge=68, le=65535)]
    allowed_ips: Annotated[tuple[Network, ...], msgspec.Meta(max_length=65536)]
    #: 0: every route is in the main table. The file has the name that earlier versions gave it
    table: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] = msgspec.field(name="fwmark")
    #: where the tunnel's own packets go
    outer: Annotated[tuple[Network, ...], msgspec.Meta(max_length=16)] = ()
    #: IP versions that lead to neighbours alone
    closed: Annotated[tuple[Annotated[int, msgspec.Meta(ge=4, le=6)], ...], msgspec.Meta(max_length=2)] = ()
    #: who is told of the tunnel's name servers
    names: NameService | None = None


def state_of(profile: Profile, table: int) -> ProfileState:
    """The state to save for a profile that was just brought up."""
    return ProfileState(
        profile=profile.name,
        device=profile.device,
        role=profile.role,
        listen=str(profile.server.listen) if profile.server else "",
        underlay=str(profile.listen) if profile.server and profile.underlay.server else "",
        address=profile.address,
        mtu=profile.mtu,
        allowed_ips=profile.routes,
        table=table,
        outer=profile.outer,
        closed=closed_beside(profile.routes, profile.leak_protection),
        names=service_of(profile),
    )


#: Of the boot, in front of a file of tickets or of their keys (bytes).
BOOT_MARK_LENGTH: Final = 16


def state_path(config: GlobalConfig, profile: str) -> Path:
    """The file in StateDir that records what ``up`` changed for ``profile``."""
    return config.state_dir / f"{profile}{SUFFIX}"


def save_state(config: GlobalConfig, state: ProfileState) -> None:
    """Replace the profile's state file, or leave the old one untouched (MachineError)."""
    path = state_path(config, state.profile)
    data = msgspec.json.format(msgspec.json.encode(state, enc_hook=text_of_address)) + b"\n"
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise MachineError(f"state file {path}", error.strerror or str(error), "see StateDir") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` with mode 0600, whole or not at all; synced to the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_state(config: GlobalConfig, profile: str) -> ProfileState | None:
    """The saved state of a profile, or None when it is not up. A file that QRE did not write is an error."""
    path = state_path(config, profile)
    remedy = "inspect and remove it, then run `qre-tool down` again"
    try:
        data = read_private(path)
        state = parse_state_untrusted(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MachineError(f"state file {path}", error.strerror or str(error)) from error
    except UntrustedInputError as error:
        raise UserError(f"state file {path}", error.what, remedy) from error
    if state.profile != profile:
        raise UserError(f"state file {path}", f"it belongs to the profile {state.profile}", remedy)
    return state


def read_private(path: Path) -> bytes:
    """The bytes of a regular file that no other user could have written, 512 KiB at most. Raises OSError,
    UntrustedInputError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedInputError("it is not a regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise UntrustedInputError("users other than its owner can write it")
        if status.st_size > MAX_SIZE:
            raise UntrustedInputError("it is too large")
        return file.read(MAX_SIZE)


def parse_state_untrusted(data: bytes) -> ProfileState:
    """A state from the bytes of its file; UntrustedInputError for what ``save_state`` never writes."""
    try:
        state = msgspec.json.decode(data, type=ProfileState, dec_hook=address_of_text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UntrustedInputError(f"it does not parse: {error}") from error
    if state.device in (".", ".."):
        raise UntrustedInputError("it names an invalid device")
    for text in (state.listen, state.underlay):
        if text and not _is_listen(text):
            raise UntrustedInputError("it names an invalid address")
    return state


def _is_listen(text: str) -> bool:
    try:
        return str(parse_listen(text)) == text
    except UserError:
        return False


def remove_state(config: GlobalConfig, profile: str) -> None:
    """Remove the profile's state; no error when there is none."""
    path = state_path(config, profile)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"state file {path}", error.strerror or str(error)) from error


def saved_profiles(config: GlobalConfig) -> list[str]:
    """The names of the profiles that have a state file, sorted."""
    return names_in(config.state_dir, SUFFIX, "StateDir")


def ticket_paths(config: GlobalConfig, profile: str) -> tuple[Path, Path]:
    """A client's session tickets, and a server's keys for those that it gives; each with a mark of the boot in
    front."""
    return config.state_dir / f"{profile}.tickets", config.state_dir / f"{profile}.ticket-keys"


def wipe_file(path: Path) -> None:
    """Overwrite a file of secrets, and remove it. One that is gone is no error. Raises MachineError."""
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(os.fstat(descriptor).st_size))
            file.flush()
            os.fsync(descriptor)
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise MachineError(str(path), error.strerror or str(error)) from error
