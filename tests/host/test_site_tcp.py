"""A server's TCP face, seen from outside: what connects gets Dest, and nothing else of the machine has changed."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import dpkt
import pytest

from qre.kernel.netfilter.listening import Listening
from qre.kernel.site_tcp.site_face import SiteFace, State, Wanted
from tests.support.daemons import wait_for
from tests.support.lab import NeighbourLab as Lab
from tests.support.namespaces import Namespace, run
from tests.support.network import ip
from tests.support.site_tcp import SYN, SYN_ACK, WELCOME, connect, fetch, handshake, serving, told, wait_passed
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import Tunnel

TABLE = "qre-server0"


def rules(namespace: Namespace) -> str:
    return namespace.run("nft", "list", "ruleset")


def forwarding(lab: Lab) -> dict[str, str]:
    names = ("all", "default", lab.server_device, lab.uplink_device)
    return {name: lab.server.run("sysctl", "-n", f"net.ipv4.conf.{name}.forwarding").strip() for name in names}


@contextlib.contextmanager
def a_tunnel(settings: str = "") -> Iterator[Tunnel]:
    """The server's daemon is not started yet; the site serves plain HTTP, too."""
    with Tunnel(settings, lab=Lab) as tunnel, serving(tunnel.lab.site, Lab.SITE, 80, tunnel.directory / "plain"):
        yield tunnel


@pytest.fixture(scope="module")
def passing() -> Iterator[Tunnel]:
    """The server passes connections; nobody changes that."""
    with a_tunnel() as tunnel:
        tunnel.server.start().wait_ready()
        wait_passed(tunnel)
        yield tunnel


@pytest.fixture
def apart() -> Iterator[Tunnel]:
    """A lab of the test's own."""
    with a_tunnel() as tunnel:
        yield tunnel


# --- what a visitor sees ---


def test_https_and_http_answer_with_dests_certificate_pages_and_headers(passing: Tunnel) -> None:
    before = {port: each["connections"] for port, each in told(passing).items()}
    assert (
        fetch(passing, Lab.SERVER).partition("date:")[0]
        == fetch(passing, Lab.SITE, by=passing.lab.server).partition("date:")[0]
    )
    assert 'alt-svc: h3=":443"' in fetch(passing, Lab.SERVER)
    assert WELCOME in passing.lab.client.run("curl", "-sS", "-m", "20", f"http://{Lab.SERVER}/")
    assert {port: each["connections"] for port, each in told(passing).items()} == {
        443: before[443] + 2,
        80: before[80] + 1,
    }
    text = passing.server.tool("show", "server0")
    assert f"tcp to dest: 443 ({before[443] + 2} connections), 80 (" in text
    assert "tcp not passed" not in text


@pytest.mark.parametrize("port", [443, 80])
def test_the_syn_ack_is_dests_byte_for_byte_and_both_sides_see_our_ttl(passing: Tunnel, port: int) -> None:
    lab, rule = passing.lab, f"tcp port {port} or icmp"
    lab.site.run("sysctl", "-qw", "net.ipv4.ip_default_ttl=57")  # as one that is some hops away
    try:
        with (
            Tcpdump(lab.client, lab.client_device, passing.directory / f"{port}-visitor.pcap", 9, rule) as visitors,
            Tcpdump(lab.site, lab.site_device, passing.directory / f"{port}-site.pcap", 9, rule) as sites,
        ):
            assert connect(lab.client, Lab.SERVER, port, ttl=37)[0] == "connected"
        with Tcpdump(lab.site, lab.site_device, passing.directory / f"{port}-direct.pcap", 9, rule) as direct:
            assert connect(lab.server, Lab.SITE, port)[0] == "connected"
    finally:
        lab.site.run("sysctl", "-qw", "net.ipv4.ip_default_ttl=64")
    ours, dests = handshake(visitors.packets(), SYN_ACK), handshake(sites.packets(), SYN_ACK)
    assert ours == dests._replace(ttl=64)
    assert dests.ttl == 57
    plain = handshake(direct.packets(), SYN_ACK)
    timeless = [b"" if kind == dpkt.tcp.TCP_OPT_TIMESTAMP else value for kind, value in options(plain.options)]
    assert timeless == [b"" if kind == dpkt.tcp.TCP_OPT_TIMESTAMP else value for kind, value in options(ours.options)]
    assert [kind for kind, _ in options(plain.options)] == [kind for kind, _ in options(ours.options)]
    assert (plain.window, plain.fragment) == (ours.window, ours.fragment)
    assert handshake(sites.packets(), SYN) == handshake(visitors.packets(), SYN)._replace(ttl=64)


