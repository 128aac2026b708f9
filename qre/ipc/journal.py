"""What our processes say, on standard error: one line each, and for systemd's journal with its priority.

The journal takes ``<N>`` at the beginning of a line for the priority N of syslog (sd-daemon(3)), and JOURNAL_STREAM
names the stream that it reads (systemd.exec(5)): whoever looks at another standard error sees no such thing.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

ERROR: Final = logging.ERROR
#: A level of ``logging``, and the priority of syslog from it on (syslog(3)); below the last it is debug's.
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7


def priority_mark(level: int) -> str:
    """What goes before a line of this level, a number of ``logging``; nothing unless the journal reads it."""
    if not _is_read_by_the_journal():
        return ""
    return f"<{next((number for least, number in _PRIORITIES if level >= least), _DEBUG)}>"


def log_to_stderr(name: str, level: str = "info") -> None:
    """Everything that this process logs goes there, under ``name``; ``level``: a profile's LogLevel."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(f"{name}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("qre").setLevel(level.upper())


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return priority_mark(record.levelno) + super().format(record)


def _is_read_by_the_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
