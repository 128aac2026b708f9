"""The sockets of one client's session: the one in use, and a spare one from a port that nobody knows yet.

When nothing comes back, the session tries the spare one, and moves there if the server answers. What is on its way to
the port that was left is still taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from qre.dataplane.protocol import Refusal, SessionRefusedError
from qre.workers.dataplane.underlay import UnderlaySocket

_MOST: Final = 2


class ClientPorts:
    """Owns its sockets."""

    def __init__(self, fds: list[int], drops: Counter[str]) -> None:
        """Takes the descriptors out of ``fds``. Raises QreError."""
        self._sockets: list[UnderlaySocket] = []
        self._moved = False
        if not 1 <= len(fds) <= _MOST:
            raise SessionRefusedError(
                Refusal.OTHER, "a client session comes with its socket, and perhaps a spare one"
            )
        try:
            while fds:
                self._sockets.append(UnderlaySocket(fds.pop(0), drops))
        except BaseException:
            for each in self._sockets:
                each.close()
            raise

    def __iter__(self) -> Iterator[UnderlaySocket]:
        return iter(self._sockets)

    @property
    def has_spare(self) -> bool:
        """Whether there is another port to go to."""
        return len(self._sockets) == _MOST and not self._moved

    @property
    def used(self) -> UnderlaySocket:
        """For everything to the server."""
        return self._sockets[-1 if self._moved else 0]

    @property
    def spare(self) -> UnderlaySocket:
        """For trying another port."""
        return self._sockets[-1]

    def move(self) -> None:
        """The server answers there."""
        self._moved = True
