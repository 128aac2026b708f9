"""A server's daemon on qre.ko that listens at an address of each IP version, and at no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
LISTEN = "10.9.0.1:443, [fd09::1]:443"
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 200, 400.0
PING = "$B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1\n"
#: A short header and a long one to UDP 443 of each other address of the server: what their sender hears.
CLOSED = """
for address in 10.9.0.9 fd09::9; do
    for first in 64 192; do
        $B $PYTHON -c 'if True:
            import socket, sys
            made = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
            made.settimeout(5)
            made.connect((sys.argv[1], 443))
            made.send(bytes([int(sys.argv[2])]) + bytes(1200))
            try:
                made.recv(1)
            except OSError as error:
                print(type(error).__name__)' $address $first
    done
done
"""


@pytest.fixture
def daemons(vm: Vm) -> Iterator[Vm]:
    script = f"""
    ip -n a addr add 10.9.0.9/24 dev va
    ip -n a addr add fd09::9/64 dev va nodad
    sed -i 's/^Listen.*/Listen = {LISTEN}/' $QRE_CONFIG_DIR/server0.conf
    daemons_up {START}
    """
    with guest_daemons(vm, script, 3 * START):
        yield vm


def shown(vm: Vm, namespace: str) -> dict[str, Any]:
    (device,) = json.loads(vm.check(LIBRARY + f"show {namespace}", SLOW))["devices"]
    assert isinstance(device, dict)
    return device


def check(vm: Vm) -> None:
    printed = vm.check(LIBRARY + PING + CLOSED, SLOW)
    assert " 0% packet loss" in printed
    assert printed.count("ConnectionRefusedError\n") == 4, printed


def test_a_client_comes_by_each_address_and_the_others_are_closed(daemons: Vm) -> None:
    check(daemons)
    server = shown(daemons, "a")
    assert (server["dataplane"], server["listen"], server["shared_socket"]["local"]) == ("kernel", LISTEN, "[::]:443")
    assert server["sessions"][0]["endpoint"].startswith("10.9.0.2:")
    daemons.check(LIBRARY + f"daemon_kill a\ndaemon_restart a\ndaemon_ready a {START}\n", SLOW)
    check(daemons)
    assert shown(daemons, "a")["sessions"][0]["session_id"] == server["sessions"][0]["session_id"]
    daemons.check(
        LIBRARY
        + f"""
        daemon_stop b
        sed -i 's/^Endpoint.*/Endpoint = [fd09::1]:443/' $QRE_CONFIG_DIR/client0.conf
        daemon_start b
        daemon_ready b {START}
        session_up {START}
        """,
        SLOW,
    )
    check(daemons)
    assert shown(daemons, "a")["sessions"][-1]["endpoint"].startswith("[fd09::2]:")
    printed = daemons.check(LIBRARY + "$A $TOOLS/qrectl sessions Device=server0 | grep Underlay", SLOW)
    assert "UnderlayLocalIPv6=fd09::1\n" in printed
    daemons.check(LIBRARY + "daemon_stop b; daemon_stop a; ! ip -n a link show server0", SLOW)
