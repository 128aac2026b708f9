"""The systemd files, judged by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import TOOL, threads
from tests.support.ping import answered
from tests.support.tunnel import SERVER_INNER, Tunnel

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
UNIT = "qred@.service"
#: wg-quick@ scores 9.6. What is left is what a daemon does: it starts other users' workers, and they use the network.
MOST_EXPOSURE = 2.0
CAP_SYS_ADMIN = 21

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def installed_unit(directory: Path, unit: str = UNIT, calls: int = 2) -> Path:
    """The unit with an ExecStart that exists, as it does on a machine where QRE is installed."""
    tool = directory / "qre-tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    text = (PACKAGING / unit).read_text()
    assert text.count("/usr/bin/qre-tool") == calls, "to start and to reload"
    path = directory / unit
    path.write_text(text.replace("/usr/bin/qre-tool", str(tool)))
    return path


def test_the_unit_is_correct(tmp_path: Path) -> None:
    unit = installed_unit(tmp_path)
    for name in (unit, unit.with_name("qred@qre0.service")):
        done = run("systemd-analyze", "verify", "--recursive-errors=no", str(name))
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_units_of_metrics_are_correct_and_have_no_privilege(tmp_path: Path) -> None:
    service = installed_unit(tmp_path, "qre-metrics.service", 1)
    listening = tmp_path / "qre-metrics.socket"
    listening.write_text((PACKAGING / listening.name).read_text())
    done = run("systemd-analyze", "verify", "--recursive-errors=no", str(service), str(listening))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = run("systemd-analyze", "security", "--offline=yes", "--no-pager", str(service))
    (exposure,) = re.findall(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert float(exposure) <= MOST_EXPOSURE


def test_the_unit_is_confined(tmp_path: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=yes", "--no-pager", str(installed_unit(tmp_path)))
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_the_users_of_the_workers_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", str(PACKAGING / "sysusers.d/qre.conf"))
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "etc/passwd").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "qre",
        "qre-handshake",
        "qre-bpf-loader",
        "qre-netlink",
        "qre-dataplane",
        "qre-visit",
        "qre-resolver",
    ]
    assert all(line.endswith(":/usr/sbin/nologin") for line in lines)


def test_the_directories_are_made_with_tight_modes(tmp_path: Path) -> None:
    done = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(PACKAGING / "tmpfiles.d/qre.conf"))
    assert done.returncode == 0, done.stderr
    modes = {
        path: (tmp_path / path).stat().st_mode & 0o777
        for path in ("etc/qre/dev", "var/lib/qre", "run/qre", "sys/fs/bpf/qre")
    }
    assert modes == {"etc/qre/dev": 0o700, "var/lib/qre": 0o700, "run/qre": 0o711, "sys/fs/bpf/qre": 0o700}


@pytest.mark.root
def test_both_daemons_carry_packets_inside_the_limits_of_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined = tmp_path / "confined-qre-tool"
    root = PACKAGING.parent
    confined.write_text(
        f'#!/bin/sh\n[ "$1" = daemon ] || exec {TOOL} "$@"\n'
        f'cd {root} && exec {sys.executable} -m tests.support.confined {PACKAGING / UNIT} {TOOL} "$@"\n'
    )
    confined.chmod(0o755)
    monkeypatch.setattr("tests.support.daemons.TOOL", str(confined))
    with Tunnel() as tunnel:
        tunnel.up()
        for daemon in (tunnel.server, tunnel.client):
            inside = threads(daemon.pid)
            assert all(thread.seccomp == 2 and thread.no_new_privs == 1 for thread in inside)
            assert not any(thread.capabilities[3] >> CAP_SYS_ADMIN & 1 for thread in inside)
        assert answered(tunnel.lab.client, SERVER_INNER) == 5
