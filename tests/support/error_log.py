"""Who hears of ICMP errors about Dest, in tests of the relay alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qre.kernel.udp.error_queue import QueuedError
from qre.kernel.udp.quotable_header import Sent
from qre.workers.handshake.port.flow_parts import Flow


@dataclass
class ErrorLog:
    """As ``qre.workers.handshake.dest_errors.passing_on.DestErrors``; ``whole``: what came in one piece."""

    on: bool = True
    whole: bool = False
    heard: list[tuple[bytes, QueuedError]] = field(default_factory=list)

    def keep(self, kept: tuple[Sent, ...], data: bytes) -> tuple[Sent, ...]:
        return (*kept[-1:], Sent(data, []))

    def tells(self, flow: Flow, data: bytes) -> bool:
        return self.whole

    def told(self, flow: Flow, kept: Sequence[Sent], error: QueuedError) -> None:
        self.heard += [(each.data, error) for each in kept if each.data.startswith(error.begins)][-1:]
