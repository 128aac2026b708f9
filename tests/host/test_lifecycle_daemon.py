"""The lifecycle commands beside a running daemon (a client whose server never answers)."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.support.daemons import TOOL, wait_for
from tests.support.machine import CLIENT, Machine
from tests.support.network import everything

pytestmark = pytest.mark.root


@pytest.fixture
def profile_text() -> str:
    return CLIENT + "AllowedIPs = 0.0.0.0/0\nPersistentKeepalive = 7\n"


def shown(machine: Machine) -> dict[str, Any]:
    devices = json.loads(machine.does("--json", "show", "qre0"))["devices"]
    assert len(devices) == 1
    found: dict[str, Any] = devices[0]
    return found


def test_a_daemon_takes_over_from_up_is_shown_reloaded_and_takes_everything_away(machine: Machine) -> None:
    before = everything()
    machine.does("up", "tunnel")
    assert shown(machine)["daemon_pid"] is None
    with (machine.directory / "log").open("wb") as log:
        daemon = subprocess.Popen([TOOL, "daemon", "tunnel"], env=machine.env, stdout=log, stderr=log)
    try:
        wait_for("the daemon", lambda: "handshakes: 0 completed" in machine.tool("show", "qre0").stdout, interval=0.5)
        described = shown(machine)
        assert described["daemon_pid"] == daemon.pid
        assert described["link_up"] is True
        assert described["persistent_keepalive"] == 7
        assert {process["role"] for process in described["processes"]} == {"netlink", "dataplane", "handshake"}
        assert "fwmark" in everything()

        for arguments in (("up", "tunnel"), ("down", "tunnel"), ("--dry-run", "down", "tunnel"), ("delete", "qre0")):
            assert "a daemon holds it" in machine.refuses(*arguments)
        machine.write(CLIENT.replace("10.77.0.2/24", "10.77.0.9/24") + "AllowedIPs = 0.0.0.0/0, 10.50.0.0/16\n")
        machine.does("reload", "tunnel")
        assert shown(machine)["address"] == ["10.77.0.9/24", "fd77::2/64"]
        now = everything()
        assert "inet 10.77.0.9/24" in now
        assert "10.77.0.2/" not in now
        assert "10.50.0.0/16 dev qre0" in now
        assert "10.77.0.9/24" in (machine.config.state_dir / "tunnel.state").read_text()
        machine.write(CLIENT.replace("qre0", "qre1"))
        assert "Device was qre0 and is now qre1" in machine.refuses("reload", "tunnel")
    finally:
        daemon.send_signal(signal.SIGTERM)
        status = daemon.wait(30)
        print((machine.directory / "log").read_text())
    assert status == 0
    assert everything() == before
    assert machine.files() == ["dev", "log", "run", "state", "state/tunnel.tickets"], "they are its successor's"
