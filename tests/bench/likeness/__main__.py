"""``python -m tests.bench.likeness [N]``: N connections of each side, with Dest 6 ms away.

direct: visits to the site itself; strangers: the same through the server's port; ours: clients with the key. The
client's own code visits, so that whatever differs is the server's.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from base64 import b64decode

from tests.bench.likeness import judge
from tests.bench.likeness.features import Features, Visit
from tests.support.site import NAME
from tests.support.tcpdump import Datagram, Tcpdump
from tests.support.tunnel import PORT, Tunnel

#: One way to the site (ms), and the address where it is so far away.
_DISTANCE = 3
_FAR = "10.90.2.3"
_SHORT_IDS = 16


def capture(tunnel: Tunnel, count: int) -> list[tuple[str, Visit]]:
    """Make the visits; each with its side."""
    short_ids = [secrets.token_hex(8) for _ in range(_SHORT_IDS)]
    tunnel.edit("server0", "RealityShortIds", ",".join(short_ids))
    tunnel.server.start().wait_ready()
    order = {
        "sides": [
            ("direct", _FAR, PORT),
            ("strangers", tunnel.lab.SERVER, PORT),
            ("ours", tunnel.lab.SERVER, PORT),
        ],
        "count": count,
        "server_name": NAME,
        "authority": str(tunnel.site.authority),
        "public_key": b64decode(tunnel.value("client0", "RealityPublicKey")).hex(),
        "short_ids": short_ids,
    }
    with Tcpdump(tunnel.lab.client, tunnel.lab.client_device, tunnel.directory / "likeness.pcap", PORT) as dump:
        done = subprocess.run(
            [*tunnel.lab.client.prefix, sys.executable, "-m", "tests.bench.likeness.visits"],
            input=json.dumps(order),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    made = [json.loads(line) for line in done.stdout.splitlines()]
    bad = [each for each in made if not each["well"]]
    if bad:
        print(f"{len(bad)} of {len(made)} visits did not end as they should: {bad[:4]}")
    by_port: dict[int, list[Datagram]] = {}
    for datagram in dump.datagrams():
        port = datagram.source[1] if datagram.destination[1] == PORT else datagram.destination[1]
        by_port.setdefault(port, []).append(datagram)
    servers = {"direct": (_FAR, PORT)}
    return [
        (each["side"], Visit(by_port[each["port"]], servers.get(each["side"], (tunnel.lab.SERVER, PORT))))
        for each in made
        if each["well"]
    ]


def compare(title: str, one: list[Visit], other: list[Visit]) -> None:
    print(f"\n== {title}: {len(one)} and {len(other)} connections")
    groups = [each.words() for each in one], [each.words() for each in other]
    for name in groups[0][0]:
        first, second = (judge.words(group, name) for group in groups)
        print(f"   {name}: {first}" + ("" if first == second else f"\n   {' ' * len(name)}  {second}"))
    for part, of in (("the flight", Visit.flight_features), ("what follows", Visit.later_features)):
        rows: tuple[list[Features], list[Features]] = [of(each) for each in one], [of(each) for each in other]
        verdict = judge.forest(*rows)
        told = ", ".join(f"{name} {weight:.2f}" for name, weight in verdict.ranked)
        print(f"   {part}: AUC {verdict.auc:.2f} ({verdict.low:.2f} to {verdict.high:.2f}) by {told}")
        for name, (first_median, second_median, chance) in judge.single(*rows).items():
            if chance < 0.05 or name == "hello to ServerHello":
                print(f"      {name}: {first_median:.2f} / {second_median:.2f}, KS p = {chance:.3g}")


def main() -> int:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with Tunnel() as tunnel:
        lab = tunnel.lab
        lab.site.ip("addr", "add", f"{_FAR}/24", "dev", lab.site_device)
        tunnel.edit("server0", "Dest", f"{_FAR}:{PORT}")
        lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        lab.client.ip("route", "add", "10.90.2.0/24", "via", lab.SERVER)
        lab.site.ip("route", "add", "10.90.1.0/24", "via", lab.SERVER_TO_SITE)
        road = [sys.executable, "-m", "tests.support.distance", _FAR, str(PORT), lab.SITE, str(PORT)]
        distance = lab.site.popen([*road, str(_DISTANCE)])
        tunnel.stack.callback(distance.wait)
        tunnel.stack.callback(distance.kill)
        visits = capture(tunnel, count)
    sides: dict[str, list[Visit]] = {}
    for side, visit in visits:
        sides.setdefault(side, []).append(visit)
    half = len(sides["strangers"]) // 2
    compare("strangers / strangers (a control)", sides["strangers"][:half], sides["strangers"][half:])
    compare("direct / strangers", sides["direct"], sides["strangers"])
    compare("strangers / ours", sides["strangers"], sides["ours"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
