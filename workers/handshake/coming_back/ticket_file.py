"""A file of tickets or of their keys, of fixed length, as this process is handed it: read once, then written whole.

Its first bytes say for which boot of the machine it holds anything; they are the parent's, which erases the rest
after another boot.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from qre.device.state import BOOT_MARK_LENGTH


class TicketFile:
    """``fd`` belongs to this object; None: nothing is kept. ``complain`` gets one line when it cannot be written."""

    def __init__(self, fd: int | None, complain: Callable[[str], None]) -> None:
        self._fd = fd
        self._complain = complain

    def read(self, length: int) -> bytes:
        """At most ``length`` bytes; none where they cannot be read."""
        if self._fd is None:
            return b""
        try:
            return os.pread(self._fd, length, BOOT_MARK_LENGTH)
        except OSError as error:
            self._complain(error.strerror or "it cannot be read")
            return b""

    def write(self, image: bytes) -> bool:
        """Whether it holds ``image`` now. A machine that ends before it is on the disk begins another boot."""
        if self._fd is None:
            return False
        try:
            whole = os.pwrite(self._fd, image, BOOT_MARK_LENGTH) == len(image)
        except OSError as error:
            self._complain(error.strerror or "it cannot be written")
            return False
        if not whole:
            self._complain("no space left")
        return whole

    def close(self) -> None:
        """Nothing is written any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
