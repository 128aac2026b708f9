"""Registrations of a server's port with qre.ko, one per namespace: the shared socket, the CID map, the loader.

The kernel keeps references of its own, so all of it outlives a daemon that was killed; the next one on the same
address takes over without losing a packet of the sessions. Another server's port is never touched.
"""

from __future__ import annotations

import errno

import msgspec

from qre.addresses import host_port
from qre.dest_profile import DestProfile
from qre.errors import MachineError
from qre.kernel import abi
from qre.kernel.answers import LoaderDescription
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.kernel.udp.reuseport_program import attach

#: A kernel that lets no module write BPF maps.
_CLOSED = (errno.ENOSYS, errno.EOPNOTSUPP)


def register(
    qre: Qre,
    device: str,
    loader: LoaderDescription,
    *,
    listen: tuple[str, int],
    socket_fd: int,
    map_fd: int | None,
    map_id: int,
    program_fd: int,
) -> str:
    """Register both, in place of those of the previous daemon; without ``map_fd`` the kernel mirrors nothing.
    ``map_id``: the kernel's number of that map. Then ``program_fd`` chooses for the port's sockets: until then the
    previous daemon's program goes on, whose slot the sessions' packets come through. Returns the reason when the
    kernel does not write the map, otherwise empty."""
    follows = shared_address(qre, device) == listen
    if not follows:  # somebody else's port is refused before anything changes
        _register_socket(qre, device, socket_fd, listen)
    why = "RegisterCidMap = false" if map_fd is None else _register_map(qre, device, map_fd, map_id)
    if follows:  # the last that is changed, as packets come through the previous one up to here
        _register_socket(qre, device, socket_fd, listen)
    attach(program_fd, socket_fd)
    qre.loader_set(loader)
    return why


def _register_socket(qre: Qre, device: str, fd: int, listen: tuple[str, int]) -> None:
    try:
        qre.shared_socket_register(fd)
    except NetlinkRefusedError as error:
        if error.code != errno.EBUSY:
            raise
        held = shared_address(qre, device)
        if held == listen:
            return  # this very socket is registered already
        where = host_port(*held) if held is not None else "another address"
        raise MachineError(
            f"Listen {host_port(*listen)}",
            f"qre.ko serves {where} in this network namespace",
            "stop that server, or set Dataplane = user for one of them",
        ) from error


def _register_map(qre: Qre, device: str, fd: int, map_id: int) -> str:
    known = qre.device(device)
    mapped = known.cid_map if known is not None else None
    if mapped is None or mapped.map_id != map_id:
        if mapped is not None:
            qre.cid_map_unregister()
        try:
            qre.cid_map_register(fd)
        except NetlinkRefusedError as error:
            if error.code not in _CLOSED:
                raise
            return str(error)
        known = qre.device(device)
        mapped = known.cid_map if known is not None else None
    return (
        f"{mapped.missing} connection IDs are missing from the map" if mapped is not None and mapped.missing else ""
    )


def shared_address(qre: Qre, device: str) -> tuple[str, int] | None:
    """The address of the registered socket, read from any device of the namespace; None when there is none."""
    known = qre.device(device) or next(iter(qre.devices()), None)
    if known is None or known.shared_socket is None:
        return None
    return known.shared_socket.ip, known.shared_socket.port


def release(qre: Qre, device: str, listen: tuple[str, int]) -> None:
    """Release our port from the kernel; no error for what is gone, the device included."""
    if shared_address(qre, device) != listen and qre.devices():
        return  # of another daemon, or there is no device
    for step in (qre.cid_map_unregister, qre.shared_socket_unregister):
        try:
            step()
        except NetlinkRefusedError as error:
            if error.code != errno.ENOENT:
                raise
    qre.loader_set(None)


def store_dest_profile(qre: Qre, device: str, profile: DestProfile) -> None:
    """Store it with the device, without its visits, and without its warnings where they exceed the kernel's limit."""
    profile = profile.without_visits()
    data = msgspec.json.encode(profile)
    if len(data) > abi.DEST_PROFILE_MAX:
        data = msgspec.json.encode(msgspec.structs.replace(profile, warnings=()))
    if len(data) <= abi.DEST_PROFILE_MAX:
        qre.dest_profile_set(device, data, profile.ecn)
