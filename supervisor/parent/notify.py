"""What systemd is told (sd_notify(3)), by the daemon's parent alone, and never waiting for it.

A listener that does not read fills its queue after a few datagrams; what does not go out then is kept, in order and
bounded, and sent a moment later. Of what only the latest matters (STATUS=, WATCHDOG=) one is kept.
"""

from __future__ import annotations

import array
import os
import socket
import sys
from collections import deque
from typing import Final

import sdnotify

_MAX_WAITING: Final = 16
_ONLY_THE_LATEST: Final = ("STATUS=", "WATCHDOG=")


class Notifier:
    """Says nothing when nobody asked to be told (no NOTIFY_SOCKET)."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, int | None]] = deque(maxlen=_MAX_WAITING)
        self._notifier: sdnotify.SystemdNotifier | None = None
        address = os.environ.get("NOTIFY_SOCKET", "")
        if not address:
            return
        try:
            self._notifier = sdnotify.SystemdNotifier(debug=True)
            self._notifier.socket.setblocking(False)
        except OSError as error:
            print(f"qre-tool: NOTIFY_SOCKET {address}: {error.strerror}", file=sys.stderr)
            self._notifier = None
        finally:
            del os.environ["NOTIFY_SOCKET"]  # hooks and workers have nothing to say there

    def tell(self, text: str, fd: int | None = None) -> bool:
        """Send ``text`` (one or more assignments), ``fd`` with it; False when it waits for a later ``flush``.

        ``fd`` stays the caller's, and has to be open until then.
        """
        if self._notifier is None:
            return True
        for prefix in _ONLY_THE_LATEST:
            if text.startswith(prefix):
                kept = [waiting for waiting in self._waiting if not waiting[0].startswith(prefix)]
                self._waiting = deque(kept, maxlen=_MAX_WAITING)
        self._waiting.append((text, fd))
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; False when some of it still does."""
        while self._waiting and self._notifier is not None:
            text, fd = self._waiting[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
            try:
                # Not the package's notify(): that one encodes as Latin-1 and carries no descriptor.
                self._notifier.socket.sendmsg([text.encode()], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError:
                self._notifier = None  # the listener is gone, and does not come back
                return True
            self._waiting.popleft()
        return True


def one_line(text: str) -> str:
    """What a worker said, without what could start another assignment or command a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
