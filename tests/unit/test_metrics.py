"""OpenMetrics of what daemons say: right for Prometheus, and nothing in a label that is nobody's business."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from qre.cli.main import main
from qre.cli.metrics.device_metrics import DeviceMetrics
from qre.cli.metrics.metrics_server import check_not_reachable
from qre.config.profile import load_profile_file
from qre.errors import UserError
from tests.support.conformance import ROOT
from tests.support.profiles import SERVER as SERVER_PROFILE
from tests.support.profiles import write_profile
from tests.unit.test_session_table import client, server
from tests.unit.test_watch import Daemon

DASHBOARD = ROOT / "docs" / "grafana" / "qre.json"


def exposed(devices: list[dict[str, Any]], *, names: bool = False) -> dict[tuple[str, tuple[str, ...]], float]:
    """(sample's name, its labels' values by the labels' names) -> value, as the parser of OpenMetrics has them."""
    registry = CollectorRegistry()
    registry.register(DeviceMetrics(devices, names=names))
    text = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    found = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            key = sample.name, tuple(sample.labels[label] for label in sorted(sample.labels))
            assert key not in found
            found[key] = sample.value
    return found


def whole(**more: Any) -> dict[str, Any]:
    handshake = {"pending_flows": 1, "relay_flows": 2, "handshakes": 3, "strangers": 4, "rekeys": 5,
                 "excesses": {"handshakes": 6}}  # fmt: skip
    ports = [
        {"port": 443, "ip": 4, "why": "", "connections": 7},
        {"port": 443, "ip": 6, "why": "", "connections": 9},
        {"port": 80, "ip": 4, "why": "taken", "connections": 0},
    ]
    return server(5, handshake=handshake, site_tcp=ports, restored={"routes": 2}, **more)


def test_a_server_has_all_its_numbers() -> None:
    found = exposed([whole()])
    expected = {
        ("qre_device_info", ("user", "qre0", "server0", "server")): 1,
        ("qre_up", ("qre0",)): 1,
        ("qre_sessions", ("qre0",)): 5,
        ("qre_strangers_total", ("qre0",)): 4,
        ("qre_relay_flows", ("qre0",)): 2,
        ("qre_excesses_total", ("handshakes", "qre0")): 6,
        ("qre_site_tcp_connections_total", ("qre0", "4", "443")): 7,
        ("qre_site_tcp_connections_total", ("qre0", "6", "443")): 9,
        ("qre_put_back_total", ("qre0", "routes")): 2,
        ("qre_dropped_packets_total", ("qre0", "replayed")): 2,
        ("qre_dest_reachable", ("qre0",)): 1,
        ("qre_dest_round_trip_seconds", ("qre0",)): 0.012,
        ("qre_worker_ready", ("qre0", "dataplane")): 0,
        ("qre_worker_restarts_total", ("qre0", "dataplane")): 2,
        ("qre_clients", ("qre0",)): 5,
        ("qre_connected_clients", ("qre0",)): 5,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert ("qre_site_tcp_connections_total", ("qre0", "4", "80")) not in found
    assert not any(name.startswith("qre_client_") for name, _ in found)


def test_memory_is_that_of_the_process() -> None:
    own = {"role": "handshake", "pid": os.getpid(), "stage": "ready", "restarts": 0, "dropped_messages": 0}
    gone = {**own, "role": "netlink", "pid": 1 << 30}
    found = exposed([whole(processes=[own, gone])])
    assert found[("qre_worker_resident_memory_bytes", ("qre0", "handshake"))] > 1 << 20
    assert ("qre_worker_resident_memory_bytes", ("qre0", "netlink")) not in found


def test_clients_are_named_where_that_is_wanted_and_a_short_id_never_is() -> None:
    found = exposed([whole(clients=[client(1, None), client(2, "alice")])], names=True)
    named = {name: labels for name, labels in found if name.startswith("qre_client_")}
    assert set(named.values()) == {("alice", "qre0")}
    assert found[("qre_client_received_bytes_total", ("alice", "qre0"))] == 2 << 20
    secrets = {f"{number:016x}" for number in range(9)} | {"203.0.113.5", "10.77.0.2"}
    assert not any(secret in label for _, labels in found for label in labels for secret in secrets)


def test_what_is_not_known_is_left_out() -> None:
    nothing = dict.fromkeys(("counters", "handshake", "dest_profile", "clients", "up", "sessions", "site_tcp"))
    found = exposed([{**whole(), **nothing, "restored": {}, "processes": []}])
    assert found == {("qre_device_info", ("user", "qre0", "server0", "server")): 1}
    assert exposed([]) == {}


def test_the_command_prints_what_a_daemon_says(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = Daemon(machine / "run")
    try:
        assert main(["metrics"]) == 0
        everything = capsys.readouterr().out
        assert main(["metrics", "qre0"]) == 0
    finally:
        daemon.close()
    assert everything.endswith("# EOF\n") and 'qre_up{device="qre0"} 1.0\n' in everything
    assert 'qre_received_bytes_total{device="qre0"} 20480.0\n' in capsys.readouterr().out


# --- over HTTP ---

#: What systemd does: descriptor 3, and whose it is.
STARTER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())};"
    "os.execv(sys.executable, [sys.executable, '-m', 'qre.cli.main', 'metrics', '--serve'])"
)


