"""Finds and removes what a killed loader left of a shared port, before the next loader begins.

The kernel shows which loader is alive. A closed socket leaves its slot of QRE_SOCKETS, so pins whose slot 0 is empty
have no owner; slot 1 may still hold the dead loader's socket, which qre.ko keeps. Objects of a living process, or
that might be, are never touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qre.cli.kernel.kernel_commands import unless_gone
from qre.errors import UserError
from qre.kernel.bpf_pins import NAMES, paths, unpin
from qre.kernel.bpf_program import (
    CID_ROUTES,
    SLOT_KERNEL,
    SLOT_USER,
    SOCKETS,
    Shape,
    check_shape,
    empty_slot,
    open_pinned,
    slotted,
)
from qre.kernel.port_sockets import bound_sockets
from qre.kernel.qre_family import Qre

#: qre.ko closes a released socket a moment later (seconds).
_CLOSING: Final = 5.0
_POLL: Final = 0.01

BY_HAND: Final = "run `qre-tool unregister-cid-map` and `qre-tool unregister-shared-socket`"


@dataclass(frozen=True)
class Port:
    """A shared port: its address, where its objects are pinned, and the cookie of the user-space socket that was
    handed in, if one was."""

    ip: str
    port: int
    pin_dir: Path
    given: int | None = None

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def label(self) -> str:
        """Ends the names of the pins. BPF file systems take no dot in a name."""
        return f"{self.ip.replace('.', '-')}-{self.port}"

    def pins(self) -> list[Path]:
        """Paths of this port's pinned BPF objects, whether they exist or not."""
        return paths(self.pin_dir, self.label)


def clear_leftovers(port: Port, qre: Qre | None, say: Callable[[str], None]) -> None:
    """Remove what a dead loader left of this port. ``qre`` None: leave qre.ko unchanged.

    Raises UserError when the port's pins belong to a loader that lives, or when qre.ko holds a socket there that it
    is not for us to take.
    """
    if not any(os.path.lexists(path) for path in port.pins()):
        return
    routes, sockets = (_open(path, shape) for path, shape in zip(port.pins(), (CID_ROUTES, SOCKETS), strict=False))
    try:
        map_id = check_shape(routes, CID_ROUTES) if routes is not None else None
        slots = slotted(sockets) if sockets is not None else {}
        if port.given is None and not slots and bound_sockets(port.ip, port.port):
            return  # a loader that is pinning them now, or another program: it keeps the port, and our bind fails
        if not (qre is not None and _registered_by_the_dead(port, qre, map_id)):
            _refuse_living(port, slots)
        if qre is not None:
            _let_go(port, qre, map_id, say)
        if SLOT_KERNEL in slots and not _closed(port):
            why = "qre.ko, or another process, holds a socket there of a loader that was killed"
            raise UserError(f"Listen {port}", why, BY_HAND)
        if sockets is not None:
            empty_slot(sockets, SLOT_USER)  # an inherited socket stays open, and with it its old program and the map
    finally:
        for fd in (routes, sockets):
            if fd is not None:
                os.close(fd)
    unpin(port.pin_dir, port.label)
    say(f"removed the pins of a loader that was killed: {port.pin_dir}/*-{port.label}")


def _open(path: Path, shape: Shape) -> int | None:
    """A pinned map of this shape; None when it is not there."""
    if not os.path.lexists(path):
        return None
    fd = open_pinned(path)
    try:
        check_shape(fd, shape, f"pin {path}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_living(port: Port, slots: dict[int, int]) -> None:
    """An inherited socket is open in any case: then the other slot decides."""
    remedy = "end it, or choose another PinDir"
    owner = SLOT_USER
    if port.given is not None and slots.get(SLOT_USER) == port.given:
        owner = SLOT_KERNEL
        remedy = f"end it; or, if it was killed, {BY_HAND}"
    if owner in slots:
        why = f"a loader that runs has pinned {NAMES[0]}-{port.label} and the others there"
        raise UserError(f"PinDir {port.pin_dir}", why, remedy)


def _registered_by_the_dead(port: Port, qre: Qre, map_id: int | None) -> bool:
    """Whether a dead process registered this map or, if there is none, a socket of this port."""
    device = next(iter(qre.devices()), None)
    if device is None or device.loader is None or os.path.exists(f"/proc/{device.loader.pid}"):
        return False
    if device.cid_map is not None:
        return device.cid_map.map_id == map_id
    held = device.shared_socket
    return held is not None and (held.ip, held.port) == (port.ip, port.port)


def _let_go(port: Port, qre: Qre, map_id: int | None, say: Callable[[str], None]) -> None:
    """Unregister the dead loader's objects from qre.ko; which they are is read from a device."""
    device = next(iter(qre.devices()), None)
    if device is None:
        return
    if device.cid_map is not None and device.cid_map.map_id == map_id:
        unless_gone(qre.cid_map_unregister)
        say("unregistered the CID map of a loader that was killed")
    held = device.shared_socket
    if held is not None and (held.ip, held.port) == (port.ip, port.port):
        unless_gone(qre.shared_socket_unregister)
        unless_gone(lambda: qre.loader_set(None))
        say("unregistered the shared socket of a loader that was killed")


def _closed(port: Port) -> bool:
    return wait_closed(port.ip, port.port, 0 if port.given is None else 1)


def wait_closed(ip: str, port: int, left: int) -> bool:
    """Wait until no more than ``left`` sockets are bound there; False when it takes too long."""
    deadline = time.monotonic() + _CLOSING
    while bound_sockets(ip, port) > left:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
