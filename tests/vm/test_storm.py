"""Everything at once, in random order, while packets flow both ways between two pairs of namespaces: no complaint of
the kernel, no packet number twice under its key, the module goes, memory stays.

A storm of the ring ends early where the machine is slow; ``QRE_STORM_ROUNDS`` gives it time for that many rounds
(``QRE_STORM_SECONDS``, two hours unless said otherwise), and ``QRE_STORM_SEED`` another order. What was not freed is
seen in /proc/slabinfo: Debian's kernels have neither kmemleak nor KASAN. In the debugging kernel kmemleak looks, and
in a second storm there the allocations that the module asks for fail now and then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.support.vm import NO_SYSCTL, Vm

ROUNDS = int(os.environ.get("QRE_STORM_ROUNDS", "10000"))
SEED = int(os.environ.get("QRE_STORM_SEED", "20261123"))
#: A ring's storm ends after this, however far it is; a longer one has time for all of its rounds.
SECONDS = int(os.environ.get("QRE_STORM_SECONDS", "7200" if "QRE_STORM_ROUNDS" in os.environ else "20"))
pytestmark = [pytest.mark.timeout(2400 + 3 * SECONDS), pytest.mark.several_cpus]
LIBRARY = ". /tmp/library\n"
NET = """
net_up
pair_up c d
numbers_up a b c d
$TOOLS/traffic {seconds} &
"""
END_TRAFFIC = "for each in a b c d; do ip netns pids $each | xargs -r kill -9; done; wait $!\n"
SLABS = """
for again in 1 2 3; do
    echo 2 >/proc/sys/vm/drop_caches
    sleep 1  # grace periods end, and free what waited for them
done
for each in /sys/kernel/slab/*/shrink; do
    echo 1 >$each || true
done
cat /proc/slabinfo
grep -E '^Percpu' /proc/meminfo
"""
#: One in a hundred of what is allocated below the module's functions is refused, in whatever context: a device takes
#: a hundred of them.
FAILURES = """
cd /sys/kernel/debug/failslab
set -- $(grep '^qre ' /proc/modules)
echo N >ignore-gfp-wait
echo 0 >verbose
echo -1 >times
echo 24 >stacktrace-depth
echo $6 >require-start
printf '0x%x\\n' $(($6 + $2)) >require-end
echo 1 >probability
cd /
"""
NO_FAILURES = "echo 0 >/sys/kernel/debug/failslab/probability\n"


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    """Nothing is left of what the test did, and the module is loaded, as others expect."""
    yield vm
    vm.run(LIBRARY + "net_down; lsmod | grep -q ^qre || insmod $MODULE")


def storm(guest: Vm, seed: int, rounds: int, before: str = "", after: str = "") -> str:
    """One storm in fresh namespaces, then the module goes while packets flow, comes and goes again."""
    progress = guest.share / "storm"
    try:
        printed = guest.check(
            LIBRARY
            + NET.format(seconds=SECONDS + 120)
            + before
            + f"$TOOLS/storm {seed} {rounds} {SECONDS} /tmp/ledger /run/share/{progress.name}\n"
            + after
            + "rmmod qre\n! ip -n a link show qre0 2>/dev/null\ninsmod $MODULE\n"
            + f"$TOOLS/storm {seed + 1} {max(rounds // 10, 60)} {SECONDS} /tmp/ledger | tail -1\n"
            + "rmmod qre\n"
            + END_TRAFFIC
            + "numbers_down\nnet_down\ninsmod $MODULE\n",
            timeout=2 * SECONDS + 300,
        )
    finally:
        if progress.exists():
            print(progress.read_text().splitlines()[-1])
    print(printed)
    return printed


def all_was_done_and_no_number_came_twice(printed: str) -> None:
    done = {name: int(count) for name, count in re.findall(r"^(\S+) done=(\d+)", printed, re.M)}
    assert len(done) == 19 and min(done.values()) > 0, printed
    for who in ("servers", "clients"):
        received = re.search(rf"^{who}-received=(\d+)", printed, re.M)
        assert received is not None and int(received[1]) > 0, printed
    found = re.search(r"^packets=(\d+) opened=(\d+) .* repeated=(\d+) unopened=(\d+) refused=(\d+)", printed, re.M)
    assert found is not None, printed
    packets, opened, repeated, unopened, refused = map(int, found.groups())
    assert packets == opened > 0 and repeated == unopened == refused == 0, printed


def slabs(guest: Vm) -> dict[str, int]:
    """Bytes in use of every cache, with what can be freed freed; without the module."""
    printed = guest.check(LIBRARY + "rmmod qre\n" + SLABS + "insmod $MODULE", timeout=240)
    found = {
        name: int(used) * int(size) for name, used, size in re.findall(r"^(\S+) +(\d+) +\d+ +(\d+) ", printed, re.M)
    }
    return found | {"Percpu": int(re.findall(r"^Percpu: +(\d+)", printed, re.M)[0]) * 1024}


def nothing_was_lost(guest: Vm) -> None:
    """By kmemleak, in two looks, without the module."""
    guest.check("rmmod qre")
    assert guest.leaks() == ""
    guest.check(LIBRARY + "insmod $MODULE")


def test_a_storm_leaves_nothing_behind(guest: Vm) -> None:
    before: dict[str, int] = {}
    if not guest.kernel.watchful:
        storm(guest, SEED + 2, ROUNDS)
        assert guest.splats() == [], guest.dmesg()[-30_000:]
        before = slabs(guest)
    printed = storm(guest, SEED, ROUNDS)
    assert guest.splats() == [], guest.dmesg()[-30_000:]
    all_was_done_and_no_number_came_twice(printed)
    if guest.kernel.watchful:
        nothing_was_lost(guest)
        return
    after = slabs(guest)
    growth = {name: size - before.get(name, 0) for name, size in after.items() if size != before.get(name, 0)}
    print(f"{sum(before.values())} -> {sum(after.values())} bytes; {growth}")
    assert sum(after.values()) <= sum(before.values()) * 1.02, growth


@pytest.mark.watchful
def test_a_storm_in_which_memory_is_refused_leaves_nothing_behind(guest: Vm) -> None:
    printed = storm(guest, SEED + 4, max(ROUNDS // 5, 2000), FAILURES, NO_FAILURES)
    assert guest.splats(NO_SYSCTL) == [], guest.dmesg()[-30_000:]
    guest.check("dmesg -C")
    all_was_done_and_no_number_came_twice(printed)
    nothing_was_lost(guest)
