"""Runs commands of qre-tool one after the other in one interpreter, for a machine on which Python starts slowly.

``python -m tests.support.guest_commands FILE``: the file holds a JSON list of argument lists. An argument may name a
descriptor that this process opens first: ``{udp 10.9.0.1:443}``, ``{udp6}``, ``{tcp}``, ``{map /path/of/a/pin}``; the
same words mean the same descriptor. A command that would stay begins with ``{until /path}``: it gets SIGTERM when
that path is there. One that begins with ``{sh}`` is for the shell. Prints one JSON list of
``[status, standard output, standard error]``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from qre.cli.main import main
from qre.kernel.bpf_program import open_pinned

_held: dict[str, int] = {}


def _descriptor(words: str) -> str:
    if words not in _held:
        kind, _, rest = words.partition(" ")
        if kind == "map":
            _held[words] = open_pinned(Path(rest))
        elif kind == "udp":
            ip, _, port = rest.rpartition(":")
            made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind((ip, int(port)))
            _held[words] = made.detach()
        else:
            family = socket.AF_INET6 if kind == "udp6" else socket.AF_INET
            _held[words] = socket.socket(family, socket.SOCK_DGRAM if "udp" in kind else socket.SOCK_STREAM).detach()
    return str(_held[words])


def _end_when_there(path: Path) -> None:
    """SIGTERM for this process once the path is there."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _run(arguments: list[str]) -> tuple[int, str, str]:
    if arguments[0] == "{sh}":
        done = subprocess.run(["sh", "-ec", *arguments[1:]], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
    if arguments[0].startswith("{until "):
        _end_when_there(Path(arguments[0][len("{until ") : -1]))
        arguments = arguments[1:]
    given = [re.sub(r"\{(.*?)\}", lambda match: _descriptor(match[1]), argument) for argument in arguments]
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(given)
    return status, out.getvalue(), error.getvalue()


if __name__ == "__main__":
    print(json.dumps([_run(arguments) for arguments in json.loads(Path(sys.argv[1]).read_text())]))
