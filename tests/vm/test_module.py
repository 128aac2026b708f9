"""The module as such: what compiler, sparse and checkpatch say of it, its aliases, loading and unloading."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.kernels import KMOD, SPARSE, Kernel, build, kernels
from tests.support.vm import Vm

LIBRARY = ". /tmp/library\n"
_sessions = iter(range(5001, 6000))

pytestmark = [pytest.mark.timeout(600), pytest.mark.every_kernel]
every_kernel = pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.series)


def complaints(said: str) -> list[str]:
    """What a compiler or sparse found, without make's own lines and modpost's about the missing vmlinux."""
    return [
        line
        for line in said.splitlines()
        if re.search(r"warning|error|\.[ch]:\d+:", line, re.IGNORECASE)
        and not line.startswith(("warning: the compiler differs", "Skipping BTF generation"))
        and not line.endswith("sparse is not available or not up to date")  # see SPARSE
    ]


@every_kernel
def test_it_builds_without_a_warning(kernel: Kernel) -> None:
    _, said = build(kernel)
    assert " CC [M] " in said, said
    assert not complaints(said), said


@every_kernel
def test_sparse_finds_nothing(kernel: Kernel) -> None:
    _, said = build(kernel, *SPARSE)
    assert said.count(" CHECK ") >= len(list(KMOD.glob("*.c"))), said
    assert not complaints(said), said


@every_kernel
def test_checkpatch_finds_no_error(kernel: Kernel) -> None:
    script = (kernel.headers / "scripts" / "checkpatch.pl").resolve()
    if not script.exists():
        pytest.skip(f"the headers of {kernel.release} have no scripts/checkpatch.pl: only the whole source does")
    sources = sorted(path for path in KMOD.rglob("*.[ch]") if not path.name.endswith(".mod.c"))
    done = subprocess.run(
        ["perl", str(script), "--no-tree", "--terse", "--max-line-length=100", "--file", *map(str, sources)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert not [line for line in done.stdout.splitlines() if " ERROR: " in line], done.stdout


@every_kernel
def test_it_is_found_by_the_names_that_ip_and_qre_tool_ask_for(kernel: Kernel) -> None:
    directory, _ = build(kernel)
    printed = subprocess.run(
        ["modinfo", str(directory / "qre.ko")], check=True, capture_output=True, text=True
    ).stdout
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in printed.splitlines())]
    assert {value for name, value in fields if name == "alias"} == {
        "rtnl-link-qre",
        "net-pf-16-proto-16-family-qre",
    }
    assert dict(fields)["license"] == "GPL"
    assert dict(fields)["vermagic"].startswith(kernel.release + " ")
    assert [value.partition(":")[0] for name, value in fields if name == "parm"] == ["userns"]


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    """The guest with an empty pair of namespaces; the module is loaded again at the end."""
    vm.check(LIBRARY + "net_up; dmesg -n 1")
    yield vm
    vm.run(LIBRARY + "net_down; grep -q '^qre ' /proc/modules || insmod $MODULE")
    assert vm.splats() == []


def test_it_loads_and_unloads_again_and_again(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + """
        for round in 1 2 3 4 5; do
            rmmod qre
            grep -c '^qre ' /proc/modules || true
            ! ip link add qre1 type qre 2>/dev/null || exit 1
            insmod $MODULE
            grep -c '^qre ' /proc/modules
            ip link add qre1 type qre
        done
        ip link del qre1
        """
    )
    assert printed.split() == ["0", "1"] * 5, printed


def test_a_device_asks_for_the_module_by_its_kind(guest: Vm) -> None:
    """``ip link add type qre`` and the family's name load it where depmod has seen it."""
    release = guest.kernel.release
    printed = guest.check(
        LIBRARY
        + f"""
        rmmod qre
        mkdir -p /tmp/modules/lib/modules/{release}/updates
        cp /lib/modules/{release}/modules.{{order,builtin}} /tmp/modules/lib/modules/{release}/
        cp $MODULE /tmp/modules/lib/modules/{release}/updates/
        depmod -b /tmp/modules {release} 2>/dev/null  # what it depends on is loaded, and unknown here
        for alias in rtnl-link-qre net-pf-16-proto-16-family-qre; do
            modprobe -d /tmp/modules $alias
            grep '^qre ' /proc/modules
            rmmod qre
        done
        """
    )
    assert printed.count("qre ") == 2, printed


