"""A daemon that cannot start, or is told to end while it starts: one line, a status, and nothing is left."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qre.ipc.roles import ROLES, USERS_REMEDY
from tests.support.alone import LISTEN, Alone
from tests.support.daemons import PATIENCE, TOOL, wait_for
from tests.support.namespaces import run

BOUNDED = ("--run-for-ms", "200")


def refused(
    idle: Alone,
    *options: str,
    env: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    expected: int = 2,
) -> str:
    """The one line of a server that refuses to start, with this status; it leaves nothing."""
    status, said = idle.once(idle.server, *BOUNDED, *options, env=env, prefix=prefix)
    assert (status, len(said)) == (expected, 1), said
    assert idle.left() == []
    return said[0]


def test_a_second_daemon_of_one_device_is_refused_and_changes_nothing(idle: Alone) -> None:
    idle.server.start().wait_ready()
    try:
        before = idle.namespace.ip("-o", "addr"), sorted(path.name for path in idle.pin_dir.iterdir())
        status, said = idle.once(idle.server)
        assert (status, len(said)) == (2, 1), said
        assert f"a daemon holds it (process {idle.server.pid})" in said[0]
        elsewhere = idle.directory / "elsewhere"
        status, said = idle.once(idle.server, env={"RUNTIME_DIRECTORY": str(elsewhere)})
        assert status == 2, said
        assert (idle.namespace.ip("-o", "addr"), sorted(path.name for path in idle.pin_dir.iterdir())) == before
        assert idle.server.tool("show", "server0")
    finally:
        assert idle.server.stop() == 0


def test_a_port_that_another_program_uses_is_named(idle: Alone) -> None:
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        f"s.bind(({LISTEN.split(':')[0]!r}, {LISTEN.split(':')[1]}))\n"
        "print('bound', flush=True); sys.stdin.read()\n"
    )
    command = [*idle.namespace.prefix, "/usr/bin/python3", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        line = refused(idle)
        assert other.stdin is not None
        other.stdin.close()
    assert f"Listen {LISTEN}: another program uses this UDP port" in line


def test_an_elf_that_is_none_is_named_before_anything_is_changed(idle: Alone, tmp_path: Path) -> None:
    (tmp_path / "text.o").write_text("no program")
    os.mkfifo(tmp_path / "pipe.o")
    (tmp_path / "link.o").symlink_to("/etc/passwd")
    for name, expected in (
        ("text.o", "not an ELF file"),
        ("none.o", "there is no such file"),
        (".", "not a regular file"),
        ("pipe.o", "not a regular file"),
        ("link.o", "Too many levels of symbolic links"),
    ):
        assert expected in refused(idle, "--bpf-elf", str(tmp_path / name))


def test_an_elf_that_libbpf_refuses_is_told_in_its_words(idle: Alone, tmp_path: Path) -> None:
    (tmp_path / "broken.o").write_bytes(b"\x7fELF and nothing more")
    line = refused(idle, "--bpf-elf", str(tmp_path / "broken.o"))
    assert "opening the BPF ELF" in line
    assert "Unknown error" not in line
    assert "run make, or set BpfElf" in line


def test_directories_that_cannot_be_used_are_named(idle: Alone, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"mount -t bpf bpf {tmp_path}" in refused(idle, "--pin-dir", str(tmp_path))
    assert "there is no such directory" in refused(idle, "--pin-dir", str(tmp_path / "none"))
    assert "see StateDir" in refused(idle, env={"QRE_STATE_DIR": str(tmp_path / "file")})
    assert "see RuntimeDir" in refused(idle, env={"RUNTIME_DIRECTORY": "/proc/nothing"})
    assert "too long for socket paths" in refused(idle, env={"RUNTIME_DIRECTORY": f"{tmp_path}/{'r' * 90}"})
    assert "variable QRE_LOG" in refused(idle, env={"QRE_LOG": "garbage"})


def test_a_full_or_read_only_state_directory_undoes_everything(idle: Alone, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path))
    try:
        (tmp_path / "fill").write_bytes(b"x" * 4096)
        line = refused(idle, env={"QRE_STATE_DIR": str(tmp_path)})
        assert "No space left on device" in line
        assert "see StateDir" in line
        run("mount", "-o", "remount,ro", str(tmp_path))
        assert "Read-only file system" in refused(idle, env={"QRE_STATE_DIR": str(tmp_path)})
        assert "Read-only file system" in refused(idle, env={"RUNTIME_DIRECTORY": str(tmp_path)})
    finally:
        run("umount", str(tmp_path))


@pytest.mark.parametrize("missing", ["net_admin", "bpf", "setuid", "setpcap", "kill"])
def test_a_missing_capability_is_named(idle: Alone, missing: str) -> None:
    line = refused(idle, prefix=("capsh", f"--drop=cap_{missing}", "--", "-c", 'exec "$@"', "sh"))
    assert f"it needs CAP_{missing.upper()}, which is missing; run it as root" in line


@pytest.mark.parametrize("exist", [False, True], ids=["missing", "there"])
def test_workers_without_users_of_their_own_run_under_fixed_ids_and_the_log_says_so(
    idle: Alone, tmp_path: Path, exist: bool
) -> None:
    names = [role.user for role in ROLES.values()]
    kept = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[0] not in names]
    made = [f"{name}:x:{61000 + number}:61000:::" for number, name in enumerate(names)] if exist else []
    (tmp_path / "passwd").write_text("\n".join([*kept, *made, ""]))
    within = ("unshare", "-m", "sh", "-c", f'mount --bind {tmp_path}/passwd /etc/passwd && exec "$@"', "sh")
    status, said = idle.once(idle.client, *BOUNDED, prefix=within)
    assert status == 0, said
    told = [line for line in said if "no such user" in line]
    assert len(told) == (0 if exist else 1), said
    assert exist or told[0].endswith(f"{', '.join(names)}: no such user: fixed user ids are used; {USERS_REMEDY}"), (
        told
    )
    assert "systemd-sysusers" in USERS_REMEDY


def test_a_relative_runtime_directory_means_the_directory_of_the_start(idle: Alone) -> None:
    status, said = idle.once(idle.client, *BOUNDED, env={"RUNTIME_DIRECTORY": os.path.relpath(idle.directory / "r")})
    assert status == 0, said
    assert list((idle.directory / "r").iterdir()) == []


def test_closed_standard_streams_do_not_matter(idle: Alone) -> None:
    """Descriptors 0 to 2 must not become something else's, in none of its processes."""
    command = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", TOOL, "daemon", "client0")
    daemon = idle.client
    for name in ("state", "run"):
        (idle.directory / name).mkdir(mode=0o755, exist_ok=True)
    daemon.process = idle.namespace.popen(command, env={**daemon.env, "NOTIFY_SOCKET": ""})
    try:
        wait_for("control socket", (idle.directory / "run" / "client0.sock").exists)
        for pid in (daemon.pid, *daemon.workers().values()):
            assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
    finally:
        assert daemon.stop() == 0
    assert idle.left() == []