def start(listening: socket.socket) -> subprocess.Popen[str]:
    number = listening.fileno()
    words = [sys.executable, "-c", STARTER, str(number)]
    return subprocess.Popen(words, cwd=ROOT, pass_fds=[number], stderr=subprocess.PIPE, text=True)


@pytest.fixture
def daemon(machine: Path) -> Iterator[Daemon]:
    write_profile(machine / "dev", "server0", SERVER_PROFILE)
    made = Daemon(machine / "run")
    yield made
    made.close()


def get(path: str) -> tuple[int, str, str]:
    asked = HTTPConnection("localhost", timeout=60)
    asked.sock = socket.socket(socket.AF_UNIX)
    asked.sock.connect(path)
    asked.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    answer = asked.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_a_socket_of_systemd_is_served(daemon: Daemon, machine: Path) -> None:
    path = str(machine / "metrics.listening")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        serving = start(listening)
        try:
            with socket.socket(socket.AF_UNIX) as rude:  # connects, says nothing sensible, and leaves
                rude.connect(path)
                rude.sendall(b"\xff" * 70_000)
            for _ in range(2):
                status, kind, text = get(path)
                assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
                assert 'qre_up{device="qre0"} 1.0' in text and text.endswith("# EOF\n")
        finally:
            serving.terminate()
            assert serving.communicate(timeout=60)[1] == ""


def test_without_systemd_there_is_nothing_to_serve(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "--serve"]) == 2
    assert "systemd has not handed over one socket" in capsys.readouterr().err
    assert main(["metrics", "--serve", "qre0"]) == 2


@pytest.mark.parametrize(
    ("address", "listen", "refused"),
    [
        ("0.0.0.0", "192.0.2.1:443", "listens on every address"),
        ("127.0.0.1", "127.0.0.2:443", ""),
        ("127.0.0.1", "0.0.0.0:443", ""),
        ("::", "192.0.2.1:443", "listens on every address"),
        ("::1", "0.0.0.0:443", ""),
        ("::ffff:127.0.0.1", "0.0.0.0:443", ""),
    ],
)
def test_an_address_that_strangers_can_reach_is_refused(
    address: str, listen: str, refused: str, tmp_path: Path
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        check_refusal(listening, listen, refused, tmp_path)


class Named:
    """A socket at an address that this machine does not have."""

    family = socket.AF_INET

    def __init__(self, address: str) -> None:
        self._address = address

    def getsockname(self) -> tuple[str, int]:
        return self._address, 9586


@pytest.mark.parametrize(
    ("address", "listen", "refused"),
    [
        ("192.0.2.1", "192.0.2.1:443", "192.0.2.1 is an address at which a server can be reached"),
        ("192.0.2.7", "192.0.2.1:443", ""),
        ("192.0.2.7", "192.0.2.1:443, [2001:db8::1]:443", ""),
        ("2001:db8::1", "192.0.2.1:443, [2001:db8::1]:443", "2001:db8::1 is an address at which"),
        ("192.0.2.7", "0.0.0.0:443", "192.0.2.7 is an address"),
        ("10.77.0.1", "0.0.0.0:443", ""),  # inside the tunnel
    ],
)
def test_so_is_a_servers_own_but_not_the_one_inside_its_tunnel(
    address: str, listen: str, refused: str, tmp_path: Path
) -> None:
    check_refusal(Named(address), listen, refused, tmp_path)


def check_refusal(listening: Any, listen: str, refused: str, directory: Path) -> None:
    path = directory / "server0.conf"
    path.touch(mode=0o600)
    path.write_text("\n".join(line for line in SERVER_PROFILE.splitlines() if "Listen" not in line))
    path.write_text(f"{path.read_text()}\nListen = {listen}\n")
    profiles = [load_profile_file(path)]
    if not refused:
        check_not_reachable(listening, profiles)
        return
    with pytest.raises(UserError, match=refused):
        check_not_reachable(listening, profiles)


def test_the_dashboard_asks_for_numbers_that_there_are() -> None:
    import json
    import re

    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bqre_\w+", target["expr"])
    }
    found = {name for name, _ in exposed([whole()], names=True)}
    assert asked and asked <= found | {"qre_worker_resident_memory_bytes"}, asked - found
