"""Both daemons on qre.ko with outer packets of IPv6, the server's socket one of both versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 200, 400.0


@pytest.fixture
def daemons(vm: Vm) -> Iterator[Vm]:
    vm.check("echo OVER=6 >/tmp/over_ip")
    with guest_daemons(
        vm,
        f"""
        sed -i 's/^Listen.*/Listen = [::]:443/' $QRE_CONFIG_DIR/server0.conf
        daemons_up {START}
        """,
        3 * START,
    ):
        yield vm
    vm.check("rm /tmp/over_ip")


def shown(vm: Vm, namespace: str) -> dict[str, Any]:
    (device,) = json.loads(vm.check(LIBRARY + f"show {namespace}", SLOW))["devices"]
    assert isinstance(device, dict)
    return device


def test_the_tunnel_runs_on_the_module_and_outlives_the_servers_daemon(daemons: Vm) -> None:
    ping = "$B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1\n"
    assert " 0% packet loss" in daemons.check(LIBRARY + ping)
    server, client = shown(daemons, "a"), shown(daemons, "b")
    assert server["dataplane"] == client["dataplane"] == "kernel"
    assert server["shared_socket"]["local"] == server["listen"] == "[::]:443"
    (of_server,), (of_client,) = server["sessions"], client["sessions"]
    assert of_server["endpoint"].startswith("[fd09::2]:") and of_client["endpoint"] == "[fd09::1]:443"
    assert of_client["path_mtu"] == 1250 + 8 + 40
    printed = daemons.check(
        LIBRARY
        + "daemon_kill a\n"
        + ping
        + f"daemon_restart a\ndaemon_ready a {START}\n"
        + ping
        + "$A $TOOLS/qrectl sessions Device=server0 | grep Underlay",
        SLOW,
    )
    assert printed.count(" 0% packet loss") == 2, printed
    assert "UnderlayLocalIPv6=fd09::1\n" in printed and "UnderlayPeerIPv6=fd09::2\n" in printed
    assert shown(daemons, "a")["sessions"][0]["session_id"] == of_server["session_id"]
    daemons.check(LIBRARY + "daemon_stop b; daemon_stop a; ! ip -n a link show server0", SLOW)
