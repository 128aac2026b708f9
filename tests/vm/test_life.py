"""The life cycle of objects: nothing is visible before it is complete, nothing refused was ever visible, nothing
waits for an unrelated process, and permissions hold."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

import pytest

from tests.support.kernels import build
from tests.support.ordinary_user import as_nobody
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.several_cpus]
LIBRARY = ". /tmp/library\n"
#: A number that no other test had, and the transmit keys of ``tunnel_up $number``: the client's, the server's.
USED = "number=$(fresh_number)\nused=$(key $number $K2) others=$(key $number $K1)\n"


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    """Two namespaces; nothing is left in them, and the kernel did not complain."""
    vm.check(LIBRARY + "net_up")
    yield vm
    vm.check(LIBRARY + "net_down")
    assert vm.splats() == [], vm.dmesg()[-20_000:]


def numbers(printed: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\S+)=(\d+)$", printed, re.M)}


def test_a_refused_install_under_traffic_sends_nothing_and_stops_nothing(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + USED
        + """
        MORE_A=IdleMs=3600000 tunnel_up $number
        $B ping -c 20 -i 0.05 -W 2 -q 10.77.0.1 >/dev/null
        $B $TOOLS/qrectl session-del Device=qre0 SessionId=$ID
        count() { $A $TOOLS/qrectl device-get Device=qre0 | grep -E '^(Drop|Rx)' | sort; }
        count >/tmp/before
        $B $TOOLS/blast 10.77.0.1 9 6000 900 >/dev/null 2>&1 &
        $B $TOOLS/life refused 5 $used $others
        wait %1 || true
        sleep 1  # in which nothing may be counted
        count >/tmp/after
        diff /tmp/before /tmp/after && echo same=1
        $B $TOOLS/qrectl sessions Device=qre0 | grep -c SessionId || true
        """
    )
    told = numbers(printed)
    assert told["asked"] == told["exist"] > 20, printed
    assert told["same"] == 1, printed


def test_a_used_key_stays_used_when_its_namespace_is_gone(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + USED
        + """
        tunnel_up $number
        ip netns del b
        ip netns add b
        ip -n b link set lo up
        $B $TOOLS/qrectl device-set Device=qre0 Role=1
        $B $TOOLS/life forgotten 50 $used $others
        """
    )
    assert numbers(printed)["again"] == 17, printed  # EEXIST


@pytest.mark.only_in_all
def test_a_namespace_that_uses_many_keys_pushes_out_nobody_elses(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + USED
        + """
        tunnel_up $number
        $B $TOOLS/qrectl session-del Device=qre0 SessionId=$ID
        ip netns add c
        ip netns exec c $TOOLS/qrectl device-set Device=qre0 Role=1
        ip netns exec c $TOOLS/life forgotten 17000 $used $others
        ip netns del c
        """,
        timeout=800,
    )
    assert numbers(printed)["again"] == 17, printed


def test_a_local_port_is_free_as_soon_as_its_session_is_deleted(guest: Vm) -> None:
    printed = guest.check(LIBRARY + "$A $TOOLS/qrectl device-set Device=qre0 Role=2; $A $TOOLS/life ports 100", 300)
    assert numbers(printed) == {"in_use": 0, "other": 0}, printed


def test_whoever_holds_the_lock_of_his_socket_stops_nobody(guest: Vm) -> None:
    """A corked sendmsg that faults on a page holds it for ever. Its own namespace and an innocent one go on."""
    printed = guest.check(
        LIBRARY
        + """
        $A $TOOLS/qrectl device-set Device=qre0 Role=1
        $A $TOOLS/life held 10.9.0.1 443 >/tmp/held &
        holder=$!
        until_true 'grep -q held /tmp/held'
        begin=$(date +%s)
        # Sessions that nobody confirms end by themselves, in softirq.
        $A $TOOLS/life keep 200 held >/dev/null
        $B $TOOLS/qrectl device-set Device=qre0 Role=1
        $B $TOOLS/life keep 3
        ip -n b link del qre0
        until_true "! $A $TOOLS/qrectl sessions Device=qre0 | grep -q SessionId"
        $A $TOOLS/qrectl shared-unregister
        ip -n a link del qre0
        echo seconds=$(($(date +%s) - begin))
        kill -9 $holder
        wait $holder 2>/dev/null || true
        """,
        timeout=300,
    )
    assert numbers(printed)["seconds"] < 60, printed


def test_namespaces_end_with_their_sockets_whoever_had_them(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + """
        for each in 1 2 3 4 5 6 7 8 9 10 11 12; do
            ip netns add n$each
            ip -n n$each link set lo up
            ip netns exec n$each $TOOLS/qrectl device-set Device=qre0 Role=1
            ip netns exec n$each $TOOLS/life keep 2 >/dev/null
            ip netns exec n$each $TOOLS/qrectl hold 127.0.0.1 443 register >/tmp/n$each &
            until_true 'grep -q held /tmp/n$each'
            kill -9 $!
            wait $! 2>/dev/null || true
        done
        begin=$(date +%s)
        for each in 1 2 3 4 5 6 7 8 9 10 11 12; do ip netns del n$each; done
        # All of them are gone when the module can go.
        for each in a b; do ip netns del $each; done
        until_true 'rmmod qre 2>/dev/null'
        echo seconds=$(($(date +%s) - begin))
        ! lsmod | grep -q '^qre ' || exit 1
        insmod $MODULE
        net_up
        """,
        timeout=300,
    )
    assert numbers(printed)["seconds"] < 60, printed


def test_a_descriptor_that_changes_its_map_meanwhile_never_makes_a_read_only_one_writable(guest: Vm) -> None:
    printed = guest.check(LIBRARY + "$A $TOOLS/qrectl device-set Device=qre0 Role=1; $A $TOOLS/life swapped 5")
    told = numbers(printed)
    assert told["registered"] > 0 and told["wrong"] == 0, printed


def test_small_refusals_change_nothing(guest: Vm) -> None:
    """What a later check refuses was not taken away by an earlier one, and a last connection ID stays."""
    printed = guest.check(
        LIBRARY
        + USED
        + """
        tunnel_up $number
        other=77777777777777777777777777777777777777
        $A $TOOLS/qrectl cid-adopt Device=qre0 ConnectionId=$other
        $A $TOOLS/qrectl cid-adopt Device=qre0 ConnectionId=$other SessionId=$ID 2>&1 || true
        $A $TOOLS/qrectl device-get Device=qre0 | grep "^Cids="
        $A $TOOLS/qrectl cid-release Device=qre0 ConnectionId=$C 2>&1 || true
        $B ping -c 2 -i 0.2 -W 2 10.77.0.1 | grep received
        # A client whose connection ID is empty would take every packet of the server's port.
        $A $TOOLS/qrectl device-set Device=qre1 Role=2
        $A $TOOLS/qrectl session-install Device=qre1 SessionId=${ID//7/6} ConnectionId=$other ClientConnectionId= \
            TxKey=$(key $(fresh_number) $K1) RxKey=$(key $number $K2) TxHpKey=$H1 RxHpKey=$H2 TxIv=$I1 RxIv=$I2 \
            KeyEpoch=0 PacketNumber=65536 UnderlayLocalIPv4=10.9.0.1 UnderlayLocalPort=443 UnderlayPeerIPv4=10.9.0.2 \
            UnderlayPeerPort=4444 2>&1 || true
        $B ping -c 2 -i 0.2 -W 2 10.77.0.1 | grep received
        """
    )
    assert "ConnectionId has another length" in printed and "7777" in printed, printed
    assert "is the session's last one" in printed, printed
    assert "ClientConnectionId is empty" in printed, printed
    assert printed.count("2 received") == 2, printed


def test_netlinks_own_policies_tell_what_an_attribute_looks_like(guest: Vm) -> None:
    printed = guest.check(LIBRARY + "$A $TOOLS/life policy 5 17; echo; $A $TOOLS/life policy 2 5")
    key, mtu = printed.split("\n\n")
    assert numbers(key)["min-len"] == numbers(key)["max-len"] == 16, printed
    assert (numbers(mtu)["min"], numbers(mtu)["max"]) == (576, 1428), printed


def test_what_sessions_cost_is_charged_to_who_installs_them(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + """
        mkdir -p /tmp/cg
        mountpoint -q /tmp/cg || mount -t cgroup2 none /tmp/cg
        echo +memory >/tmp/cg/cgroup.subtree_control
        mkdir -p /tmp/cg/payer
        $A $TOOLS/qrectl device-set Device=qre0 Role=1
        charged() { awk '/^(slab|percpu) /{sum += $2} END {print sum}' /tmp/cg/payer/memory.stat; }
        (
            echo $BASHPID >/tmp/cg/payer/cgroup.procs
            $A true
            charged >/tmp/before
            $A $TOOLS/life keep 50
            charged >/tmp/after
        )
        echo each=$((($(cat /tmp/after) - $(cat /tmp/before)) / 50))
        umount /tmp/cg
        """
    )
    # The session, its keys, AllowedIPs, counters and connection ID; AES contexts are the crypto layer's own.
    assert numbers(printed)["each"] > 3000, printed


#: As uid 65534, in a user namespace and a network namespace of its own.
NOBODY = """
mkdir -p /tmp/t; cp $TOOLS/qrectl $TOOLS/life /tmp/t/; chmod -R a+rx /tmp/t
cat >/tmp/inner.sh <<'END'
ip link set lo up
ip link add qre0 type qre 2>&1 && echo made
for command in device-set session-install session-update session-del cid-adopt cid-release sessions device-del; do
    /tmp/t/qrectl $command Device=qre0 2>&1 | head -1
done
/tmp/t/qrectl shared-unregister
/tmp/t/qrectl map-unregister
true
END
chmod a+rx /tmp/inner.sh
setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urn bash /tmp/inner.sh
"""


def test_root_of_a_user_namespace_may_nothing_unless_the_module_was_told_so(guest: Vm) -> None:
    printed = guest.check(LIBRARY + NOBODY)
    assert "made" not in printed, printed
    assert printed.count("CAP_NET_ADMIN is needed") == 11, printed
    printed = guest.check(LIBRARY + "echo Y >/sys/module/qre/parameters/userns\n" + NOBODY)
    guest.check("echo N >/sys/module/qre/parameters/userns")
    assert "made" in printed and "CAP_NET_ADMIN" not in printed, printed


def test_the_parameter_can_be_given_at_load(guest: Vm) -> None:
    directory, _ = build(guest.kernel)
    printed = guest.check(
        LIBRARY
        + f"net_down; rmmod qre; insmod {directory}/qre.ko userns=1; cat /sys/module/qre/parameters/userns"
        + "; rmmod qre; insmod $MODULE; cat /sys/module/qre/parameters/userns; net_up"
    )
    assert printed.split() == ["Y", "N"], printed


@pytest.mark.guest_python
def test_show_tells_nobody_the_counters_and_what_root_would_see(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + USED
        + f'nobody() {{ $A {shlex.join(as_nobody())} "$@"; }}\n'
        + """
        tunnel_up $number
        $A $TOOLS/qrectl device-set Device=qre0 Dest=secret.example:443
        cd /
        rm -rf /run/qre # of a command before, which root alone may look into
        export QRE_GLOBAL_CONFIG=/tmp/none
        nobody $QRE show
        echo status=$?
        nobody $QRE --json show qre0
        """,
        timeout=400,
    )
    assert numbers(printed)["status"] == 0
    text, _, told = printed.partition("status=0\n")
    assert "interface: qre0" in text and "1 session; root also sees" in text and "packets: " in text, printed
    (device,) = json.loads(told)["devices"]
    assert (device["role"], device["sessions"], device["dest"]) == ("server", None, None)
    assert "secret.example" not in printed and "0707" not in printed and "10.9.0.2" not in printed, printed
