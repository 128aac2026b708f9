"""Floods of hellos at a server's port: an honest client gets in, visitors get the page, and nothing is restarted.

A few seconds of each here; ``make test-floods`` sets QRE_FLOOD_SECONDS and QRE_FLOOD_TIMES to what is promised: 60 s
each, ten clients of ten.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import hello_flood
from tests.support.daemons import PATIENCE
from tests.support.hello_flood import hellos, lookalikes
from tests.support.site import NAME, PAGE, visit
from tests.support.tunnel import PORT, Tunnel

SECONDS = float(os.environ.get("QRE_FLOOD_SECONDS", "4"))
TIMES = int(os.environ.get("QRE_FLOOD_TIMES", "1"))
#: From READY=1, which comes when its first datagram may be sent, to the session.
WITHIN = 5.0
#: Flights that are made beforehand. Each is sent from many addresses: to a server that is another stranger.
POOL = 300
pytestmark = pytest.mark.timeout(300 + 4 * SECONDS + 60 * TIMES)


def strangers(directory: Path) -> tuple[int, Path, str]:
    """3,000 whole hellos a second, from anywhere."""
    return 3000, hello_flood.write(directory / "hellos", hellos(NAME, POOL, random.Random(1))), "172.20.0.0/15"


def neighbours(directory: Path) -> tuple[int, Path, str]:
    """2,000 datagrams a second that look like Initials, from the client's own network of 24 bits."""
    return 2000, hello_flood.write(directory / "hellos", lookalikes(POOL, random.Random(2))), "10.90.1.0/24"


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    """A server that runs; what it says to forged addresses ends at the client's machine."""
    with Tunnel() as made:
        made.server.start().wait_ready()
        made.lab.router.ip("route", "add", "172.20.0.0/15", "via", made.lab.CLIENT)
        made.lab.client.ip("route", "add", "blackhole", "172.20.0.0/15")
        for namespace in (made.lab.router, made.lab.server):
            namespace.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        yield made


@pytest.mark.parametrize("kind", [strangers, neighbours])
def test_in_a_flood_of_hellos_a_client_gets_in_and_visitors_get_the_page(
    kind: Callable[[Path], tuple[int, Path, str]], tunnel: Tunnel
) -> None:
    rate, flights, network = kind(tunnel.directory)
    workers = tunnel.server.workers()
    log = tunnel.directory / "flood.log"
    command = ["-m", "tests.support.hello_flood", tunnel.lab.SERVER, str(PORT), str(rate), str(flights), network]
    flood = tunnel.lab.client.popen([sys.executable, *command], log=log)
    began = time.monotonic()
    took: list[float] = []
    pages: list[float] = []
    try:
        time.sleep(SECONDS / 2)  # it is well under way
        while len(took) < TIMES or time.monotonic() - began < SECONDS:
            tunnel.client.start().wait_ready()
            ready = time.monotonic()
            tunnel.client.wait_session()
            took.append(time.monotonic() - ready)
            asked = time.monotonic()
            page = visit(tunnel.lab.client, tunnel.lab.SERVER, tunnel.site.authority)
            pages.append(time.monotonic() - asked)
            assert page == PAGE
            assert flood.poll() is None, log.read_text()
            tunnel.client.stop()
    finally:
        flood.terminate()
        flood.wait(PATIENCE)
    count, _, seconds, _ = log.read_text().split()
    (device,) = json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"]
    seen = device["handshake"]["strangers"]
    print(f"{count} in {seconds} s, {seen} shown to the site; in after {took} s; page after {pages} s")
    assert seen > 50, "it arrives, and some of it is relayed"
    assert max(took) < WITHIN, took
    assert int(count) > 0.8 * rate * float(seconds), "the flood was one"
    assert tunnel.server.workers() == workers, "nothing was killed as hung"