def test_no_console_is_sent_through_a_device(guest: Vm) -> None:
    """netconsole would send Ethernet frames, from wherever the kernel prints."""
    if guest.kernel.watchful:
        pytest.skip("the debugging kernel is built without netconsole; Debian's have it")
    guest.check(
        LIBRARY
        + """
        ip link add qre1 type qre
        ip address add 10.78.0.1/24 dev qre1
        ip link set qre1 up
        modprobe netconsole netconsole=@10.78.0.1/qre1,@10.78.0.2/ 2>/dev/null || true  # newer ones stay loaded
        dmesg | grep -q "netconsole: qre1 doesn't support polling"
        modprobe -r netconsole 2>/dev/null || true
        ip link del qre1
        """
    )
    assert guest.run("ip link show qre1")[0]


def test_it_unloads_with_all_that_it_has(guest: Vm) -> None:
    """Devices, a session under traffic, a registered socket, a registered map: gone, and the map is empty."""
    number = next(_sessions)
    printed = guest.check(
        LIBRARY
        + f"""
        setsid ip netns exec a $TOOLS/mapped >/tmp/mapped 2>&1 & mapped=$!
        setsid ip netns exec a $TOOLS/qrectl hold 10.9.0.1 443 register >/tmp/holder 2>&1 & holder=$!
        until_true 'grep -qs held /tmp/mapped && grep -qs held /tmp/holder'
        cat /tmp/mapped /tmp/holder
        tunnel_up {number}
        $A $TOOLS/qrectl devices | grep -E '^(MapEntries|SharedPort)='
        for device in qre1 qre2 qre3; do ip link add $device type qre; ip link set $device up; done
        $B ping -c 3 -i 0.05 -W 2 -q 10.77.0.1
        (setsid ip netns exec b ping -f -q -s 1000 -W 1 10.77.0.1 >/dev/null 2>&1 &)
        sleep 1  # under way
        rmmod qre
        echo unloaded
        ! grep -q '^qre ' /proc/modules || exit 1
        ! ip -n a link show qre0 2>/dev/null || exit 1
        kill $mapped
        until_true 'grep -q entries= /tmp/mapped'
        cat /tmp/mapped
        # the socket is its owner's again, and goes like any other
        $B timeout 5 bash -c 'printf x >/dev/udp/10.9.0.1/443'
        kill $holder
        until_true "[ ! -e /proc/$holder ]"
        ! $A ss -Hlun sport = :443 | grep -q . || exit 1
        insmod $MODULE
        $A $TOOLS/qrectl devices
        """,
        timeout=180,
    )
    before, _, after = printed.partition("unloaded")
    assert before.count("held") == 2 and "MapEntries=1" in before and "SharedPort=443" in before, printed
    assert " 0% packet loss" in before, printed
    assert "entries=0" in after and "IfName" not in after and "Device=" not in after, printed


def test_it_unloads_where_a_socket_was_closed_and_a_namespace_is_going(guest: Vm) -> None:
    """The registered socket lost its owner, then its namespace goes with a session in it, then the module."""
    printed = guest.check(
        LIBRARY
        + f"""
        setsid ip netns exec a $TOOLS/qrectl hold 10.9.0.1 443 register >/tmp/holder 2>&1 & holder=$!
        until_true 'grep -qs held /tmp/holder'
        tunnel_up {next(_sessions)}
        (setsid ip netns exec b ping -f -q -W 1 10.77.0.1 >/dev/null 2>&1 &)
        sleep 0.5  # under way
        kill -9 $holder
        $B ping -c 2 -i 0.05 -W 2 -q 10.77.0.1
        ip netns pids b | xargs -r kill -9
        ip netns del a
        rmmod qre
        echo modules=$(grep -c '^qre ' /proc/modules)
        """
    )
    assert printed.splitlines()[-1] == "modules=0", printed
