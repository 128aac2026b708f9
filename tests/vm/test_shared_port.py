"""The shared port by hand on qre.ko: the check, a loader that is killed, handshakes whose sessions the kernel has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest_daemons import guest_daemons
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python]
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 200, 400.0
LIBRARY = """
. /tmp/library; . $GUEST/daemons.sh
export QRE_GLOBAL_CONFIG=/tmp/e/a.conf
FRONT="BpfElf=$CHECKOUT/workers/bpf_loader/qre_reuseport.bpf.o PinDir=/tmp/bpf"
PROFILES="/tmp/e/dev/server0.conf /tmp/e/dev/client0.conf"
CIDS=/tmp/bpf/QRE_CID_ROUTES-10-9-0-1-443

# Waits for the file $1, or the end of process $2
ready() {
	local i
	for ((i = 0; i < 200; i++)); do
		[ -e $1 ] && return 0
		[ -e /proc/$2 ] || return 1
		sleep 1
	done
	return 1
}
"""

#: SIGTERM, and until it has ended; harmless when it has.
END_DEMO = """
pid=$(cat /tmp/demo.pid)
kill -TERM $pid 2>/dev/null || true
for ((i = 0; i < 120; i++)); do [ -e /proc/$pid ] || break; sleep 0.5; done
[ ! -e /proc/$pid ]
"""


@pytest.fixture(scope="module")
def port(vm: Vm) -> Iterator[Vm]:
    """Namespaces, profiles and a BPF file system; nothing is left of them."""
    with guest_daemons(vm, "", SLOW):
        yield vm


@pytest.fixture
def device(port: Vm) -> Iterator[Vm]:
    """A server's device qre0."""
    port.check(LIBRARY + "$A $TOOLS/qrectl device-set Device=qre0 Role=1 MTU=1380")
    yield port
    port.check(LIBRARY + "$A $TOOLS/qrectl device-del Device=qre0")


def shown(vm: Vm, namespace: str = "a") -> dict[str, dict[str, Any]]:
    described = json.loads(vm.check(LIBRARY + f"ip netns exec {namespace} $QRE --json show", SLOW))
    return {entry["device"]: entry for entry in described["devices"]}


def test_the_check_sees_the_kernel_adopt_and_count(device: Vm) -> None:
    printed = device.check(
        LIBRARY + "$A $QRE shared-port-loader-check $FRONT Listen=10.9.0.1:443 ConnectionId=$C Device=qre0", SLOW
    ).splitlines()
    for line in (
        "registered the shared socket with qre.ko",
        "ok qre.ko adopted the connection ID on qre0 and wrote it into the map",
        "ok a short header with the connection ID: slot 1 (kernel)",
        "ok a long header with the adopted connection ID: slot 0 (user space)",
        "ok the kernel counted 2 packets in slot 1, and left them to the socket",
        "ok the connection ID is gone from the map",
        "unregistered the CID map",
        "unregistered the shared socket",
        "ok everything",
    ):
        assert line in printed, printed
    counted = re.compile(r"qre0: shared socket 10\.9\.0\.1:443, 0 packets taken, (\d) passed on; CID map in sync, .*")
    assert [found[1] for line in printed if (found := counted.fullmatch(line))] == ["0", "2"], printed
    left = shown(device)["qre0"]
    assert not left["cid_map"]["registered"] and not left["shared_socket"]["registered"]
    assert left["shared_loader"] is None and left["adopted_cids"] == []
    device.check('[ -z "$(ls /tmp/bpf | grep -v debug)" ]; ! ip netns exec a ss -Hulpn | grep -q 443')


