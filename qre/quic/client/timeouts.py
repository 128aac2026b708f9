"""What a client repeats when nothing answers, as a browser does (RFC 9002 §6.2): aioquic's recovery, by subclassing.

Stock takes everything that is outstanding for lost when a probe timeout ends, and sends all of it again at once. A
browser repeats one packet. Hook of aioquic: ``QuicPacketRecovery.reschedule_data``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic.quic.recovery import QuicPacketRecovery


class BrowserRecovery(QuicPacketRecovery):
    """``repeat_hello`` is called at every probe timeout: whether it has queued a part of the hello."""

    def __init__(self, *, repeat_hello: Callable[[], bool], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._repeat_hello = repeat_hello

    def reschedule_data(self, *, now: float, speed_up_handshake: bool = False) -> None:
        """One part of the hello, and nothing is taken for lost; as stock once the hello has arrived."""
        if self._repeat_hello():
            self._send_probe()
            return
        super().reschedule_data(now=now, speed_up_handshake=speed_up_handshake)
