"""A Debian kernel built to watch the module: ``python -m tests.support.kasan`` builds it, and the ring vm runs in it.

The source is Debian's 6.1, of which the module's first kernel is made: its cryptography may still be asynchronous,
which no newer series has, and it is the quickest to build and to boot. The configuration is ``make tinyconfig`` with
what stands in ``tests/vm/kasan.config``. Source, build and kernel are kept below the cache; what is built again is
what a change of the source's package or of the configuration touches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.kernels import ROOT, Kernel, cache, one_at_a_time, remember

NAME = "kasan"
PACKAGE = "linux-source-6.1"
ARCHIVE = Path(f"/usr/src/{PACKAGE}.tar.xz")
CONFIGURATION = ROOT / "tests" / "vm" / "kasan.config"
#: Seconds between two words about a build.
PATIENCE = 60.0


class BuildError(Exception):
    """What went wrong, and what to do."""


def say(words: str) -> None:
    print(f"{NAME}: {words}", flush=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _make(tree: Path, *arguments: str, log: Path) -> None:
    """Run make at low priority; say now and then how far it is."""
    command = ["nice", "-n", "10", "make", "-C", str(tree), "ARCH=x86_64", f"-j{os.cpu_count()}", *arguments]
    began = said = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - said > PATIENCE:
                    said = time.monotonic()
                    done = log.read_text(errors="replace").count("  CC  ")
                    say(f"{done} files compiled after {(said - began) / 60:.0f} minutes")
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise BuildError(f"make {arguments[0]} failed; {log} ends with:\n{log.read_text(errors='replace')[-2000:]}")


def wanted() -> Iterator[str]:
    """The lines that must be in the kernel's configuration."""
    for line in CONFIGURATION.read_text().splitlines():
        if line.startswith("CONFIG_") or (line.startswith("# CONFIG_") and line.endswith(" is not set")):
            yield line


def _allow_stacktrace_filter(tree: Path) -> None:
    """Failures that only what the module calls meets: 6.2 dropped the line that keeps them from x86-64, and all works
    without it in 6.1, too."""
    options = tree / "lib" / "Kconfig.debug"
    text = options.read_text()
    before, option, after = text.partition("config FAULT_INJECTION_STACKTRACE_FILTER\n")
    its_lines, end, others = after.partition("\n\n")
    allowed = before + option + its_lines.replace("\tdepends on !X86_64\n", "") + end + others
    if allowed != text:
        options.write_text(allowed)


def _configure(tree: Path, log: Path) -> None:
    """The smallest configuration with ours on top. One that the source does not know is an error, not a silence."""
    _allow_stacktrace_filter(tree)
    _make(tree, "tinyconfig", log=log)
    with (tree / ".config").open("a") as configuration:
        configuration.writelines(line + "\n" for line in wanted())
    _make(tree, "olddefconfig", log=log)
    got = set((tree / ".config").read_text().splitlines())
    lost = [line for line in wanted() if not _taken(line, got)]
    if lost:
        raise BuildError(f"{PACKAGE} does not take these lines of {CONFIGURATION.name}: {'; '.join(lost)}")


def _taken(line: str, got: set[str]) -> bool:
    """An option that is off may also be one that cannot be on."""
    if line.startswith("# "):
        return not any(other.startswith(line.split()[1] + "=") for other in got)
    return line in got


def _unpacked(home: Path, version: str) -> Path:
    """The source's tree; those of other versions go."""
    tree = home / f"linux-{version}"
    if tree.exists():
        return tree
    for other in home.glob("linux-*"):
        shutil.rmtree(other)
    say(f"unpacking {ARCHIVE.name} of {version}")
    with tempfile.TemporaryDirectory(dir=home, prefix="unpacking-") as name:
        unpacked = Path(name) / "tree"
        unpacked.mkdir()
        subprocess.run(["tar", "-xJf", ARCHIVE, "--strip-components=1", "-C", unpacked], check=True)
        unpacked.rename(tree)
    return tree


def _install(tree: Path, home: Path, log: Path) -> None:
    """Image and modules as they lie in a file system: virtme-ng looks for the one beside the other."""
    release = (tree / "include/config/kernel.release").read_text().strip()
    system = home / "system"
    shutil.rmtree(system, ignore_errors=True)
    (system / "boot").mkdir(parents=True)
    _make(tree, "modules_install", f"INSTALL_MOD_PATH={system}", log=log)
    shutil.copy(tree / "arch/x86/boot/bzImage", system / "boot" / f"vmlinuz-{release}")


def built() -> Kernel:
    """The debugging kernel, built if anything of it is new."""
    if not ARCHIVE.exists():
        raise BuildError(f"{ARCHIVE} is missing: packaging/setup.sh packaging/kasan-packages.txt")
    home = cache() / NAME
    home.mkdir(exist_ok=True)
    version = _output("dpkg-query", "-W", "-f", "${Version}", PACKAGE)
    compiler = _output("gcc", "--version").splitlines()[0]
    of = hashlib.sha256(repr((version, compiler, list(wanted()))).encode()).hexdigest()
    mark, log = home / "built-of", home / "log"
    tree = _unpacked(home, version)
    if mark.exists() and mark.read_text() == of:
        return _kernel(tree, home)
    mark.unlink(missing_ok=True)
    _configure(tree, log)
    say(f"building Linux {version} for debugging (a quarter of an hour on two idle processors); log: {log}")
    began = time.monotonic()
    _make(tree, "bzImage", "modules", log=log)
    _install(tree, home, home / "log-install")
    say(f"built in {(time.monotonic() - began) / 60:.0f} minutes")
    mark.write_text(of)
    return _kernel(tree, home)


def _kernel(tree: Path, home: Path) -> Kernel:
    (image,) = (home / "system/boot").glob("vmlinuz-*")
    return Kernel(image.name.removeprefix("vmlinuz-"), image, tree, watchful=True)


def main() -> int:
    with one_at_a_time(NAME + ".lock"):
        try:
            kernel = built()
        except BuildError as error:
            print(f"{NAME}: {error}", file=sys.stderr)
            return 2
        remember(NAME, kernel)
    say(f"{kernel.release} is built")
    return 0


if __name__ == "__main__":
    sys.exit(main())
