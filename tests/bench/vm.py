"""qre.ko beside WireGuard, openvpn-dco and plain veth: what each moves with the same number of instructions.

``python -m tests.bench.vm [rounds]``. One boot of a stock kernel whose one CPU takes a nanosecond of its own time
for every instruction, whatever this machine is doing: a rate is then bits per instruction, the same in every run.
An AES round is one instruction there, which flatters AES-GCM beside ChaCha20: openvpn-dco's cipher is qre.ko's, so
the fair ratio is that with it, and WireGuard's is told beside it. All tunnels are up at once over one veth pair and
are measured turn by turn. Prints ratios and asserts nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.support.kernels import GUEST, Kernel, build, cache, guest_programs, installed
from tests.support.vm import Vm, booted

#: With AES-NI, PCLMULQDQ and AVX2, which every emulation of it has alike.
CPU = "Haswell-noTSX"
#: Only instructions make time while the CPU is busy; while it is idle, time goes as this machine's does.
QEMU = f"-icount shift=0,sleep=on -cpu {CPU}"
ROUNDS = 3
#: In the guest's time; a busy second of it is some ten of this machine's.
TCP_SECONDS = 1
UDP_MILLISECONDS = 300
PAYLOAD = 64
STREAMS = 10
PINGS = 50
TUNNELS = {
    "veth": "plain veth",
    "wireguard": "WireGuard",
    "dco": "openvpn-dco, AES-128-GCM",
    "qre": "qre.ko",
    "qre6": "qre.ko over IPv6",
}
#: Seconds of this machine.
TIMEOUT = 600.0


class CannotBeHadError(Exception):
    """A tunnel that this machine or kernel does not have, and why."""


class Column(msgspec.Struct, frozen=True):
    """One thing that is measured: what a figure is multiplied with to be told in ``unit``."""

    title: str
    unit: str
    scale: float
    measure: Callable[[Vm, str], float]


def openvpn_dco(kernel: Kernel) -> Path:
    """openvpn-dco's module, built from its Debian package's sources without installing them; kept."""
    directory = cache() / f"ovpn-dco-{kernel.release}"
    if not directory.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix="compiling-") as name:
            _run(name, "apt-get download -q openvpn-dco-dkms")
            _run(name, "dpkg-deb -x openvpn-dco-dkms_*.deb package")
            headers = shlex.quote(str(kernel.headers))
            _run(name, f"make -C package/usr/src/ovpn-dco-* KERNEL_SRC={headers} REVISION=qre")
            (built,) = Path(name).rglob("ovpn-dco-v2.ko")
            built.parent.rename(directory)
    return directory / "ovpn-dco-v2.ko"


def _run(directory: str, script: str) -> None:
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=directory,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise CannotBeHadError(f"{script.split(maxsplit=1)[0]} failed: {last_line(done.stdout)}")


def last_line(printed: str) -> str:
    return (printed.strip().splitlines() or ["it said nothing"])[-1]


def guest(vm: Vm, script: str) -> str:
    """What ``script`` prints, of a script that must succeed."""
    status, printed = vm.run(f". /tmp/lib.sh; . /tmp/bench.sh; set -e\n{script}", TIMEOUT)
    if status:
        raise CannotBeHadError(last_line(printed))
    return printed


def tcp_rate(vm: Vm, tunnel: str, streams: int) -> float:
    report = json.loads(guest(vm, f"bench_tcp {tunnel} {TCP_SECONDS} {streams}"))
    return float(report["end"]["sum_received"]["bits_per_second"])


def udp_rate(vm: Vm, tunnel: str) -> float:
    printed = guest(vm, f"bench_udp {tunnel} {UDP_MILLISECONDS} {PAYLOAD}")
    counted = re.search(r"sent \d+ microseconds (\d+)\narrived (\d+)", printed)
    if counted is None:
        raise CannotBeHadError(f"it cannot be read what was measured: {printed!r}")
    return int(counted[2]) / int(counted[1]) * 1e6


def round_trip(vm: Vm, tunnel: str) -> float:
    printed = guest(vm, f"bench_ping {tunnel} {PINGS}")
    found = re.search(r"rtt min/avg/max/mdev = [\d.]+/([\d.]+)/", printed)
    if found is None:
        raise CannotBeHadError(f"it cannot be read what was measured: {printed!r}")
    return float(found[1]) * 1e3


COLUMNS = (
    Column("TCP, 1 stream", "Mbit/s", 1e-6, lambda vm, tunnel: tcp_rate(vm, tunnel, 1)),
    Column(f"TCP, {STREAMS} streams", "Mbit/s", 1e-6, lambda vm, tunnel: tcp_rate(vm, tunnel, STREAMS)),
    Column(f"UDP, {PAYLOAD} bytes", "kpkt/s", 1e-3, udp_rate),
    Column("round trip", "µs", 1.0, round_trip),
)
#: Of each tunnel, the figures of each column.
Figures = dict[str, list[list[float]]]


def cell(figures: list[float], column: Column) -> str:
    low, middle, high = (
        f"{figure * column.scale:.0f}" for figure in (min(figures), statistics.median(figures), max(figures))
    )
    return f"{low}/{middle}/{high}"


def tell(found: Figures) -> None:
    """The figures, and what qre.ko's medians are of the others': above 1 is better, for the round trip below 1."""
    print(f"\n{'min/median/max':34}" + "".join(f"{column.title:>18}" for column in COLUMNS))
    print(f"{'':34}" + "".join(f"{column.unit:>18}" for column in COLUMNS))
    for tunnel, columns in found.items():
        cells = (cell(figures, column) for figures, column in zip(columns, COLUMNS, strict=True))
        print(f"{TUNNELS[tunnel]:34}" + "".join(f"{one:>18}" for one in cells))
    if "qre" not in found:
        return
    print()
    own = [statistics.median(figures) for figures in found["qre"]]
    for tunnel, columns in found.items():
        if tunnel != "qre":
            ratios = (mine / statistics.median(figures) for mine, figures in zip(own, columns, strict=True))
            print(f"{'qre.ko / ' + TUNNELS[tunnel]:34}" + "".join(f"{ratio:>18.2f}" for ratio in ratios))


def prepare(vm: Vm, modules: dict[str, Path]) -> None:
    """The guest's environment, and that its CPU is what the figures are said to be of."""
    paths = {"TOOLS": guest_programs(), **modules}
    lines = "".join(f"export {name}={shlex.quote(str(path))}\n" for name, path in paths.items())
    vm.check(f"cat >/tmp/environment <<'END'\n{lines}END\ncp {GUEST}/lib.sh {GUEST}/bench.sh /tmp", TIMEOUT)
    printed = vm.check("modprobe -a veth aesni_intel gcm; grep -m 1 flags /proc/cpuinfo", TIMEOUT)
    lacking = {"aes", "pclmulqdq", "avx", "avx2"} - set(printed.split())
    if lacking:
        print(f"beware: this CPU lacks {', '.join(sorted(lacking))}")
    guest(vm, "bench_begin")