def test_a_loader_is_shown_mirrored_into_and_cleared_after_it_was_killed(device: Vm) -> None:
    device.check(
        LIBRARY
        + """
        $A $QRE shared-port-loader $FRONT Listen=10.9.0.1:443 UserspaceBind=true Device=qre0 ReadyFile=/tmp/ready \
            >/tmp/loader 2>&1 &
        loader=$!
        ready /tmp/ready $loader || { cat /tmp/loader; exit 1; }
        $A $TOOLS/qrectl cid-adopt Device=qre0 ConnectionId=$C
        $A $QRE show-cid-map BpfMapPath=$CIDS | grep -q "connection_id $C  socket_index 1"
        """,
        SLOW,
    )
    told = shown(device)["qre0"]
    assert told["cid_map"]["in_sync"] and told["cid_map"]["entries"] == 1
    assert told["shared_socket"]["local"] == "10.9.0.1:443"
    assert told["shared_loader"]["attached"] and told["shared_loader"]["routed_cid_len"] == 20
    printed = device.check(
        LIBRARY
        + f"""
        kill -9 {told["shared_loader"]["pid"]}
        until_true '[ ! -e /proc/{told["shared_loader"]["pid"]} ]'
        rm /tmp/loader
        FRONT="$FRONT Listen=10.9.0.1:443 UserspaceBind=true RunForMs=1"
        $A $QRE shared-port-loader $FRONT Device=qre0 ReadyFile=/tmp/ready
        """,
        SLOW,
    )
    for line in (
        "unregistered the CID map of a loader that was killed",
        "unregistered the shared socket of a loader that was killed",
        "removed the pins of a loader that was killed",
        "qre0: shared socket 10.9.0.1:443, 0 packets taken, 0 passed on; CID map in sync, 1 entries",
    ):
        assert line in printed, printed
    assert {"unregistered the shared socket", "unregistered the CID map"} <= set(printed.splitlines())
    told = shown(device)["qre0"]
    assert told["cid_map"]["registered"] is told["shared_socket"]["registered"] is False
    device.check('[ -z "$(ls /tmp/bpf | grep -v debug)" ]; [ ! -e /tmp/ready ]')


def test_without_the_kernels_map_the_shared_socket_is_registered_all_the_same(device: Vm) -> None:
    device.check(
        LIBRARY
        + """
        $A $QRE shared-port-loader $FRONT Listen=10.9.0.1:443 UserspaceBind=true Device=qre0 \\
            ReadyFile=/tmp/ready RegisterCidMap=false >/tmp/loader 2>&1 &
        loader=$!
        ready /tmp/ready $loader || { cat /tmp/loader; exit 1; }
        $A $TOOLS/qrectl cid-adopt Device=qre0 ConnectionId=$C
        """,
        SLOW,
    )
    told = shown(device)["qre0"]
    assert told["shared_socket"]["registered"] and told["shared_socket"]["local"] == "10.9.0.1:443"
    assert told["shared_loader"]["attached"] and told["cid_map"]["registered"] is False
    printed = device.check(
        LIBRARY
        + f"""
        $A $QRE show-cid-map BpfMapPath=$CIDS
        kill -9 {told["shared_loader"]["pid"]}
        until_true '[ ! -e /proc/{told["shared_loader"]["pid"]} ]'
        cat /tmp/loader
        rm -f /tmp/loader /tmp/ready
        $A $TOOLS/qrectl cid-release Device=qre0 ConnectionId=$C
        $A $QRE shared-port-loader-check $FRONT Listen=10.9.0.1:443 ConnectionId=$C Device=qre0 RegisterCidMap=false
        """,
        SLOW,
    )
    assert "0 of 4096 entries" in printed
    assert "registered the CID map" not in printed
    for line in (
        "registered the shared socket with qre.ko",
        "unregistered the shared socket of a loader that was killed",
        "ok the connection ID is in the map",
        "ok the kernel counted 2 packets in slot 1, and left them to the socket",
        "ok everything",
    ):
        assert line in printed, printed
    left = shown(device)["qre0"]
    assert not left["shared_socket"]["registered"] and left["adopted_cids"] == []


