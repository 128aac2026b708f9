"""`Forward`: a client reaches what is behind the server, nobody else does, and then the machine is as it was."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest

from tests.support.daemons import Daemon, wait_for
from tests.support.lab import NeighbourLab as Lab
from tests.support.namespaces import Namespace, join
from tests.support.site import PAGE as SITE_PAGE
from tests.support.site import visit
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import CLIENT_INNER, SERVER_INNER, Tunnel

TABLE = "table inet qre-server0"
PAGE = "the page behind the server"
_BIND = "import http.server, sys; http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()"
_SERVE = f"""
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{PAGE} for {{self.client_address[0]}}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
{_BIND}
"""


@contextlib.contextmanager
def web(namespace: Namespace, address: str, port: int) -> Iterator[None]:
    """A site that says who came."""
    process = namespace.popen([sys.executable, "-c", _SERVE, address, str(port)])
    try:
        wait_for("the site", lambda: f"{address}:{port} " in namespace.run("ss", "-Hltn"))
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def forwarding_tunnel(mode: str, settings: str = "") -> Iterator[Tunnel]:
    """Not started yet; the client sends the site's network through the tunnel."""
    with Tunnel(settings, lab=Lab) as tunnel, web(tunnel.lab.site, Lab.SITE, 8000):
        tunnel.edit("server0", "Forward", mode)
        tunnel.edit("client0", "AllowedIPs", "10.90.2.0/24, 10.77.0.0/24")
        yield tunnel


@pytest.fixture
def nat() -> Iterator[Tunnel]:
    with forwarding_tunnel("nat") as tunnel:
        yield tunnel


def fetch(namespace: Namespace, where: str, *, check: bool = True) -> str:
    return namespace.run("curl", "-sS", "-m", "5", f"http://{where}/", check=check)


def rules(namespace: Namespace) -> str:
    return namespace.run("nft", "list", "ruleset")


def forwarding(lab: Lab) -> dict[str, str]:
    names = ("all", "default", lab.server_device, lab.uplink_device)
    return {name: lab.server.run("sysctl", "-n", f"net.ipv4.conf.{name}.forwarding").strip() for name in names}


def told(server: Daemon) -> dict[str, Any]:
    (device,) = json.loads(server.tool("--json", "show", server.profile))["devices"]
    found: dict[str, Any] = device["forward"]
    return found


def wait_forwards(server: Daemon) -> None:
    wait_for("forwarding", lambda: not told(server)["why"] and bool(told(server)["uplinks"]))


def up(tunnel: Tunnel) -> Tunnel:
    tunnel.up()
    wait_forwards(tunnel.server)
    return tunnel


# --- what it is for ---


def test_with_nat_a_client_reaches_a_site_behind_the_server_as_the_server_by_segments_that_fit(nat: Tunnel) -> None:
    was, before = forwarding(nat.lab), rules(nat.lab.server)
    up(nat)
    lab = nat.lab
    with (
        Tcpdump(lab.site, lab.site_device, nat.directory / "mss.pcap", 9, SYN) as there,
        Tcpdump(lab.client, "client0", nat.directory / "mss2.pcap", 9, SYN) as here,
    ):
        assert fetch(lab.client, f"{Lab.SITE}:8000") == f"{PAGE} for {Lab.SERVER_TO_SITE}"
    (syn,) = [packet for packet in there.packets() if packet.data.dport == 8000]
    (answer,) = [packet for packet in here.packets() if packet.data.sport == 8000]
    for segment, fits in ((syn.data, 1380), (answer.data, 1222)):  # downward, and in a browser's datagrams upward
        assert dict_of_options(bytes(segment.opts))[2] == (fits - 40).to_bytes(2, "big")
    assert f"forwards: IPv4 by {', '.join(sorted((nat.lab.server_device, nat.lab.uplink_device)))} (nat)" in (
        nat.server.tool("show", "server0")
    )
    checked = nat.server.tool("check", "server0", check=False)
    assert "yes  forward          IPv4 by " in checked
    assert nat.server.stop() == 0
    assert (forwarding(nat.lab), rules(nat.lab.server)) == (was, before)


