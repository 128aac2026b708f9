"""``shared-port-handshake-daemon`` with two configurations: one command, one port, two devices of qre.ko."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.vm import Vm
from tests.vm.test_shared_front import LIBRARY, SLOW, START, flows, shown

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python, pytest.mark.only_in_all]


@pytest.fixture
def servers(vm: Vm) -> Iterator[Vm]:
    """Both of one command, ready; nothing is left of them."""
    with guest_daemons(
        vm,
        f"""
        second_init
        serve() {{
            QRE_GLOBAL_CONFIG=/tmp/e/a.conf $A $QRE shared-port-handshake-daemon \\
                $QRE_CONFIG_DIR/server0.conf $QRE_CONFIG_DIR/server1.conf PinDir=/tmp/bpf ReadyFile=/tmp/ready \\
                BpfElf=$CHECKOUT/qre/workers/bpf_loader/qre_reuseport.bpf.o >/tmp/server 2>&1 &
            echo $! >/tmp/server.pid
            status=0
            wait $! || status=$?
            echo $status >/tmp/server.ended
        }}
        rm -f /tmp/server.ended /tmp/ready
        serve &
        PATIENCE={2 * START} until_true "[ -e /tmp/ready ] || [ -e /tmp/server.ended ]"
        [ -e /tmp/ready ] || {{ cat /tmp/server; false; }}
        """,
        3 * START,
    ):
        yield vm


def test_one_command_serves_two_configurations_each_with_its_client(servers: Vm) -> None:
    assert json.loads(servers.check("cat /tmp/ready"))["devices"] == ["server0", "server1"]
    first, second = shown(servers, "a"), shown(servers, "a2")
    assert (first["listen"], second["listen"]) == ("10.9.0.1:443", "10.9.0.1:443")
    assert second["shared_loader"]["front"] == "server0"
    servers.check(LIBRARY + "for each in b b2; do daemon_start $each; done", SLOW)
    for network in (77, 78):
        flows(servers, network)
    for server, client in (("a", "b"), ("a2", "b2")):
        (session,), (peer,) = shown(servers, server)["sessions"], shown(servers, client)["sessions"]
        assert session["session_id"] == peer["session_id"]
        assert session["state"] == peer["state"] == "established"
    servers.check(
        LIBRARY
        + """
        for each in b b2; do daemon_stop $each; done
        kill $(cat /tmp/server.pid)
        until_true '[ -e /tmp/server.ended ]'
        [ $(cat /tmp/server.ended) = 0 ] || { cat /tmp/server; false; }
        [ ! -e /tmp/ready ] && [ -z "$(ls /tmp/bpf)" ]
        [ -z "$(ip -n a -o link show type qre)" ]
        """,
        SLOW,
    )