def options(data: bytes) -> list[tuple[int, bytes]]:
    return list(dpkt.tcp.parse_opts(data))


def test_a_packet_with_its_last_hop_is_taken_as_by_a_host_and_tells_nobody(passing: Tunnel) -> None:
    lab = passing.lab
    with Tcpdump(lab.client, lab.client_device, passing.directory / "last-hop.pcap", 9, "icmp") as capture:
        assert connect(lab.client, Lab.SERVER, 443, ttl=1)[0] == "connected"
    assert capture.packets() == []


def test_what_no_connection_begins_with_is_answered_by_silence_as_by_an_open_port(passing: Tunnel) -> None:
    """FIN, PSH and URG at once, no flag at all, SYN with FIN: a closed port answers RST."""
    lab = passing.lab
    send = (
        "import socket, struct, sys\n"
        "def total(data):\n"
        "    words = sum(struct.unpack(f'!{len(data) // 2}H', data))\n"
        "    words = (words >> 16) + (words & 0xffff)\n"
        "    return ~(words + (words >> 16)) & 0xffff\n"
        "made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n"
        "ours, theirs = map(socket.inet_aton, sys.argv[1:3])\n"
        "for number, flags in enumerate((0x29, 0, 3)):\n"
        "    tcp = struct.pack('!HHIIBBHHH', 40000 + number, 443, 1, 0, 80, flags, 1000, 0, 0)\n"
        "    check = total(ours + theirs + struct.pack('!BBH', 0, 6, 20) + tcp)\n"
        "    made.sendto(tcp[:16] + struct.pack('!H', check) + tcp[18:], (sys.argv[2], 0))\n"
    )
    rule = "tcp port 443 or icmp"
    with Tcpdump(lab.client, lab.client_device, passing.directory / "scan.pcap", 9, rule) as capture:
        lab.client.run(sys.executable, "-c", send, Lab.CLIENT, Lab.SERVER)
        assert connect(lab.client, Lab.SERVER, 443)[0] == "connected"  # and it is time to see an answer
    packets = [each for each in capture.packets() if each.data.dport == 443 or each.data.sport == 443]
    assert [
        each.data.dport for each in packets if each.data.sport == 443 and each.data.dport in range(40000, 40003)
    ] == []
    assert len([each for each in packets if each.data.sport in range(40000, 40003)]) == 3


# --- nobody else's router ---


