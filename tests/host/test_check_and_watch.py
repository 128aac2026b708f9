"""check and watch beside real daemons, a real site and real packets; check as root, as nobody, in a container."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.daemons import TOOL, Daemon
from tests.support.namespaces import run
from tests.support.ordinary_user import as_nobody
from tests.support.tunnel import SERVER_INNER, Tunnel


def check(daemon: Daemon, *words: str, prefix: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """What is found, by name, whatever the exit status; it must be told without a traceback."""
    assignments = [f"{name}={value}" for name, value in daemon.env.items()]
    command = [*daemon.namespace.prefix, "env", *assignments, *prefix, TOOL, "--json", "check", *words]
    return {item["item"]: item for item in json.loads(run(*command, check=False))["items"]}


def test_both_ends_of_a_running_tunnel_are_able(tunnel: Tunnel) -> None:
    text = tunnel.server.tool("check", "server0")
    assert re.search(r"^yes  listen +UDP \S+:443 is held by server0, which is up$", text, re.MULTILINE)
    assert re.search(r"^yes  dest +\S+:443 answers HTTP/3 in \d+ ms as site.example", text, re.MULTILINE)
    assert re.search(r"^yes  bpf maps", text, re.MULTILINE)
    assert re.search(r"^yes  endpoint", tunnel.client.tool("check", "client0"), re.MULTILINE)
    text = tunnel.server.tool("check")
    assert re.search(r"^yes  profile server0", text, re.MULTILINE)
    assert re.search(r"^yes  profile client0", text, re.MULTILINE)


def test_nobody_is_told_what_only_root_can_see(tunnel: Tunnel) -> None:
    nobody = tuple(as_nobody())
    found = check(tunnel.server, prefix=nobody)
    unseen = {name for name, item in found.items() if item["answer"] == "unknown"}
    assert unseen >= {"capabilities", "bpf maps", "profiles"}
    assert all(found[name]["remedy"] == "run it as root" for name in unseen)
    assert found["python packages"]["answer"] == found["tun device"]["answer"] == "yes"
    found = check(tunnel.server, "server0", prefix=nobody)
    assert found["profile server0"]["answer"] == "unknown"
    assert "dest" not in found


def test_what_nobody_in_a_container_can_have_is_told(tunnel: Tunnel) -> None:
    found = check(tunnel.server, prefix=("setpriv", "--bounding-set=-bpf,-sys_module", "--inh-caps=-bpf,-sys_module"))
    assert found["capabilities"]["answer"] == "no"
    assert found["capabilities"]["seen"] == "this container or unit cannot grant CAP_BPF"
    assert found["bpf maps"]["answer"] == "no"


def test_a_user_namespace_without_the_workers_ids_is_seen_before_a_daemon_starts(tunnel: Tunnel) -> None:
    item = check(tunnel.client, "client0", prefix=("unshare", "--user", "--map-root-user"))["service users"]
    assert item["answer"] == "no" and item["needed"]
    assert "it has one id only" in item["seen"] and "--map-auto" in item["remedy"]


def test_ipv6_that_is_switched_off_is_seen_by_a_profile_that_needs_it(tunnel: Tunnel) -> None:
    tunnel.edit("six", "AllowedIPs", "10.0.0.0/8, fd00::/8", like="client0")
    assert check(tunnel.client, "six")["ipv6"]["answer"] == "yes"
    switch = "net.ipv6.conf.default.disable_ipv6"
    tunnel.lab.client.run("sysctl", "-qw", f"{switch}=1")
    try:
        item = check(tunnel.client, "six")["ipv6"]
        assert item["answer"] == "no" and "switched off" in item["seen"] and "AllowedIPs" in item["remedy"]
        assert "ipv6" not in check(tunnel.client, "client0")
    finally:
        tunnel.lab.client.run("sysctl", "-qw", f"{switch}=0")
        tunnel.profile("six").unlink()


def test_a_running_tunnel_is_an_item_of_check(tunnel: Tunnel) -> None:
    for daemon in (tunnel.server, tunnel.client):
        assert check(daemon, daemon.profile)["tunnel"]["answer"] == "yes"


def test_what_goes_through_is_watched(tunnel: Tunnel) -> None:
    with tunnel.lab.client.popen(["ping", "-n", "-q", "-i", "0.05", "-s", "1000", SERVER_INNER]) as ping:
        try:
            shown = tunnel.server.tool("watch", "server0", "Interval=0.5", "Count=4")
        finally:
            ping.terminate()
    blocks = shown.split("interface: server0\n")[1:]
    assert len(blocks) == 4
    rates = re.findall(r"  rate: \S+ \S+ \((\d+) packets/s\) received, \S+ \S+ \((\d+) packets/s\) sent", blocks[-1])
    assert len(rates) == 2, "of the device, and of its session"
    assert all(int(number) > 0 for pair in rates for number in pair)
