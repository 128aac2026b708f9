"""Where qre.ko is not to write the BPF map, the loader mirrors connection IDs by bpf(2): the tunnel is the same."""

from __future__ import annotations

import json

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 300, 600.0


def test_a_tunnel_whose_connection_ids_the_loader_mirrors(vm: Vm) -> None:
    vm.check(
        LIBRARY
        + f"""
        net_up
        daemons_init
        QRE_GLOBAL_CONFIG=/tmp/e/a.conf $A $QRE shared-port-handshake-daemon $QRE_CONFIG_DIR/server0.conf \\
            BpfElf=$CHECKOUT/qre/workers/bpf_loader/qre_reuseport.bpf.o PinDir=/tmp/bpf RegisterCidMap=false \\
            ReadyFile=/tmp/ready >/tmp/server 2>&1 &
        server=$!
        daemon_start b
        PATIENCE={START} until_true '[ -e /tmp/ready ]'
        session_up {START} || {{ cat /tmp/server; false; }}
        $B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1
        show a >/run/share/before
        $A $QRE --json show-cid-map BpfMapPath="$(ls /tmp/bpf/QRE_CID_ROUTES-*)" >/run/share/map
        show a >/run/share/after
        daemon_stop b
        kill $server
        wait $server
        [ -z "$(ls /tmp/bpf)" ] && [ ! -e /tmp/ready ]
        ! ip -n a link show server0 2>/dev/null || exit 1
        """,
        SLOW,
    )
    vm.run(LIBRARY + "pkill -f service_manager; net_down; umount /tmp/bpf; rm -rf /tmp/e /tmp/s? /run/q?")
    assert vm.splats() == []
    adopted = []
    for name in ("before", "after"):
        (device,) = json.loads((vm.share / name).read_bytes())["devices"]
        assert device["cid_map"]["mirrored_by"] == "bpf_loader" and device["cid_map"]["in_sync"], device["cid_map"]
        assert device["cid_map"]["entries"] == len(device["adopted_cids"]) >= 1
        adopted.append(set(device["adopted_cids"]))
    before, after = adopted
    mirrored = {entry["connection_id"] for entry in json.loads((vm.share / "map").read_bytes())["entries"]}
    assert before & after <= mirrored <= before | after, "a client changes them when it likes"