def test_nothing_else_is_forwarded_and_nothing_tells_that_it_could_be(passing: Tunnel) -> None:
    lab = passing.lab
    assert forwarding(lab) == {"all": "0", "default": "0", lab.server_device: "1", lab.uplink_device: "1"}
    lab.client.ip("route", "add", f"{Lab.SITE}/32", "via", Lab.SERVER)
    lab.client.ip("route", "add", "10.90.1.77/32", "via", Lab.SERVER)  # in the LAN itself: a router would redirect
    lab.client.ip("route", "add", "203.0.113.5/32", "via", Lab.SERVER)  # no route there: a router would say so
    lab.site.ip("route", "add", f"{Lab.CLIENT}/32", "via", Lab.SERVER_TO_SITE)
    try:
        with (
            Tcpdump(lab.client, lab.client_device, passing.directory / "third.pcap", 9, "icmp or tcp") as capture,
            Tcpdump(lab.site, lab.site_device, passing.directory / "third-site.pcap", 9, "icmp or tcp") as beyond,
        ):
            for where in (Lab.SITE, "10.90.1.77", "203.0.113.5"):
                lab.client.run("ping", "-c", "1", "-W", "1", where, check=False)
                lab.client.run("ping", "-c", "1", "-W", "1", "-t", "1", where, check=False)
            assert connect(lab.client, Lab.SITE, 443, timeout=1) == ["TimeoutError"]
            assert connect(lab.site, Lab.CLIENT, 22, timeout=1) == ["TimeoutError"]
    finally:
        for where in (Lab.SITE, "10.90.1.77", "203.0.113.5"):
            lab.client.ip("route", "del", f"{where}/32")
        lab.site.ip("route", "del", f"{Lab.CLIENT}/32")
    ours = {socket.inet_aton(Lab.CLIENT)}
    assert {each.src for each in capture.packets()} == ours, "the server answered, or let something in"
    assert {each.src for each in beyond.packets()} == {socket.inet_aton(Lab.SITE)}, "something came through"


def test_when_another_program_makes_the_machine_a_router_it_is_one_and_stays_one(apart: Tunnel) -> None:
    lab = apart.lab
    apart.server.start().wait_ready()
    wait_passed(apart)
    lab.client.ip("route", "add", f"{Lab.SITE}/32", "via", Lab.SERVER)
    lab.site.ip("route", "add", f"{Lab.CLIENT}/32", "via", Lab.SERVER_TO_SITE)
    assert "1 received" not in lab.client.run("ping", "-c", "1", "-W", "1", Lab.SITE, check=False)
    lab.server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    wait_for("the guard to go", lambda: "forwarding-was-off" not in rules(lab.server), timeout=10)
    assert "1 received" in lab.client.run("ping", "-c", "1", "-W", "5", Lab.SITE, check=False)
    assert fetch(apart, Lab.SERVER)
    apart.server.stop()
    assert set(forwarding(lab).values()) == {"1"}
    assert TABLE not in rules(lab.server)


# --- whose port it is ---


def test_a_port_on_which_something_listens_is_left_to_it_and_passed_when_that_ends(apart: Tunnel) -> None:
    lab = apart.lab
    with serving(lab.server, Lab.SERVER, 80, apart.directory / "own", "a page of the server's own"):
        apart.server.start().wait_ready()
        wait_for("443 to be passed", lambda: not told(apart)[443]["why"])
        assert told(apart)[80]["why"] == "something listens on it"
        assert "a page of the server's own" in lab.client.run("curl", "-sS", "-m", "20", f"http://{Lab.SERVER}/")
        assert "tcp not passed: 80: something listens on it" in apart.server.tool("show", "server0")
        wait_for("the log", lambda: "TCP port 80 is not passed to Dest: something listens" in apart.server.said())
        checked = apart.server.tool("check", "server0", check=False)
        assert "no   tcp to dest      TCP port 80: something listens on it; not needed" in checked
    wait_passed(apart)
    assert WELCOME in lab.client.run("curl", "-sS", "-m", "20", f"http://{Lab.SERVER}/")
    assert "yes  tcp to dest      TCP 443, 80 is passed to Dest" in apart.server.tool("check", "server0", check=False)


def test_off_means_refused_and_nothing_is_touched() -> None:
    with a_tunnel("SiteTcp = off\n") as tunnel:
        before = forwarding(tunnel.lab)
        tunnel.up()
        assert connect(tunnel.lab.client, Lab.SERVER, 443) == ["ConnectionRefusedError"]
        assert "qre" not in rules(tunnel.lab.server)
        assert forwarding(tunnel.lab) == before
        assert "tcp to dest: off" in tunnel.server.tool("show", "server0")


