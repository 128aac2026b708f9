"""The package upgraded while the session of its client, or server, is in qre.ko: a Debian under systemd, in a guest.

A container shares the kernel of this machine, which has no qre.ko. So one boots inside the guest, with the package as
apt installed it and the unit as it is shipped, but for the time that a start may take; dpkg upgrades it and runs its
scripts. The peer's daemon is of this tree, under a manager of its own.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import why_not_vm
from tests.packages.conftest import APT, BCC, LATER, NEEDS, Packages
from tests.support.container import BOOT, image
from tests.support.kernels import GUEST, ROOT, build, guest_programs, kernels
from tests.support.ping import numbers_answered
from tests.support.vm import Vm, booted

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(why_not_vm()), reason=f"it takes the ring vm's kernels: {why_not_vm()}"),
]

#: Seconds in the guest, which is some thirty times slower than the machine.
START, SLOW = 300, 900.0
#: Requests a second, while the client is upgraded: a kernel that is emulated answers each of them in time.
RATE = 5
#: What the unit grants a start is of a machine, and not of an emulated one.
DROP_IN = f"[Service]\\nTimeoutStartSec={START}\\nWatchdogSec=0\\n"
LIBRARY = """
. /tmp/library; . $GUEST/daemons.sh
# Runs in the machine that has the package, as its systemd sees it.
machine() {
    nsenter --all --target "$(head -n 1 /sys/fs/cgroup/$PROFILE/payload/init.scope/cgroup.procs)" -- \\
        /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 SYSTEMD_PAGER= "$@"
}
is_up() { machine systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; }
well() { machine systemctl show --value -p StatusText qred@$PROFILE | grep -q "$STATUS"; }
"""


@dataclass(frozen=True)
class Machine:
    """Has the package: the profile that its unit runs, namespace, and its peer's, what its daemon says once it is
    well, and what it has besides the package: further packages, options of systemd-nspawn."""

    profile: str
    namespace: str
    peer: str
    status: str
    packages: str
    options: str

    @property
    def may_wait_for_peer(self) -> bool:
        """The server is there first."""
        return self.namespace == "b"


_MACHINES = [
    Machine("client0", "b", "a", "connected to", "", "--capability=CAP_NET_ADMIN"),
    Machine(
        "server0", "a", "b", "serving", BCC,
        "--capability=CAP_NET_ADMIN,CAP_BPF --system-call-filter=bpf --bind=/tmp/machine/bpf:/sys/fs/bpf",
    ),
]  # fmt: skip


@pytest.fixture(params=_MACHINES, ids=lambda each: each.profile)
def machine(request: pytest.FixtureRequest) -> Machine:
    made: Machine = request.param
    return made


@pytest.fixture
def system(packages: Packages, machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """A minimal Debian on which the package is installed, by apt and with its scripts."""
    made = tmp_path / "system"
    subprocess.run(["cp", "-a", image((*NEEDS, BCC)), made], check=True)
    shutil.copy(packages.of_now["qre"], made / "now.deb")
    shutil.copy(packages.of_later["qre"], made / "later.deb")
    install = f"{APT} /now.deb {machine.packages} >/tmp/apt.log 2>&1"
    command = f"mount -t proc proc {made}/proc; exec chroot {made} sh -c '{install}'"
    subprocess.run(["unshare", "--mount", "sh", "-ec", command], check=True, timeout=600)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def guest(system: Path, machine: Machine) -> Iterator[Vm]:
    """qre.ko, the peer's daemon in its namespace, and the machine, whose unit is up and has a session."""
    kernel = kernels()[0]
    module, _ = build(kernel)
    environment = {
        "TOOLS": guest_programs(), "GUEST": GUEST, "CHECKOUT": ROOT, "QRE": ROOT / ".venv/bin/qre-tool",
        "BOOT": BOOT, "SYSTEM": f"/run/cached{system}", "PROFILE": machine.profile, "STATUS": machine.status,
    }  # fmt: skip
    unit = "machine systemctl start qred@$PROFILE || { machine journalctl -o short-unix -u qred@$PROFILE; exit 1; }"
    peer = f"daemon_start {machine.peer}; daemon_ready {machine.peer} {START}"
    begun = f"{peer}; {unit}" if machine.may_wait_for_peer else f"{unit}; {peer}; session_up {START}"
    with booted(kernel) as vm:
        (vm.share / "environment").write_text(
            "".join(f"export {key}={shlex.quote(str(each))}\n" for key, each in environment.items())
        )
        vm.check(f"modprobe -a veth udp_tunnel ip6_udp_tunnel aesni_intel gcm overlay; insmod {module}/qre.ko")
        vm.check(f"cp /run/share/environment /tmp/environment; cp {GUEST}/lib.sh /tmp/library")
        vm.check(
            LIBRARY
            + f"""
            net_up
            daemons_init
            mkdir -p /tmp/machine && mount -t tmpfs tmpfs /tmp/machine
            mkdir /tmp/machine/root /tmp/machine/upper /tmp/machine/work /tmp/machine/bpf
            mount -t bpf bpf /tmp/machine/bpf
            mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
            mkdir /sys/fs/cgroup/$PROFILE
            mkdir -p /tmp/machine/upper/etc/qre/dev /tmp/machine/upper/etc/systemd/system/qred@.service.d
            cp -a $SYSTEM/etc/qre/. /tmp/machine/upper/etc/qre
            grep -vE "^(RuntimeDir|StateDir) " /tmp/e/{machine.namespace}.conf >/tmp/machine/upper/etc/qre/qre.conf
            cp -a $QRE_CONFIG_DIR/$PROFILE.conf /tmp/machine/upper/etc/qre/dev
            printf '{DROP_IN}' >/tmp/machine/upper/etc/systemd/system/qred@.service.d/slow.conf
            setsid sh -ec 'echo $$ >/sys/fs/cgroup/'$PROFILE'/cgroup.procs; exec "$@"' sh \\
                unshare --mount --cgroup --pid --fork --kill-child --mount-proc --propagation=private \\
                sh -ec "$BOOT" sh /tmp/machine $SYSTEM $PROFILE \\
                --network-namespace-path=/run/netns/{machine.namespace} {machine.options} \\
                --bind-ro=/sys/module </dev/null >/dev/null 2>&1 &
            PATIENCE={START} until_true is_up
            {begun}
            PATIENCE={START} until_true well
            """,
            SLOW,
        )
        yield vm
        vm.run(LIBRARY + "machine systemctl poweroff --no-block; pkill -f service_manager; net_down")
        assert vm.splats() == []