_ECHO = "import socket, sys; s = socket.socket(type=2); s.bind((sys.argv[1], 443)); s.sendto(*s.recvfrom(99))"
_SHOUT = (
    "import socket, sys; s = socket.socket(type=2); s.settimeout(5); s.sendto(b'-', (sys.argv[1], 443)); s.recv(99)"
)


def test_with_nat_a_client_reaches_sites_by_quic_dest_among_them(nat: Tunnel) -> None:
    """At the port that the server itself listens on at every address, whose datagrams nobody tracks."""
    nat.edit("server0", "Listen", "0.0.0.0:443")
    lab, other = up(nat).lab, "10.90.2.99"
    assert "notrack" in rules(lab.server)
    with Tcpdump(lab.site, lab.site_device, nat.directory / "quic.pcap", 443) as dump:
        assert visit(lab.client, Lab.SITE, nat.site.authority, 443) == SITE_PAGE
    visitors = {packet.source for packet in dump.datagrams() if packet.destination[1] == 443}
    assert {ip for ip, _ in visitors} == {Lab.SERVER_TO_SITE}
    assert any(port < 32_768 for _, port in visitors), "no relay's"
    lab.site.ip("addr", "add", f"{other}/24", "dev", lab.site_device)
    echo = lab.site.popen([sys.executable, "-c", _ECHO, other])
    try:
        wait_for("the echo", lambda: f"{other}:443 " in lab.site.run("ss", "-Hlun"))
        lab.client.run(sys.executable, "-c", _SHOUT, other)
    finally:
        echo.kill()
        echo.wait()


def test_with_route_it_comes_with_its_own_address_and_is_reached_there() -> None:
    with forwarding_tunnel("route") as tunnel:
        lab = up(tunnel).lab
        lab.site.ip("route", "add", f"{CLIENT_INNER}/32", "via", Lab.SERVER_TO_SITE)
        assert fetch(lab.client, f"{Lab.SITE}:8000") == f"{PAGE} for {CLIENT_INNER}"
        with web(lab.client, CLIENT_INNER, 8000):
            assert fetch(lab.site, f"{CLIENT_INNER}:8000") == f"{PAGE} for {Lab.SITE}"


def test_clients_reach_each_other_and_are_told_of_no_shorter_way(nat: Tunnel) -> None:
    other = nat.second_client()
    other.namespace = nat.lab.site  # a machine of its own; the site's serves
    nat.edit("client1", "Endpoint", f"{Lab.SERVER_TO_SITE}:443")
    nat.edit("client1", "AllowedIPs", "10.77.0.0/24")
    nat.edit("server0", "Listen", "0.0.0.0:443")
    up(nat)
    other.start().wait_ready().wait_session()
    with Tcpdump(nat.lab.client, "client0", nat.directory / "redirect.pcap", 9, "icmp[0] == 5") as capture:
        assert " 0% packet loss" in nat.lab.client.run("ping", "-c", "3", "-i", "0.2", "10.77.0.3")
    assert capture.packets() == []


SYN = "(tcp[13] & 2 != 0 and port 8000)"


def dict_of_options(data: bytes) -> dict[int, bytes]:
    return dict(dpkt.tcp.parse_opts(data))


# --- nobody else's router ---


@pytest.mark.parametrize("forward", ["off", "nat"])
def test_what_passes_through_a_bridge_of_the_server_is_none_of_its_business(nat: Tunnel, forward: str) -> None:
    """A host of virtual machines: where br_netfilter is on, rules see their packets as if they came to the bridge."""
    lab, guest_ip = nat.lab, "10.90.1.77"
    server, guest = lab.server, Namespace("guest")
    nat.stack.callback(guest.delete)
    server.ip("link", "add", "br0", "type", "bridge")
    join(server, "10.93.1.1/24", guest, f"{guest_ip}/24")
    (port,) = [
        line.split()[1].split("@")[0] for line in server.ip("-o", "-4", "addr").splitlines() if "10.93.1.1/" in line
    ]
    server.ip("addr", "del", f"{Lab.SERVER}/24", "dev", lab.server_device)
    for each in (lab.server_device, port):
        server.ip("link", "set", each, "master", "br0")
    server.ip("addr", "add", f"{Lab.SERVER}/24", "dev", "br0")
    server.ip("link", "set", "br0", "up")
    server.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", check=False)  # a kernel may be without it
    nat.edit("server0", "Forward", forward)
    nat.up()
    if forward == "nat":
        wait_forwards(nat.server)
        assert PAGE in fetch(lab.client, f"{Lab.SITE}:8000")
    wait_for("its rules", lambda: "br0" in rules(server))
    for _ in range(2):
        assert " 0% packet loss" in lab.client.run("ping", "-c", "3", "-i", "0.2", guest_ip, check=False)
    nat.client.stop()
    lab.client.ip("route", "add", "10.90.2.0/24", "via", Lab.SERVER)
    lab.site.ip("route", "add", "10.90.1.0/24", "via", Lab.SERVER_TO_SITE)
    lost = lab.client.run("ping", "-c", "1", "-W", "1", Lab.SITE, check=False)
    assert "1 received" not in lost, "what is sent to the bridge itself is not forwarded"