def test_a_list_means_these_ports(apart: Tunnel) -> None:
    (apart.directory / "qre.conf").write_text("SiteTcp = 80, 8080\n")
    apart.server.start().wait_ready()
    wait_passed(apart)
    assert list(told(apart)) == [80, 8080]
    assert connect(apart.lab.client, Lab.SERVER, 443) == ["ConnectionRefusedError"]
    assert connect(apart.lab.client, Lab.SERVER, 80)[0] == "connected"
    assert connect(apart.lab.client, Lab.SERVER, 8080) == ["ConnectionRefusedError"]  # by Dest
    assert told(apart)[8080]["connections"] == 1


# --- the end, and what outlives it ---


def test_nothing_is_left_after_an_end_in_order_and_others_rules_stay(apart: Tunnel) -> None:
    lab = apart.lab
    lab.server.run(
        "nft", "add table ip mine; add chain ip mine c { type filter hook forward priority 0; policy drop; }"
    )
    lab.server.run("nft", "add rule ip mine c ct status dnat accept")
    before, was = rules(lab.server), forwarding(lab)
    checked = apart.server.tool("check", "server0", check=False)
    assert "?    forwarding       the chain ip mine c drops what is forwarded, unless" in checked
    assert "yes  tcp to dest      TCP 443, 80 can be passed to Dest" in checked
    apart.server.start().wait_ready()
    wait_passed(apart)
    assert "notrack" not in rules(lab.server)
    assert fetch(apart, Lab.SERVER)
    assert apart.server.stop() == 0
    assert rules(lab.server) == before
    assert forwarding(lab) == was


@pytest.mark.parametrize("how", ["start", "start-off", "down"])
def test_what_a_killed_daemon_left_is_undone_by_whoever_comes_next(apart: Tunnel, how: str) -> None:
    lab = apart.lab
    was = forwarding(lab)
    apart.server.start().wait_ready()
    wait_passed(apart)
    apart.server.stop(signal.SIGKILL)
    assert TABLE in rules(lab.server)
    assert forwarding(lab) != was
    if how == "down":
        assert f"remove nftables table {TABLE}" in apart.server.tool("--dry-run", "down", "server0")
        apart.server.tool("down", "server0")
        apart.server.process = None  # it ended by a signal, as it should
    else:
        if how == "start-off":
            (apart.directory / "qre.conf").write_text("SiteTcp = off\n")
        apart.server.start().wait_ready()
        if how == "start":
            wait_passed(apart)
            assert fetch(apart, Lab.SERVER)
            assert "forwarding-was-off" in rules(lab.server)
            apart.server.stop()
    assert "qre" not in rules(lab.server)
    assert forwarding(lab) == was


def test_a_worker_that_dies_costs_no_connection_and_no_count(apart: Tunnel) -> None:
    apart.server.start().wait_ready()
    wait_passed(apart)
    assert fetch(apart, Lab.SERVER)
    dead = apart.server.workers()["netlink"]
    subprocess.run(["kill", "-9", str(dead)], check=True)
    assert connect(apart.lab.client, Lab.SERVER, 443)[0] == "connected"
    wait_for("another worker", lambda: apart.server.workers().get("netlink", dead) != dead)
    wait_for("its answer", lambda: "worker netlink is back" in apart.server.said())
    assert told(apart)[443] == {"port": 443, "ip": 4, "connections": 2, "why": ""}
    apart.server.stop()
    assert "qre" not in rules(apart.lab.server)


def test_a_firewall_that_is_loaded_anew_takes_the_table_away_for_a_moment(apart: Tunnel) -> None:
    lab = apart.lab
    apart.server.start().wait_ready()
    wait_passed(apart)
    assert "notrack" in rules(lab.server)
    lab.server.run(
        "nft", "flush ruleset; add table ip mine; add chain ip mine c { type filter hook input priority 0; }"
    )
    wait_for("the table", lambda: TABLE in rules(lab.server), timeout=3)
    wait_for("no exception from tracking", lambda: "notrack" not in rules(lab.server), timeout=3)
    assert "forwarding-was-off" in rules(lab.server)
    assert fetch(apart, Lab.SERVER)
    lab.server.run("nft", "flush", "ruleset")
    was = {"all": "0", "default": "0", lab.server_device: "0", lab.uplink_device: "0"}
    apart.server.stop()
    assert (rules(lab.server), forwarding(lab)) == ("", was)


