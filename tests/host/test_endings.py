"""How a daemon begins and ends, seen from outside: ready not before it works, and nothing left however it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import PATIENCE, Daemon, children, left_behind, wait_for
from tests.support.namespaces import run
from tests.support.ping import answered
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

PINS = ("QRE_CID_ROUTES", "QRE_SOCKETS", "qre_reuseport_demux")


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n") as made:
        yield made


def udp_sockets(daemon: Daemon) -> list[tuple[int, str]]:
    """(bytes that wait in it, local address) of every UDP socket on the server's port."""
    lines = daemon.namespace.run("ss", "-Hlun").splitlines()
    fields = [line.split() for line in lines if f":{PORT} " in line]
    return [(int(words[1]), words[3]) for words in fields]


def assert_nothing_left(tunnel: Tunnel, daemon: Daemon) -> None:
    """Of this daemon: no process, device, address, route, pin, socket, ready file, state. Others may still run."""
    name = daemon.profile
    assert f" {name}:" not in daemon.namespace.ip("-o", "link")
    assert name not in daemon.namespace.ip("-o", "addr")
    assert name not in daemon.namespace.ip("route", "show", "table", "all")
    if daemon is tunnel.server:
        assert udp_sockets(daemon) == []
    assert not [path for path in tunnel.pin_dir.iterdir() if path.name.endswith(f"-{name}")]
    assert not [path for path in (tunnel.directory / "run").iterdir() if path.name.startswith(name)]
    assert not (tunnel.directory / "state" / f"{name}.state").exists()
    assert run("ip", "netns", "pids", daemon.namespace.name).split() == []


def last_words(daemon: Daemon) -> list[str]:
    """What the command itself said (its workers' lines have their names)."""
    return [line for line in daemon.said().splitlines() if line.startswith("qre-tool: ")]


def assert_ended_by_a_kill(daemon: Daemon, pids: list[int]) -> None:
    """Non-zero, with one line that says why, STOPPING=1 from the main process, and no process of it lives."""
    assert daemon.process is not None
    assert daemon.notify is not None
    assert daemon.process.wait(PATIENCE) not in (0, -signal.SIGKILL)
    (line,) = last_words(daemon)
    assert "supervisor was killed by signal 9" in line
    assert "Traceback" not in daemon.said()
    assert daemon.notify.poll()[-1] == "STOPPING=1"
    assert {pid for pid, _ in daemon.notify.received} == {daemon.pid}
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def begin_again(daemon: Daemon) -> Daemon:
    daemon.log.unlink(missing_ok=True)
    return daemon.start().wait_ready()


def test_a_killed_supervisor_leaves_nothing_behind_and_the_next_start_works(tunnel: Tunnel) -> None:
    tunnel.up()
    for daemon in (tunnel.server, tunnel.client):
        pids = list(children(daemon.pid))
        assert len(pids) >= 4
        os.kill(daemon.workers()["supervisor"], signal.SIGKILL)
        assert_ended_by_a_kill(daemon, pids)
        assert_nothing_left(tunnel, daemon)
    assert left_behind(tunnel.directory, tunnel.pin_dir) == []
    begin_again(tunnel.server)
    begin_again(tunnel.client).wait_session()
    assert answered(tunnel.lab.client, SERVER_INNER) == 5


