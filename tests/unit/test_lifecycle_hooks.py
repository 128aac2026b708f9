"""Hooks run as wg-quick's do; one process at a time changes a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import qre.device.hooks
from qre.device.device_lock import hold_device, lock_path
from qre.device.hooks import hook_command, run_hook
from qre.errors import UserError
from tests.support.daemons import wait_for
from tests.support.profile_values import global_config


def test_the_device_takes_the_place_of_percent_i(tmp_path: Path) -> None:
    run_hook("PreUp", f"echo %i %i > {tmp_path}/said", "qre0")
    assert (tmp_path / "said").read_text() == "qre0 qre0\n"


def test_a_device_name_is_never_run_as_a_command(tmp_path: Path) -> None:
    odd = "$(touch${IFS}x)"
    run_hook("PreUp", f"cd {tmp_path} && printf %s %i > said", odd)
    assert (tmp_path / "said").read_text() == odd
    assert [path.name for path in tmp_path.iterdir()] == ["said"]
    assert hook_command("ip link show %i", "qre0.1") == "ip link show qre0.1"


def test_a_hook_that_fails_or_is_killed_is_named_with_what_it_returned() -> None:
    with pytest.raises(UserError, match=r"PostUp = exit 3: it failed with exit status 3"):
        run_hook("PostUp", "exit 3", "qre0")
    with pytest.raises(UserError, match="it was ended by SIGKILL"):
        run_hook("PostUp", "kill -9 $$", "qre0")


def runs(pid: int) -> bool:
    """Whether this process is there, and has not ended unnoticed by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_hook_that_does_not_end_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qre.device.hooks, "TIMEOUT", 1.0)
    with pytest.raises(UserError, match=r"it did not end within 1 s"):
        run_hook("PreUp", f"sleep 300 & echo $! > {tmp_path}/pid; wait", "qre0")
    pid = int((tmp_path / "pid").read_text())
    wait_for("the end of what it started", lambda: not runs(pid))
    assert not runs(pid)


def test_a_hook_may_leave_something_running_in_the_background(tmp_path: Path) -> None:
    run_hook("PostUp", f"sleep 300 >/dev/null 2>&1 & echo $! > {tmp_path}/pid", "qre0")
    pid = int((tmp_path / "pid").read_text())
    try:
        assert runs(pid), "and was not waited for"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_hooks_get_none_of_our_descriptors(tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    try:
        run_hook("PreUp", f"ls -l /proc/self/fd > {tmp_path}/said", "qre0")
    finally:
        os.close(secret)
    assert "secret" not in (tmp_path / "said").read_text()


def test_a_hook_does_not_inherit_that_a_daemon_ignores_signals() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(UserError, match="it was ended by SIGHUP"):
            run_hook("PostUp", "kill -HUP $$; sleep 5", "qre0")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_device_is_held_by_one_at_a_time_and_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    with hold_device(config, "qre0", "up"):
        with (
            pytest.raises(UserError, match=rf"`up` is changing it \(process {os.getpid()}\)"),
            hold_device(config, "qre0", "down"),
        ):
            pass
        with hold_device(config, "qre1", "down"):
            pass
    assert list(config.runtime_dir.iterdir()) == []


def test_a_device_that_a_daemon_holds_says_stop_the_daemon(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    with (
        hold_device(config, "qre0", "daemon"),
        pytest.raises(UserError, match="stop the daemon first"),
        hold_device(config, "qre0", "down"),
    ):
        pass


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from qre.device.device_lock import hold_device;"
        "from tests.support.profile_values import global_config\n"
        "with hold_device(global_config(Path(sys.argv[1])), 'qre0', 'up'): os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=root)
    assert lock_path(config, "qre0").exists()
    with hold_device(config, "qre0", "up"):
        pass
    assert not lock_path(config, "qre0").exists()
