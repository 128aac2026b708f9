"""What is read out of a firewall's rules is what the kernel does: a datagram from another machine is the proof."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from qre.kernel.site_tcp.arrival import Arrival, Datagram, arrival
from tests.support.daemons import wait_for
from tests.support.lab import Lab

PORT = 443
LISTEN = """
import socket, sys
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.bind((sys.argv[1], int(sys.argv[2])))
while True:
    print(port.recv(99).decode())
"""
KNOCK = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[1].encode(), (sys.argv[2], int(sys.argv[3])))
"""
#: As `ufw` has them.
UFW = """table ip filter {
  chain ufw-user-input { %s; }
  chain ufw-not-local { fib daddr type local return; fib daddr type multicast return; drop; }
  chain ufw-before-input {
    iifname "lo" accept; ct state established,related accept; ct state invalid drop
    jump ufw-not-local; ip protocol icmp accept; jump ufw-user-input
  }
  chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-before-input; }
}"""


def closed(rules: str, *others: str) -> str:
    """A table that drops what ``rules`` do not let pass; ``others``: chains and sets of it."""
    base = f"chain in {{ type filter hook input priority 0; policy drop; {rules}; }}"
    return "\n".join(("table inet f {", *others, base, "}"))


DROPPED = "dropped by inet f in"
DOUBTFUL = "doubtful by inet f in"
HTTPS_SET = "set open { type inet_service; elements = { 80, 443 }; }"
HTTP_SET = "set open { type inet_service; elements = { 80 }; }"
NEAR_SET = "set near { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }"
DROPS_FIRST = """table inet f {
  chain pre { type filter hook prerouting priority raw; udp dport 443 drop; }
  chain in { type filter hook input priority 0; accept; }
}"""

#: Rules, and what becomes of the datagram.
CASES: tuple[tuple[str, str], ...] = (
    ("", "passes"),
    ("table inet f { chain in { type filter hook input priority 0; tcp dport 443 drop; }; }", "passes"),
    ("table ip6 f { chain in { type filter hook input priority 0; policy drop; }; }", "passes"),
    (UFW % "tcp dport 443 accept", "dropped by ip filter INPUT"),
    (UFW % "udp dport 443 counter accept", "passes"),
    (closed('iifname "lo" accept; ct state established,related accept'), DROPPED),
    (closed("udp dport { 53, 400-500 } accept"), "passes"),
    (closed("udp dport != 443 accept"), DROPPED),
    (closed('iifname "no*" udp dport 443 accept'), DROPPED),
    (closed("ip saddr 192.168.0.0/16 accept; ip saddr { 10.1.1.1, 10.2.0.0-10.2.1.1 } accept"), DROPPED),
    (closed("meta l4proto { tcp, udp } th dport 443 accept"), "passes"),
    (closed("udp dport @open accept", HTTPS_SET), "passes"),
    (closed("udp dport @open accept", HTTP_SET), DROPPED),
    (closed("goto r", "chain r { udp dport vmap { 53 : drop, 443 : accept }; }"), "passes"),
    (closed("goto r; accept", "chain r { udp dport 53 accept; }"), DROPPED),
    (closed("jump r; accept", "chain r { udp dport 53 accept; return; }"), "passes"),
    (closed("meta nfproto ipv4 ip protocol udp ct state new accept"), "passes"),
    (DROPS_FIRST, "dropped by inet f pre"),
    (closed("udp dport 443 reject"), DROPPED),
    # What passes now, and need not in a moment:
    (closed("udp dport 443 limit rate 100/second accept"), DOUBTFUL),
    (closed("ip saddr @near accept", NEAR_SET), DOUBTFUL),
)


class Door:
    """A program that listens on the server's port, and a client that knocks."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self.heard = directory / "heard"
        self.listener = lab.server.popen([sys.executable, "-uc", LISTEN, Lab.SERVER, str(PORT)], log=self.heard)
        wait_for("the listener", lambda: f":{PORT} " in lab.server.run("ss", "-Hlun"))

    def load(self, rules: str) -> None:
        """In place of all others."""
        file = self.directory / "rules.nft"
        file.write_text(f"flush ruleset\n{rules}\n")
        self.lab.server.run("nft", "-f", str(file))

    def knock(self, word: str) -> None:
        """One datagram from the client."""
        self.lab.client.run(sys.executable, "-c", KNOCK, word, Lab.SERVER, str(PORT))


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with Lab() as lab:
        made = Door(lab, tmp_path_factory.mktemp("door"))
        try:
            yield made
        finally:
            made.listener.kill()
            made.listener.wait()


def in_words(found: Arrival) -> str:
    if found.dropped:
        return f"dropped by {found.chain}"
    return f"doubtful by {found.chain}" if found.doubtful else "passes"


@pytest.mark.parametrize(("number", "rules", "expected"), [(number, *case) for number, case in enumerate(CASES)])
def test_what_the_rules_say_is_what_happens(door: Door, number: int, rules: str, expected: str) -> None:
    door.load(rules)
    told = json.loads(door.lab.server.run("nft", "-j", "list", "ruleset"))["nftables"]
    found = arrival(told, Datagram(door.lab.server_device, IPv4Address(Lab.SERVER), PORT))
    assert in_words(found) == expected
    door.knock(f"first {number}")
    door.load("")
    door.knock(f"second {number}")  # comes behind the first
    wait_for("the second datagram", lambda: f"second {number}\n" in door.heard.read_text())
    assert (f"first {number}\n" in door.heard.read_text()) is not found.dropped