#: How far a start is: the interpreter's, up, the first process, the last one.
STAGES: tuple[Callable[[Alone], bool], ...] = (
    lambda idle: True,
    lambda idle: " server0:" in idle.namespace.ip("-o", "link"),
    lambda idle: "supervisor" in idle.server.workers(),
    lambda idle: "handshake" in idle.server.workers(),
)


def test_a_signal_at_any_moment_of_the_start_ends_it_in_order(idle: Alone) -> None:
    moments = random.Random(20)
    for number in range(12):
        idle.server.log.unlink(missing_ok=True)
        daemon = idle.server.start()
        assert daemon.process is not None
        stage = number % len(STAGES)
        wait_for(f"stage {stage}", lambda stage=stage: STAGES[stage](idle), interval=0.002)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.3))  # any moment
        daemon.process.terminate() if number % 2 else daemon.process.send_signal(2)
        again = threading.Timer(moments.uniform(0, 0.2), daemon.process.terminate)
        if number % 3 == 0:  # an impatient user
            again.start()
        status = daemon.process.wait(PATIENCE)
        again.cancel()
        daemon.stop()
        said = daemon.said()
        assert idle.left() == [], said
        if stage == 0 and status in (-15, -2, 1):  # the interpreter itself was starting: nothing was begun
            continue
        assert status == 0, said
        assert "Traceback" not in said


def test_signals_right_behind_the_setup_end_the_supervisor(idle: Alone) -> None:
    """The order to end may lie in the supervisor's queue before it reads the first message."""
    for _ in range(3):
        daemon = idle.server.start()
        assert daemon.process is not None
        wait_for("the supervisor", lambda: "supervisor" in idle.server.workers(), interval=0.002)
        assert daemon.stop() == 0, daemon.said()
        assert idle.left() == []


def test_no_notify_socket_is_one_line_and_no_obstacle(idle: Alone) -> None:
    status, said = idle.once(idle.client, *BOUNDED, env={"NOTIFY_SOCKET": str(idle.directory / "nobody")})
    assert status == 0
    assert sum("NOTIFY_SOCKET" in line for line in said) == 1


def test_addresses_of_the_namespace_are_not_touched_by_a_failed_start(idle: Alone) -> None:
    before = idle.namespace.ip("-o", "addr")
    refused(idle, "--server-underlay", "192.0.2.77:4433", expected=1)
    assert idle.namespace.ip("-o", "addr") == before
