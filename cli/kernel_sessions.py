"""``install-session``, ``update-session`` and ``session-demo``: sessions in qre.ko by hand.

On a server's device the routed connection ID is adopted with the session; a client's session is found by its socket
and adopts none.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.cli.commands import Options
from qre.cli.kernel_commands import device_name, kernel, unless_gone
from qre.cli.kernel_device import settings_of
from qre.cli.session_fields import SessionFields, parse_session_fields
from qre.cli.undo import Undo
from qre.config.model import Profile
from qre.roles import Role
from qre.session import SessionInstall
from qre.workers.netlink.attributes import Request
from qre.workers.netlink.generic import Qre

_Send = Callable[[Qre, str, Request], None]


def install_session(arguments: list[str], options: Options) -> int:
    """``install-session DEVICE Key=Value…``"""
    return _change("install-session", arguments, Qre.session_install_request)


def update_session(arguments: list[str], options: Options) -> int:
    """``update-session DEVICE Key=Value…``"""
    return _change("update-session", arguments, Qre.session_update_request)


def _change(command: str, arguments: list[str], send: _Send) -> int:
    device, *rest = arguments
    device = device_name(device)
    fields = parse_session_fields(command, rest)
    with kernel(command, device) as qre:
        send(qre, device, fields.request)
        _adopt(qre, device, fields)
    return 0


def _adopt(qre: Qre, device: str, fields: SessionFields) -> None:
    """The session's connection ID; harmless when the session has it already."""
    described = qre.device(device)
    if described is not None and described.role is Role.SERVER:
        qre.cid_adopt(device, fields.connection_id, fields.session_id)


def session_demo(arguments: list[str], options: Options) -> int:
    """SERVER-CONFIG CLIENT-CONFIG [ServerUnderlay=IP:PORT ClientUnderlay=IP:PORT]: both ends of one handshake.

    A device that is not there is made, as ``syncconf`` would. After an error nothing of it is left.
    """
    from qre.cli.session_plan import planned_installs, read_arguments

    server, client, server_underlay, client_underlay = read_arguments("session-demo", arguments)
    installs = planned_installs(server, client, server_underlay, client_underlay)
    with kernel("session-demo") as qre, Undo() as undo:
        for profile, _, install in installs:
            install_end(undo, qre, profile, install)
        undo.keep()
    print(f"sessions are installed on {server.device} and {client.device}")
    return 0


def install_end(
    undo: Undo, qre: Qre, profile: Profile, install: SessionInstall, socket_fd: int | None = None
) -> None:
    """One end's session, on its device, which is made when it is not there. ``socket_fd``: the client's socket."""
    make_device(undo, qre, profile)
    qre.session_install(profile.device, install, socket_fd)
    undo.add(lambda: unless_gone(lambda: qre.session_delete(profile.device, install.session_id, close=False)))


def make_device(undo: Undo, qre: Qre, profile: Profile) -> None:
    """The profile's device, as ``syncconf`` would make it; one that is there stays as it is."""
    if qre.device(profile.device) is None:
        qre.device_set(profile.device, settings_of(profile, 0))
        undo.add(lambda: unless_gone(lambda: qre.device_delete(profile.device)))