def test_nothing_else_is_forwarded_where_nothing_was(nat: Tunnel) -> None:
    nat.edit("client0", "AllowedIPs", "10.90.2.0/24, 10.77.0.0/24, 169.254.0.0/16")
    lab = up(nat).lab
    assert forwarding(lab) == {"all": "0", "default": "0", lab.server_device: "1", lab.uplink_device: "1"}
    nat.client.stop()
    lab.client.ip("route", "add", "10.90.2.0/24", "via", Lab.SERVER)
    lab.site.ip("route", "add", "10.77.0.0/24", "via", Lab.SERVER_TO_SITE)
    lab.site.ip("route", "add", "10.90.1.0/24", "via", Lab.SERVER_TO_SITE)
    with Tcpdump(lab.client, lab.client_device, nat.directory / "third.pcap", 9, "icmp or port 8000") as capture:
        assert "1 received" not in lab.client.run("ping", "-c", "1", "-W", "1", Lab.SITE, check=False)
        assert fetch(lab.client, f"{Lab.SITE}:8000", check=False) == ""
        assert "1 received" not in lab.site.run("ping", "-c", "1", "-W", "1", Lab.CLIENT, check=False)
    assert {packet.src for packet in capture.packets()} == {bytes(map(int, Lab.CLIENT.split(".")))}
    lab.client.ip("route", "del", "10.90.2.0/24")
    nat.client.start().wait_ready().wait_session()
    assert fetch(lab.client, f"{Lab.SITE}:8000")
    with web(lab.client, CLIENT_INNER, 8000):  # with nat, nobody begins a connection to a client
        assert fetch(lab.site, f"{CLIENT_INNER}:8000", check=False) == ""
        assert PAGE in fetch(lab.server, f"{CLIENT_INNER}:8000")
    lab.site.ip("address", "add", "169.254.169.254/16", "dev", lab.site_device)
    lab.server.ip("route", "add", "169.254.169.254/32", "via", Lab.SITE)
    with web(lab.site, "169.254.169.254", 80):  # where clouds have a machine's secrets
        assert PAGE in fetch(lab.server, "169.254.169.254")
        assert fetch(lab.client, "169.254.169.254", check=False) == ""


# --- beside others ---

#: As Docker 24 makes them.
DOCKER = """
table ip nat {
    chain DOCKER { }
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 172.17.0.0/16 oifname != "docker0" counter masquerade
    }
}
table ip filter {
    chain DOCKER { }
    chain DOCKER-ISOLATION-STAGE-1 { counter return; }
    chain DOCKER-USER { counter return; }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump DOCKER-ISOLATION-STAGE-1
        oifname "docker0" ct state related,established counter accept
        oifname "docker0" counter jump DOCKER
        iifname "docker0" oifname != "docker0" counter accept
    }
}
table inet mine {
    chain c {
        type filter hook forward priority 5; policy accept;
        ct state invalid counter drop
    }
}
"""


