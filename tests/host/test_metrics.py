"""Metrics of real daemons over a socket that was handed over as systemd does it, judged by Prometheus where it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.daemons import TOOL, wait_for
from tests.support.ping import answered
from tests.support.tunnel import SERVER_INNER, Tunnel

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging" / "qre-metrics.service"
ADDRESS, PROMETHEUS = "127.0.0.1:9586", "127.0.0.1:9590"


def activated(tunnel: Tunnel, listen: str, log: Path) -> subprocess.Popen[bytes]:
    """What qre-metrics.socket and its service are, within the service's limits, in the server's namespace; it listens
    when this returns."""
    passed = [f"--setenv={name}={value}" for name, value in tunnel.server.env.items()]
    passed += [f"--setenv=PATH={os.environ['PATH']}"]
    within = f'cd {ROOT} && exec {sys.executable} -m tests.support.confined {UNIT} "$@"'
    serve = ["sh", "-c", within, "sh", TOOL, "metrics", "--serve"]
    command = ["systemd-socket-activate", f"--listen={listen}", *passed, *serve]
    log.unlink(missing_ok=True)
    started = tunnel.lab.server.popen(command, log=log)
    wait_for(f"{listen} listens", lambda: log.exists() and "Listening on" in log.read_text())
    return started


def get(tunnel: Tunnel, *options: str) -> str:
    return tunnel.lab.server.run("curl", "-sS", "--max-time", "60", *options)


def check_prometheus(tunnel: Tunnel) -> None:
    """The real one scrapes it, and its lint finds nothing."""
    program, lint = shutil.which("prometheus"), shutil.which("promtool")
    if program is None or lint is None:
        return
    text = get(tunnel, f"http://{ADDRESS}/metrics")
    done = subprocess.run([lint, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    config = tunnel.directory / "prometheus.yml"
    scrape = f"scrape_configs: [{{job_name: qre, static_configs: [{{targets: ['{ADDRESS}']}}]}}]"
    config.write_text(f"global: {{scrape_interval: 1s}}\n{scrape}\n")
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={tunnel.directory / 'tsdb'}",
               f"--web.listen-address={PROMETHEUS}"]  # fmt: skip
    running = tunnel.lab.server.popen(command, log=tunnel.directory / "prometheus.log")
    try:
        question = f"http://{PROMETHEUS}/api/v1/query?query=qre_up"

        def scraped() -> bool:
            try:
                answer = json.loads(get(tunnel, question))
            except RuntimeError:
                return False  # it is starting
            return {one["metric"]["device"]: one["value"][1] for one in answer["data"]["result"]}.get(
                "server0"
            ) == "1"

        wait_for("a scrape of Prometheus", scraped, interval=0.5)
    finally:
        running.terminate()
        running.wait()


def test_metrics_are_served_on_a_socket_of_systemd_and_not_where_strangers_come() -> None:
    with Tunnel("MetricsClientNames = true\n") as tunnel:
        tunnel.up()
        assert answered(tunnel.lab.client, SERVER_INNER, "-I", "client0") == 5
        printed = tunnel.server.tool("metrics", "server0")
        assert 'qre_sessions{device="server0"} 1.0\n' in printed and printed.endswith("# EOF\n")
        assert 'qre_worker_resident_memory_bytes{device="server0",worker="handshake"}' in printed
        assert tunnel.value("client0", "RealityShortId") not in printed
        path, log = tunnel.directory / "metrics.listening", tunnel.directory / "metrics.log"
        for listen, asked in (
            (str(path), ("--unix-socket", str(path), "http://localhost/metrics")),
            (ADDRESS, (f"http://{ADDRESS}/metrics",)),
        ):
            serving = activated(tunnel, listen, log)
            try:
                assert 'qre_up{device="server0"} 1.0' in get(tunnel, *asked)
                if listen == ADDRESS:
                    check_prometheus(tunnel)
            finally:
                serving.send_signal(signal.SIGTERM)
                serving.wait()
        refusing = activated(tunnel, "0.0.0.0:9587", log)
        began = time.monotonic()
        with pytest.raises(RuntimeError):
            get(tunnel, "http://127.0.0.1:9587/metrics")
        assert refusing.wait() == 2, log.read_text()
        assert "it listens on every address, and a port of metrics says that a tunnel is here" in log.read_text()
        assert time.monotonic() - began < 60
