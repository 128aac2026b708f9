"""Notifies systemd (sd_notify(3)), from the daemon's parent alone, and never waits for it.

A listener that does not read fills its queue after a few datagrams; unsent messages are kept, in order and
bounded, and sent a moment later. Of those of which only the latest matters (STATUS=, WATCHDOG=) one is kept.
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
    """Does nothing without NOTIFY_SOCKET."""

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
            del os.environ["NOTIFY_SOCKET"]  # not for hooks and workers

    def tell(self, text: str, fd: int | None = None) -> bool:
        """Send ``text`` (one or more assignments), ``fd`` with it; False when it waits for a later ``flush``.

        The caller closes ``fd``, not before it was sent.
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
        """Send waiting messages; False when some still wait."""
        while self._waiting and self._notifier is not None:
            text, fd = self._waiting[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
            try:
                # Not the package's notify(): that one encodes as Latin-1 and carries no descriptor.
                self._notifier.socket.sendmsg([text.encode()], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError:
                self._notifier = None  # the listener is gone for good
                return True
            self._waiting.popleft()
        return True


def one_line(text: str) -> str:
    """A worker's text without characters that could start another assignment or control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
