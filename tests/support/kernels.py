"""The kernels that the module is built for and run in: this machine's Debian ones, and two that are asked for.

``kernels()`` are those whose packages are installed. QRE_VM_ALL adds the newest of Debian's unstable archive, which
lies with its compiler in a directory of its own (``tests.support.unstable``); QRE_VM_KASAN takes the debugging kernel
instead of all of them (``tests.support.kasan``). Builds are kept outside the tree.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
KMOD = ROOT / "kmod"
GUEST = ROOT / "tests" / "vm" / "guest"
#: The flags that every build of the module is held to.
FLAGS = ("W=1",)
#: Sparse reads every file. Not C=2: Debian's headers lack the script by which newer kernels look for it.
SPARSE = ("KBUILD_CHECKSRC=2", "CF=-D__CHECK_ENDIAN__")
COMPILER = ("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
#: What a program of the guest is linked with.
LIBRARIES = {"numbers": ("-lcrypto",)}
_ARCHITECTURE = f"/usr/include/{os.uname().machine}-linux-gnu"
BPF_COMPILER = ("clang", "-target", "bpf", "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-I", _ARCHITECTURE, "-c")


#: What a watchful kernel takes longer than another.
SLOWER = 4


class Kernel(msgspec.Struct, frozen=True):
    """One kernel: ``release`` as uname says it.

    ``system`` is the root of the Debian whose compiler builds for it, where that is not this machine's. One that is
    ``watchful`` finds faults of the module that others do not see, and is some ``SLOWER`` times slower. A kernel that
    was asked for and cannot be had is ``missing``, with the reason.
    """

    release: str
    image: Path
    #: What a module is built against.
    headers: Path
    system: Path | None = None
    watchful: bool = False
    missing: str = ""

    @property
    def patience(self) -> int:
        """What a test's deadlines are multiplied with."""
        return SLOWER if self.watchful else 1

    @property
    def series(self) -> str:
        """The first two numbers of the release; of a kernel built here, with its name behind."""
        numbers, _, build = self.release.partition("-")
        series = ".".join(numbers.split("+")[0].split(".")[:2])
        return f"{series}-{build.removeprefix('qre-')}" if build.startswith("qre-") else series


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def installed() -> list[Kernel]:
    """The newest of each series whose packages are installed, the oldest series first."""
    found: dict[str, Kernel] = {}
    for image in sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: _numbers(path.name)):
        release = image.name.removeprefix("vmlinuz-")
        kernel = Kernel(release, image, Path(f"/usr/src/linux-headers-{release}"))
        if (kernel.headers / "Makefile").exists():
            found[kernel.series] = kernel
    return sorted(found.values(), key=lambda kernel: _numbers(kernel.release))


def kernels() -> list[Kernel]:
    """The kernels of this run of the tests."""
    if os.environ.get("QRE_VM_KASAN"):
        return [remembered("kasan")]
    if os.environ.get("QRE_VM_ALL"):
        return [*installed(), remembered("unstable")]
    return installed()


def _note(name: str) -> Path:
    return cache() / f"{name}.json"


def remember(name: str, kernel: Kernel) -> None:
    """What ``remembered`` finds from now on."""
    _note(name).write_bytes(msgspec.json.encode(kernel, enc_hook=str))


def remembered(name: str) -> Kernel:
    """The kernel that ``tests.support.unstable`` or ``tests.support.kasan`` made last, or one that is missing."""
    try:
        kernel = msgspec.json.decode(_note(name).read_bytes(), type=Kernel, dec_hook=lambda path, text: path(text))
    except (OSError, msgspec.DecodeError):
        return missing(name, f"it was not made yet: python -m tests.support.{name}")
    return kernel if kernel.missing or kernel.image.exists() else missing(name, "its files are gone")


def missing(name: str, reason: str) -> Kernel:
    return Kernel(name, Path(), Path(), missing=f"no kernel {name}: {reason}")


def cache() -> Path:
    """Where builds are kept: outside the tree."""
    base = os.environ.get("XDG_CACHE_HOME")
    directory = (Path(base) if base else Path.home() / ".cache") / "qre"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def one_at_a_time(what: str = "lock") -> Iterator[None]:
    """Two runs never make the same thing at once."""
    with (cache() / what).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sources() -> list[Path]:
    return sorted(
        path
        for path in KMOD.rglob("*")
        if (path.suffix in {".c", ".h"} and not path.name.endswith(".mod.c")) or path.name in {"Kbuild", "Makefile"}
    )


def build(kernel: Kernel, *flags: str) -> tuple[Path, str]:
    """The directory of a build of the module for ``kernel``, and what the compiler said; kept by its sources."""
    digest = hashlib.sha256(repr(flags).encode())
    for path in _sources():
        digest.update(path.name.encode() + path.read_bytes())
    directory = cache() / f"{kernel.release}-{digest.hexdigest()[:16]}"
    said = directory / "said"
    with one_at_a_time():
        if not said.exists():
            said.write_text(_make(kernel, directory, *flags))
    return directory, said.read_text()


def _make(kernel: Kernel, directory: Path, *flags: str) -> str:
    """Build a copy of the sources in ``directory``; what the compiler said."""
    shutil.rmtree(directory, ignore_errors=True)
    for path in _sources():
        copy = directory / path.relative_to(KMOD)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    done = subprocess.run(
        _command(kernel, directory, *FLAGS, *flags, "modules"),
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"the module does not build for {kernel.release}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


#: Runs "$3 ..." in the Debian at $1, which has the directory $2 as /build. The mounts go with the process.
_IN_ITS_SYSTEM = """
mount --make-rprivate /
mkdir -p "$1/build" && mount --bind "$2" "$1/build"
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev"
root=$1
shift 2
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin LC_ALL=C "$@"
"""


def _command(kernel: Kernel, directory: Path, *arguments: str) -> list[str]:
    """What runs make in the kernel's build tree for the module in ``directory``."""
    if kernel.system is None:
        return ["make", "-C", str(kernel.headers), f"M={directory}", *arguments]
    headers = Path("/") / kernel.headers.relative_to(kernel.system)
    inside = ["make", "-C", str(headers), "M=/build", *arguments]
    return ["unshare", "-m", "sh", "-ec", _IN_ITS_SYSTEM, "sh", str(kernel.system), str(directory), *inside]


def _compile(source: Path, directory: Path) -> list[str]:
    if source.name.endswith(".bpf.c"):
        return [*BPF_COMPILER, "-o", str(directory / f"{source.stem}.o"), str(source)]
    libraries = LIBRARIES.get(source.stem, ())
    return [*COMPILER, "-I", str(KMOD), "-o", str(directory / source.stem), str(source), *libraries]


def guest_programs() -> Path:
    """The directory of the C programs that poke the kernel, compiled; kept by their sources. ``*.bpf.c`` are objects.

    Made under another name and renamed, never changed: a guest of another run may be using it.
    """
    sources = sorted(GUEST.glob("*.[ch]"))
    uapi = KMOD / "uapi" / "qre.h"
    digest = hashlib.sha256(repr((COMPILER, BPF_COMPILER)).encode())
    for path in (*sources, uapi):
        digest.update(path.name.encode() + path.read_bytes())
    directory = cache() / f"guest-{digest.hexdigest()[:16]}"
    with one_at_a_time():
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache(), prefix="compiling-") as name:
                made = Path(name) / "programs"
                made.mkdir()
                for source in (path for path in sources if path.suffix == ".c"):
                    subprocess.run(_compile(source, made), check=True)
                made.rename(directory)
    return directory
