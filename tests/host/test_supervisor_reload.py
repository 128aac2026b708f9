"""SIGHUP with every change of the profile; and a device that another program removes."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.alone import Alone
from tests.support.daemons import PATIENCE, Daemon, wait_for
from tests.support.namespaces import run

UNIT = Path(__file__).resolve().parents[2] / "packaging" / "qred@.service"


def hang_up(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)


def systemctl_reload(daemon: Daemon) -> None:
    """What the unit has systemd do."""
    (command,) = (line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith("ExecReload="))
    program, *words = shlex.split(command.removeprefix("!").replace("%i", daemon.profile))
    if program == "/usr/bin/qre-tool":
        daemon.tool(*words)
    else:
        run(program, *words)


def reload(alone: Alone, times: int = 1, how: Callable[[Daemon], None] = hang_up) -> tuple[list[str], list[str]]:
    """What systemd was told by it, and the lines that were said."""
    daemon = alone.server
    assert daemon.notify is not None
    daemon.notify.poll()
    daemon.notify.received.clear()
    size = len(daemon.said())
    for _ in range(times):
        how(daemon)
        time.sleep(0.003 if times > 1 else 0)  # two that are pending are one
    wait_for("READY=1 after RELOADING=1", lambda: told(alone)[-1:] == ["READY=1"])
    return told(alone), [line for line in daemon.said()[size:].splitlines() if "reload" in line]


def told(alone: Alone) -> list[str]:
    assert alone.server.notify is not None
    return [line for line in alone.server.notify.poll() if not line.startswith(("STATUS", "WATCHDOG", "MONOTONIC"))]


def addresses(alone: Alone) -> list[str]:
    return [line.split()[3] for line in alone.namespace.ip("-o", "-4", "addr", "show", "dev", "server0").splitlines()]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("Address", "garbage", "Address: 'garbage' is not an address"),
        ("Colour", "red", "Colour"),
        ("Listen", "127.0.0.1:4434", "Listen was 127.0.0.1:4433 and is now 127.0.0.1:4434; down and up"),
        ("Device", "other0", "Device was server0 and is now other0; down and up"),
    ],
)
def test_what_cannot_be_applied_is_refused_in_one_line_and_changes_nothing(
    alone: Alone, key: str, value: str, words: str
) -> None:
    profile, before, workers = alone.profile("server0").read_text(), addresses(alone), alone.server.workers()
    alone.edit("server0", key, value)
    try:
        lines, said = reload(alone)
    finally:
        alone.profile("server0").write_text(profile)
    assert lines == ["RELOADING=1", "READY=1"]
    assert len(said) == 1
    assert words in said[0]
    assert (addresses(alone), alone.server.workers()) == (before, workers)


def test_a_changed_role_is_refused(alone: Alone) -> None:
    profile = alone.profile("server0").read_text()
    client = alone.profile("client0").read_text().replace("client0", "server0")
    alone.profile("server0").write_text(client)
    try:
        _, said = reload(alone)
    finally:
        alone.profile("server0").write_text(profile)
    assert [line.partition(": profile ")[2] for line in said] == [
        "server0: Role was server and is now client; down and up"
    ]


def test_a_profile_that_is_gone_is_refused(alone: Alone) -> None:
    profile = alone.profile("server0").read_text()
    alone.profile("server0").unlink()
    try:
        _, said = reload(alone)
    finally:
        alone.profile("server0").touch(0o600)
        alone.profile("server0").write_text(profile)
    assert len(said) == 1
    assert "there is no such file" in said[0]


@pytest.mark.parametrize("how", [hang_up, systemctl_reload])
def test_a_changed_address_replaces_the_old_one_and_comes_back(alone: Alone, how: Callable[[Daemon], None]) -> None:
    alone.edit("server0", "Address", "10.79.0.1/24")
    assert reload(alone, how=how) == (["RELOADING=1", "READY=1"], [])
    assert addresses(alone) == ["10.79.0.1/24"]
    alone.edit("server0", "Address", "10.77.0.1/24")
    reload(alone, how=how)
    assert addresses(alone) == ["10.77.0.1/24"]


def test_many_signals_in_a_row_are_reloads_one_after_the_other(alone: Alone) -> None:
    alone.edit("server0", "Address", "10.79.0.1/24")
    lines, said = reload(alone, 12)
    assert lines == ["RELOADING=1", "READY=1"] * (len(lines) // 2), "never two at a time"
    assert said == []
    assert addresses(alone) == ["10.79.0.1/24"]
    alone.edit("server0", "Address", "10.77.0.1/24")
    lines, said = reload(alone)
    assert lines[-2:] == ["RELOADING=1", "READY=1"]
    assert said == [], "no answer of one was waited for by another"
    assert addresses(alone) == ["10.77.0.1/24"]


def test_a_removed_short_id_ends_its_session_and_the_client_hears_it(alone: Alone) -> None:
    client = alone.client.start().wait_ready().wait_session()
    ready = alone.directory / "run" / "client0.ready"
    short_ids = alone.value("server0", "RealityShortIds")
    try:
        alone.edit("server0", "RealityShortIds", f"{short_ids},0102030405060708")
        reload(alone)
        assert ready.exists(), "others are not touched"
        alone.edit("server0", "RealityShortIds", "0102030405060708")
        reload(alone)
        wait_for("the session's end at the client", lambda: not ready.exists())
        wait_for("its end at the server", lambda: ", 0 sessions" in sessions(alone))
        alone.edit("server0", "RealityShortIds", short_ids)
        reload(alone)
        wait_for("a new session", ready.exists)
    finally:
        alone.edit("server0", "RealityShortIds", short_ids)
        assert client.stop() == 0


def sessions(alone: Alone) -> str:
    """What STATUS= last said of them."""
    assert alone.server.notify is not None
    return next((line for line in reversed(alone.server.notify.poll()) if line.startswith("STATUS=")), "")


def test_a_reload_that_was_asked_for_during_the_start_is_done_after_it() -> None:
    with Alone.open() as alone:
        daemon = alone.server.start()
        assert daemon.process is not None
        wait_for("the supervisor", lambda: "supervisor" in daemon.workers(), interval=0.01)
        alone.edit("server0", "Address", "10.79.0.1/24")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_ready()
        wait_for("the new address", lambda: addresses(alone) == ["10.79.0.1/24"])
        wait_for("READY=1 again", lambda: told(alone) == ["READY=1", "RELOADING=1", "READY=1"])
        alone.namespace.ip("link", "del", "server0")
        assert daemon.process.wait(PATIENCE) == 1
        last = daemon.said().splitlines()[-1]
        assert last == "qre-tool: daemon server0 : device server0 was removed by another program"
        assert "Traceback" not in daemon.said()
        assert alone.left() == []