def test_another_dest_is_followed_by_a_reload(apart: Tunnel) -> None:
    other = "10.90.2.3"
    apart.lab.site.ip("address", "add", f"{other}/24", "dev", apart.lab.site_device)
    with serving(apart.lab.site, other, 80, apart.directory / "other", "the other site"):
        apart.server.start().wait_ready()
        wait_passed(apart)
        apart.edit("server0", "Dest", f"{other}:443")
        apart.server.tool("reload", "server0")
        wait_for("the rules", lambda: f"dnat to {other}:80" in rules(apart.lab.server))
        assert Lab.SITE not in rules(apart.lab.server)
        assert "the other site" in apart.lab.client.run("curl", "-sS", "-m", "20", f"http://{Lab.SERVER}/")


# --- when it cannot be had ---


def test_without_nftables_the_tunnel_works_and_the_log_says_once_what_is_missing(apart: Tunnel) -> None:
    library = apart.directory / "nolib"
    library.mkdir(mode=0o755)
    (library / "nftables.py").write_text("raise ImportError('nftables')\n")
    apart.server.environment["PYTHONPATH"] = str(library)
    apart.up()
    wait_for("the reason", lambda: "nftables: it is missing; apt install" in str(told(apart)))
    assert connect(apart.lab.client, Lab.SERVER, 443) == ["ConnectionRefusedError"]
    lines = [line for line in apart.server.said().splitlines() if "nftables" in line]
    assert [line.count("is not passed to Dest: nftables: it is missing") for line in lines] == [1, 1]  # 443, 80


