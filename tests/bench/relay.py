"""A large file through a server's port and from the site itself: ``python -m tests.bench.relay [TIMES]``, as root.

A visitor fetches it over HTTP/3 directly and by way of the server, in turns: curl built to look like Chrome, and
Chromium where it is installed. The time is that of the file alone, on a connection that has fetched a page before.
All runs on this machine, so that its processors are shared by the site, the server and the visitor: as fast as they
can, a server on a machine of two has what both leave it. So it is measured with a line of the site's, too, that is
slower than they are. It prints, and asserts nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping

from tests.bench.likeness.browser import Chromium
from tests.support.namespaces import Namespace
from tests.support.site import NAME
from tests.support.tunnel import PORT, Tunnel

TIMES = 8
SIZE = 10_000_000
#: Of the site's line, and how much it holds.
LINE = ("rate", "200mbit", "burst", "256kb", "latency", "50ms")
_FILE, _TIMER = "large", "timer.html"
#: Says how many bytes came, in how many milliseconds, by which protocol.
_TIMER_PAGE = f"""<!doctype html><title>A large file</title><body><script>
const ask = new XMLHttpRequest(), began = performance.now();
ask.open("GET", "{_FILE}", false);
ask.overrideMimeType("text/plain; charset=x-user-defined");
ask.send();
const took = performance.now() - began, how = performance.getEntriesByType("resource")[0].nextHopProtocol;
document.body.textContent = `came ${{ask.responseText.length}} in ${{took}} by ${{how}}`;
</script>
"""
_CURL = """
import sys, time
from curl_cffi import CurlHttpVersion, CurlOpt, Session
name, port, address, authority, path = sys.argv[1:]
with Session(curl_options={CurlOpt.RESOLVE: [f"{name}:{port}:{address}".encode()]}) as session:
    def get(path):
        answer = session.get(f"https://{name}:{port}/{path}", http_version=CurlHttpVersion.V3ONLY,
                             impersonate="chrome", verify=authority, timeout=60)
        answer.raise_for_status()
        return len(answer.content)
    get("")
    began = time.perf_counter()
    came = get(path)
    print(f"came {came} in {(time.perf_counter() - began) * 1e3} by h3")
"""
#: What a fetch from an address said.
Fetch = Callable[[str], str]


def took(said: str) -> float | None:
    """Seconds for the file; None: it did not come whole, or not by HTTP/3."""
    found = re.search(r"came (\d+) in ([\d.]+) by h3", said)
    return float(found[2]) / 1e3 if found and int(found[1]) == SIZE else None


def curl(namespace: Namespace, authority: str) -> Fetch:
    def fetch(address: str) -> str:
        command = [*namespace.prefix, sys.executable, "-c", _CURL, NAME, str(PORT), address, authority, _FILE]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout

    return fetch


def measure(name: str, fetch: Fetch, addresses: Mapping[str, str], times: int) -> None:
    """Print a row."""
    seconds: dict[str, list[float]] = {side: [] for side in addresses}
    missed = 0
    for number in range(times + 1):
        for side, address in addresses.items():
            found = took(fetch(address))
            missed += found is None
            if found is not None and number:  # the first of each warms up
                seconds[side].append(found)
    if not all(seconds.values()):
        print(f"{name:<10} no file came")
        return
    medians = {side: statistics.median(each) for side, each in seconds.items()}
    direct, relayed = (medians[side] for side in addresses)
    rates = ", ".join(f"{side} {SIZE * 8 / medians[side] / 1e6:5.0f} Mbit/s" for side in addresses)
    ranges = ", ".join(f"{min(each) * 1e3:.0f} to {max(each) * 1e3:.0f} ms" for each in seconds.values())
    print(f"{name:<10} {rates}: {direct / relayed:.2f} of it ({ranges}; {missed} did not come)", flush=True)


def main() -> int:
    """Print the figures."""
    if os.geteuid() != 0:
        print("a file through a server's port: not measured, because only root may start daemons")
        return 0
    times = int(sys.argv[1]) if len(sys.argv) > 1 else TIMES
    with Tunnel() as tunnel:
        lab, files = tunnel.lab, tunnel.site.directory / "www"
        (files / _FILE).write_bytes(os.urandom(SIZE))
        (files / _TIMER).write_text(_TIMER_PAGE)
        lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        tunnel.server.start().wait_ready()
        addresses = {"direct": lab.SITE, "through the port": lab.SERVER}
        visitors = {"curl_cffi": curl(lab.client, str(tunnel.site.authority))}
        if shutil.which("chromium"):
            browser = Chromium(lab.client, tunnel.site.directory / "site.pem", NAME, PORT)
            visitors["Chromium"] = lambda address: browser.page(address, _TIMER)
        for line in ("as fast as this machine can", f"a line of {LINE[1]}/s"):
            if line.startswith("a line"):
                lab.site.run("tc", "qdisc", "add", "dev", lab.site_device, "root", "tbf", *LINE)
            print(f"{SIZE / 1e6:.0f} MB over HTTP/3, medians of {times}, {line}")
            for name, fetch in visitors.items():
                measure(name, fetch, addresses, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
