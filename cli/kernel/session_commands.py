"""``install-session``, ``update-session`` and ``session-demo``: single sessions in qre.ko.

On a server's device the routed connection ID is adopted with the session; a client's session is found by its socket
and adopts none.
"""

from __future__ import annotations

from qre.cli.commands import Options
from qre.cli.defaults import IDLE_TIMEOUT
from qre.cli.kernel.kernel_commands import device_name, kernel, unless_gone
from qre.cli.session.session_fields import SessionFields, parse_session_fields
from qre.cli.session.session_plan import FIXED_AT_INSTALL
from qre.cli.undo import Undo
from qre.config.model import Profile
from qre.config.values import show_duration
from qre.dataplane.protocol import SessionInstall
from qre.dataplane.status import SessionStatus
from qre.device.kernel_device import synced_settings
from qre.ends import Role
from qre.errors import UserError, UserErrors
from qre.kernel.qre_family import Qre
from qre.wire.number import PACKET_NUMBER_BASE


def install_session(arguments: list[str], options: Options) -> int:
    """``install-session DEVICE Key=Value…``"""
    device, fields = _arguments("install-session", arguments)
    with kernel("install-session", device) as qre:
        qre.session_install_request(device, fields.request)  # which adopts the connection ID, too
        described = qre.device(device)
        if described is not None and described.role is Role.SERVER:
            qre.cid_adopt(device, fields.connection_id, fields.session_id)  # harmless when it is adopted already
    _tell_raised(fields.packet_number, PACKET_NUMBER_BASE)
    keepalive = fields.keepalive_s if fields.keepalive_s is not None or described is None else described.keepalive_s
    idle = show_duration(fields.idle_ms) if fields.idle_ms is not None else IDLE_TIMEOUT
    print(_life(device, idle, keepalive or 0))
    return 0


def update_session(arguments: list[str], options: Options) -> int:
    """``update-session DEVICE Key=Value…``"""
    device, fields = _arguments("update-session", arguments)
    if kept := [name for name in FIXED_AT_INSTALL if name in fields.given]:
        why = "a session keeps the one that it was installed with"
        raise UserErrors(tuple(UserError(f"field {name}", why, "leave it out") for name in kept))
    with kernel("update-session", device) as qre, Undo() as undo:
        found, described = qre.session(device, fields.session_id), qre.device(device)
        if found is not None and described is not None:  # if there is none, qre.ko refuses the update
            _check_unchanged(found.status, described.role, fields)
            if described.role is Role.SERVER and fields.connection_id not in found.status.cids:
                _adopt_further(undo, qre, device, fields)
        qre.session_update_request(device, fields.request)
        undo.keep()
    reached = found.status.tx_packet_number if found is not None else 0
    _tell_raised(fields.packet_number, max(reached, PACKET_NUMBER_BASE))
    print(f"{device}: the session's key epoch is {fields.key_epoch}")
    return 0


def _arguments(command: str, arguments: list[str]) -> tuple[str, SessionFields]:
    device, *rest = arguments
    return device_name(device), parse_session_fields(command, rest)


def _tell_raised(given: int, least: int) -> None:
    """Numbers below 65536 are the handshake's, under these keys; those of a session never go back."""
    if given < least:
        why = "numbers below are used, and none is used twice under a key"
        print(f"PacketNumber {given} is raised to {least}: {why}")


def _life(device: str, idle: str, keepalive_s: int) -> str:
    """When an installed session ends by itself, and what keeps it alive."""
    asks = f"it asks for one every {keepalive_s} s (PersistentKeepalive)" if keepalive_s else ""
    asks = asks or "PersistentKeepalive makes it ask for one"
    ends = f"it ends when its peer sends nothing for {idle} (IdleTimeout)"
    return f"{device}: the session is installed; {ends}; {asks}"


def _check_unchanged(status: SessionStatus, role: Role | None, fields: SessionFields) -> None:
    """Raise UserErrors for given fields that an update cannot change: none is ignored silently."""
    compared = (
        ("ConnectionId", role is Role.CLIENT and fields.connection_id != status.connection_id),
        ("ClientConnectionId", fields.client_connection_id not in (None, status.client_connection_id)),
        ("AllowedIPs", fields.allowed_ips is not None and set(fields.allowed_ips) != set(status.allowed_ips)),
    )
    why, remedy = "it differs from the session's, and an update does not change it", "leave it as it was"
    if changed := [name for name, differs in compared if differs]:
        raise UserErrors(tuple(UserError(f"field {name}", why, remedy) for name in changed))


def _adopt_further(undo: Undo, qre: Qre, device: str, fields: SessionFields) -> None:
    """Adopt the connection ID of an update for the session, in addition to those it has."""
    qre.cid_adopt(device, fields.connection_id, fields.session_id)
    undo.add(lambda: unless_gone(lambda: qre.cid_release(device, fields.connection_id, fields.session_id)))


def session_demo(arguments: list[str], options: Options) -> int:
    """SERVER-CONFIG CLIENT-CONFIG [ServerUnderlay=IP:PORT ClientUnderlay=IP:PORT]: both ends of one handshake.

    A missing device is created, as by ``syncconf``. An error undoes everything.
    """
    from qre.cli.session.session_plan import planned_ends, read_arguments

    server, client, underlays = read_arguments("session-demo", arguments)
    ends = planned_ends(server, client, underlays)
    with kernel("session-demo") as qre, Undo() as undo:
        for end in ends:
            install_end(undo, qre, end.profile, end.install())
        undo.keep()
    print(f"sessions are installed on {server.device} and {client.device}")
    return 0


def install_end(
    undo: Undo, qre: Qre, profile: Profile, install: SessionInstall, socket_fd: int | None = None
) -> None:
    """Install one end's session on its device, which is created when it does not exist. ``socket_fd``: the client's
    socket."""
    make_device(undo, qre, profile)
    qre.session_install(profile.device, install, socket_fd)
    undo.add(lambda: unless_gone(lambda: qre.session_delete(profile.device, install.session_id, close=False)))


def make_device(undo: Undo, qre: Qre, profile: Profile) -> None:
    """Create the profile's device, as ``syncconf`` does; an existing one is not changed."""
    if qre.device(profile.device) is None:
        qre.device_set(profile.device, synced_settings(profile))
        undo.add(lambda: unless_gone(lambda: qre.device_delete(profile.device)))
