"""``python -m tests.bench.likeness [N [RTT_MS [JITTER_MS]]]``: N connections of each side, with Dest 6 ms away, and
up to 1 ms more in each direction. Dest and the road to it have a processor that the server leaves alone.

direct: visits to the site itself; visitors: the same through the server's port; both by one process with the
client's own handshake, 40 at most. ours: client daemons; strangers: the same with an identity that the server does
not know, so that whatever differs is the server's. browsers: Chromium, through the server's port; where it is
installed, the clients are judged, too. QRE_TOOL names the command of another version, which can be judged as well.
The page brings its icon along: a new browser asks for nothing more (docs/protocol.md tells of sites where it does).
The controls show what the judge makes of two groups that are alike, and of one with a single tell. N is 10 at
least.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from qre.cli.profile.configuration import fresh_short_id
from tests.bench.likeness import judge
from tests.bench.likeness.browser import Chromium
from tests.bench.likeness.features import WINDOW, Features, Visit
from tests.support.daemons import Daemon, wait_for
from tests.support.site import NAME, PAGE
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, Tunnel

#: Where the site is so far away.
_FAR = "10.90.2.3"
#: How long the server is left alone first (seconds): by then it knows some visits.
_RECORDINGS = 90.0
#: Visits to the site itself and through the port: their medians are compared, for which some are enough.
_MOST_RELAYED = 40
#: Of one port, a first flight so much later (seconds) is another connection's.
_APART = 2.0
#: Of the page.
_WORDS = "Tulips"
_ICON = '<link rel="icon" href="data:,">'


def capture(tunnel: Tunnel, count: int) -> dict[str, list[Visit]]:
    """Make the visits, by side, which take turns."""
    with _on_other_processors():
        tunnel.server.start().wait_ready()
    print(f"waiting {_RECORDINGS:.0f} s, while the server records visits of its own", flush=True)
    time.sleep(_RECORDINGS)
    order = {
        "sides": {"direct": (_FAR, PORT), "visitors": (tunnel.lab.SERVER, PORT)},
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
    stranger = _stranger(tunnel)
    browser = None
    if shutil.which("chromium"):
        browser = Chromium(tunnel.lab.client, tunnel.site.directory / "site.pem", NAME, PORT)
    side_of: dict[Flow, str] = {}
    with Tcpdump(tunnel.lab.client, tunnel.lab.client_device, tunnel.directory / "likeness.pcap", PORT) as dump:

        def note(side: str) -> None:
            """The connections that began since are of ``side``; a capture is written some time after the packets."""

            def new() -> set[Flow]:
                return set(flows(dump.datagrams())) - set(side_of)

            wait_for(f"the capture of {side}", lambda: bool(new()), timeout=20)
            side_of.update(dict.fromkeys(new(), side))

        for number in range(count):
            for side in order["sides"] if number < _MOST_RELAYED else ():
                note(str(side) if _visit(visitor, str(side)) else f"{side} that did not end well")
            tunnel.client.start().wait_ready().wait_session()
            time.sleep(WINDOW)
            tunnel.client.stop()
            # Each begins as a visitor who was never there.
            (tunnel.directory / "state" / "client0.tickets").unlink(missing_ok=True)
            note("ours")
            before = _refusals(stranger)
            stranger.start().wait_ready()
            wait_for("a refusal", lambda before=before: _refusals(stranger) > before)
            time.sleep(WINDOW)
            stranger.stop()
            note("strangers")
            if browser is not None:
                well = browser.visit(tunnel.lab.SERVER, _WORDS, stays=2 * WINDOW)
                note("browsers" if well else "browsers that saw no page")
        seen = flows(dump.datagrams())
    sides: dict[str, list[Visit]] = {}
    for flow, side in side_of.items():
        server = (_FAR if side.startswith("direct") else tunnel.lab.SERVER, PORT)
        sides.setdefault(side, []).append(Visit(seen[flow], server))
    return sides


def _on_the_last_processor(pids: Iterable[int]) -> None:
    """The site is another machine: its times must not depend on what a server's visits or its clients cost."""
    last = max(os.sched_getaffinity(0))
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {last})


@contextlib.contextmanager
def _on_other_processors() -> Iterator[None]:
    """What is started meanwhile leaves the site's processor alone, if there are several."""
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, all_of_them - {max(all_of_them)} or all_of_them)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


def _stranger(tunnel: Tunnel) -> Daemon:
    tunnel.edit("stranger", "RealityShortId", fresh_short_id().hex(), like="client0")
    tunnel.edit("stranger", "Address", "10.77.0.9/24")
    return tunnel.daemon("stranger")


def _refusals(daemon: Daemon) -> int:
    return daemon.said().count("did not recognise us")


Flow = tuple[int, int]


def flows(datagrams: Iterable[Datagram]) -> dict[Flow, list[Datagram]]:
    """Connections, by the client's port, and how many had it before: a first flight after a silence is a new one."""
    found: dict[Flow, list[Datagram]] = {}
    latest: dict[int, int] = {}
    for each in datagrams:
        from_client = each.destination[1] == PORT
        port = each.source[1] if from_client else each.destination[1]
        number = latest.get(port)
        begins = from_client and each.payload[:1] >= b"\xc0"
        if number is None or (begins and each.time - found[port, number][-1].time > _APART):
            latest[port] = number = 0 if number is None else number + 1
        found.setdefault((port, number), []).append(each)
    return found


def _visit(visitor: subprocess.Popen[str], side: str) -> bool:
    """One visit by the client's own code: whether it ended well."""
    assert visitor.stdin is not None and visitor.stdout is not None
    visitor.stdin.write(f"{side}\n")
    visitor.stdin.flush()
    return bool(json.loads(visitor.stdout.readline())["well"])


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
    given = [float(each) for each in sys.argv[1:4]]
    count, round_trip, jitter = (given + [40.0, 6.0, 1.0][len(given) :])[:3]
    print(f"{count:.0f} connections of each side, Dest {round_trip:g} ms away, up to {jitter:g} ms more", flush=True)
    with Tunnel() as tunnel:
        lab = tunnel.lab
        lab.site.ip("addr", "add", f"{_FAR}/24", "dev", lab.site_device)
        tunnel.edit("server0", "Dest", f"{_FAR}:{PORT}")
        (tunnel.site.directory / "www" / "index.html").write_text(PAGE.replace("<title>", f"{_ICON}<title>"))
        lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        lab.site.ip("route", "add", "10.90.1.0/24", "via", lab.SERVER_TO_SITE)
        road = [sys.executable, "-m", "tests.support.distance", _FAR, str(PORT), lab.SITE, str(PORT)]
        distance = lab.site.popen([*road, str(round_trip / 2), str(jitter)])
        tunnel.stack.callback(distance.wait)
        tunnel.stack.callback(distance.kill)
        _on_the_last_processor((tunnel.site.process.pid, distance.pid))
        sides = capture(tunnel, int(count))
    _controls("strangers", sides["strangers"], _SERVERS)
    compare("direct / visitors", sides["direct"], sides["visitors"])
    compare("strangers / ours", sides["strangers"], sides["ours"])
    if browsers := sides.get("browsers"):
        _controls("browsers", browsers, _SERVERS + _CLIENTS)
        compare("browsers / ours", browsers, sides["ours"], _SERVERS + _CLIENTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