def test_an_upgrade_of_either_end_in_the_kernel_loses_no_packet(
    guest: Vm, machine: Machine, record_property: pytest.RecordProperty
) -> None:
    printed = guest.check(
        LIBRARY
        + f"""
        session() {{
            ip netns exec {machine.namespace} $TOOLS/qrectl sessions Device=$PROFILE | grep -io 'SessionId=[0-9a-f]*'
        }}
        pid() {{ machine systemctl show --value -p MainPID qred@$PROFILE; }}
        before=$(pid) its=$(session)
        $B ping -D -n -i {1 / RATE:g} -W 10 10.77.0.1 >/tmp/ping 2>&1 &
        pinger=$!
        until_true "grep -q icmp_seq=1 /tmp/ping"
        start=$SECONDS
        date +"dpkg begins at %s.%N"
        machine dpkg --install /later.deb >/tmp/dpkg 2>&1 || {{ cat /tmp/dpkg; exit 1; }}
        date +"dpkg ended at %s.%N"
        echo "upgraded in $((SECONDS - start)) s"
        PATIENCE={START} until_true '[ "$(pid)" != 0 ] && [ "$(pid)" != '$before' ] && well'
        date +"well at %s.%N"
        echo "well after $((SECONDS - start)) s"
        sleep 3
        kill -INT $pinger
        wait $pinger || true
        [ "$(session)" = "$its" ] && echo "session kept: $its"
        machine qre-tool version
        machine journalctl -o short-unix -u qred@$PROFILE
        cat /tmp/ping
        """,
        SLOW,
    )
    answered = numbers_answered(printed)
    record_property("of", max(answered))
    assert answered == set(range(1, max(answered) + 1)), "each request was answered"
    assert "session kept: " in printed, printed
    assert f"qre-tool {LATER}" in printed.splitlines()
