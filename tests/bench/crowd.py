"""A server with a crowd of named clients: ``python -m tests.bench.crowd [CLIENTS…] [FILE.dat]``, as root.

One server's daemon on the user data plane, one client's daemon under a ping, and beside them as many further clients
as each step says, up at once. For each step: how long the newcomers took; the server's memory (PSS) and what its
processes cost when nobody sends anything but the sessions' own packets; how long `show`, `list-clients` and a reload
take. At the end the pings that were lost. It prints, and asserts nothing; the file gets the table.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.bench.server import memory
from tests.support.daemons import Daemon
from tests.support.namespaces import Namespace
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

STEPS = (100, 500, 1000, 1900)
#: Their addresses begin here.
FIRST = IPv4Address("10.64.0.2")
NETWORK = "10.64.0.1/16"
#: What the processes cost is looked at for so long (seconds).
AT_REST = 10.0
_TICK = os.sysconf("SC_CLK_TCK")


def sections(count: int) -> list[tuple[str, str, str]]:
    """Name, short id and address of each client."""
    return [(f"c{number:04}", secrets.token_hex(8), f"{FIRST + number}/32") for number in range(count)]


def prepare(tunnel: Tunnel, clients: list[tuple[str, str, str]]) -> Path:
    """Let the server know them; what the crowd is told."""
    tunnel.edit("server0", "Address", f"{SERVER_INNER}/24, {NETWORK}")
    with tunnel.profile("server0").open("a") as file:
        for name, short_id, address in clients:
            file.write(f"\n[Client {name}]\nShortId = {short_id}\nAddress = {address}\n")
    path = tunnel.directory / "crowd.json"
    spec = {
        "ip": tunnel.lab.SERVER,
        "port": PORT,
        "server_name": tunnel.value("client0", "ServerName"),
        "public_key": base64.b64decode(tunnel.value("client0", "RealityPublicKey")).hex(),
        "clients": [(short_id, address) for _, short_id, address in clients],
    }
    path.write_text(json.dumps(spec))
    return path


class Crowd:
    """The process of the crowd."""

    def __init__(self, namespace: Namespace, spec: Path, authority: Path) -> None:
        self.process = subprocess.Popen(
            [*namespace.prefix, sys.executable, "-m", "tests.support.crowd_clients", str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "SSL_CERT_FILE": str(authority)},
        )

    def grow(self, count: int) -> dict[str, Any]:
        """Until so many are up; what it says."""
        into, out = self.process.stdin, self.process.stdout
        assert into is not None and out is not None
        print(count, file=into, flush=True)
        told: dict[str, Any] = json.loads(out.readline())
        return told

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def spent(daemon: Daemon) -> dict[str, float]:
    """CPU seconds of each process."""
    pids = {"parent": daemon.pid, **daemon.workers()}
    fields = {name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for name, pid in pids.items()}
    return {name: (int(each[11]) + int(each[12])) / _TICK for name, each in fields.items()}


def took(daemon: Daemon, *command: str) -> float:
    """Seconds."""
    began = time.monotonic()
    daemon.tool(*command)
    return time.monotonic() - began


class Row(NamedTuple):
    """What a step found: sessions that are up, MB, and CPU as a share of a core (%) and for each newcomer (ms)."""

    up: int
    memory: float
    rest: float
    each: float


def step(tunnel: Tunnel, crowd: Crowd, count: int, before: int) -> Row:
    """Print a row."""
    server = tunnel.server
    began, cost = time.monotonic(), spent(server)
    told = crowd.grow(count)
    seconds = time.monotonic() - began
    newcomers = max(1, count - before)
    resting = spent(server)
    each = {name: (value - cost[name]) / newcomers * 1e3 for name, value in resting.items()}
    time.sleep(AT_REST)
    rest = {name: (value - resting[name]) / AT_REST * 100 for name, value in spent(server).items()}
    sizes = memory(server)
    show, listing, reload = (took(server, command, "server0") for command in ("show", "list-clients", "reload"))
    print(
        f"{told['up']:>5} up  {seconds:6.1f} s  {sum(each.values()):5.1f} ms of CPU each"
        f"  {sum(sizes.values()):6.1f} MB  at rest {sum(rest.values()):5.1f} % of a core"
        f"  show {show:.2f} s  list-clients {listing:.2f} s  reload {reload:.2f} s"
    )
    for what, values in (("MB", sizes), ("ms each", each), ("% of a core", rest)):
        print(f"          {what}: {', '.join(f'{name} {value:.1f}' for name, value in values.items())}")
    for what in ("failed", "ended"):
        if told[what]:
            print(f"          {what}: {told[what]}")
    sys.stdout.flush()
    return Row(told["up"], sum(sizes.values()), sum(rest.values()), sum(each.values()))


def table(rows: list[Row]) -> str:
    """As docs/pictures/growth.gp draws it."""
    lines = ["# sessions, MB, % of a core at rest, ms of CPU for each newcomer"]
    lines += [f"{row.up} {row.memory:.1f} {row.rest:.1f} {row.each:.1f}" for row in rows]
    return "\n".join(lines) + "\n"


def watch(namespace: Namespace, log: Path) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A ping of ten a second from the client's side."""
    file = log.open("wb")
    command = [*namespace.prefix, "ping", "-n", "-i", "0.1", "-W", "5", SERVER_INNER]
    return subprocess.Popen(command, stdout=file, stderr=file), file


def main() -> int:
    """Print a table."""
    steps = tuple(int(word) for word in sys.argv[1:] if word.isdigit()) or STEPS
    files = [Path(word) for word in sys.argv[1:] if not word.isdigit()]
    with Tunnel("LogLevel = warning\n") as tunnel:
        spec = prepare(tunnel, sections(max(steps)))
        began = time.monotonic()
        tunnel.server.start().wait_ready()
        print(f"{max(steps)} clients known: ready after {time.monotonic() - began:.1f} s")
        tunnel.client.start().wait_ready().wait_session()
        log = tunnel.directory / "ping.log"
        pinging, file = watch(tunnel.lab.client, log)
        crowd = Crowd(tunnel.lab.client, spec, tunnel.site.authority)
        try:
            rows = [step(tunnel, crowd, 0, 0)]
            rows += [step(tunnel, crowd, *pair) for pair in zip(steps, (0, *steps), strict=False)]
            for path in files:
                path.write_text(table(rows))
        finally:
            crowd.end()
            pinging.send_signal(2)
            pinging.wait()
            file.close()
        print("the client beside them:", *(line for line in log.read_text().splitlines() if "received" in line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
