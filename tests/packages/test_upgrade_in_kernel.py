"""The package upgraded while its client's session is in qre.ko: a Debian under systemd, in a guest.

A container shares the kernel of this machine, which has no qre.ko. So one boots inside the guest, with the package as
apt installed it and the unit as it is shipped, but for the time that a start may take; dpkg upgrades it and runs its
scripts. The server's daemon is of this tree, under a manager of its own.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
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
# Runs in the client's machine, as its systemd sees it.
client() {
    nsenter --all --target "$(head -n 1 /sys/fs/cgroup/client0/payload/init.scope/cgroup.procs)" -- \\
        /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 SYSTEMD_PAGER= "$@"
}
connected() { client systemctl show --value -p StatusText qred@client0 | grep -q 'connected to'; }
"""


@pytest.fixture
def system(packages: Packages, tmp_path: Path) -> Iterator[Path]:
    """A minimal Debian on which the package is installed, by apt and with its scripts."""
    made = tmp_path / "system"
    subprocess.run(["cp", "-a", image((*NEEDS, BCC)), made], check=True)
    shutil.copy(packages.of_now["qre"], made / "now.deb")
    shutil.copy(packages.of_later["qre"], made / "later.deb")
    command = f"mount -t proc proc {made}/proc; exec chroot {made} sh -c '{APT} /now.deb >/tmp/apt.log 2>&1'"
    subprocess.run(["unshare", "--mount", "sh", "-ec", command], check=True, timeout=600)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def guest(system: Path) -> Iterator[Vm]:
    """qre.ko, a server's daemon in namespace ``a``, and in ``b`` the client's machine, whose unit is up."""
    kernel = kernels()[0]
    module, _ = build(kernel)
    environment = {
        "TOOLS": guest_programs(), "GUEST": GUEST, "CHECKOUT": ROOT, "QRE": ROOT / ".venv/bin/qre-tool",
        "BOOT": BOOT, "SYSTEM": f"/run/cached{system}",
    }  # fmt: skip
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
            daemon_start a
            mkdir -p /tmp/client0 && mount -t tmpfs tmpfs /tmp/client0
            mkdir /tmp/client0/root /tmp/client0/upper /tmp/client0/work
            mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
            mkdir /sys/fs/cgroup/client0
            mkdir -p /tmp/client0/upper/etc/qre/dev /tmp/client0/upper/etc/systemd/system/qred@.service.d
            cp -a $SYSTEM/etc/qre/. /tmp/client0/upper/etc/qre
            echo "Dataplane = kernel" >/tmp/client0/upper/etc/qre/qre.conf
            cp -a $QRE_CONFIG_DIR/client0.conf /tmp/client0/upper/etc/qre/dev
            printf '{DROP_IN}' >/tmp/client0/upper/etc/systemd/system/qred@.service.d/slow.conf
            setsid sh -ec 'echo $$ >/sys/fs/cgroup/client0/cgroup.procs; exec "$@"' sh \\
                unshare --mount --cgroup --pid --fork --kill-child --mount-proc --propagation=private \\
                sh -ec "$BOOT" sh /tmp/client0 $SYSTEM client0 --network-namespace-path=/run/netns/b \\
                --capability=CAP_NET_ADMIN --bind-ro=/sys/module </dev/null >/dev/null 2>&1 &
            PATIENCE={START} until_true "client systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'"
            daemon_ready a {START}
            client systemctl start qred@client0 || {{ client journalctl -o cat -u qred@client0; exit 1; }}
            PATIENCE={START} until_true connected
            """,
            SLOW,
        )
        yield vm
        vm.run(LIBRARY + "client systemctl poweroff --no-block; pkill -f service_manager; net_down")
        assert vm.splats() == []


def test_an_upgrade_of_a_client_in_the_kernel_loses_no_packet(
    guest: Vm, record_property: pytest.RecordProperty
) -> None:
    printed = guest.check(
        LIBRARY
        + f"""
        session() {{ ip netns exec b $TOOLS/qrectl sessions Device=client0 | grep -io 'SessionId=[0-9a-f]*'; }}
        pid() {{ client systemctl show --value -p MainPID qred@client0; }}
        before=$(pid) its=$(session)
        $B ping -n -i {1 / RATE:g} -W 10 10.77.0.1 >/tmp/ping 2>&1 &
        pinger=$!
        until_true "grep -q icmp_seq=1 /tmp/ping"
        start=$SECONDS
        client dpkg --install /later.deb >/tmp/dpkg 2>&1 || {{ cat /tmp/dpkg; exit 1; }}
        echo "upgraded in $((SECONDS - start)) s"
        PATIENCE={START} until_true '[ "$(pid)" != 0 ] && [ "$(pid)" != '$before' ] && connected'
        echo "connected after $((SECONDS - start)) s"
        sleep 3
        kill -INT $pinger
        wait $pinger || true
        [ "$(session)" = "$its" ] && echo "session kept: $its"
        client qre-tool version
        client journalctl -o cat -u qred@client0
        cat /tmp/ping
        """,
        SLOW,
    )
    answered = numbers_answered(printed)
    record_property("of", max(answered))
    assert answered == set(range(1, max(answered) + 1)), "each request was answered"
    assert "session kept: " in printed, printed
    assert f"qre-tool {LATER}" in printed.splitlines()