def test_beside_dockers_rules_check_says_what_to_do_and_then_it_works(nat: Tunnel) -> None:
    lab = nat.lab
    file = nat.directory / "docker.nft"
    file.write_text(DOCKER)
    lab.server.run("nft", "-f", str(file))
    lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = chains_and_rules(lab.server)
    up(nat)
    assert fetch(lab.client, f"{Lab.SITE}:8000", check=False) == ""
    checked = nat.server.tool("check", "server0", check=False)
    assert "?    forward" in checked and "the chain ip filter FORWARD drops what is forwarded" in checked
    remedies = [line.split("`")[1::2] for line in checked.splitlines() if line.startswith("?    forward ")]
    assert len(remedies[0]) == 2
    for remedy in remedies[0]:
        assert "DOCKER-USER" in remedy
        lab.server.run(*remedy.split())
    assert fetch(lab.client, f"{Lab.SITE}:8000") == f"{PAGE} for {Lab.SERVER_TO_SITE}"
    wait_for("show knows it", lambda: "may be dropped" not in nat.server.tool("show", "server0"), timeout=10)
    assert "yes  forward " in nat.server.tool("check", "server0", check=False)
    nat.server.stop()
    kept = chains_and_rules(lab.server)
    assert [line for line in kept if "server0" not in line] == before
    assert set(forwarding(lab).values()) == {"1"}


def chains_and_rules(namespace: Namespace) -> list[str]:
    """Without the numbers of counters."""
    return namespace.run("nft", "--stateless", "list", "ruleset").splitlines()


def test_two_servers_on_one_machine_do_not_take_forwarding_from_each_other(nat: Tunnel) -> None:
    """The other one forwards nothing, but passes TCP to its Dest: it needs the same devices."""
    lab = nat.lab
    was = forwarding(lab)
    nat.edit("server1", "Listen", f"{Lab.SERVER}:8443", like="server0")
    nat.edit("server1", "Address", "10.78.0.1/24")
    nat.edit("server1", "Forward", "off")
    other = nat.daemon("server1", server=True)
    other.start().wait_ready()
    up(nat)
    for who in (nat.server, other):
        assert fetch(lab.client, f"{Lab.SITE}:8000") == f"{PAGE} for {Lab.SERVER_TO_SITE}"
        assert PAGE not in fetch(lab.client, f"{Lab.SERVER}:8443", check=False)
        if who is nat.server:
            other.stop()
            wait_for("the table to go", lambda: "qre-server1" not in rules(lab.server))
    other.start().wait_ready()
    nat.client.stop()
    nat.server.stop()
    assert forwarding(lab) != was  # the other one still needs it
    other.stop()
    assert forwarding(lab) == was


# --- whatever happens ---


@pytest.mark.parametrize("how", ["start", "start-off", "down", "down, of IPv6", "down, to be another device"])
def test_what_a_killed_daemon_left_is_undone_by_whoever_comes_next(nat: Tunnel, how: str) -> None:
    lab = nat.lab
    was = forwarding(lab)
    if how == "down, of IPv6":
        nat.edit("server0", "Listen", "[::]:443")
    up(nat)
    nat.server.stop(signal.SIGKILL)
    assert TABLE in rules(lab.server)
    if how == "down, to be another device":
        nat.edit("server0", "Device", "another0")
        with pytest.raises(RuntimeError, match="it was not taken down as server0, a server"):
            nat.server.tool("--dry-run", "daemon", "server0")
    if how.startswith("down"):
        assert "remove nftables table qre-server0 (inet)" in nat.server.tool("--dry-run", "down", "server0")
        nat.server.tool("down", "server0")
        nat.server.process = None  # it ended by a signal, as it should
    else:
        if how == "start-off":
            nat.edit("server0", "Forward", "off")
        nat.server.start().wait_ready()
        if how == "start":
            wait_forwards(nat.server)
            wait_for("the page", lambda: PAGE in fetch(lab.client, f"{Lab.SITE}:8000", check=False))
        else:
            assert TABLE not in rules(lab.server)
        nat.server.stop()
    assert "qre" not in rules(lab.server)
    assert forwarding(lab) == was


def test_a_worker_that_dies_costs_nothing_and_rules_that_are_flushed_come_back(nat: Tunnel) -> None:
    lab = up(nat).lab
    dead = nat.server.workers()["netlink"]
    subprocess.run(["kill", "-9", str(dead)], check=True)
    assert fetch(lab.client, f"{Lab.SITE}:8000")
    wait_for("another worker", lambda: nat.server.workers().get("netlink", dead) != dead)
    wait_for("its answer", lambda: "worker netlink is back" in nat.server.said())
    lab.server.run("nft", "flush", "ruleset")
    wait_for("the table", lambda: TABLE in rules(lab.server), timeout=5)
    assert fetch(lab.client, f"{Lab.SITE}:8000")


