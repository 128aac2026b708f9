"""Sends ICMP errors in the name of the port. The handshake worker asks, which reads what strangers send and may be in
their hands: whatever it asks for, an error comes from the port alone, quotes a datagram to it, and few leave.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from qre.errors import MachineError, UntrustedInputError
from qre.ipc.messages import WorkerConfig
from qre.kernel.udp.icmp_sockets import send_error
from qre.kernel.udp.port_errors import Limits, PortError


class ErrorSender:
    """``held``: the descriptors of its sockets, by name; it owns them."""

    def __init__(self, held: Mapping[str, int]) -> None:
        self._held = dict(held)
        self._limits = Limits(time.monotonic())

    def send(self, error: PortError, config: WorkerConfig) -> None:
        """Send it, if the limits allow one more. Raises QreError when it cannot be sent, or is not the port's."""
        listen = config.listen
        ours = error.local_port == config.listen_port and (listen[0].is_unspecified or error.local in listen)
        fd = self._held.get("icmp" if error.local.version == 4 else "icmpv6")
        if not ours:
            raise UntrustedInputError("handshake worker", "an ICMP error that is not the port's")
        if fd is None:
            raise MachineError("ICMP", "there is no socket for it")
        if not self._limits.take(error.visitor, time.monotonic()):
            return
        try:
            send_error(fd, error)
        except ValueError as refused:
            raise UntrustedInputError("handshake worker", f"an ICMP error that no host sends: {refused}") from None
        except OSError as refused:  # no route, or no such address
            raise MachineError("ICMP", os.strerror(refused.errno or 0)) from refused

    def close(self) -> None:
        """Close the sockets."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