def test_a_supervisor_killed_while_it_starts_leaves_nothing_behind(tunnel: Tunnel) -> None:
    for moment in (0.0, 0.2, 0.5):
        daemon = tunnel.server.start()
        supervisor = pid_of(daemon, "supervisor")
        time.sleep(moment)  # any moment
        pids = list(children(daemon.pid))
        os.kill(supervisor, signal.SIGKILL)
        assert_ended_by_a_kill(daemon, pids)
        assert_nothing_left(tunnel, daemon)
        daemon.log.unlink()
    begin_again(tunnel.server)


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_server_is_ready_when_its_sockets_are_bound_and_the_program_steers(tunnel: Tunnel) -> None:
    """At the instant of READY=1 every process is stopped, and the kernel is asked."""
    daemon = tunnel.server.start()
    notify = daemon.notify
    assert notify is not None
    wait_for("READY=1", lambda: "READY=1" in notify.poll(), interval=0.0005)
    processes = [daemon.pid, *children(daemon.pid)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for("all are stopped", lambda: all(stopped(pid) for pid in processes))
        assert [waiting for waiting, _ in udp_sockets(daemon)] == [0, 0]
        assert {path.name for path in tunnel.pin_dir.iterdir()} >= {f"{name}-{daemon.profile}" for name in PINS}
        shown = run("bpftool", "prog", "show", "pinned", str(tunnel.pin_dir / f"{PINS[2]}-{daemon.profile}"))
        assert "sk_reuseport" in shown
        slots = run("bpftool", "map", "dump", "pinned", str(tunnel.pin_dir / f"{PINS[1]}-{daemon.profile}"))
        assert "2 elements" in slots or slots.count("key") == 2
        assert f" {daemon.profile}:" in daemon.namespace.ip("-o", "link", "show", "up")
        send_long_headers(tunnel, 24)
        wait_for("the datagrams are there", lambda: max(udp_sockets(daemon))[0] > 0)
        # Without the program, the kernel would spread them over both sockets.
        assert min(udp_sockets(daemon))[0] == 0
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
    assert {pid for pid, _ in notify.received} == {daemon.pid}
    tunnel.client.start().wait_ready().wait_session()


def send_long_headers(tunnel: Tunnel, count: int) -> None:
    """Datagrams with long headers, each from a port of its own, out of the client's namespace."""
    script = (
        "import socket, sys\n"
        f"for n in range({count}):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:\n"
        f"        made.sendto(bytes([0xC0]) + bytes(99), ({tunnel.lab.SERVER!r}, {PORT}))\n"
    )
    tunnel.lab.client.run("python3", "-c", script)


def pid_of(daemon: Daemon, worker: str) -> int:
    """As soon as it is there."""
    wait_for(f"the worker {worker}", lambda: worker in daemon.workers(), interval=0.002)
    return daemon.workers()[worker]


def test_a_server_is_not_ready_while_one_of_its_workers_is_not(tunnel: Tunnel) -> None:
    for worker in ("bpf_loader", "handshake"):
        daemon = tunnel.server.start()
        assert daemon.notify is not None
        pid = pid_of(daemon, worker)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(1.5)  # in which the others become ready
            assert "READY=1" not in daemon.notify.poll()
        finally:
            os.kill(pid, signal.SIGCONT)
        daemon.wait_ready()
        assert daemon.stop() == 0


def test_a_client_is_ready_when_its_device_is_up_though_there_is_no_server(tunnel: Tunnel) -> None:
    daemon = tunnel.client.start().wait_ready()
    assert " client0:" in daemon.namespace.ip("-o", "link", "show", "up")
    assert "10.77.0.2/24" in daemon.namespace.ip("-o", "addr")
    assert not (tunnel.directory / "run" / "client0.ready").exists()
    assert {"handshake", "dataplane", "netlink"} <= set(daemon.workers())


def test_both_ends_end_by_themselves_after_their_time_and_leave_nothing(tunnel: Tunnel) -> None:
    for daemon in (tunnel.server, tunnel.client):
        daemon.options = ("--run-for-ms", "3000")
        daemon.start()
    for daemon in (tunnel.server, tunnel.client):
        assert daemon.process is not None
        assert daemon.notify is not None
        assert daemon.process.wait(PATIENCE) == 0
        told = daemon.notify.poll()
        assert told.count("READY=1") == told.count("STOPPING=1") == 1
        assert told.index("READY=1") < told.index("STOPPING=1")
        assert {pid for pid, _ in daemon.notify.received} == {daemon.pid}
        assert last_words(daemon) == []
    for daemon in (tunnel.server, tunnel.client):
        assert_nothing_left(tunnel, daemon)
    assert left_behind(tunnel.directory, tunnel.pin_dir) == []
