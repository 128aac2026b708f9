"""One guest a kernel for the whole ring, with qre.ko's build at hand.

Everything runs on the oldest kernel; on newer ones, too, what bears ``every_kernel``, and all of it with QRE_VM_ALL
(make test-vm). What bears ``only_in_all`` takes long: it runs only then. With QRE_VM_OLDEST everything runs on the
oldest kernel alone.

A guest has two processors, or as many as QRE_VM_CPUS says. Guests of several processes (xdist) have one each: a
processor that waits for a lock whose holder this machine does not run just now costs more than it brings. So what
bears ``several_cpus``, where processors may race, runs once more in one process (make test-vm).
What is to run on a kernel that cannot be had is skipped with the reason, even where QRE_REQUIRE asks for the ring: it
has the other kernels.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.guest_peer import ready_for_peers
from tests.support.kernels import GUEST, ROOT, Kernel, build, guest_programs, kernels
from tests.support.vm import Vm, booted

#: Tests of a kernel for which two guests are not worth their start.
_FEW = 20
#: A test that starts daemons in the guest takes as long as so many others; a deadline of so many seconds tells it.
_DAEMONS, _LONG = 15, 1500


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for kernel in _kernels_of(item):
            if kernel.missing:
                item.add_marker(pytest.mark.skip(reason=kernel.missing))
            deadline = item.get_closest_marker("timeout")
            if deadline:
                item.add_marker(pytest.mark.timeout(deadline.args[0] * kernel.patience), append=False)
    left_out = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    _divide(items)


def _divide(items: list[pytest.Item]) -> None:
    """Among two guests a kernel, for two processes (xdist): a file's tests stay together, and both have as much
    to do. For a few tests one guest is enough."""
    costs: Counter[tuple[str, str]] = Counter()
    all_of: Counter[str] = Counter()
    for item in items:
        for kernel in _kernels_of(item):
            costs[kernel.series, item.path.name] += _cost(item)
            all_of[kernel.series] += 1
    half: dict[tuple[str, str], int] = {}
    totals: Counter[tuple[str, int]] = Counter()
    for (series, file), cost in costs.most_common():
        halves = (0, 1) if all_of[series] > _FEW else (0,)
        half[series, file] = which = min(halves, key=lambda number: totals[series, number])
        totals[series, which] += cost
    for item in items:
        for kernel in _kernels_of(item):
            item.add_marker(pytest.mark.xdist_group(f"{kernel.series}-{half[kernel.series, item.path.name]}"))


def _cost(item: pytest.Item) -> int:
    """In ordinary tests."""
    deadline = item.get_closest_marker("timeout")
    starts_daemons = deadline and deadline.args[0] >= _LONG and item.get_closest_marker("guest_python")
    return _DAEMONS if starts_daemons else 1


def _is_left_out(item: pytest.Item) -> bool:
    if item.get_closest_marker("watchful") and not all(kernel.watchful for kernel in _kernels_of(item)):
        return True
    if os.environ.get("QRE_VM_ALL"):
        return False
    one = os.environ.get("QRE_VM_OLDEST") or not item.get_closest_marker("every_kernel")
    return bool(item.get_closest_marker("only_in_all") or (one and _is_newer(item)))


def _is_newer(item: pytest.Item) -> bool:
    return any(kernel != kernels()[0] for kernel in _kernels_of(item))


def _kernels_of(item: pytest.Item) -> list[Kernel]:
    callspec = getattr(item, "callspec", None)
    return [value for value in callspec.params.values() if isinstance(value, Kernel)] if callspec else []


def nothing_is_lost(guest: Vm) -> None:
    """Of all that the tests made, the module remembers everything, and takes everything with it."""
    assert guest.leaks() == "", "with the module"
    guest.check("rmmod qre")
    assert guest.leaks() == "", "without the module"
    assert guest.splats() == []


@pytest.fixture(scope="session", params=kernels(), ids=lambda kernel: kernel.series)
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A guest with the module loaded, two namespaces ``a`` (10.9.0.1) and ``b`` (10.9.0.2), and ``$TOOLS``."""
    kernel: Kernel = request.param
    directory, _ = build(kernel)
    compiled = guest_programs()
    alone = "2" if "PYTEST_XDIST_WORKER" not in os.environ else "1"
    cpus = int(os.environ.get("QRE_VM_CPUS", "4" if kernel.watchful else alone))
    with booted(kernel, cpus=cpus) as guest:
        assert guest.check("uname -r; nproc").split() == [kernel.release, str(cpus)]
        assert guest.splats() == []
        environment = {
            "MODULE": f"{directory}/qre.ko",
            "TOOLS": compiled,
            "GUEST": GUEST,
            "CHECKOUT": ROOT,
            "QRE": f"{ROOT}/.venv/bin/qre-tool",
        }
        lines = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in environment.items())
        guest.check(
            f"""
            cat >/tmp/environment <<'END'\n{lines}\nEND
            modprobe -a veth udp_tunnel ip6_udp_tunnel aesni_intel gcm dummy
            insmod {directory}/qre.ko
            cp {GUEST}/lib.sh /tmp/library
            """
        )
        yield guest
        if kernel.watchful:
            nothing_is_lost(guest)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What bears ``both_versions`` runs over IPv6, too; with ``both_versions(always=False)`` only where all runs."""
    mark = metafunc.definition.get_closest_marker("both_versions")
    if mark and "outer" in metafunc.fixturenames:
        marks = () if mark.kwargs.get("always", True) else (pytest.mark.only_in_all,)
        versions = [4, pytest.param(6, marks=marks)]
        metafunc.parametrize("outer", versions, ids=["over IPv4", "over IPv6"], indirect=True)


@pytest.fixture
def outer(vm: Vm, request: pytest.FixtureRequest) -> Iterator[int]:
    """The version of IP of outer packets; ``$IP_A`` and ``$IP_B`` are of it, and what makes sessions."""
    vm.outer = getattr(request, "param", 4)
    vm.check(f"echo OVER={vm.outer} >/tmp/over_ip")
    yield vm.outer
    vm.outer = 4
    vm.check("rm /tmp/over_ip")


@pytest.fixture
def tunnel(vm: Vm, outer: int) -> Iterator[Vm]:
    """A session between qre0 in ``a`` and in ``b``; nothing is left of it, nor did the kernel complain."""
    vm.check(". /tmp/library; net_up; tunnel_up $(fresh_number)")
    yield vm
    vm.check(". /tmp/library; net_down")
    assert vm.splats() == []


@pytest.fixture
def peers(vm: Vm, outer: int) -> Iterator[Vm]:
    """For peers that hold a session's keys: see ``GuestPeer``."""
    with ready_for_peers(vm):
        yield vm
