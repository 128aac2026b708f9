"""A server's visit to Dest: a process of its own in its sandbox, started for it, and gone with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from tests.support.daemons import threads, wait_for
from tests.support.lone_daemon import Lone, server

pytestmark = pytest.mark.root


def own_server(strange: str) -> Lone:
    """With the real handshake worker, and a Dest on this machine."""
    made = server(strange, more="ServerName = www.example.org\n")
    made.edit("www.example.org:443", "127.0.0.1:9443")
    return made


@contextmanager
def silent(lone: Lone) -> Iterator[None]:
    """A Dest that takes everything and never answers."""
    listen = "import socket, time; s = socket.socket(2, 2); s.bind(('127.0.0.1', 9443)); time.sleep(600)"
    process = lone.namespace.popen(["python3", "-c", listen])
    try:
        wait_for("its socket", lambda: ":9443" in lone.namespace.run("ss", "-lnu"))
        yield
    finally:
        process.kill()
        process.wait()


def visitor(lone: Lone) -> int:
    wait_for("a visit", lambda: "visit" in lone.daemon.processes())
    return lone.daemon.processes()["visit"]


def test_a_visit_has_a_process_with_nothing_but_its_own_socket() -> None:
    with own_server("") as lone, silent(lone):
        lone.daemon.start().wait_ready()
        pid = visitor(lone)
        for thread in threads(pid):
            assert (thread.uid, thread.no_new_privs, thread.seccomp) == (ROLES[Party.VISIT].ids()[0], 1, 2)
            assert not any(thread.capabilities)
        kinds = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [kind for kind in kinds if "memfd" in kind or "tun" in kind or "bpf" in kind or ".replay" in kind]
        workers = lone.daemon.workers()
        os.kill(pid, signal.SIGKILL)
        wait_for("its end is told", lambda: "Dest cannot be measured" in lone.daemon.said())
        assert lone.daemon.workers() == workers, "nobody else notices"
        began = time.monotonic()
        visitor(lone)
        assert lone.daemon.stop() == 0, "while a visit is under way"
        assert time.monotonic() - began < 30
        lone.nothing_left()


def test_a_daemon_that_is_killed_takes_the_visit_with_it() -> None:
    with own_server("") as lone, silent(lone):
        lone.daemon.start().wait_ready()
        pid = visitor(lone)
        lone.daemon.stop(signal.SIGKILL)
        wait_for("its end", lambda: not Path(f"/proc/{pid}").exists())
        lone.daemon.start().wait_ready()
        assert lone.daemon.stop() == 0, "the next one takes over and cleans up"


@pytest.mark.parametrize("behaviour", ["dies-starting", "refuses", "quiet", "fails", "hands-up"])
def test_a_visit_that_was_taken_over_is_no_more_than_a_site_that_cannot_be_measured(behaviour: str) -> None:
    with own_server(f"visit={behaviour}") as lone:
        lone.daemon.start().wait_ready()
        wait_for("it is told", lambda: "Dest cannot be measured" in lone.daemon.said())
        assert "0123456789" not in lone.daemon.said()
        shown = lone.daemon.shown()
        assert [process["restarts"] for process in shown["processes"]] == [0] * 4
        assert lone.daemon.stop() == 0
        lone.nothing_left()
