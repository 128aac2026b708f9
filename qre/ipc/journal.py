"""Log lines for a person: to the journal with fields when systemd's journal reads standard error, else there.

JOURNAL_STREAM names the stream that the journal reads (systemd.exec(5)); on any other standard error, lines are as
they are. The journal's own socket takes fields besides (systemd.io/JOURNAL_NATIVE_PROTOCOL): QRE_PROFILE, QRE_DEVICE
and QRE_PROCESS select lines with `journalctl QRE_DEVICE=server0`. It is connected before a worker closes its sandbox.
A line that does not reach it goes to standard error with ``<N>`` before it, which the journal takes as the priority
(sd-daemon(3)).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Final, TextIO

ERROR: Final = logging.ERROR
#: The syslog priority (syslog(3)) of each level of ``logging`` and those above it; lower levels have debug's.
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7
SOCKET: Final = "/run/systemd/journal/socket"
#: What all lines of this process have.
_fields: Final[dict[str, str]] = {}


def priority_mark(level: int) -> str:
    """The prefix of a line of this level (a number of ``logging``); empty unless the journal reads it."""
    return f"<{_priority(level)}>" if _is_read_by_the_journal() else ""


def log_to_stderr(name: str, level: str = "info", place: str = SOCKET) -> None:
    """Log to standard error from now on, under ``name``; ``level`` is a profile's LogLevel, ``place`` the journal's
    socket."""
    _fields["SYSLOG_IDENTIFIER"], _, process = name.partition(" ")
    _fields["QRE_PROCESS"] = process or "parent"
    handler = _Journal(place) if _is_read_by_the_journal() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("qre").setLevel(level.upper())
    # It warns that it cannot read /proc/net, which a unit hides and which nobody here needs.
    logging.getLogger("pyroute2.netlink").setLevel(logging.ERROR)


def lines_are_of(profile: str, device: str) -> None:
    """The fields QRE_PROFILE and QRE_DEVICE of all lines from now on."""
    _fields.update(QRE_PROFILE=profile, QRE_DEVICE=device)


def encode_entry(fields: dict[str, str]) -> bytes:
    """One datagram of the journal's protocol. A value of several lines has its length before it (8 bytes,
    little-endian)."""
    entry = bytearray()
    for name, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            entry += b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
        else:
            entry += b"%b=%b\n" % (name.encode(), data)
    return bytes(entry)


class _Journal(logging.StreamHandler[TextIO]):
    def __init__(self, place: str) -> None:
        super().__init__(sys.stderr)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(place)
        except OSError:
            self._socket.close()  # every line goes to standard error

    def emit(self, record: logging.LogRecord) -> None:
        priority = str(_priority(record.levelno))
        entry = encode_entry({"MESSAGE": super().format(record), "PRIORITY": priority, **_fields})
        try:
            self._socket.send(entry, socket.MSG_DONTWAIT)
        except OSError:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_priority(record.levelno)}>{super().format(record)}"


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def _is_read_by_the_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or missing
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
