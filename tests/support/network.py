"""A network namespace of one's own for the calling thread: what the code under test does to devices stays inside."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.namespaces import kill_processes_in, processes_in, run

_CLONE_NEWNET = 0x40000000
_SELF = "/proc/thread-self/ns/net"


def _libc(call: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments):
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def own_network() -> Iterator[None]:
    """Enter a fresh namespace, loopback up; on the way out, prove that no process stays in it, and go home: it is
    gone then, after a failure, too."""
    home = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc("unshare", _CLONE_NEWNET)
        namespace = os.stat(_SELF)
        try:
            ip("link", "set", "lo", "up")
            yield
            left = processes_in(namespace)
            if left:
                raise AssertionError(f"processes were left in the test's namespace: {left}")
        finally:
            _libc("setns", home, _CLONE_NEWNET)
            kill_processes_in(namespace)
    finally:
        os.close(home)


def ip(*arguments: str, check: bool = True) -> str:
    """What ``ip`` prints, in the namespace of this thread."""
    return run("ip", *arguments, check=check)


def everything() -> str:
    """All that ``ip`` shows of links, addresses, routes and rules: to compare before with after.

    Left out is what the kernel changes by itself, a moment later: whether a TUN device has a carrier.
    """
    shown = (
        ("-d", "address"),
        ("-4", "route", "show", "table", "all"),
        ("-6", "route", "show", "table", "all"),
        ("-4", "rule"),
        ("-6", "rule"),
    )
    text = "\n".join(ip(*arguments) for arguments in shown)
    return re.sub(r"NO-CARRIER,|,LOWER_UP|,RUNNING| state [A-Z]+| linkdown", "", text)
