"""shared-port-handshake-daemon for real: ready, serving, ended, and what becomes of a daemon that dies."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import qre.workers.bpf_loader
from tests.support.daemons import TOOL, children, wait_for
from tests.support.tunnel import Tunnel

ELF = Path(qre.workers.bpf_loader.__path__[0]) / "qre_reuseport.bpf.o"


def start(tunnel: Tunnel, *more: str, profiles: tuple[str, ...] = ("server0",)) -> subprocess.Popen[bytes]:
    files = [str(tunnel.profile(name)) for name in profiles]
    for name in ("state", "run"):
        (tunnel.directory / name).mkdir(mode=0o755, exist_ok=True)
    fields = (f"BpfElf={ELF}", f"PinDir={tunnel.pin_dir}", f"ReadyFile={tunnel.directory / 'ready'}", *more)
    environment = {name: value for name, value in tunnel.server.env.items() if name != "NOTIFY_SOCKET"}
    command = [TOOL, "shared-port-handshake-daemon", *files, *fields]
    return tunnel.lab.server.popen(command, env=environment, log=tunnel.server.log)


def wait_ready(tunnel: Tunnel) -> None:
    ready = tunnel.directory / "ready"
    wait_for(
        f"the ready file; {tunnel.server.said()}", lambda: ready.exists() or "did not start" in tunnel.server.said()
    )
    assert json.loads(ready.read_bytes())["devices"] == ["server0"]


def test_it_serves_until_its_time_is_over() -> None:
    with Tunnel() as tunnel:
        process = start(tunnel, "RunForMs=8000", "RoutedCidLen=17")
        wait_ready(tunnel)
        tunnel.client.start().wait_ready().wait_session()
        (device,) = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"]
        assert {len(session["connection_id"]) for session in device["sessions"]} == {2 * 17}
        assert process.wait(40) == 0
        assert not (tunnel.directory / "ready").exists()


def test_it_ends_when_it_is_told_to() -> None:
    with Tunnel() as tunnel:
        process = start(tunnel)
        wait_ready(tunnel)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert not (tunnel.directory / "ready").exists()


def test_a_daemon_that_dies_ends_it() -> None:
    with Tunnel() as tunnel:
        process = start(tunnel)
        wait_ready(tunnel)
        (daemon,) = [pid for pid in children(process.pid) if b"qre:supervisor" in comm(pid)]
        subprocess.run(["kill", "-KILL", str(daemon)], check=True)
        assert process.wait(40) == 2
        assert "the daemon of server0 ended" in tunnel.server.said()
        assert not (tunnel.directory / "ready").exists()


def comm(pid: int) -> bytes:
    return Path(f"/proc/{pid}/comm").read_bytes()


def test_two_on_the_user_data_plane_are_refused_and_nothing_is_left() -> None:
    with Tunnel() as tunnel:
        tunnel.edit("server1", "RealityShortIds", "0102", like="server0")
        tunnel.edit("server1", "Address", "10.78.0.1/24")
        process = start(tunnel, profiles=("server0", "server1"))
        assert process.wait(60) == 2
        assert "a port is shared on the kernel's data plane only" in tunnel.server.said()
