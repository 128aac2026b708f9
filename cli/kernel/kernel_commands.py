"""The commands on qre.ko that act on a device: ``syncconf``, ``set``, ``delete``, ``adopt-cid``, ``release-cid``.

They change the kernel's device alone; addresses, routes, hooks and state belong to ``up``. Arguments are checked
first, then capabilities and the module, before anything is changed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.cli.session.session_fields import connection_id, fixed
from qre.config.model import Profile
from qre.config.profile import load_profile_file, profile_from_fields
from qre.config.settings import load_global
from qre.config.syntax import quoted
from qre.config.values import parse_device, parse_role
from qre.device.control_client import daemon_runs
from qre.device.kernel_device import synced_settings
from qre.device.kernel_module import require_module
from qre.ends import Role
from qre.errors import UserError
from qre.kernel.capabilities import require_capabilities
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError

#: Fields that ``set`` requires for a server and for a client; fields that are optional.
_SET_FIELDS = {
    Role.SERVER: (("Address", "Listen", "MTU", "Dest", "ServerName"), ("PersistentKeepalive",)),
    Role.CLIENT: (("Address", "Endpoint", "MTU", "ServerName"), ("PersistentKeepalive",)),
}


def syncconf(arguments: list[str], options: Options) -> int:
    """``syncconf DEVICE FILE``: apply the file to the device, which is created when it does not exist."""
    device, file = device_name(arguments[0]), arguments[1]
    profile = load_profile_file(file)
    if profile.device != device:
        why = f"its Device is {quoted(profile.device)}, not {quoted(device)}"
        raise UserError(f"configuration {file}", why, f"write `qre-tool syncconf {profile.device} {file}`")
    sync("syncconf", profile)
    return 0


def set_device(arguments: list[str], options: Options) -> int:
    """``set DEVICE role server|client Key=Value…``: a minimal configuration, synced to the kernel."""
    device, word, role_text, *rest = arguments
    if word.lower() != "role":
        raise UserError(f"argument {quoted(word)}", "it is not `role`", "write `qre-tool set DEVICE role ROLE …`")
    role = _role(role_text)
    required, optional = _SET_FIELDS[role]
    fields = parse_fields(rest, required, optional, {"sni": "ServerName"}, command="set")
    sync("set", profile_from_fields(device_name(device), role, fields))
    return 0


def delete(arguments: list[str], options: Options) -> int:
    """``delete DEVICE``."""
    device = device_name(arguments[0])
    if daemon_runs(load_global(os.environ), device):
        raise UserError(f"device {device}", "a daemon holds it", "stop the daemon first")
    with kernel("delete", device) as qre:
        qre.device_delete(device)
    return 0


def adopt_cid(arguments: list[str], options: Options) -> int:
    """``adopt-cid DEVICE ConnectionId=HEX [SessionId=HEX]``: for the session, or for the device as a whole."""
    device, cid, session_id = _cid_arguments("adopt-cid", arguments)
    with kernel("adopt-cid", device) as qre:
        qre.cid_adopt(device, cid, session_id)
    return 0


def release_cid(arguments: list[str], options: Options) -> int:
    """``release-cid DEVICE ConnectionId=HEX [SessionId=HEX]``."""
    device, cid, session_id = _cid_arguments("release-cid", arguments)
    with kernel("release-cid", device) as qre:
        qre.cid_release(device, cid, session_id)
    return 0


def sync(command: str, profile: Profile) -> None:
    """Apply the profile to the kernel's device."""
    with kernel(command, profile.device) as qre:
        qre.device_set(profile.device, synced_settings(profile))


@contextmanager
def kernel(command: str, device: str = "") -> Iterator[Qre]:
    """qre.ko, loaded if that is allowed, after a check of capabilities. ``device``: named in the error when it does
    not exist."""
    require_capabilities(command, ("CAP_NET_ADMIN",))
    require_module(load_global(os.environ))
    with Qre() as qre:
        try:
            yield qre
        except NetlinkRefusedError as error:
            if device and error.code == errno.ENODEV:
                remedy = "see `qre-tool show`; `qre-tool syncconf`, `set` and `up` make one"
                raise UserError(f"device {device}", "qre.ko has no such device", remedy) from error
            raise


def unless_gone(request: Callable[[], None]) -> None:
    """Ask qre.ko to remove something; no error when it is gone already."""
    try:
        request()
    except NetlinkRefusedError as error:
        if error.code not in (errno.ENOENT, errno.ENODEV):
            raise


def device_name(text: str) -> str:
    """``text``, if it is a valid interface name. Raises UserError."""
    try:
        return parse_device(text)
    except UserError as error:
        raise UserError(f"device {quoted(text)}", error.why, error.remedy) from None


def _role(text: str) -> Role:
    try:
        return parse_role(text)
    except UserError as error:
        raise UserError("role", error.why, error.remedy) from None


def _cid_arguments(command: str, arguments: list[str]) -> tuple[str, bytes, bytes | None]:
    device, *rest = arguments
    fields = parse_fields(rest, ("ConnectionId",), ("SessionId",), command=command)
    session_id = fixed("SessionId", fields["SessionId"], 32) if "SessionId" in fields else None
    return device_name(device), connection_id("ConnectionId", fields["ConnectionId"]), session_id
