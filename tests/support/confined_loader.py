"""Loads, attaches and steers inside the BPF loader's own sandbox: ``python -m tests.support.confined_loader [none]``.

Prints what the kernel said of that process, and which slots packets went to meanwhile, as JSON. With ``none`` the
role is granted no capability at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from qre.errors import MachineError
from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from qre.ipc.sandbox import enter
from qre.kernel.bpf_program import SLOT_KERNEL, SLOT_USER, load
from tests.support.reuseport import Port, open_elf, short_packet

CID = bytes(range(20))


def steps(port: Port, elf: int) -> Iterator[dict[str, Any]]:
    """What the loader does, and what it found; packets are sent after each step."""
    try:
        maps = load(elf, len(CID))
    except MachineError as error:
        yield {"refused": str(error)}
        return
    maps.slot_in(SLOT_USER, port.pair[0].fileno())
    maps.slot_in(SLOT_KERNEL, port.pair[1].fileno())
    maps.attach(port.pair[0].fileno())
    yield {}
    maps.adopt(CID)
    yield {"adopted": [cid.hex() for cid in maps.adopted()]}
    maps.release(CID)
    maps.detach(port.pair[0].fileno())
    yield {}


def confined(granted: bool, port: Port, channel: socket.socket) -> None:
    elf, status = open_elf(), os.open("/proc/self/status", os.O_RDONLY)
    role = ROLES[Party.BPF_LOADER]
    enter(role if granted else dataclasses.replace(role, capabilities=frozenset()), os.getppid())
    said = dict(line.split(":", 1) for line in os.pread(status, 1 << 16, 0).decode().splitlines())
    names = ("Uid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")
    channel.send(json.dumps({name: said[name].split()[0] for name in names}).encode())
    for found in steps(port, elf):
        channel.send(json.dumps(found).encode())
        channel.recv(1)


def main(granted: bool) -> int:
    port = Port()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        ours.close()
        confined(granted, port, theirs)
        return 0
    theirs.close()
    found: dict[str, Any] = json.loads(ours.recv(4096))
    seen = []
    while told := ours.recv(4096):
        found |= json.loads(told)
        seen.append(sorted(port.slots_of(short_packet(CID))))
        ours.send(b".")
    print(json.dumps(found | {"seen": seen}))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] != ["none"]))
