"""Every allocation of what user space asks for, and of a packet's transmission, fails once: what was refused changed
nothing and succeeds when it is asked for again, nothing is lost, and no packet number comes twice under its key.

Only in a kernel that refuses memory when it is asked to (``make test-kasan``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.vm import NO_SYSCTL, Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.watchful]
LIBRARY = ". /tmp/library\n"
CALLS = (
    "install-client", "install-client-fd", "install-server", "install-server-beside", "install-server-bare",
    "install-on-shared", "update-learn", "update-phase", "shared-register", "map-register", "adopt-device",
    "adopt-session", "frame-send", "close", "profile-set", "dump", "device-set", "newlink", "transmit-small",
    "transmit-large", "transmit-fragments", "transmit-segments",
)  # fmt: skip
KNOBS = """
for each in failslab fail_page_alloc; do
    echo N >/sys/kernel/debug/$each/ignore-gfp-wait
    echo 0 >/sys/kernel/debug/$each/verbose
    echo -1 >/sys/kernel/debug/$each/times
done
echo 0 >/sys/kernel/debug/fail_page_alloc/min-order
"""


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    """Two namespaces, watched; nothing is left in them, no number came twice, and the kernel did not complain."""
    vm.check(LIBRARY + "net_up\nnumbers_up a b\n" + KNOBS)
    yield vm
    printed = vm.run(LIBRARY + "numbers_down; net_down")[1]
    print(printed)
    found = re.search(r"packets=(\d+) opened=(\d+) .* repeated=(\d+) unopened=(\d+) refused=(\d+) lost=0$", printed)
    assert found is not None, printed
    packets, opened, *faults = map(int, found.groups())
    assert packets == opened > 0 and faults == [0, 0, 0], printed
    assert vm.splats(NO_SYSCTL) == [], vm.dmesg()[-20_000:]
    vm.check("dmesg -C")


@pytest.mark.parametrize("call", CALLS)
def test_whichever_allocation_fails_nothing_changes_and_the_next_attempt_succeeds(guest: Vm, call: str) -> None:
    status, printed = guest.run(LIBRARY + f"$TOOLS/faults /tmp/ledger {call}", timeout=600)
    print(printed)
    found = re.search(rf"^{call} allocations=(\d+) failed=(\d+) survived=(\d+)$", printed, re.M)
    assert status == 0 and found is not None, printed + guest.dmesg()[-3000:]
    assert int(found[1]) == int(found[2]) + int(found[3]) > 0


#: Those that look for a route, or open or take a socket.
OVER_IPV6 = (
    "install-client", "install-client-fd", "install-server", "install-on-shared", "shared-register", "transmit-small",
    "transmit-segments",
)  # fmt: skip


@pytest.mark.parametrize("call", OVER_IPV6)
def test_over_ipv6_it_is_the_same(guest: Vm, call: str) -> None:
    status, printed = guest.run(LIBRARY + f"OVER=6 $TOOLS/faults /tmp/ledger {call}", timeout=600)
    print(printed)
    found = re.search(rf"^{call} allocations=(\d+) failed=(\d+) survived=(\d+)$", printed, re.M)
    assert status == 0 and found is not None, printed + guest.dmesg()[-3000:]
    assert int(found[1]) == int(found[2]) + int(found[3]) > 0


def test_the_list_of_calls_is_whole(guest: Vm) -> None:
    assert tuple(guest.check(LIBRARY + "$TOOLS/faults /tmp/ledger").split()) == CALLS
    guest.check(LIBRARY + "$TOOLS/faults /tmp/ledger none")


def test_the_first_packets_that_a_processor_sends_may_lack_any_memory(guest: Vm) -> None:
    """Those that leave before anything is kept for the next one: the module is loaded anew for every few of them."""
    tried = 1
    for _ in range(40):
        status, printed = guest.run(
            LIBRARY + f"rmmod qre && insmod $MODULE && $TOOLS/faults /tmp/ledger cold {tried}", timeout=60
        )
        assert status in {0, 9}, printed + guest.dmesg()[-3000:]
        if status == 9:
            break
        tried += 3
    print(f"allocations: from {tried} on there were none")
    assert status == 9 and tried > 3
