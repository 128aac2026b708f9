"""What systemd is told (sd_notify(3)), by the daemon's parent alone, and never waiting for it.

A listener that does not read fills its queue after a few datagrams; what does not go out then is kept, in order and
bounded, and sent a moment later. Of what only the latest matters (STATUS=, WATCHDOG=) one is kept.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import Final

import sdnotify

_MAX_WAITING: Final = 16
_ONLY_THE_LATEST: Final = ("STATUS=", "WATCHDOG=")


class Notifier:
    """Says nothing when nobody asked to be told (no NOTIFY_SOCKET)."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=_MAX_WAITING)
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

    def tell(self, text: str) -> bool:
        """Send ``text`` (one or more assignments); False when it waits for a later ``flush``."""
        if self._notifier is None:
            return True
        for prefix in _ONLY_THE_LATEST:
            if text.startswith(prefix):
                kept = [waiting for waiting in self._waiting if not waiting.startswith(prefix)]
                self._waiting = deque(kept, maxlen=_MAX_WAITING)
        self._waiting.append(text)
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; False when some of it still does."""
        while self._waiting and self._notifier is not None:
            try:
                # The package encodes as Latin-1, systemd reads UTF-8.
                self._notifier.notify(self._waiting[0].encode().decode("latin-1"))
            except BlockingIOError:
                return False
            except OSError:
                self._notifier = None  # the listener is gone, and does not come back
                return True
            self._waiting.popleft()
        return True