def test_it_works_where_proc_is_hidden_and_only_the_units_capabilities_are_there(
    apart: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ProtectKernelTunables, ProcSubset=pid, CapabilityBoundingSet and NoNewPrivileges of packaging/qred@.service."""
    kept = "net_admin,bpf,net_bind_service,net_raw,setuid,setgid,setpcap,kill"
    command = apart.server.command()
    hidden = 'mount -t proc -o subset=pid proc /proc && exec setpriv --no-new-privs --bounding-set "$0" -- "$@"'
    bounded = "-all," + ",".join(f"+{name}" for name in kept.split(","))
    confined = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, bounded, *command]
    monkeypatch.setattr(apart.server, "command", lambda: confined)
    was = forwarding(apart.lab)
    apart.server.start().wait_ready()
    wait_passed(apart)
    assert fetch(apart, Lab.SERVER)
    apart.server.stop()
    assert ("qre" in rules(apart.lab.server), forwarding(apart.lab)) == (False, was)


class TestOneLook:
    """Of the part that changes the machine, in a namespace of its own."""

    WANTED = Wanted("qre0", Listening((IPv4Address("192.0.2.1"),), 443), None, IPv4Address("192.0.2.7"), 443, 64)

    @pytest.fixture(autouse=True)
    def uplink(self, network: None) -> None:
        ip("link", "add", "up0", "type", "veth", "peer", "name", "there")
        ip("link", "set", "there", "up")
        ip("link", "set", "up0", "up")
        ip("address", "add", "192.0.2.1/24", "dev", "up0")

    def look(self, dest: str | None, wanted: Wanted = WANTED) -> State:
        face = SiteFace("qre0", 4)
        state = face.look(replace(wanted, dest=ip_address(dest) if dest else None))
        if not state.ports:
            assert "qre" not in run("nft", "list", "ruleset")
            assert run("sysctl", "-n", "net.ipv4.conf.up0.forwarding").strip() == "0"
        face.undo()
        return state

    @pytest.mark.parametrize(
        ("dest", "why"),
        [
            (None, "Dest's address is not known yet"),
            ("2001:db8::1", "Dest has no IPv4 address"),
            ("192.0.2.1", "Dest is an address of this machine"),
            ("127.0.0.1", "Dest is an address of this machine"),
            ("203.0.113.9", "there is no IPv4 route to Dest"),
            ("224.0.0.1", "there is no IPv4 route to Dest"),
        ],
    )
    def test_a_dest_that_connections_cannot_go_to_is_said_and_nothing_changes(self, dest: str, why: str) -> None:
        state = self.look(dest)
        assert state.why.startswith(why)
        assert state.ports == ()

    def test_two_servers_on_one_uplink_do_not_stand_in_each_others_way(self) -> None:
        ip("address", "add", "192.0.2.2/24", "dev", "up0")
        one, other = SiteFace("qre0", 4), SiteFace("qre1", 4)
        second = replace(self.WANTED, device="qre1", listen=Listening((IPv4Address("192.0.2.2"),), 443))
        assert one.look(self.WANTED).ports == ((443, 443), (80, 80))
        assert other.look(second).ports == ((443, 443), (80, 80))
        one.undo()
        assert run("sysctl", "-n", "net.ipv4.conf.up0.forwarding").strip() == "1"
        assert "forwarding-was-off" in run("nft", "list", "table", "ip", "qre-qre1")
        other.undo()
        assert run("sysctl", "-n", "net.ipv4.conf.up0.forwarding").strip() == "0"
        assert run("nft", "list", "ruleset") == ""

    def test_a_dead_front_of_the_same_port_is_replaced(self) -> None:
        SiteFace("qre1", 4).look(replace(self.WANTED, device="qre1"))
        face = SiteFace("qre0", 4)
        face.look(self.WANTED)
        assert "qre-qre1" not in run("nft", "list", "ruleset")
        face.undo()
        assert run("sysctl", "-n", "net.ipv4.conf.up0.forwarding").strip() == "0"

    def test_a_device_that_was_off_though_all_others_were_on_is_off_again(self) -> None:
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("sysctl", "-qw", "net.ipv4.conf.up0.forwarding=0")
        face = SiteFace("qre0", 4)
        for _ in range(2):
            face.look(self.WANTED)
            assert "-alone" in run("nft", "list", "ruleset")
        SiteFace("qre0", 4).undo()
        assert run("sysctl", "-n", "net.ipv4.conf.up0.forwarding").strip() == "0"

    def test_a_listener_of_both_versions_has_the_port_and_one_of_loopback_or_of_ipv6_does_not(self) -> None:
        with contextlib.ExitStack() as stack:
            for family, address, port, only in (
                (socket.AF_INET6, "::", 80, 0),
                (socket.AF_INET6, "::", 81, 1),
                (socket.AF_INET, "127.0.0.1", 82, 0),
                (socket.AF_INET, "192.0.2.1", 83, 0),
                (socket.AF_INET, "0.0.0.0", 84, 0),
            ):
                made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
                made.bind((address, port))
                made.listen()
                state = self.look("192.0.2.7", replace(self.WANTED, ports=(80, 81, 82, 83, 84)))
        assert state.taken == (80, 83, 84)
        assert [port for port, _ in state.ports] == [81, 82]

    def test_without_the_capability_it_is_said_and_what_to_do(self) -> None:
        script = (
            "from ipaddress import ip_address as a\n"
            "from qre.kernel.netfilter.listening import Listening\n"
            "from qre.kernel.site_tcp.site_face import SiteFace, Wanted\n"
            "wanted = Wanted('qre0', Listening((a('192.0.2.1'),), 443), None, a('192.0.2.7'), 443, 64)\n"
            "print(SiteFace('qre0', 4).look(wanted).why)\n"
        )
        without = [
            "setpriv",
            "--bounding-set",
            "-net_admin",
            "--inh-caps",
            "-net_admin",
            sys.executable,
            "-c",
            script,
        ]
        assert "grant CAP_NET_ADMIN, or set SiteTcp = off" in run(*without)
