"""What QRE made of its device and another program takes away comes back, and the client's way out stays its own."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from tests.support.daemons import PATIENCE, wait_for
from tests.support.namespaces import Namespace
from tests.support.ping import answered, ping
from tests.support.tunnel import SERVER_INNER, Tunnel

ROOT = Path(__file__).resolve().parents[2]
BACK = 1.0  # seconds
#: A machine with much else to do may be late by this.
LATE = 1.0


def tunnel_of(allowed_ips: str) -> Tunnel:
    made = Tunnel()
    made.edit("server0", "Address", "10.77.0.1/24, fd77::1/64")
    made.edit("client0", "Address", "10.77.0.2/24, fd77::2/64")
    made.edit("client0", "AllowedIPs", allowed_ips)
    return made


def network(namespace: Namespace, device: str = "client0") -> str:
    """What QRE made, and how the device is."""
    shown = [namespace.ip(f"-{version}", "rule", "show", "proto", "81") for version in (4, 6)]
    shown += [namespace.ip(f"-{version}", "route", "show", "table", "all", "dev", device) for version in (4, 6)]
    addresses = namespace.ip("-o", "addr", "show", "dev", device)
    link = re.sub(r"^\d+: ", "", namespace.ip("-o", "link", "show", "dev", device))
    rules = [re.sub(r"^\d+:", "", line) for text in shown for line in text.splitlines()]
    return "\n".join(sorted(rules + re.findall(r"inet6? \S+", addresses) + re.findall(r"<\S+>|mtu \d+", link)))


def comes_back(tunnel: Tunnel, *deeds: tuple[str, ...]) -> float:
    """Seconds until everything is as it was."""
    namespace = tunnel.lab.client
    before = network(namespace)
    for deed in deeds:
        namespace.ip(*deed)
    began = time.monotonic()
    wait_for("the device as it was", lambda: network(namespace) == before, 10)
    return time.monotonic() - began


def restored(tunnel: Tunnel) -> dict[str, int]:
    described = json.loads(tunnel.client.tool("--json", "show", "client0"))["devices"][0]
    counted: dict[str, int] = described["restored"]
    return counted


RULES = [("rule", "del", "table", "5329477")]
ALL_RULES = [("-6", "rule", "flush", "proto", "81"), ("rule", "flush", "proto", "81")]
ADDRESS = [("addr", "del", "10.77.0.2/24", "dev", "client0")]
ADDRESSES = [("addr", "flush", "dev", "client0")]
ROUTE = [("route", "del", "192.168.7.0/24", "dev", "client0")]
DOWN = [("link", "set", "client0", "down")]
DOWN_AND_UP = [*DOWN, ("link", "set", "client0", "up")]
MTU = [("link", "set", "client0", "mtu", "1200")]


@pytest.mark.parametrize(
    "cases",
    [
        [(RULES, "rules -4 of table"), (ALL_RULES, "rules -6 of table"), (ADDRESS, "address 10.77.0.2/24")],
        [(ADDRESSES, "address fd77::2/64"), (ROUTE, "route 192.168.7.0/24"), (MTU, "MTU 1380")],
        [(DOWN, "link up, "), (DOWN_AND_UP, "route 192.168.7.0/24")],
    ],
    ids=["rules and an address", "addresses, a route, the MTU", "the link"],
)
def test_what_is_taken_away_comes_back_within_a_second_is_counted_and_told(
    cases: list[tuple[list[tuple[str, ...]], str]],
) -> None:
    with tunnel_of("0.0.0.0/0, ::/0, 192.168.7.0/24") as tunnel:
        tunnel.up()
        for number, (deeds, told) in enumerate(cases, 1):
            said = len(tunnel.client.said())
            assert comes_back(tunnel, *deeds) < BACK + LATE
            wait_for("a line about it", lambda said=said: "put back" in tunnel.client.said()[said:])
            lines = [line for line in tunnel.client.said()[said:].splitlines() if "device client0: " in line]
            assert len(lines) == 1 and told in lines[0], lines
            assert max(restored(tunnel).values()) <= number
            assert answered(tunnel.lab.client, SERVER_INNER) == 5
            time.sleep(1)  # so that it counts as another time
        assert "put back" in tunnel.client.tool("show", "client0")


#: Removes QRE's IPv4 rules whenever there are any, as a network manager that takes them for its own.
RIVAL = """
import time
from pathlib import Path
from qre.kernel.rtnl import Rtnl
with Rtnl() as rtnl:
    while True:
        for rule in rtnl.rules():
            if rule.version == 4:
                rtnl.delete_rule(rule)
        time.sleep(1.2)
"""


def test_who_removes_the_rules_again_and_again_is_named_and_nothing_leaves_in_the_clear() -> None:
    with tunnel_of("0.0.0.0/0") as tunnel:
        tunnel.up()
        namespace, process = tunnel.lab.client, tunnel.client.process
        assert process is not None
        rival = namespace.popen([sys.executable, "-c", RIVAL], env={"PYTHONPATH": str(ROOT)})
        try:
            status = process.wait(PATIENCE)
        finally:
            rival.kill()
            rival.wait()
        assert status == 2, "systemd would start it again, and again"
        said = tunnel.client.said()
        assert said.count("; put back") == 3
        assert re.search(rf"python\S* \(process {rival.pid}\) removed rules -4 of table", said)
        assert "more than three times in a minute: the tunnel ends" in said
        assert "nothing leaves in the clear: `qre-tool up client0` uses them, `qre-tool down client0` removes" in said
        assert "unreachable" in namespace.ip("rule")
        assert "client0" not in namespace.ip("link")
        assert "nreachable" in ping(namespace, tunnel.lab.SITE, count=1, wait=1)
        tunnel.client.start().wait_ready().wait_session()
        assert answered(namespace, SERVER_INNER) == 5
        assert tunnel.client.stop() == 0
        assert "proto 81" not in namespace.ip("rule")


def test_what_its_user_does_is_not_taken_for_tampering() -> None:
    with tunnel_of("10.77.0.0/24, 192.168.9.0/24") as tunnel:
        tunnel.up()
        tunnel.edit("client0", "Address", "10.77.0.2/24, 10.78.0.2/24")
        tunnel.edit("client0", "AllowedIPs", "192.168.7.0/24, 192.168.8.0/24")
        tunnel.edit("client0", "MTU", "1300")
        tunnel.client.tool("reload", "client0")
        for absent in ("fd77::2", "lookup 5329477"):
            assert absent not in network(tunnel.lab.client)
        for present in ("10.78.0.2/24", "192.168.8.0/24", "mtu 1300"):
            assert present in network(tunnel.lab.client)
        tunnel.edit("client0", "AllowedIPs", "0.0.0.0/0")
        tunnel.client.tool("reload", "client0")
        assert "lookup 5329477" in network(tunnel.lab.client)
        assert restored(tunnel) == {}
        wait_for("a session with these routes", lambda: answered(tunnel.lab.client, SERVER_INNER, wait=1) == 5)
        process = tunnel.client.process
        assert process is not None
        tunnel.lab.client.ip("link", "del", "client0")
        assert process.wait(PATIENCE) == 1
        assert "device client0 was removed by another program" in tunnel.client.said()
        assert "unreachable" in tunnel.lab.client.ip("rule")
        tunnel.client.tool("down", "client0")
        assert "proto 81" not in tunnel.lab.client.ip("rule")
        tunnel.client.process = None
