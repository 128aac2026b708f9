"""After CONNECTION_CLOSE was sent: the same packet once more, ever more rarely (RFC 9000 §10.2.1)."""

from __future__ import annotations


class Closing:
    """``until``: when it is over. ``packet`` is the one with CONNECTION_CLOSE."""

    __slots__ = ("_received", "packet", "until")

    def __init__(self, packet: bytes, until: float) -> None:
        self.packet = packet
        self.until = until
        self._received = 0

    def received(self) -> bool:
        """Something came; whether the packet is to be sent again: after the first, second, fourth, eighth, …"""
        self._received += 1
        return self._received & (self._received - 1) == 0
