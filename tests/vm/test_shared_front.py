"""Two server daemons on one port of qre.ko: two clients at once on two devices, whichever of the two ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.unfolded import unfolded
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python, pytest.mark.only_in_all]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 300, 600.0


@pytest.fixture(scope="module")
def daemons(vm: Vm) -> Iterator[Vm]:
    """All four with their sessions; nothing is left of them."""
    with guest_daemons(
        vm,
        f"""
        second_init
        daemon_start a
        daemon_ready a {START}
        for each in a2 b b2; do daemon_start $each; done
        for each in a2 b b2; do daemon_ready $each {START}; done
        """,
        3 * START,
    ):
        yield vm


def flows(vm: Vm, network: int, seconds: int = START) -> None:
    """Packets pass, as soon as there is a session."""
    vm.check(
        LIBRARY
        + f"""
        for ((i = 0; i < {seconds}; i++)); do
            $B ping -c 1 -W 1 -q 10.{network}.0.1 >/dev/null && break
            sleep 0.5
        done
        $B ping -c 5 -i 0.2 -W 5 -q 10.{network}.0.1 || {{ tail -n 20 /tmp/service.*/said; false; }}
        """,
        SLOW,
    )


def shown(vm: Vm, service: str) -> dict[str, Any]:
    (device,) = json.loads(vm.check(LIBRARY + f"show {service}", SLOW))["devices"]
    assert isinstance(device, dict)
    return device


def test_two_servers_serve_two_clients_at_once_and_who_does_not_fit_is_refused(daemons: Vm) -> None:
    for network in (77, 78):
        flows(daemons, network)
    first, second = shown(daemons, "a"), shown(daemons, "a2")
    for device, peer in ((first, shown(daemons, "b")), (second, shown(daemons, "b2"))):
        (session,) = device["sessions"]
        assert session["state"] == "established"
        assert session["session_id"] == peer["sessions"][0]["session_id"]
        assert device["adopted_cids"]
    assert first["cid_map"]["in_sync"] or set(first["cid_map"]["connection_ids"]) >= set(second["adopted_cids"])
    assert "another daemon has the port" in second["status"]
    # Who has joined has no loader of its own, and tells of the front's.
    assert second["shared_loader"] == first["shared_loader"] | {"front": "server0"}
    assert second["cid_map"]["registered"] and second["cid_map"]["in_sync"]
    assert second["cid_map"]["front"] == "server0"
    for name in ("id", "path"):
        assert second["cid_map"][name] == first["cid_map"][name]
    text = unfolded(daemons.check(LIBRARY + "QRE_GLOBAL_CONFIG=/tmp/e/a.conf $A $QRE show server1", SLOW))
    assert "it belongs to server0, the front of this port" in text and "being restarted" not in text

    printed = daemons.check(
        LIBRARY
        + """
        cd $QRE_CONFIG_DIR
        umask 077
        refused() {
            sed -e "s/^Device.*/Device = server2/; s/10.78/10.79/; $1" server1.conf >server2.conf
            if QRE_GLOBAL_CONFIG=/tmp/e/a.conf $A $QRE daemon server2 >/tmp/refused 2>&1; then exit 1; fi
            tail -n 1 /tmp/refused
            ! ip -n a link show server2 2>/dev/null || exit 1
        }
        refused "s/^ServerName.*/ServerName = other.example/"
        refused "s/^Dest.*/Dest = 10.9.0.2:444/"
        refused ""
        rm server2.conf
        """,
        SLOW,
    )
    assert "ServerName" in printed and "Dest" in printed and "RealityShortIds" in printed, printed
    flows(daemons, 77)


def test_a_reload_of_a_daemon_that_has_joined_reaches_the_front(daemons: Vm) -> None:
    """Its client gets another short id: the old one is out, the new one in. One of the front's clients is refused."""
    flows(daemons, 78)
    printed = daemons.check(
        LIBRARY
        + """
        cd $QRE_CONFIG_DIR
        umask 077
        id_of() { grep -i ^RealityShortId $1 | sed "s/.*= *//"; }
        reload() { QRE_GLOBAL_CONFIG=/tmp/e/$1.conf ip netns exec $1 $QRE reload $2; }
        was=$(id_of client1.conf)
        cp server1.conf /tmp/e/server1.kept
        sed -i "s/$was/$(id_of client0.conf)/" server1.conf
        if reload a server1 2>&1; then exit 1; fi
        cp /tmp/e/server1.kept server1.conf
        sed -i "s/$was/00aa00aa00aa00aa/" server1.conf
        reload a server1
        until_true "grep -q 'this short id was removed' /tmp/service.b2/said"
        sed -i "s/$was/00aa00aa00aa00aa/" client1.conf
        reload b client1
        """,
        SLOW,
    )
    assert "belongs to another device at this port already" in printed
    flows(daemons, 78)
    (session,) = shown(daemons, "a2")["sessions"]
    assert session["client"] and session["short_id"] is None, "the name is told in its place"


@pytest.mark.only_in_all
def test_the_port_outlives_each_of_its_daemons(daemons: Vm) -> None:
    for network in (77, 78):
        flows(daemons, network)
    second = shown(daemons, "a2")
    daemons.check(
        LIBRARY
        + f"""
        $B ping -i 0.2 -W 5 10.78.0.1 >/tmp/pings 2>&1 &
        daemon_stop a
        has_port a2 {START}
        """,
        SLOW,
    )
    assert shown(daemons, "a2")["shared_loader"]["attached"]
    flows(daemons, 78)
    daemons.check(LIBRARY + f"daemon_start a; daemon_ready a {START}", SLOW)
    flows(daemons, 77)
    flows(daemons, 78)
    assert shown(daemons, "a2")["sessions"][0]["session_id"] == second["sessions"][0]["session_id"]

    daemons.check(LIBRARY + f"service_kill a2; has_port a {START}", SLOW)
    flows(daemons, 77)
    for _ in range(2):  # one that has joined dies, and joins again
        daemons.check(LIBRARY + f"daemon_start a2; daemon_ready a2 {START}", SLOW)
        flows(daemons, 78)
        daemons.check(LIBRARY + "service_kill a2", SLOW)
        flows(daemons, 77)
    daemons.check(LIBRARY + "pkill -INT -f 10.78.0.1; until_true 'grep -q loss /tmp/pings'")
    printed = daemons.check("tail -n 3 /tmp/pings; cat /tmp/service.a*/said")
    lost = re.search(r"([\d.]+)% packet loss", printed)
    print(printed)
    assert lost is not None and float(lost[1]) < 25, printed
