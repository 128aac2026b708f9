"""Debian kernels on this machine that the module can be built for and that can be booted; what runs there, built."""

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
COMPILER = ("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")


class Kernel(msgspec.Struct, frozen=True):
    """``release`` as uname says it; ``series`` is its first two numbers."""

    release: str

    @property
    def series(self) -> str:
        return ".".join(self.release.split("-")[0].split("+")[0].split(".")[:2])

    @property
    def image(self) -> Path:
        return Path(f"/boot/vmlinuz-{self.release}")

    @property
    def headers(self) -> Path:
        return Path(f"/usr/src/linux-headers-{self.release}")


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def kernels() -> list[Kernel]:
    """The newest of each series, the oldest series first."""
    found: dict[str, Kernel] = {}
    for image in sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: _numbers(path.name)):
        kernel = Kernel(image.name.removeprefix("vmlinuz-"))
        if (kernel.headers / "Makefile").exists():
            found[kernel.series] = kernel
    return sorted(found.values(), key=lambda kernel: _numbers(kernel.release))


def cache() -> Path:
    """Where builds are kept: outside the tree."""
    base = os.environ.get("XDG_CACHE_HOME")
    directory = (Path(base) if base else Path.home() / ".cache") / "qre"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two runs never build the same thing at once."""
    with (cache() / "lock").open("w") as lock:
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
    with _one_at_a_time():
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
        ["make", "-C", str(kernel.headers), f"M={directory}", *FLAGS, *flags, "modules"],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"the module does not build for {kernel.release}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def guest_programs() -> Path:
    """The directory of the C programs that poke the kernel, compiled; kept by their sources.

    Made under another name and renamed, never changed: a guest of another run may be using it.
    """
    sources = sorted(GUEST.glob("*.[ch]"))
    uapi = KMOD / "uapi" / "qre.h"
    digest = hashlib.sha256(repr(COMPILER).encode())
    for path in (*sources, uapi):
        digest.update(path.name.encode() + path.read_bytes())
    directory = cache() / f"guest-{digest.hexdigest()[:16]}"
    with _one_at_a_time():
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache(), prefix="compiling-") as name:
                made = Path(name) / "programs"
                made.mkdir()
                for source in (path for path in sources if path.suffix == ".c"):
                    command = [*COMPILER, "-I", str(KMOD), "-o", str(made / source.stem), str(source)]
                    subprocess.run(command, check=True)
                made.rename(directory)
    return directory