@pytest.fixture
def demo(port: Vm, request: pytest.FixtureRequest) -> Iterator[Vm]:
    """Both ends of the demonstration, with what it takes to send packets into the client's device. A test may give
    the command further fields."""
    fields = getattr(request, "param", "")
    port.check(
        LIBRARY
        + f"""
        $A $QRE shared-port-session-demo $PROFILES $FRONT {fields} ReadyFile=/tmp/ready >/tmp/demo 2>&1 &
        echo $! >/tmp/demo.pid
        ready /tmp/ready $! || {{ cat /tmp/demo; exit 1; }}
        ip -n a addr add 10.77.0.2/24 dev client0
        ip -n a link set client0 up
        ip -n a link set server0 up
        """,
        SLOW,
    )
    yield port
    port.check(LIBRARY + END_DEMO, SLOW)


def test_two_ends_behind_the_port_have_sessions_that_carry_packets(demo: Vm) -> None:
    demo.run(LIBRARY + "$A ping -c 3 -i 0.2 -W 1 -q -I client0 10.77.0.99", SLOW)  # nobody is there to answer
    told = shown(demo)
    (server,), (client,) = told["server0"]["sessions"], told["client0"]["sessions"]
    assert server["session_id"] == client["session_id"]
    assert server["state"] == client["state"] == "established"
    assert client["tx_packets"] >= server["rx_packets"] >= 3
    assert told["server0"]["cid_map"]["in_sync"] and told["server0"]["shared_socket"]["rx_packets"] >= 3
    printed = demo.check(
        LIBRARY
        + END_DEMO
        + """
        cat /tmp/demo
        [ ! -e /tmp/ready ]
        [ -z "$(ls /tmp/bpf | grep -v debug)" ]
        [ -z "$(ip -n a -o link | grep -E 'server0|client0')" ]
        """,
        SLOW,
    )
    order = [
        printed.index(line)
        for line in (
            "registered the CID map",
            "registered the shared socket",
            "attached qre_reuseport_demux",
            "ok before the session: qre.ko has the shared socket 10.9.0.1:443",
            "ok before the session: qre.ko has the CID map",
            "installed the server's session on server0",
            f"ok qre.ko wrote the session's connection ID {server['connection_id']} into the map",
            "installed the client's session on client0",
            "\nready",
            "detached qre_reuseport_demux",
        )
    ]
    assert order == sorted(order), printed


def test_without_the_kernels_map_the_command_steers_the_session_itself(port: Vm) -> None:
    printed = port.check(
        LIBRARY + "$A $QRE shared-port-session-demo $PROFILES $FRONT RegisterCidMap=false RunForMs=1", SLOW
    )
    assert "ok before the session: qre.ko has the shared socket 10.9.0.1:443" in printed
    assert "ok this command wrote the session's connection ID" in printed
    assert "CID map" not in printed.replace("CID map not registered", "")


@pytest.mark.parametrize(
    "demo", ["ServerUnderlay=10.9.0.1:4443 ClientUnderlay=10.9.0.1:50999"], indirect=True, ids=["given"]
)
def test_the_port_and_both_sessions_are_where_the_underlays_say(demo: Vm) -> None:
    told = shown(demo)
    (server,), (client,) = told["server0"]["sessions"], told["client0"]["sessions"]
    assert server["session_id"] == client["session_id"]
    assert (server["endpoint"], client["endpoint"]) == ("10.9.0.1:50999", "10.9.0.1:4443")
    assert told["server0"]["shared_socket"]["local"] == "10.9.0.1:4443"


def test_a_clients_session_is_installed_and_the_tunnel_carries_packets(port: Vm) -> None:
    printed = port.check(
        LIBRARY
        + f"""
        daemon_start a
        daemon_ready a {START}
        $B $QRE shared-port-handshake-client /tmp/e/dev/client0.conf InstallSession=true
        ip -n b addr add 10.77.0.2/24 dev client0
        ip -n b link set client0 up
        $B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1
        """,
        3 * START,
    )
    assert "session: installed on client0" in printed
    assert "assigned addresses: 10.77.0.2/32" in printed
    assert " 0% packet loss" in printed
    (session,) = shown(port, "b")["client0"]["sessions"]
    assert session["state"] == "established"
    assert session["connection_id"] in printed
    port.check(LIBRARY + "$B $TOOLS/qrectl device-del Device=client0; daemon_stop a", SLOW)
