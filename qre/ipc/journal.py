"""Log lines for a person: to the journal with fields when systemd's journal reads standard error, else there.

JOURNAL_STREAM names the stream that the journal reads (systemd.exec(5)); on any other standard error, lines are as
they are. The journal's own socket takes fields besides (systemd.io/JOURNAL_NATIVE_PROTOCOL): QRE_PROFILE, QRE_DEVICE
and QRE_PROCESS select lines with `journalctl QRE_DEVICE=server0`. A line that does not reach it goes to standard
error with ``<N>`` before it, which the journal takes as the priority (sd-daemon(3)).

A worker never has that socket: with it, it could send to every datagram socket in the file system that its user may
write to. It writes lines with ``<N>`` to a pipe (``line_pipe``), and the supervisor passes them on in its name.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any, Final, TextIO

ERROR: Final = logging.ERROR
#: The syslog priority (syslog(3)) of each level of ``logging`` and those above it; lower levels have debug's.
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7
_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
SOCKET: Final = "/run/systemd/journal/socket"
#: Of a record that another process of this daemon wrote: which one.
_SAID_BY: Final = "said_by"
#: What all lines of this process have.
_fields: Final[dict[str, str]] = {}


def priority_mark(level: int) -> str:
    """The prefix of a line of this level (a number of ``logging``); empty unless the journal reads it."""
    return f"<{_priority(level)}>" if is_read_by_the_journal() else ""


def log_to_stderr(name: str, level: str = "info", place: str | None = None) -> None:
    """Log to standard error from now on, under ``name``; ``level`` is a profile's LogLevel, ``place`` the journal's
    socket, if it is another one."""
    _fields["SYSLOG_IDENTIFIER"], _, process = name.partition(" ")
    _fields["QRE_PROCESS"] = process or "parent"
    by_journal = is_read_by_the_journal()
    _log_by(_Journal(place or SOCKET) if by_journal else logging.StreamHandler(sys.stderr), name, level)


def log_as_worker(name: str, *, marked: bool) -> None:
    """Log to standard error from now on, under ``name``; ``marked``: with the ``<N>`` that ``pass_on`` reads."""
    _log_by(_Marked(sys.stderr) if marked else logging.StreamHandler(sys.stderr), name, "info")


def _log_by(handler: logging.Handler, name: str, level: str) -> None:
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("qre").setLevel(level.upper())
    # It warns that it cannot read /proc/net, which a unit hides and which nobody here needs.
    logging.getLogger("pyroute2.netlink").setLevel(logging.ERROR)


def lines_are_of(profile: str, device: str) -> None:
    """The fields QRE_PROFILE and QRE_DEVICE of all lines from now on."""
    _fields.update(QRE_PROFILE=profile, QRE_DEVICE=device)


def pass_on(process: str, line: str) -> None:
    """A line that the worker ``process`` wrote, marked or not; in its name."""
    mark = line[:3]
    level = next((level for level in _LEVELS if mark == f"<{_priority(level)}>"), None)
    told = {"msg": line if level is None else line[3:], "levelno": level or logging.INFO, _SAID_BY: process}
    logging.getLogger("qre").handle(logging.makeLogRecord(told))


class WritingEnd:
    """A worker's end of the pipe. It survives the way into a process that ``FreshProcess`` starts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[object, ...]:
        from multiprocessing import reduction  # the command line starts without it

        return _arrived, (reduction.DupFd(self._fd),)

    def become_stderr(self) -> None:
        """From now on, whatever this process writes to standard error goes here."""
        os.dup2(self._fd, 2)
        self.close()

    def close(self) -> None:
        """Ours; other processes keep theirs."""
        os.close(self._fd)


def _arrived(copy: Any) -> WritingEnd:
    return WritingEnd(copy.detach())


def line_pipe() -> tuple[int, WritingEnd]:
    """The supervisor's end, which never blocks, and a worker's."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    return reading, WritingEnd(writing)


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


class _Marked(logging.StreamHandler[TextIO]):
    """``<N>`` before each line."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_priority(record.levelno)}>{self.words(record)}"

    def words(self, record: logging.LogRecord) -> str:
        """A worker has put its own name before its words."""
        return record.getMessage() if hasattr(record, _SAID_BY) else super().format(record)


class _Journal(_Marked):
    def __init__(self, place: str) -> None:
        super().__init__(sys.stderr)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(place)
        except OSError:
            self._socket.close()  # every line goes to standard error

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"MESSAGE": self.words(record), "PRIORITY": str(_priority(record.levelno)), **_fields}
        fields["QRE_PROCESS"] = getattr(record, _SAID_BY, _fields["QRE_PROCESS"])
        try:
            self._socket.send(encode_entry(fields), socket.MSG_DONTWAIT)
        except OSError:
            super().emit(record)


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def is_read_by_the_journal() -> bool:
    """Whether standard error is the stream that JOURNAL_STREAM names."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or missing
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
