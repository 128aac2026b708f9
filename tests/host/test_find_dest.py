"""find-dest over real sites of several makes, none at all, and a QRE server: ranked, with the right reasons."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import TOOL, wait_for
from tests.support.lab import Lab
from tests.support.namespaces import Namespace
from tests.support.ordinary_user import as_nobody
from tests.support.site import NAME, Caddy
from tests.support.tunnel import Tunnel

GTLS, AIOQUIC, NOBODY, BY_TCP = "10.90.2.3", "10.90.2.4", "10.90.2.5", "10.90.2.6"

ASK = """
import socket, sys
made = socket.socket(socket.AF_UNIX)
made.connect(sys.argv[1])
made.sendall(sys.stdin.read().encode() + b"\\n")
print(made.makefile().readline())
"""


class Street:
    """A running QRE server, its Dest (Caddy), and further sites beside that one."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        place, directory = tunnel.lab.site, tunnel.site.directory
        for address in (GTLS, AIOQUIC, NOBODY, BY_TCP):
            place.ip("addr", "add", f"{address}/24", "dev", tunnel.lab.site_device)
        files = str(directory / "site.pem"), str(directory / "site.key")
        self.processes = [
            place.popen(["gtlsserver", "-q", "-d", str(directory / "www"), GTLS, "443", files[1], files[0]]),
            place.popen([sys.executable, "-m", "tests.support.aioquic_site", AIOQUIC, "443", *files]),
        ]
        self.by_tcp = Caddy(place, tunnel.directory / "by-tcp", BY_TCP, protocols="h1 h2")
        for address in (GTLS, AIOQUIC):
            wait_for(f"the site at {address}", lambda at=address: f"{at}:443 " in place.run("ss", "-Hlun"))

    def close(self) -> None:
        self.by_tcp.stop()
        for process in self.processes:
            process.kill()
            process.wait()

    def find(self, namespace: Namespace, *words: str, config: Path | None = None) -> dict[str, dict[str, Any]]:
        """By host, in the order of the ranks. ``config``: the directory of profiles."""
        bundle = self.tunnel.directory / "authorities.pem"
        bundle.write_text(self.tunnel.site.authority.read_text() + self.by_tcp.authority.read_text())
        environment = [f"{name}={value}" for name, value in self.tunnel.server.env.items()]
        environment += [] if config is None else [f"QRE_CONFIG_DIR={config}"]
        command = ["env", *environment, f"SSL_CERT_FILE={bundle}", TOOL, "--json", "find-dest", *words]
        told = json.loads(namespace.run(*command, check=False))
        return {site["dest"].partition(":")[0]: site for site in told["sites"]}


@pytest.fixture(scope="module")
def street() -> Iterator[Street]:
    with Tunnel() as tunnel:
        tunnel.server.start().wait_ready()
        wait_for(
            "TCP to be passed",
            lambda: (
                not any(
                    each["why"]
                    for device in json.loads(tunnel.server.tool("--json", "show"))["devices"]
                    for each in device["site_tcp"]
                )
            ),
        )
        street = Street(tunnel)
        try:
            yield street
        finally:
            street.close()


def against(site: dict[str, Any]) -> list[str]:
    return [each["drawback"] for each in site["against"]]


def test_sites_are_ranked_and_every_drawback_is_named(street: Street, tmp_path: Path) -> None:
    listed = tmp_path / "sites.txt"
    listed.write_text(f"# to be tried\n{NAME}@{NOBODY}\n\n{NAME}@{BY_TCP}:443  # TCP alone\n{NAME}@{Lab.SERVER}\n")
    named = (f"{NAME}@{AIOQUIC}:443", f"{NAME}@{GTLS}", f"{NAME}@{Lab.SITE}:443")
    found = street.find(street.tunnel.lab.server, *named, "--file", str(listed), "Parallel=3")
    assert list(found)[:3] == [Lab.SITE, GTLS, AIOQUIC], "the best is the first"
    assert [found[at]["grade"] for at in found] == ["good", "telling", *["unusable"] * 4]
    assert against(found[Lab.SITE]) == []
    assert found[Lab.SITE]["https"]["http3"] and found[Lab.SITE]["near"]
    assert found[Lab.SITE]["profile"]["group"] == "X25519MLKEM768"
    assert against(found[GTLS]) == ["no-tcp", "not-post-quantum"]
    # It is in Python, which a busy machine makes answer late: a distance is no news of it.
    assert [each for each in against(found[AIOQUIC]) if each != "far"] == ["cipher", "no-tcp", "not-post-quantum"]
    assert "AES_256_GCM_SHA384" in found[AIOQUIC]["against"][0]["why"]
    assert all(each["observed"] for site in found.values() for each in site["against"])
    assert against(found[NOBODY]) == ["unreachable"]
    assert against(found[BY_TCP]) == ["no-http3"]
    assert against(found[Lab.SERVER]) == ["itself"], "the server's own port"


def test_a_qre_server_ranks_as_its_site_does(street: Street, tmp_path: Path) -> None:
    site = street.find(street.tunnel.lab.server, f"{NAME}@{Lab.SITE}")[Lab.SITE]
    server = street.find(street.tunnel.lab.client, f"{NAME}@{Lab.SERVER}", config=tmp_path)[Lab.SERVER]
    assert (server["grade"], against(server)) == (site["grade"], against(site)) == ("good", [])
    for same in ("cipher", "group", "scid_length", "flight_datagram_lengths", "http_status", "ecn"):
        assert server["profile"][same] == site["profile"][same]


def test_a_name_that_the_site_does_not_have_is_told_by_its_certificate(street: Street) -> None:
    found = street.find(street.tunnel.lab.server, f"other.example@{GTLS}")[GTLS]
    assert "certificate" in against(found) and found["grade"] == "telling"


