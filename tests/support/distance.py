"""A stretch of road in user space: UDP datagrams arrive somewhere else after a delay, with their ECN marks.

``python -m tests.support.distance IP PORT TO_IP TO_PORT MS [JITTER_MS]`` runs until it is killed, for machines whose
kernel has no netem. Each source gets a socket of its own towards the far end. Jitter is that of a queue on the way:
up to so much is added, anew for each burst; what comes within a millisecond of each other stays together.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import sys
import time
from itertools import count

from qre.kernel.udp.control_messages import ecn_of, with_ecn

Address = tuple[str, int]
#: What comes within so many seconds of each other waits in the same queue.
_BURST = 1e-3


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    made.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE: DF, as they came
    return made


class Way:
    """One direction of one source: when what comes now arrives (monotonic)."""

    def __init__(self, delay: float, jitter: float) -> None:
        self._delay, self._jitter = delay, jitter
        self._came = self._due = self._added = 0.0

    def due(self, now: float) -> float:
        if now - self._came > _BURST:
            self._added = random.uniform(0, self._jitter)
        self._came = now
        self._due = max(self._due, now + self._delay + self._added)
        return self._due


def main(near: Address, far: Address, delay: float, jitter: float) -> None:
    """Until killed."""
    ways: dict[tuple[Address, bool], Way] = {}
    order = count()
    front = _socket()
    front.bind(near)
    behind: dict[Address, socket.socket] = {}
    ends: dict[int, tuple[socket.socket, Address | None]] = {
        front.fileno(): (front, None)
    }  # and the source behind it
    readable = select.epoll()  # its own waiting is exact to a millisecond only, that of select to a microsecond
    readable.register(front, select.EPOLLIN)
    waiting: list[tuple[float, int, socket.socket, Address, bytes, int]] = []
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        select.select([readable], [], [], left)
        for number, _ in readable.poll(0):
            one, visitor = ends[number]
            while True:
                try:
                    data, ancillary, _, source = one.recvmsg(65_535, 64)
                except BlockingIOError:
                    break
                except OSError:
                    continue
                if visitor is None:
                    if source not in behind:
                        behind[source] = made = _socket()
                        ends[made.fileno()] = made, source
                        readable.register(made, select.EPOLLIN)
                    sender, to = behind[source], far
                else:
                    sender, to = front, visitor
                way = visitor or source, visitor is None
                due = ways.setdefault(way, Way(delay, jitter)).due(time.monotonic())
                heapq.heappush(waiting, (due, next(order), sender, to, data, ecn_of(ancillary)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, sender, to, data, ecn = heapq.heappop(waiting)
            try:
                sender.sendmsg([data], with_ecn(socket.AF_INET, ecn), 0, to)
            except OSError:  # nobody there: it is lost
                continue


if __name__ == "__main__":
    ip, port, to_ip, to_port, ms, *jitter_ms = sys.argv[1:]
    main((ip, int(port)), (to_ip, int(to_port)), float(ms) / 1000, float(jitter_ms[0]) / 1000 if jitter_ms else 0.0)
