"""The secrets of a session that has ended stand nowhere any more, in no process of either daemon; nor can any of them
write its memory to a file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qre.wire.protection import derive, next_secret
from tests.support.capture import KeyLog, SessionSecrets
from tests.support.daemons import Daemon, children, wait_for
from tests.support.memory_search import found_in
from tests.support.ping import answered
from tests.support.tunnel import SERVER_INNER, Tunnel

pytestmark = pytest.mark.root
#: Seconds after the end of a session.
GONE = 5.0


def processes(daemon: Daemon) -> list[int]:
    return [daemon.pid, *children(daemon.pid)]


def secrets_of(session: SessionSecrets, epochs: int) -> dict[str, bytes]:
    """All that stands for the session: traffic secrets, keys and header keys of its epochs, and of the next."""
    found = {}
    for end, first in (("client", session.client_secret), ("server", session.server_secret)):
        found[f"{end}'s header key"], secret = derive(first).hp, first
        for epoch in range(epochs + 2):
            found[f"{end}'s secret {epoch}"], found[f"{end}'s key {epoch}"] = secret, derive(secret).key
            secret = next_secret(secret)
    return found


@pytest.mark.parametrize("ends", ["client", "server"])
def test_nothing_is_left_of_a_session(ends: str) -> None:
    tunnel = Tunnel("RekeyInterval = 2s\n")
    log = KeyLog()
    try:
        tunnel.server.start().wait_ready()
        tunnel.client.start().wait_ready()
        log.watch(tunnel.server)
        tunnel.client.wait_session()
        assert answered(tunnel.lab.client, SERVER_INNER)
        wait_for("its key log", lambda: bool(log.sessions))
        (session,) = log.sessions.values()
        wait_for("other keys", lambda: log.epochs.get(session.session_id, 0) >= 2)
        ending, staying = (tunnel.client, tunnel.server) if ends == "client" else (tunnel.server, tunnel.client)
        assert found_in(processes(staying), secrets_of(session, 2)), "it can be found"
        ending.stop()
        time.sleep(GONE)
        assert found_in(processes(staying), secrets_of(session, log.epochs[session.session_id])) == []
    finally:
        log.close()
        tunnel.close()


def test_no_process_can_be_dumped() -> None:
    tunnel = Tunnel()
    try:
        for daemon in (tunnel.server.start().wait_ready(), tunnel.client.start().wait_ready()):
            for pid in processes(daemon):
                limits = Path(f"/proc/{pid}/limits").read_text()
                core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
                assert core.split()[4:6] == ["0", "0"], limits
                assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
            mappings = Path(f"/proc/{daemon.workers()['handshake']}/smaps").read_text().split("VmFlags:")
            at = next(number for number, text in enumerate(mappings) if "memfd:session_secrets" in text)
            assert {"lo", "dd"} <= set(mappings[at + 1].splitlines()[0].split()), "locked, and in no dump"
    finally:
        tunnel.close()