def test_nobody_may_ask_too_and_the_text_says_the_same(street: Street) -> None:
    environment = [f"{name}={value}" for name, value in street.tunnel.server.env.items()]
    command = ["env", *environment, f"SSL_CERT_FILE={street.tunnel.site.authority}"]
    text = street.tunnel.lab.server.run(*as_nobody(*command), TOOL, "find-dest", f"{NAME}@{Lab.SITE}")
    assert text.startswith(f" 1. good      {Lab.SITE}:443 as {NAME}, {Lab.SITE}\n      seen: ")
    assert "HTTPS by TCP with Alt-Svc; in our network" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_the_time_that_is_given_is_kept(street: Street) -> None:
    sites = [f"n{number}.{NAME}@{NOBODY}" for number in range(6)]
    found = street.find(street.tunnel.lab.server, *sites, "Parallel=1", "TimeLimit=1s")
    assert against(found[NOBODY]) == ["not-visited"]


def test_a_resolver_that_is_silent_does_not_hold_it_up(street: Street, tmp_path: Path) -> None:
    lab = street.tunnel.lab
    resolvers = tmp_path / "resolv.conf"
    resolvers.write_text(f"nameserver {Lab.SITE}\noptions timeout:30 attempts:2\n")
    lab.site.run("nft", "add table ip silent; add chain ip silent in { type filter hook input priority 0; }")
    lab.site.run("nft", "add rule ip silent in udp dport 53 drop")
    try:
        script = f"mount --bind {resolvers} /etc/resolv.conf; exec {TOOL} --json find-dest a.example TimeLimit=1s"
        began = time.monotonic()
        told = json.loads(lab.server.run("unshare", "--mount", "sh", "-c", script, check=False))
        assert time.monotonic() - began < 30
    finally:
        lab.site.run("nft", "delete table ip silent")
    assert against(told["sites"][0]) == ["not-visited"]


def item(street: Street, name: str) -> dict[str, Any]:
    """Of ``check server0``, beside the running server."""
    told = json.loads(street.tunnel.server.tool("--json", "check", "server0", check=False))
    found: dict[str, Any] = next(each for each in told["items"] if each["item"] == name)
    return found


def test_check_sees_that_this_hosts_own_firewall_drops_the_servers_port(street: Street) -> None:
    server = street.tunnel.lab.server
    assert item(street, "firewall")["answer"] == "yes"
    server.run("nft", "add table inet guard")
    try:
        server.run("nft", "add chain inet guard in { type filter hook input priority 0; policy drop; }")
        server.run("nft", "add rule inet guard in ct state established,related accept")
        server.run("nft", "add rule inet guard in iifname lo accept")
        closed = item(street, "firewall")
        assert (closed["answer"], closed["needed"]) == ("no", True)
        device = street.tunnel.lab.server_device
        assert closed["seen"] == f"the chain inet guard in drops UDP 443 that comes in by {device}: no client gets in"
        server.run("nft", "add rule inet guard in udp dport 443 accept")
        assert item(street, "firewall")["answer"] == "yes"
    finally:
        server.run("nft", "delete table inet guard")


def test_check_says_the_same_of_the_dest_of_a_profile(street: Street) -> None:
    tunnel = street.tunnel
    good = item(street, "dest")
    assert good["answer"] == "yes" and good["seen"].startswith(f"{Lab.SITE}:443 answers HTTP/3 in ")
    before = tunnel.profile("server0").read_text()
    try:
        tunnel.edit("server0", "Dest", f"{Lab.SERVER}:443")
        itself = item(street, "dest")
        assert itself["answer"] == "no" and "it is this server itself" in itself["seen"]
        tunnel.edit("server0", "Dest", f"{GTLS}:443")
        assert item(street, "dest")["answer"] == "yes"
        tells = item(street, "dest no-tcp")
        assert (tells["answer"], tells["needed"]) == ("no", False)
    finally:
        tunnel.profile("server0").write_text(before)


def known(street: Street) -> dict[str, Any]:
    """What the running daemon knows of its Dest."""
    (device,) = json.loads(street.tunnel.server.tool("--json", "show", "server0"))["devices"]
    found: dict[str, Any] = device["dest_profile"]
    return found


def test_a_running_daemon_takes_what_refresh_has_found(street: Street) -> None:
    before = known(street)["checked_at"]
    wait_for("another second", lambda: time.time() > before + 1)
    street.tunnel.server.tool("refresh", "server0")
    assert known(street)["checked_at"] > before
    street.tunnel.client.start().wait_ready().wait_session()


def test_the_daemon_takes_a_visit_of_its_own_dest_alone(street: Street) -> None:
    server = street.tunnel.server
    profile = known(street) | {"http_status": 299}
    told = {"op": "dest-found", "dest": f"{Lab.SITE}:443", "server_name": NAME, "profile": profile}
    for wrong in (
        told | {"dest": f"{GTLS}:443"},
        told | {"server_name": "other.example"},
        told | {"profile": profile | {"scid_length": 99}},
        told | {"profile": None},
        {"op": "dest-found"},
        told | {"more": 1},
    ):
        assert not json.loads(ask(street, wrong))["ok"]
    assert known(street)["http_status"] == 200
    assert json.loads(ask(street, told)) == {"ok": True}
    assert known(street)["http_status"] == 299
    server.tool("refresh", "server0")
    assert known(street)["http_status"] == 200


def ask(street: Street, request: dict[str, Any]) -> str:
    """The answer of the daemon's control socket."""
    path = next(street.tunnel.directory.rglob("server0.sock"))
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(path)], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    return asked.stdout
