"""What the journal is told of a line besides its words, and nobody else is."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qre.ipc.journal import ERROR, encode_entry, priority_mark

LINES = """
import logging
from qre.ipc.journal import lines_are_of, log_to_stderr
log_to_stderr("qre-tool tulip", "{level}", "{place}")
lines_are_of("garden", "qre0")
log = logging.getLogger("qre.tulip")
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)("a line")
import pyroute2.netlink.rtnl.tcmsg
logging.getLogger("pyroute2.netlink.rtnl.tcmsg.common").warning("it cannot read /proc/net/psched")
"""


def said(tmp_path: Path, *, level: str, journal: bool, place: str = "/nonexistent") -> list[str]:
    """What a process says on a file, in the place of the journal's stream; the journal's socket is at ``place``."""
    with (tmp_path / "said").open("w+b") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino}" if journal else f"{found.st_dev}:{found.st_ino + 1}"
        script = LINES.format(level=level, place=place)
        environment = os.environ | {"JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", script], check=True, stderr=file, env=environment)
        file.seek(0)
        return file.read().decode().splitlines()


def test_the_journal_gets_each_line_with_its_priority(tmp_path: Path) -> None:
    assert said(tmp_path, level="debug", journal=True) == [f"<{n}>qre-tool tulip: a line" for n in (7, 6, 4, 3)]
    assert len(said(tmp_path, level="warning", journal=True)) == 2


def test_the_journals_socket_gets_fields_and_then_standard_error_nothing(tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(place)
        assert said(tmp_path, level="warning", journal=True, place=place) == []
        entries = [journal.recv(4096).decode().splitlines() for _ in range(2)]
    common = ["SYSLOG_IDENTIFIER=qre-tool", "QRE_PROCESS=tulip", "QRE_PROFILE=garden", "QRE_DEVICE=qre0"]
    assert entries == [["MESSAGE=qre-tool tulip: a line", f"PRIORITY={n}", *common] for n in (4, 3)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        Path(place).unlink()
        journal.bind(place)
        said(tmp_path, level="warning", journal=False, place=place)
        journal.setblocking(False)
        with pytest.raises(BlockingIOError):
            journal.recv(4096)


def test_a_value_of_several_lines_has_its_length() -> None:
    entry = encode_entry({"MESSAGE": "one\nQRE_DEVICE=forged", "PRIORITY": "6"})
    assert entry == b"MESSAGE\n\x15\0\0\0\0\0\0\0one\nQRE_DEVICE=forged\nPRIORITY=6\n"


def test_whoever_else_reads_gets_none(tmp_path: Path) -> None:
    assert said(tmp_path, level="info", journal=False) == ["qre-tool tulip: a line"] * 3


@pytest.mark.parametrize("stream", ["", ":", "1", "x:y", "1:2:3", "\n"])
def test_a_stream_that_is_not_ours_is_nobodys(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert priority_mark(ERROR) == priority_mark(logging.INFO) == ""


def test_the_line_of_a_failure_has_it_too(tmp_path: Path) -> None:
    tool = Path(sys.executable).parent / "qre-tool"
    with (tmp_path / "said").open("w+b") as file:
        found = os.fstat(file.fileno())
        environment = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        done = subprocess.run([tool, "tulip"], check=False, stderr=file, env=environment)
        file.seek(0)
        assert file.read().startswith(b"<3>qre-tool: command tulip : ")
    assert done.returncode == 2
