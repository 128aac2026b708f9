"""``shared-port-loader-check``: does the BPF program steer? Tested with real packets from other sockets.

Each result is a line that begins with ``ok``; the first failure ends the command. Everything that was set up is
removed again.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Final

from qre.cli.commands import Options
from qre.cli.kernel.kernel_commands import unless_gone
from qre.cli.port.end_signals import EndSignals
from qre.cli.port.port_fields import CheckFields, parse_check_fields
from qre.cli.port.port_front import Front, module, say, set_up
from qre.cli.port.port_loader import port_counters
from qre.cli.undo import Undo
from qre.ends import Role
from qre.errors import MachineError, UserError
from qre.kernel.answers import SharedSocketStatus
from qre.kernel.bpf_program import SLOT_KERNEL, SLOT_USER
from qre.kernel.qre_family import Qre

#: Loopback delivers at once; this is for a busy machine (seconds).
_PATIENCE: Final = 5.0
#: From so many source ports both sockets are chosen without the program, but once in 2^127 times.
_SPREAD: Final = 128
_TOKEN: Final = 16
_NAMES: Final = {SLOT_USER: "slot 0 (user space)", SLOT_KERNEL: "slot 1 (kernel)"}


def shared_port_loader_check(arguments: list[str], options: Options) -> int:
    """``shared-port-loader-check BpfElf=PATH Listen=IP:PORT ConnectionId=HEX …``"""
    command, fields = "shared-port-loader-check", parse_check_fields(arguments)
    with EndSignals(), module(command, fields.loading) as qre:  # the test is short and runs to its end
        if fields.device is not None:
            _check_counted(fields.device, qre)
        with Undo() as undo:
            front = set_up(undo, fields.loading, fields.listen, qre)
            _check(undo, front, fields, qre)
    say("ok everything")
    return 0


def _check(undo: Undo, front: Front, fields: CheckFields, qre: Qre | None) -> None:
    cid = fields.connection_id
    before = _counters(fields, qre)
    fallbacks = {
        "a long header": b"\xc0" + cid,
        "a short header with an unknown connection ID": b"\x40" + bytes(octet ^ 0xFF for octet in cid),
        "a short header with the connection ID before it is adopted": b"\x40" + cid,
    }
    for what, head in fallbacks.items():
        _steered(front, what, head, SLOT_USER)
    _adopt(undo, front, fields, qre)
    to_kernel = {"a short header with the connection ID": 64, "the same, and not a byte more": 0}
    for what, more in to_kernel.items():
        _steered(front, what, b"\x40" + cid, SLOT_KERNEL, more)
    _steered(front, "a packet that ends inside the connection ID", b"\x40" + cid[:-1], SLOT_USER, 0)
    _steered(front, "a long header with the adopted connection ID", b"\xc0" + cid, SLOT_USER)
    _compare(fields, before, _counters(fields, qre), len(to_kernel))
    _release(front, fields, qre)
    _steered(front, "a short header with the connection ID after its release", b"\x40" + cid, SLOT_USER)
    front.maps.detach(front.pair[SLOT_USER].fileno())
    _spread(front, b"\x40" + cid)


# --- the connection ID ---


def _adopt(undo: Undo, front: Front, fields: CheckFields, qre: Qre | None) -> None:
    """Let qre.ko adopt it on the device and mirror it into the map; without a device write it into the map."""
    device, cid = fields.device, fields.connection_id
    mirrored = False
    if qre is not None and device is not None:
        qre.cid_adopt(device, cid)
        undo.add(lambda: unless_gone(lambda: qre.cid_release(device, cid)))
        mirrored = fields.loading.register
    if not mirrored:
        front.maps.adopt(cid)
    how = f"qre.ko adopted the connection ID on {device} and wrote it into the map"
    how = how if mirrored else "the connection ID is in the map"
    if cid not in front.maps.adopted():
        raise MachineError("QRE_CID_ROUTES", "the connection ID was adopted but is not in it", "see `dmesg`")
    say(f"ok {how}")


def _release(front: Front, fields: CheckFields, qre: Qre | None) -> None:
    if qre is not None and fields.device is not None:
        qre.cid_release(fields.device, fields.connection_id)
    if qre is None or fields.device is None or not fields.loading.register:
        front.maps.release(fields.connection_id)
    if fields.connection_id in front.maps.adopted():
        raise MachineError("QRE_CID_ROUTES", "the connection ID was released but is still in it", "see `dmesg`")
    say("ok the connection ID is gone from the map")


# --- packets ---


def _steered(front: Front, what: str, head: bytes, slot: int, more: int = 64) -> None:
    """Send ``head`` and ``more`` random bytes, and check which socket receives the packet."""
    found = _send(front, head + os.urandom(more))
    if found != slot:
        raise MachineError(what, f"it reached {_NAMES[found]}, not {_NAMES[slot]}", "see `bpftool map dump`")
    say(f"ok {what}: {_NAMES[slot]}")


def _spread(front: Front, head: bytes) -> None:
    """Without the program the kernel chooses by addresses and ports."""
    counts = {SLOT_USER: 0, SLOT_KERNEL: 0}
    for _ in range(_SPREAD):
        counts[_send(front, head + os.urandom(_TOKEN))] += 1
    if not all(counts.values()):
        raise MachineError("detach", "one socket still gets every packet", "see `bpftool prog`")
    spread = f"{counts[SLOT_USER]} to slot 0, {counts[SLOT_KERNEL]} to slot 1"
    say(f"ok after detach the kernel chooses by itself: of {_SPREAD} packets {spread}")


def _send(front: Front, packet: bytes) -> int:
    """The slot whose socket received the packet; packets from others are discarded."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(packet, front.address)
        except OSError as error:
            where = f"sending to {front.port}"
            raise MachineError(where, error.strerror or str(error), "see `ip route get`") from error
        source = sender.getsockname()[1]
        deadline = time.monotonic() + _PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            for one in select.select(front.pair, [], [], left)[0]:
                try:
                    data, (_, port) = one.recvfrom(len(packet) + 1)
                except BlockingIOError:
                    continue
                if (data, port) == (packet, source):
                    return front.pair.index(one)
    raise MachineError(f"a packet to {front.port}", "neither socket received it", "see the firewall")


