"""``shared-port-loader``: the front of a shared port, held until a signal or the end of its time; for debugging.

A server's daemon has a front of its own. Unless it is killed with SIGKILL it leaves nothing behind.
"""

from __future__ import annotations

import os

from qre.cli.commands import Options
from qre.cli.port.end_signals import EndSignals
from qre.cli.port.port_fields import Lasting, parse_loader_fields
from qre.cli.port.port_front import Front, module, say, say_if_heard, set_up
from qre.cli.port.ready_file import check_ready_file, remove_ready_file, write_ready_file
from qre.cli.show.show import device as describe
from qre.cli.undo import Undo
from qre.config.settings import load_global


def shared_port_loader(arguments: list[str], options: Options) -> int:
    """``shared-port-loader BpfElf=PATH Listen=IP:PORT UserspaceSocketFd=FD|UserspaceBind=true …``"""
    command, fields = "shared-port-loader", parse_loader_fields(arguments)
    with EndSignals() as end, module(command, fields.loading) as qre:
        if fields.device is not None:
            port_counters(fields.device)  # it must be there
        if fields.lasting.ready_file is not None:
            check_ready_file(fields.lasting.ready_file)
        with Undo() as undo:
            front = set_up(undo, fields.loading, fields.listen, qre, socket_fd=fields.socket_fd)
            if fields.device is not None:
                say(port_counters(fields.device))
            stay(undo, front, fields.lasting, end)
            if fields.device is not None:
                say_if_heard(port_counters(fields.device))
    return 0


def stay(undo: Undo, front: Front, lasting: Lasting, end: EndSignals) -> None:
    """Report readiness, then wait for a signal or the time."""
    path = lasting.ready_file
    if path is not None:
        pins = {path.name.rpartition(f"-{front.port.label}")[0]: str(path) for path in front.port.pins()}
        write_ready_file(path, {"listen": str(front.port), "pins": pins})
        undo.add(lambda: remove_ready_file(path))
    say("ready")
    say_if_heard("ending: stopped by a signal" if end.wait(lasting.run_for_s) else "ending: RunForMs is over")


def port_counters(device: str) -> str:
    """The shared-port counters of the device in one line. UserError when there is no such device."""
    described = describe(load_global(os.environ), device)
    shared, mapped = described["shared_socket"], described["cid_map"]
    if shared is None or mapped is None:
        return f"{device}: it has no shared port"
    where = shared["local"] if shared["registered"] else "not registered"
    state = "not registered" if not mapped["registered"] else "in sync" if mapped["in_sync"] else "not in sync"
    packets = f"{shared['rx_packets']} packets taken, {shared['passed_packets']} passed on"
    return f"{device}: shared socket {where}, {packets}; CID map {state}, {mapped['entries']} entries"
