"""``python -m tests.bench.likeness [N]``: N connections of each side, with Dest 6 ms away.

direct: visits to the site itself; strangers: the same through the server's port; ours: client daemons. The client's
own code visits, so that whatever differs is the server's. browsers: Chromium, through the server's port; where it is
installed, the clients are judged, too. The controls show what the judge makes of two groups that are alike, and of
one with a single tell.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from tests.bench.likeness import judge
from tests.bench.likeness.browser import Chromium
from tests.bench.likeness.features import WINDOW, Features, Visit
from tests.support.daemons import wait_for
from tests.support.site import NAME
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, Tunnel

#: One way to the site (ms), and the address where it is so far away.
_DISTANCE = 3
_FAR = "10.90.2.3"
#: How long the server is left alone first (seconds): by then it knows some visits.
_RECORDINGS = 90.0
#: Of the page.
_WORDS = "Tulips"


def capture(tunnel: Tunnel, count: int) -> dict[str, list[Visit]]:
    """Make the visits, by side, which take turns."""
    tunnel.server.start().wait_ready()
    print(f"waiting {_RECORDINGS:.0f} s, while the server records visits of its own", flush=True)
    time.sleep(_RECORDINGS)
    order = {
        "sides": {"direct": (_FAR, PORT), "strangers": (tunnel.lab.SERVER, PORT)},
        "server_name": NAME,
        "authority": str(tunnel.site.authority),
    }
    visitor = subprocess.Popen(
        [*tunnel.lab.client.prefix, sys.executable, "-m", "tests.bench.likeness.visits", json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    tunnel.stack.callback(visitor.wait)
    tunnel.stack.callback(visitor.kill)
    browser = None
    if shutil.which("chromium"):
        browser = Chromium(tunnel.lab.client, tunnel.site.directory / "site.pem", NAME, PORT)
    ports: dict[int, str] = {}
    with Tcpdump(tunnel.lab.client, tunnel.lab.client_device, tunnel.directory / "likeness.pcap", PORT) as dump:
        for _ in range(count):
            for side in order["sides"]:
                ports |= _visit(visitor, str(side))
            tunnel.client.start().wait_ready().wait_session()
            time.sleep(WINDOW)
            tunnel.client.stop()
            # Each begins as a visitor who was never there.
            (tunnel.directory / "state" / "client0.tickets").unlink(missing_ok=True)
            ports |= _new_ports(dump, ports, "ours")
            if browser is not None:
                well = browser.visit(tunnel.lab.SERVER, _WORDS)
                time.sleep(WINDOW)
                ports |= _new_ports(dump, ports, "browsers" if well else "browsers that saw no page")
        seen = list(dump.datagrams())
    by_port: dict[int, list[Datagram]] = {}
    for datagram in seen:
        port = datagram.source[1] if datagram.destination[1] == PORT else datagram.destination[1]
        by_port.setdefault(port, []).append(datagram)
    sides: dict[str, list[Visit]] = {}
    for port, side in ports.items():
        server = (_FAR if side == "direct" else tunnel.lab.SERVER, PORT)
        sides.setdefault(side, []).append(Visit(by_port[port], server))
    return sides


def _new_ports(dump: Tcpdump, known: dict[int, str], side: str) -> dict[int, str]:
    """The connections that began since, by their clients' ports; a capture is written some time after the packets."""

    def new() -> set[int]:
        return {each.source[1] for each in dump.datagrams()} - set(known) - {PORT}

    wait_for(f"the capture of {side}", lambda: bool(new()), timeout=20)
    return dict.fromkeys(new(), side)


def _visit(visitor: subprocess.Popen[str], side: str) -> dict[int, str]:
    """One visit by the client's own code: the port that it came from, if it ended well, and the side."""
    assert visitor.stdin is not None and visitor.stdout is not None
    visitor.stdin.write(f"{side}\n")
    visitor.stdin.flush()
    made = json.loads(visitor.stdout.readline())
    if not made["well"]:
        print(f"a visit ({side}) did not end as it should")
        return {}
    return {made["port"]: side}


_SERVERS = (("the flight", Visit.flight_features), ("what follows", Visit.later_features))
_CLIENTS = (("the client", Visit.client_features),)
Part = tuple[str, Callable[[Visit], Features]]


def compare(title: str, one: list[Visit], other: list[Visit], parts: Sequence[Part] = _SERVERS) -> None:
    print(f"\n== {title}: {len(one)} and {len(other)} connections")
    groups = [each.words() for each in one], [each.words() for each in other]
    for name in groups[0][0]:
        first, second = (judge.words(group, name) for group in groups)
        print(f"   {name}: {first}" + ("" if first == second else f"\n   {' ' * len(name)}  {second}"))
    for part, of in parts:
        rows: tuple[list[Features], list[Features]] = [of(each) for each in one], [of(each) for each in other]
        verdict = judge.forest(*rows)
        told = ", ".join(f"{name} {weight:.2f}" for name, weight in verdict.ranked)
        print(f"   {part}: AUC {verdict.auc:.2f} ({verdict.low:.2f} to {verdict.high:.2f}) by {told}")
        for name, (first_median, second_median, chance) in judge.single(*rows).items():
            if chance < 0.05 or name == "hello to ServerHello":
                print(f"      {name}: {first_median:.2f} / {second_median:.2f}, KS p = {chance:.3g}")


def _controls(name: str, visits: list[Visit], parts: Sequence[Part]) -> None:
    """One half beside the other, as they are, and with every answer a millisecond late."""
    one, other = visits[::2], visits[1::2]
    compare(f"{name} / {name} (a control)", one, other, parts)
    compare(f"{name} / {name}, a millisecond late (a control)", one, [each.answered_late() for each in other], parts)


def main() -> int:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with Tunnel() as tunnel:
        lab = tunnel.lab
        lab.site.ip("addr", "add", f"{_FAR}/24", "dev", lab.site_device)
        tunnel.edit("server0", "Dest", f"{_FAR}:{PORT}")
        lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        lab.site.ip("route", "add", "10.90.1.0/24", "via", lab.SERVER_TO_SITE)
        road = [sys.executable, "-m", "tests.support.distance", _FAR, str(PORT), lab.SITE, str(PORT)]
        distance = lab.site.popen([*road, str(_DISTANCE)])
        tunnel.stack.callback(distance.wait)
        tunnel.stack.callback(distance.kill)
        sides = capture(tunnel, count)
    _controls("strangers", sides["strangers"], _SERVERS)
    compare("direct / strangers", sides["direct"], sides["strangers"])
    compare("strangers / ours", sides["strangers"], sides["ours"])
    if browsers := sides.get("browsers"):
        _controls("browsers", browsers, _SERVERS + _CLIENTS)
        compare("browsers / ours", browsers, sides["ours"], _SERVERS + _CLIENTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
