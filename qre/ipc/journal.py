"""Log lines on standard error, with a priority when systemd's journal reads it.

The journal takes ``<N>`` at the beginning of a line as the syslog priority N (sd-daemon(3)). JOURNAL_STREAM names the
stream that it reads (systemd.exec(5)); on any other standard error, lines have no such prefix.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

ERROR: Final = logging.ERROR
#: The syslog priority (syslog(3)) of each level of ``logging`` and those above it; lower levels have debug's.
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7


def priority_mark(level: int) -> str:
    """The prefix of a line of this level (a number of ``logging``); empty unless the journal reads it."""
    return _mark(level) if _is_read_by_the_journal() else ""


def log_to_stderr(name: str, level: str = "info") -> None:
    """Log to standard error from now on, under ``name``; ``level`` is a profile's LogLevel."""
    handler = logging.StreamHandler(sys.stderr)
    line = f"{name}: %(message)s"
    handler.setFormatter(_Line(line) if _is_read_by_the_journal() else logging.Formatter(line))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("qre").setLevel(level.upper())
    # It warns that it cannot read /proc/net, which a unit hides and which nobody here needs.
    logging.getLogger("pyroute2.netlink").setLevel(logging.ERROR)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _mark(record.levelno) + super().format(record)


def _mark(level: int) -> str:
    return f"<{next((number for least, number in _PRIORITIES if level >= least), _DEBUG)}>"


def _is_read_by_the_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or missing
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