def measure(vm: Vm, tunnels: list[str], rounds: int) -> Figures:
    """Everything through every tunnel, turn by turn."""
    found: Figures = {tunnel: [[] for _ in COLUMNS] for tunnel in tunnels}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for place, column in enumerate(COLUMNS):
            for tunnel in tunnels:
                found[tunnel][place].append(column.measure(vm, tunnel))
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    kernel = installed()[0]  # the oldest: openvpn-dco-dkms builds for no newer one
    builds: dict[str, tuple[str, Callable[[], Path]]] = {
        "qre": ("MODULE", lambda: build(kernel)[0] / "qre.ko"),
        "dco": ("DCO", lambda: openvpn_dco(kernel)),
    }
    modules: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for tunnel, (variable, make) in builds.items():
        try:
            modules[variable] = make()
        except (CannotBeHadError, RuntimeError) as error:
            missing[tunnel] = str(error)
    print(f"Linux {kernel.release}, one {CPU} at an instruction a nanosecond; MTU 1380 in every tunnel", flush=True)
    with booted(kernel, cpus=1, qemu=QEMU) as vm:
        prepare(vm, modules)
        for tunnel in (name for name in TUNNELS if name not in missing):
            try:
                guest(vm, f"bench_up {tunnel}")
            except CannotBeHadError as error:
                missing[tunnel] = str(error)
        found = measure(vm, [tunnel for tunnel in TUNNELS if tunnel not in missing], rounds)
        complaints = vm.splats()
    tell(found)
    for tunnel, why in missing.items():
        print(f"{TUNNELS[tunnel]} was not measured: {why}")
    for line in complaints:
        print(f"the kernel complained: {line}")


if __name__ == "__main__":
    main()
