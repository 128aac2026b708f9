"""Everything at once, in random order, while packets flow: no complaint of the kernel, the module goes, memory stays.

A storm of the ring ends early where the machine is slow; ``QRE_STORM_ROUNDS`` gives it time for that many rounds, and
``QRE_STORM_SEED`` another order. What was not freed is seen in /proc/slabinfo: Debian's kernels have neither kmemleak
nor KASAN.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(3600)
ROUNDS = int(os.environ.get("QRE_STORM_ROUNDS", "10000"))
SEED = int(os.environ.get("QRE_STORM_SEED", "20261123"))
#: A ring's storm ends after this, however far it is; a longer one has time for all of its rounds.
SECONDS = 20 if "QRE_STORM_ROUNDS" not in os.environ else 1200
LIBRARY = ". /tmp/library\n"
TRAFFIC = """
ip netns exec a $TOOLS/storm traffic {seconds} &
for device in 0 1 2; do
    (while kill -0 $! 2>/dev/null; do
        $B timeout 5 ping -f -q -c 200 -W 1 10.77.$device.1 >/dev/null 2>&1
        sleep 0.2
    done) &
done
"""
END_TRAFFIC = "ip netns pids a | xargs -r kill -9; ip netns pids b | xargs -r kill -9; wait\n"
SLABS = """
for again in 1 2 3; do
    echo 2 >/proc/sys/vm/drop_caches
    sleep 1
done
for each in /sys/kernel/slab/*/shrink; do
    echo 1 >$each || true
done
cat /proc/slabinfo
grep -E '^Percpu' /proc/meminfo
"""


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    """Nothing is left of what the test did, and the module is loaded, as others expect."""
    vm.check(". /tmp/environment; cp $GUEST/lib.sh /tmp/library")
    yield vm
    vm.run(LIBRARY + "net_down; lsmod | grep -q ^qre || insmod $MODULE")


def storm(guest: Vm, rounds: int) -> str:
    """One storm in fresh namespaces, then the module goes while packets flow, comes and goes again."""
    printed = guest.check(
        LIBRARY
        + "net_up\n"
        + TRAFFIC.format(seconds=SECONDS + 60)
        + f"$TOOLS/storm run {SEED} {rounds} {SECONDS}\n"
        + "rmmod qre\n! ip -n a link show qre0 2>/dev/null\ninsmod $MODULE\n"
        + f"$TOOLS/storm run {SEED + 1} {max(rounds // 10, 60)} {SECONDS} | tail -1\n"
        + "rmmod qre\n"
        + END_TRAFFIC
        + "net_down\ninsmod $MODULE\n",
        timeout=2 * SECONDS + 300,
    )
    print(printed)
    return printed


def slabs(guest: Vm) -> dict[str, int]:
    """Bytes in use of every cache, with what can be freed freed; without the module."""
    printed = guest.check(LIBRARY + "rmmod qre\n" + SLABS + "insmod $MODULE", timeout=240)
    found = {
        name: int(used) * int(size) for name, used, size in re.findall(r"^(\S+) +(\d+) +\d+ +(\d+) ", printed, re.M)
    }
    return found | {"Percpu": int(re.findall(r"^Percpu: +(\d+)", printed, re.M)[0]) * 1024}


def test_a_storm_leaves_nothing_behind(guest: Vm) -> None:
    storm(guest, ROUNDS)
    assert guest.splats() == [], guest.dmesg()[-30_000:]
    before = slabs(guest)
    printed = storm(guest, ROUNDS)
    after = slabs(guest)
    assert guest.splats() == [], guest.dmesg()[-30_000:]

    done = {name: int(count) for name, count in re.findall(r"^(\S+) done=(\d+)", printed, re.M)}
    assert len(done) == 17 and min(done.values()) > 0, printed
    received = re.search(r"^received=(\d+)", printed, re.M)
    assert received is not None and int(received[1]) > 0, printed

    growth = {name: size - before.get(name, 0) for name, size in after.items() if size != before.get(name, 0)}
    print(f"{sum(before.values())} -> {sum(after.values())} bytes; {growth}")
    assert sum(after.values()) <= sum(before.values()) * 1.02, growth
