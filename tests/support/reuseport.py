"""A server's port as the supervisor makes it: two sockets of one SO_REUSEPORT group, and who gets a packet."""

from __future__ import annotations

import os
import select
import socket
from types import TracebackType
from typing import Final, Self

from qre.config.model import GlobalConfig, Listen
from qre.kernel.bpf_program import SLOT_KERNEL, SLOT_USER, Maps, load
from qre.kernel.udp.control_messages import family_of
from qre.kernel.udp.underlay_sockets import server_pair
from qre.supervisor.parent.process_settings import bpf_elf
from tests.support.daemons import PATIENCE

ADDRESS: Final = "127.0.0.1"


def short_packet(cid: bytes, size: int = 40) -> bytes:
    return (b"\x40" + cid).ljust(size, b"\xaa")


def open_elf() -> int:
    """The program as it was compiled; the caller's to close."""
    return os.open(bpf_elf(GlobalConfig()), os.O_RDONLY | os.O_CLOEXEC)


class Port:
    """Both sockets on a free port of loopback, or where they are told to listen; nothing attached yet."""

    def __init__(self, listen: Listen | None = None) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((ADDRESS, 0))
            port = free.getsockname()[1]
        self.address = (ADDRESS, port) if listen is None else (str(listen.ip), listen.port)
        self.pair = list(server_pair(*self.address))

    def another(self) -> socket.socket:
        """One more socket of the group, in no slot; the caller's to close."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(self.address)
        made.setblocking(False)
        return made

    def slot_of(self, packet: bytes) -> int:
        """Send it from a fresh port, and see which socket has it."""
        with socket.socket(family_of(self.address[0]), socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, self.address)
        there = [one for one in self.pair if one.fileno() >= 0]
        readable = select.select(there, [], [], PATIENCE)[0]
        assert readable, "nobody got it"
        assert readable[0].recv(2048) == packet
        return self.pair.index(readable[0])

    def slots_of(self, packet: bytes, times: int = 64) -> set[int]:
        """Who gets it, sent often from different ports: one slot when a program chose, both when the kernel did."""
        return {self.slot_of(packet) for _ in range(times)}

    def close(self) -> None:
        for one in self.pair:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Group(Port):
    """The same with the program attached."""

    def __init__(self, length: int = 20, port: Listen | None = None) -> None:
        super().__init__(port)
        elf = open_elf()
        try:
            self.maps: Maps = load(elf, length, port.several if port is not None else ())
        finally:
            os.close(elf)
        self.maps.slot_in(SLOT_USER, self.pair[0].fileno())
        self.maps.slot_in(SLOT_KERNEL, self.pair[1].fileno())
        self.maps.attach(self.pair[0].fileno())

    def close(self) -> None:
        self.maps.close()
        super().close()
