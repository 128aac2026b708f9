"""The front of a shared port, without a daemon: two sockets in one group, the BPF program, registrations with qre.ko.

In the order of the daemon's start: load, bind, fill the slots, pin, register, attach; undone in reverse. Each step
prints a line. It never touches a port, a pin or a registration of another program.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from qre.addresses import host_port
from qre.cli import standard_output
from qre.cli.kernel.kernel_commands import unless_gone
from qre.cli.port.port_fields import Loading
from qre.cli.port.port_leftovers import BY_HAND, Port, clear_leftovers, wait_closed
from qre.cli.undo import Undo
from qre.config.model import SocketAddress
from qre.config.settings import load_global
from qre.device.kernel_module import require_module
from qre.errors import MachineError, UserError
from qre.ipc import descriptors
from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from qre.kernel.answers import LoaderDescription
from qre.kernel.bpf_pins import check_pin_dir, pin, unpin
from qre.kernel.bpf_program import PROGRAM, SLOT_KERNEL, SLOT_USER, Maps, load, socket_cookie
from qre.kernel.capabilities import require_capabilities
from qre.kernel.port_sockets import bound_sockets
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.kernel.udp.underlay_sockets import group_socket, server_pair

_SO_NETNS_COOKIE: Final = 71
_GIVEN: Final = "field UserspaceSocketFd"


@dataclass(frozen=True)
class Front:
    """What is set up. ``pair``: the sockets of slot 0 and slot 1."""

    port: Port
    maps: Maps
    pair: tuple[socket.socket, socket.socket]

    @property
    def address(self) -> tuple[str, int]:
        """Where programs on this machine send to."""
        return "127.0.0.1" if self.port.ip == "0.0.0.0" else self.port.ip, self.port.port


def say(line: str) -> None:
    """One line of what was done, at once."""
    print(line, flush=True)


def say_if_heard(line: str) -> None:
    """The same while steps are undone, which continues when standard output is closed."""
    try:
        say(line)
    except OSError:
        standard_output.silence()


@contextmanager
def module(command: str, loading: Loading, *, needed: bool = False) -> Iterator[Qre | None]:
    """qre.ko, which gets the shared socket, and the CID map if that is to be registered.

    None when it is not there, and neither the map is to be registered nor the command ``needed`` it: the program
    steers without it, too.
    """
    require_capabilities(command, ("CAP_BPF", "CAP_NET_ADMIN"))
    try:
        require_module(load_global(os.environ))
        made = Qre()
    except MachineError as error:
        if not loading.register and not needed:
            yield None
            return
        remedy = error.remedy if needed else f"{error.remedy}; or give RegisterCidMap=false"
        raise MachineError(error.what, error.why, remedy) from error
    with made as qre:
        yield qre


def set_up(
    undo: Undo, loading: Loading, listen: SocketAddress, qre: Qre | None, *, socket_fd: int | None = None
) -> Front:
    """All of it; ``undo`` takes it back. With ``qre`` the shared socket is registered, and the map if it is to be.

    ``socket_fd``: the socket of slot 0, which is checked and stays the caller's.
    """
    if listen.ip.version != 4:
        raise UserError(f"Listen {listen}", "a shared port is one of IPv4", "write an IPv4 address")
    ip = str(listen.ip)
    check_pin_dir(loading.pin_dir, "PinDir")
    given = _given_socket(undo, socket_fd, ip, listen.port) if socket_fd is not None else None
    cookie = socket_cookie(given.fileno()) if given is not None else None
    port = Port(ip, listen.port, loading.pin_dir, cookie)
    elf = _open_elf(undo, loading)
    clear_leftovers(port, qre, say)
    maps = load(elf, loading.routed_cid_len)
    undo.add(maps.close)
    say(f"loaded {PROGRAM} for connection IDs of {loading.routed_cid_len} bytes")
    front = Front(port, maps, _pair(undo, port, given))
    for slot, name in ((SLOT_USER, "user space"), (SLOT_KERNEL, "kernel")):
        maps.slot_in(slot, front.pair[slot].fileno())
        say(f"put a socket bound to UDP {port} into slot {slot} ({name})")
    _pin(undo, front)
    if qre is not None:
        _register(undo, front, loading, qre)
    else:
        say("qre.ko is not loaded: nothing is registered with it")
    maps.attach(front.pair[SLOT_USER].fileno())
    undo.add(lambda: _detach(front))
    say(f"attached {PROGRAM}")
    return front


# --- the parts, in their order ---


def _open_elf(undo: Undo, loading: Loading) -> int:
    what = f"BpfElf {loading.bpf_elf}"
    try:
        elf = os.open(loading.bpf_elf, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        remedy = "write the path of qre_reuseport.bpf.o, which `make -C bpf` builds"
        raise UserError(what, error.strerror or str(error), remedy) from error
    undo.add(lambda: os.close(elf))
    if not stat.S_ISREG(os.fstat(elf).st_mode):
        raise UserError(what, "it is not a regular file", "write the path of qre_reuseport.bpf.o")
    return elf


def _given_socket(undo: Undo, fd: int, ip: str, port: int) -> socket.socket:
    """A duplicate of the given socket, after all checks."""
    expected = ROLES[Party.BPF_LOADER].expected("udp_userspace")
    assert expected is not None
    try:
        descriptors.check(fd, expected)
    except MachineError as error:
        remedy = "hand in an IPv4 UDP socket with SO_REUSEPORT that is bound to Listen"
        raise UserError(_GIVEN, f"{fd}: {error.why}", remedy) from error
    given = socket.socket(fileno=os.dup(fd))
    undo.add(given.close)
    bound = given.getsockname()
    if bound != (ip, port):
        raise UserError(_GIVEN, f"it is bound to {bound[0]}:{bound[1]}, not to Listen {ip}:{port}", "make them equal")
    if os.fstat(fd).st_uid != os.geteuid():
        raise UserError(
            _GIVEN,
            "another user created it, and all sockets of a port must belong to one user",
            "create it as this user",
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        if _namespace(own) != _namespace(given):
            raise UserError(_GIVEN, "it belongs to another network namespace", "run the command in the socket's")
    return given


def _namespace(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def _pair(undo: Undo, port: Port, given: socket.socket | None) -> tuple[socket.socket, socket.socket]:
    if given is None:
        pair = server_pair(port.ip, port.port)
        undo.add(lambda: _close(port, *pair))
        return pair
    if bound_sockets(port.ip, port.port) > 1:
        why = "another socket is bound there, too, and would take some of the packets"
        raise UserError(f"Listen {port}", why, "see `ss -ulpn`, and end that program")
    kernel_slot = group_socket(port.ip, port.port)
    undo.add(lambda: _close(port, kernel_slot))
    return given, kernel_slot


def _close(port: Port, *sockets: socket.socket) -> None:
    """The port is free when this returns: the next command may need it at once."""
    for one in sockets:
        one.close()
    if wait_closed(port.ip, port.port, 0 if port.given is None else 1):
        say_if_heard(f"closed the sockets of UDP {port}")
    else:
        say_if_heard(f"closed the sockets of UDP {port}; sessions of qre.ko still use the port")


def _detach(front: Front) -> None:
    front.maps.detach(front.pair[SLOT_USER].fileno())
    say_if_heard(f"detached {PROGRAM}")


def _pin(undo: Undo, front: Front) -> None:
    port, maps = front.port, front.maps

    def take_back() -> None:
        unpin(port.pin_dir, port.label)
        say_if_heard("removed the pins")

    pin(port.pin_dir, port.label, [maps.cid_routes, maps.sockets, maps.program])
    undo.add(take_back)
    for path in port.pins():
        say(f"pinned {path}")


def _register(undo: Undo, front: Front, loading: Loading, qre: Qre) -> None:
    """The map first: the kernel takes one per namespace, so an existing registration is not disturbed."""
    if loading.register:
        _not_twice(lambda: qre.cid_map_register(front.maps.cid_routes))
        undo.add(lambda: _unregister("the CID map", qre.cid_map_unregister))
        say(f"registered the CID map {front.maps.map_id} with qre.ko")
    _refuse_other_socket(qre, front.port)
    _not_twice(lambda: qre.shared_socket_register(front.pair[SLOT_KERNEL].fileno()))
    undo.add(lambda: _unregister("the shared socket", qre.shared_socket_unregister))
    say("registered the shared socket with qre.ko")
    told = LoaderDescription(
        program=PROGRAM, pin_dir=str(loading.pin_dir), cid_length=loading.routed_cid_len, pid=os.getpid()
    )
    qre.loader_set(told)
    undo.add(lambda: qre.loader_set(None))


def _refuse_other_socket(qre: Qre, port: Port) -> None:
    """The kernel would replace a registered socket of the same address with this one."""
    device = next(iter(qre.devices()), None)
    if device is not None and device.shared_socket is not None:
        held = host_port(device.shared_socket.ip, device.shared_socket.port)
        why = f"qre.ko serves {held} in this network namespace already"
        raise UserError(f"Listen {port}", why, f"end what registered it, or {BY_HAND}")


def _not_twice(request: Callable[[], None]) -> None:
    try:
        request()
    except NetlinkRefusedError as error:
        if error.code != errno.EBUSY:
            raise
        raise MachineError(error.what, error.why, f"end what registered it, or {BY_HAND}") from error


def _unregister(what: str, request: Callable[[], None]) -> None:
    unless_gone(request)
    say_if_heard(f"unregistered {what}")
