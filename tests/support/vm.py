"""A Debian kernel in QEMU, emulated, with this machine's file system read-only below it: ``run`` runs shell in it.

Boots in half a minute (on a busy machine in some) and is some 30 times slower than the machine. /tmp is its own. What
it prints is framed, so that a kernel message in between does no harm. It never outlives the process that started it.
"""

from __future__ import annotations

import base64
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.kernels import ROOT, Kernel, cache

BOOT_TIMEOUT = 480.0
_AGENT = ROOT / "tests" / "vm" / "guest" / "agent.sh"
#: Lines of a kernel's log that must not be there. Of itself it says "not a bug" and "report a bug" at boot.
_SPLAT = re.compile(
    r"\bBUG[: ]|WARNING: |Oops|general protection|Call Trace|RIP: |rcu.*stall|soft lockup|hung task"
    r"|blocked for more than|unregister_netdevice: waiting|refcount_t|use-after-free|leak"
)
#: What a kernel says of itself at boot.
_NO_SPLAT = (
    "not a bug",
    "report a bug",
    "kmemleak: Kernel memory leak detector",
    "double-/use-after-free debug is enabled",
)

#: What a kernel says, with a stack, when a device is refused memory for /proc/sys: no complaint where it was to be.
NO_SYSCTL = r"sysctl could not get directory: [^\n]*-12.*?</TASK>"


class Vm:
    """One booted guest."""

    def __init__(self, kernel: Kernel, process: subprocess.Popen[bytes], share: Path, console: Path) -> None:
        self.kernel = kernel
        self._console = console
        #: The version of IP of outer packets: as fixtures make it (tests/vm/conftest.py).
        self.outer = 4
        #: /run/share in the guest, which may write there.
        self.share = share
        self._process = process
        self._read = b""
        self._number = 0

    def _until(self, mark: bytes, timeout: float) -> bytes:
        """Everything up to the mark."""
        deadline = time.monotonic() + timeout
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while mark not in self._read:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError(f"the guest was silent for {timeout:g} s; {self._last_words()}")
                data = os.read(self._process.stdout.fileno(), 65_536)
                if not data:
                    raise self._ended()
                self._read += data
        before, _, self._read = self._read.partition(mark)
        return before

    def _last_words(self) -> str:
        return "its last words:\n" + self._read[-6000:].decode("ascii", "replace").replace("\r", "")

    def _ended(self) -> RuntimeError:
        status = self._process.wait(10)
        oops = self._console.read_text("ascii", "replace")[-12_000:]
        return RuntimeError(
            f"the guest of kernel {self.kernel.series} ended with status {status}; {self._last_words()}\n{oops}"
        )

    def wait_booted(self) -> None:
        self._until(b"QRE-GUEST-READY", BOOT_TIMEOUT * self.kernel.patience)

    def run(self, script: str, timeout: float = 120.0) -> tuple[int, str]:
        """Run ``script`` with bash; its status and what it printed to stdout and stderr."""
        self._number += 1
        timeout *= self.kernel.patience
        name = f"QRE-{self._number}"
        assert self._process.stdin is not None
        request = f"{self._number} {int(timeout)} {base64.b64encode(script.encode()).decode()}\n"
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        self._until(f"{name}-BEGIN".encode(), timeout + 60)
        framed = self._until(f"{name}-END".encode(), 60)
        status, _, printed = framed.decode("ascii", "replace").strip().partition(" ")
        return int(status), base64.b64decode(printed.replace("\r", "").replace("\n", "")).decode(errors="replace")

    def check(self, script: str, timeout: float = 120.0) -> str:
        """The same, of a script that must succeed."""
        status, printed = self.run("set -e\n" + script, timeout)
        assert status == 0, (
            f"status {status} of:\n{script}\n--- it printed:\n{printed}\n--- kernel:\n{self.dmesg()[-3000:]}"
        )
        return printed

    def dmesg(self) -> str:
        return self.run("dmesg")[1]

    def splats(self, expected: str = "") -> list[str]:
        """What the kernel complained of since it booted, but for what matches the expected."""
        log = self.dmesg()
        lines = (re.sub(expected, "", log, flags=re.DOTALL) if expected else log).splitlines()
        return [line for line in lines if _SPLAT.search(line) and not any(words in line for words in _NO_SPLAT)]

    def leaks(self) -> str:
        """What kmemleak found, in a watchful kernel: memory that nothing points to, in two looks."""
        if not self.kernel.watchful:
            return ""
        return self.check(
            """
            for look in 1 2; do
                sleep 6  # what is younger is not told
                echo scan >/sys/kernel/debug/kmemleak
            done
            cat /sys/kernel/debug/kmemleak
            """,
            timeout=600,
        )


