"""What a client's machine sends before there is a session: kept for a few seconds, as other tunnels do, so that the
first packets of a connection wait for the handshake instead of a repetition. Time as an argument.

Few, young and small in all: what is pushed out or has become old is dropped as it would have been without.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

#: Reads of the device, their bytes together, and how old one becomes (seconds): a sender repeats after that.
MOST: Final = 128
MOST_BYTES: Final = 1 << 18
LONGEST: Final = 5.0


def is_unicast(address: bytes) -> bool:
    """Whether it is one machine's, as it stands in a packet: what a device says to all of its link is not kept."""
    return address[0] < (224 if len(address) == 4 else 0xFF)


class EarlyPackets:
    """Reads of a TUN device, the oldest first; ``drops`` counts what is lost as ``no-session``."""

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops
        self._kept: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, read: bytes, now: float) -> None:
        """Keep it, in the place of older ones if there are too many."""
        self._kept.append((now, read))
        self._bytes += len(read)
        while len(self._kept) > MOST or self._bytes > MOST_BYTES:
            self._drop()

    def take(self, now: float) -> list[bytes]:
        """All that are not too old; none is kept any more."""
        while self._kept and now - self._kept[0][0] > LONGEST:
            self._drop()
        taken = [read for _, read in self._kept]
        self._kept.clear()
        self._bytes = 0
        return taken

    def _drop(self) -> None:
        _, read = self._kept.popleft()
        self._bytes -= len(read)
        self._drops["no-session"] += 1
