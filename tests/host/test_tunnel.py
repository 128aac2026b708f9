"""The tunnel as its users and strangers see it: real daemons in namespaces, a real site, real packets."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.daemons import PATIENCE, children, threads, wait_for
from tests.support.json_schemas import check_against_schema
from tests.support.lab import Ipv6Lab, Lab
from tests.support.ping import answered
from tests.support.site import PAGE, visit
from tests.support.tunnel import CLIENT_INNER, PORT, SERVER_INNER, Tunnel

CAP_NET_ADMIN, CAP_BPF = 1 << 12, 1 << 39
GRANTED = {"handshake": 0, "dataplane": 0, "bpf_loader": CAP_BPF, "netlink": CAP_NET_ADMIN}


@pytest.fixture(scope="module", params=[Lab, Ipv6Lab], ids=["over IPv4", "over IPv6"])
def tunnel(request: pytest.FixtureRequest) -> Iterator[Tunnel]:
    """Both daemons run, with a session between them."""
    with Tunnel(lab=request.param) as made:
        yield made.up()


def test_packets_flow_both_ways(tunnel: Tunnel) -> None:
    assert answered(tunnel.lab.client, SERVER_INNER) == 5
    assert answered(tunnel.lab.server, CLIENT_INNER) == 5


def test_large_pings_are_fragmented_and_arrive(tunnel: Tunnel) -> None:
    assert answered(tunnel.lab.client, SERVER_INNER, "-s", "4000") == 5


def test_a_stranger_with_a_browser_sees_the_site(tunnel: Tunnel) -> None:
    assert visit(tunnel.lab.client, tunnel.lab.SERVER, tunnel.site.authority, PORT) == PAGE


def test_workers_hold_what_they_were_granted_and_nothing_else(tunnel: Tunnel) -> None:
    for daemon in (tunnel.server, tunnel.client):
        workers = daemon.workers()
        expected = {"handshake", "netlink", "dataplane"} | ({"bpf_loader"} if daemon is tunnel.server else set())
        assert expected <= set(workers)
        uids = set()
        for name in expected:
            for thread in threads(workers[name]):
                assert thread.no_new_privs == 1
                assert thread.seccomp == 2
                assert thread.uid != 0
                inheritable, permitted, effective, bounding, ambient = thread.capabilities
                assert permitted == effective == GRANTED[name]
                assert (inheritable | bounding | ambient) & ~GRANTED[name] == 0
                uids.add((name, thread.uid))
        assert len({uid for _, uid in uids}) == len(expected)


def test_nothing_but_the_named_processes_runs(tunnel: Tunnel) -> None:
    for daemon in (tunnel.server, tunnel.client):
        assert len(list(children(daemon.pid))) == len(daemon.workers())


def test_show_tells_the_session_and_hides_the_keys(tunnel: Tunnel) -> None:
    for daemon in (tunnel.server, tunnel.client):
        shown = json.loads(daemon.tool("--json", "show", daemon.profile))
        check_against_schema("show", shown)
        assert daemon.profile in json.dumps(shown)
        assert re.search(r"[0-9a-f]{64}", json.dumps(shown)), "a session id"
        text = daemon.tool("show", daemon.profile)
        for secret in (tunnel.value("server0", "RealityPrivateKey"),):
            assert secret not in text
            assert secret not in json.dumps(shown)


def test_only_the_main_process_notifies_and_ready_comes_once(tunnel: Tunnel) -> None:
    for daemon in (tunnel.server, tunnel.client):
        assert daemon.notify is not None
        lines = daemon.notify.poll()
        assert lines.count("READY=1") == 1
        assert {pid for pid, _ in daemon.notify.received} == {daemon.pid}


def test_a_run_bounded_in_time_ends_by_itself() -> None:
    with Tunnel() as tunnel:
        tunnel.server.options = ("--run-for-ms", "3000")
        started = time.monotonic()
        tunnel.server.start().wait_ready()
        process, notify = tunnel.server.process, tunnel.server.notify
        assert process is not None
        assert notify is not None
        assert process.wait(PATIENCE) == 0
        assert time.monotonic() - started >= 3
        assert "STOPPING=1" in notify.poll()


def test_sighup_reloads_and_says_so() -> None:
    with Tunnel() as tunnel:
        tunnel.up()
        notify = tunnel.server.notify
        assert notify is not None
        tunnel.edit("server0", "Address", f"{SERVER_INNER}/24, 10.78.0.1/24")
        assert tunnel.server.process is not None
        tunnel.server.process.send_signal(signal.SIGHUP)
        wait_for("RELOADING=1, then READY=1", lambda: "READY=1" in after(notify.poll(), "RELOADING=1"))
        assert any(line.startswith("MONOTONIC_USEC=") for line in notify.poll())
        assert "10.78.0.1/24" in tunnel.lab.server.ip("-o", "addr")
        assert answered(tunnel.lab.client, SERVER_INNER) == 5, "sessions survive a reload"


def after(lines: list[str], first: str) -> list[str]:
    return lines[lines.index(first) :] if first in lines else []
