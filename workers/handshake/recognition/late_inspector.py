"""An inspector that is made when it first has something to read: no datagram waits for that to be forwarded."""

from __future__ import annotations

from collections.abc import Callable

from qre.quic.server.inspector import Verdict
from qre.workers.handshake.port.flow_parts import Inspector


class LateInspector:
    """See ``flow_parts.Inspector``; ``make`` is called once, or never."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Inspector]) -> None:
        self._make = make
        self._made: Inspector | None = None

    @property
    def opened(self) -> bool:
        """Whether a datagram came that decrypts as an Initial."""
        return self._made is not None and self._made.opened

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict:
        """The verdict after one more datagram."""
        return self._inspector().datagram_received(data, unix_time_ms)

    def retry_relayed(self, source_cid: bytes) -> None:
        """Dest sent a Retry with this source CID."""
        self._inspector().retry_relayed(source_cid)

    def cid_shown(self, source_cid: bytes) -> None:
        """Dest answered under this source CID."""
        self._inspector().cid_shown(source_cid)

    def _inspector(self) -> Inspector:
        if self._made is None:
            self._made = self._make()
        return self._made