# --- what the kernel counts ---


def _check_counted(device: str, qre: Qre | None) -> None:
    """Raise UserError unless the device exists and has the counters that are to be compared."""
    if qre is None:
        remedy = "load it with `modprobe qre`, or leave Device out"
        raise UserError("field Device", "qre.ko alone counts the packets of a shared port; it is not loaded", remedy)
    port_counters(device)  # it must be there
    found = qre.device(device)
    if found is None or found.role is not Role.SERVER:
        why = f"{device} is not a server's device of qre.ko, which alone has counters of a shared port"
        raise UserError("field Device", why, "name one of those in `qre-tool show`, or leave Device out")


def _counters(fields: CheckFields, qre: Qre | None) -> SharedSocketStatus | None:
    """Counters of the shared socket, if a device is given."""
    device = qre.device(fields.device) if qre is not None and fields.device is not None else None
    if fields.device is not None:
        say(port_counters(fields.device))
    return device.shared_socket if device is not None else None


def _compare(
    fields: CheckFields, before: SharedSocketStatus | None, after: SharedSocketStatus | None, sent: int
) -> None:
    """The kernel examines what arrives in slot 1 and leaves packets without a session to the socket."""
    if fields.device is None:
        return
    if before is None or after is None:
        why = "qre.ko shows no shared socket, although one was registered"
        raise MachineError(f"shared socket of {fields.device}", why, "end what has unregistered it; see `dmesg`")
    rx, passed = after.rx - before.rx, after.passed - before.passed
    if rx != 0 or passed < sent:
        why = f"of {sent} packets in slot 1 the kernel counted {passed} passed on and {rx} taken"
        raise MachineError(f"shared socket of {fields.device}", why, "see `qre-tool show`")
    say(f"ok the kernel counted {passed} packets in slot 1, and left them to the socket")