def test_a_reload_switches_it_on_and_off(nat: Tunnel) -> None:
    lab = nat.lab
    nat.edit("server0", "Forward", "off")
    nat.up()
    was = chains_and_rules(lab.server)
    assert fetch(lab.client, f"{Lab.SITE}:8000", check=False) == ""
    for mode, seen in (("nat", Lab.SERVER_TO_SITE), ("off", "")):
        nat.edit("server0", "Forward", mode)
        nat.server.tool("reload", "server0")
        assert fetch(lab.client, f"{Lab.SITE}:8000", check=False) == (f"{PAGE} for {seen}" if seen else "")
    assert chains_and_rules(lab.server) == was


def test_it_works_where_proc_is_hidden_and_only_the_units_capabilities_are_there(
    nat: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ProtectKernelTunables, ProcSubset=pid, CapabilityBoundingSet and NoNewPrivileges of packaging/qred@.service."""
    kept = "net_admin,bpf,net_bind_service,net_raw,setuid,setgid,setpcap,kill"
    command = nat.server.command()
    hidden = 'mount -t proc -o subset=pid proc /proc && exec setpriv --no-new-privs --bounding-set "$0" -- "$@"'
    bounded = "-all," + ",".join(f"+{name}" for name in kept.split(","))
    confined = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, bounded, *command]
    monkeypatch.setattr(nat.server, "command", lambda: confined)
    up(nat)
    assert fetch(nat.lab.client, f"{Lab.SITE}:8000") == f"{PAGE} for {Lab.SERVER_TO_SITE}"


# --- IPv6 ---


def test_ipv6_is_forwarded_where_the_machine_does_and_otherwise_clients_hear_so_at_once(nat: Tunnel) -> None:
    lab = nat.lab
    nat.edit("server0", "Address", f"{SERVER_INNER}/24, fd00:77::1/64")
    nat.edit("client0", "Address", f"{CLIENT_INNER}/24, fd00:77::2/64")
    nat.edit("client0", "AllowedIPs", "10.90.2.0/24, fd00:77::/64, fd00:90::/64")
    lab.server.ip("address", "add", "fd00:90::1/64", "dev", lab.uplink_device, "nodad")
    lab.site.ip("address", "add", "fd00:90::2/64", "dev", lab.site_device, "nodad")
    up(nat)
    refused = lab.client.run("ping", "-6", "-c", "1", "-W", "5", "fd00:90::2", check=False)
    assert "No route" in refused or "unreachable" in refused.lower()
    wait_for("the log", lambda: "IPv6 is not forwarded" in nat.server.said())
    checked = nat.server.tool("check", "server0", check=False)
    assert "no   forward ipv6" in checked and "net.ipv6.conf.all.forwarding=1`" in checked
    assert f"net.ipv6.conf.{lab.uplink_device}.accept_ra=2 " in checked
    lab.server.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    wait_for("IPv6", lambda: told(nat.server)["ipv6"], timeout=10)
    assert " 0% packet loss" in lab.client.run("ping", "-6", "-c", "1", "-W", "5", "fd00:90::2")
    checked = nat.server.tool("check", "server0", check=False)
    (line,) = [line for line in checked.splitlines() if line.startswith("?    forward ipv6")]
    assert lab.uplink_device in line.partition("no router advertisement is heard any more by ")[2]


def test_what_cannot_be_had_is_said_and_nothing_is_left(nat: Tunnel) -> None:
    library = nat.directory / "nolib"
    library.mkdir(mode=0o755)
    Path(library, "nftables.py").write_text("raise ImportError('nftables')\n")
    nat.server.environment["PYTHONPATH"] = str(library)
    was = forwarding(nat.lab)
    nat.up()
    assert told(nat.server)["why"] == ("nftables: it is missing; apt install python3-nftables, or set Forward = off")
    assert "not forwarded: nftables: it is missing" in nat.server.tool("show", "server0")
    assert forwarding(nat.lab) == was
