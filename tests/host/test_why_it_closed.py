"""An end that closes a session says why, and the other end tells its user: real daemons, the reason on the wire."""

from __future__ import annotations

import secrets
import signal

from tests.support.daemons import Daemon, wait_for
from tests.support.tunnel import Tunnel


def reload_and_wait(daemon: Daemon) -> None:
    assert daemon.process is not None and daemon.notify is not None
    before = daemon.notify.poll().count("READY=1")
    daemon.process.send_signal(signal.SIGHUP)
    notify = daemon.notify
    wait_for("a reload", lambda: notify.poll().count("READY=1") > before)


def test_a_client_is_told_that_the_server_was_stopped() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        assert tunnel.server.stop() == 0
        wait_for("the reason", lambda: "session lost: the peer closed the session: it was stopped" in said(tunnel))
        assert tunnel.client.notify is not None
        statuses = [line for line in tunnel.client.notify.poll() if line.startswith("STATUS=")]
        assert any("it was stopped" in line for line in statuses)


def test_a_client_whose_short_id_was_removed_is_told_so() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        tunnel.edit("server0", "RealityShortIds", secrets.token_hex(8))
        reload_and_wait(tunnel.server)
        wait_for("the end", lambda: "session lost" in said(tunnel))
        assert "this short id was removed from its profile; ask for a new one" in said(tunnel)


def test_a_server_is_told_which_client_was_stopped() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        short_id = tunnel.value("client0", "RealityShortId")
        assert tunnel.client.stop() == 0
        wait_for("the end", lambda: f"client {short_id}: the session ended" in tunnel.server.said())
        assert "the session ended: the peer closed the session: it was stopped" in tunnel.server.said()


def said(tunnel: Tunnel) -> str:
    return tunnel.client.said()