#: Runs "$2 ..." and kills the whole process group when process $1 is gone, however it went.
_WATCHED = """
(while [ -d "/proc/$1" ]; do sleep 1; done; kill -KILL -- "-$$") </dev/null >/dev/null 2>&1 &
shift
exec "$@"
"""


#: What a guest has of its own and would see of this machine otherwise.
_OF_ITS_OWN = ("/tmp", "/var", "/run", "/dev")


def _shown() -> list[str]:
    """virtme-ng's options that show the guest what tests need where it has a place of its own."""
    needed = (ROOT, cache())
    shown = [f"--rodir={path}" for path in needed if any(path.is_relative_to(hidden) for hidden in _OF_ITS_OWN)]
    # Once more as a whole: the guest puts a mount that caches over what it reads most of.
    return ["--rodir=/run/cached=/", *shown]


#: Drivers of QEMU's other devices, which udev would load at boot: reading them takes longer than all the rest of it.
_UNUSED = (
    "kvm_amd,kvm_intel,ccp,ahci,iTCO_wdt,i6300esb,i2c_i801,lpc_ich,psmouse,serio_raw,evdev,pcspkr,button,qemu_fw_cfg,"
    "powernow_k8,acpi_cpufreq"
)

#: What the kernel says goes to a second serial port: the first one is virtme-ng's, which hides it.
_CONSOLE = ("--append=earlycon=uart8250,io,0x2f8,115200n8", "--append=keep_bootcon", "--append=loglevel=5")


#: virtme-ng's six serial devices have 64 queues each, which QEMU's main loop would look at with every tick.
_DEVICES = "-global virtio-serial-pci.ioeventfd=off"

#: A watchful kernel is slow enough: it reads the time without leaving the processor, and programs once.
_WATCHFUL = (
    "--append=watchdog_thresh=60",  # a machine with much else to do stops a guest for longer than the usual 20 s
    "--append=clocksource=tsc",
    "--append=tsc=reliable",
    "--append=rootflags=version=9p2000.L,trans=virtio,access=any,msize=524288,cache=loose",
)


@contextmanager
def booted(kernel: Kernel, *options: str, cpus: int = 2, qemu: str = "") -> Iterator[Vm]:
    """A guest, gone at the end. ``options`` are virtme-ng's, ``qemu`` is added to QEMU's."""
    home = Path("/tmp/qre-vm-home")
    home.mkdir(exist_ok=True)
    tools = Path(sys.executable).parent
    command = [str(tools / "vng"), "--run", str(kernel.image), "--disable-kvm", "--user", "root", "--cwd", "/"]
    command += ["--force-9p", "--cpus", str(cpus), "--memory", "2G", *_shown(), *_CONSOLE]
    command += [f"--append=modprobe.blacklist={_UNUSED}", *(_WATCHFUL if kernel.watchful else ()), *options]
    environment = os.environ | {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    share = tempfile.TemporaryDirectory(prefix="qre-vm-share-")
    command.append(f"--rwdir=/run/share={share.name}")
    console = tempfile.NamedTemporaryFile(prefix="qre-vm-console-")  # noqa: SIM115 - closed with the guest
    command.append(f"--qemu-opts=-serial file:{console.name} {_DEVICES} {qemu}")
    process = subprocess.Popen(
        ["/bin/bash", "-c", _WATCHED, "vm", str(os.getpid()), *command, "--", "/bin/bash", str(_AGENT), str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        vm = Vm(kernel, process, Path(share.name), Path(console.name))
        vm.wait_booted()
        yield vm
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        share.cleanup()
        console.close()
