"""A flood of garbage at the server's port: the tunnel keeps working, memory is bounded, the log stays short."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.host.test_strangers import first_flight
from tests.support.daemons import PATIENCE, Daemon, wait_for
from tests.support.ping import numbers_answered
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

RATE, SECONDS = 10_000, 10
MEGABYTE = 1 << 20


def memory(daemon: Daemon) -> int:
    """What a daemon and the workers that it keeps hold, in bytes: without a visit to Dest, which comes and goes, and
    without files, which others map and unmap meanwhile."""
    total = 0
    for pid in (daemon.pid, *daemon.workers().values()):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    return total


def test_a_flood_of_garbage_harms_nobody() -> None:
    with Tunnel() as tunnel:
        with Tcpdump(tunnel.lab.server, tunnel.lab.server_device, tunnel.directory / "first.pcap") as dump:
            tunnel.up()
            wait_for("the first flight", lambda: len(first_flight(dump.datagrams())) == 2)
        hello = tunnel.directory / "hello.txt"
        hello.write_text("\n".join(payload.hex() for payload in first_flight(dump.datagrams())))
        tunnel.lab.server.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        tunnel.lab.router.ip("route", "add", "172.20.0.0/15", "via", tunnel.lab.CLIENT)
        tunnel.lab.client.ip("route", "add", "blackhole", "172.20.0.0/15")
        before, said = memory(tunnel.server), len(tunnel.server.said())
        ping = tunnel.lab.client.popen(
            ["ping", "-n", "-i", "0.2", "-c", str(5 * SECONDS), "-w", f"{PATIENCE:g}", SERVER_INNER],
            log=tunnel.directory / "ping.log",
        )
        flood = tunnel.lab.client.popen(
            [
                sys.executable,
                "-m",
                "tests.support.flood",
                tunnel.lab.SERVER,
                str(PORT),
                str(RATE),
                str(SECONDS),
                "7",
                str(hello),
            ],
            log=tunnel.directory / "flood.log",
        )
        peak = before
        while flood.poll() is None:
            peak = max(peak, memory(tunnel.server))
            time.sleep(0.25)  # a look at its memory four times a second
        ping.wait(PATIENCE)
        sent, _, _, sources, _ = (tunnel.directory / "flood.log").read_text().split()
        print(f"{sent} datagrams, {sources} sources, memory {before / MEGABYTE:.1f} -> {peak / MEGABYTE:.1f} MiB")
        assert int(sent) == RATE * SECONDS
        assert int(sources) >= 10_000
        assert peak - before < 20 * MEGABYTE
        # Python keeps some of its arenas; what stays does not grow with the next flood.
        wait_for("memory comes back", lambda: memory(tunnel.server) - before < 10 * MEGABYTE, interval=1)
        print(f"and back to {memory(tunnel.server) / MEGABYTE:.1f} MiB")
        pinged = (tunnel.directory / "ping.log").read_text()
        assert set(range(1, 5 * SECONDS + 1)) <= numbers_answered(pinged), pinged[-500:]
        assert len(tunnel.server.said()) - said < 8_000, tunnel.server.said()[-2000:]
        assert tunnel.client.process is not None
        tunnel.client.stop()
        tunnel.client.start().wait_ready().wait_session()
