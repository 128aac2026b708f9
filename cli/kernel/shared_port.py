"""``register-cid-map``, ``unregister-cid-map``, ``register-shared-socket``, ``unregister-shared-socket``.

What qre.ko holds for a namespace: the BPF map that it mirrors adopted connection IDs into, and the UDP socket of the
kernel's slot. It keeps references of its own, so both outlive the command; the kernel checks the socket.
"""

from __future__ import annotations

import os

from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.cli.kernel.kernel_commands import kernel
from qre.cli.session.session_fields import descriptor


def register_cid_map(arguments: list[str], options: Options) -> int:
    """The map is named by its pin or by an inherited descriptor."""
    from qre.cli.kernel.maps import open_map
    from qre.kernel.bpf_program import CID_ROUTES, check_shape

    source, fd = open_map("register-cid-map", arguments, ("CAP_NET_ADMIN",))
    try:
        check_shape(fd, CID_ROUTES, f"map {source}")
        with kernel("register-cid-map") as qre:
            qre.cid_map_register(fd)
    finally:
        os.close(fd)
    return 0


def unregister_cid_map(arguments: list[str], options: Options) -> int:
    """The kernel removes its connection IDs from the map and no longer mirrors any."""
    with kernel("unregister-cid-map") as qre:
        qre.cid_map_unregister()
    return 0


def register_shared_socket(arguments: list[str], options: Options) -> int:
    """SocketFd names a UDP socket that this process inherited."""
    fields = parse_fields(arguments, ("SocketFd",), command="register-shared-socket")
    fd = descriptor("SocketFd", fields["SocketFd"])
    with kernel("register-shared-socket") as qre:
        qre.shared_socket_register(fd)
    return 0


def unregister_shared_socket(arguments: list[str], options: Options) -> int:
    """The kernel releases the socket; sessions that use it keep it."""
    with kernel("unregister-shared-socket") as qre:
        qre.shared_socket_unregister()
    return 0
