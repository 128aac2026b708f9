"""What the kernel refuses: every attribute of every command, each by its name, and nothing is changed by it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(600)
LIBRARY = ". /tmp/library\n"


@pytest.fixture
def namespaces(vm: Vm) -> Iterator[Vm]:
    """Two namespaces, and a device that only the second of them has; nothing is left of it."""
    vm.check(LIBRARY + "net_up; ip -n b link add other0 index 77 type qre")
    yield vm
    vm.check(LIBRARY + "net_down")
    assert vm.splats() == [], vm.dmesg()[-20_000:]


def test_every_wrong_attribute_is_refused_by_name_and_changes_nothing(namespaces: Vm) -> None:
    status, printed = namespaces.run(LIBRARY + "$A $TOOLS/refusals /run/netns/b other0 77", timeout=240)
    counted = re.search(r"asked=(\d+) wrong=0 state=(\d+)", printed)
    assert status == 0 and counted is not None, printed
    assert int(counted[1]) > 1300 and int(counted[2]) > 9000, printed


@pytest.mark.guest_python
def test_qre_tool_shows_the_kernels_words_in_one_line(namespaces: Vm) -> None:
    fields = (
        f"SessionId={'07' * 32} ConnectionId={'09' * 20} TxKey={'ab' * 16} RxKey={'cd' * 16} TxHpKey={'01' * 16} "
        f"RxHpKey={'02' * 16} TxIv={'03' * 12} RxIv={'04' * 12} PacketNumber=65536"
    )
    namespaces.check(
        LIBRARY
        + f"$A $TOOLS/qrectl device-set Device=qre0 Role=1; $A $TOOLS/qrectl session-install Device=qre0 {fields} "
        "KeyEpoch=5 IdleMs=3600000"
    )
    status, printed = namespaces.run(LIBRARY + f"$A $QRE install-session qre0 {fields} KeyEpoch=4", timeout=240)
    assert status == 2, printed
    assert printed.count("\n") == 1 and printed.startswith("qre-tool: "), printed
    assert "KeyEpoch is behind the session's" in printed, printed
    assert "abab" not in printed and "cdcd" not in printed
