"""The newest kernel of Debian's unstable archive with its compiler: ``python -m tests.support.unstable``.

Nothing of it is installed. apt fetches the packages with lists of its own, and they are unpacked below the cache: in
a chroot there the module is built for the kernel, with the headers as they are, and from there the kernel is booted
with its modules. apt checks the archive's signature as always. Only a kernel newer than the one that is there is
fetched (some 300 megabytes). Where the archive cannot be reached, the tests use the one that is there, or are skipped
and say why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.kernels import Kernel, cache, missing, one_at_a_time, remember, remembered

NAME = "unstable"
#: What its system is made of: what boots, what builds a module, what reads it; and the programs that are in every
#: Debian, which no package names.
PACKAGES = ("linux-image-amd64", "linux-headers-amd64", "make", "sparse", "mawk", "?essential")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class UnreachableError(Exception):
    """The archive, and what apt says of it."""


def say(words: str) -> None:
    print(f"{NAME}: {words}", flush=True)


def _run(*command: str | Path, timeout: float) -> str:
    """What the command prints; what it complained of as an error."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(str(error)) from None
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or done.stderr.splitlines()
        raise UnreachableError(complaints[0].removeprefix("E: ") if complaints else f"{command[0]} failed")
    return done.stdout


def archive() -> str:
    """Where this machine gets its Debian from: unstable lies beside it."""
    which = ("Created-By: Packages", "Label: Debian", "Component: main")
    found = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", *which, timeout=60).split()
    if not found:
        raise UnreachableError("apt's sources name no archive of Debian: apt-get update")
    return found[0]


class Apt:
    """apt with lists, downloads and a (bare) system of its own, and with this machine's way out to the network."""

    def __init__(self, directory: Path) -> None:
        for part in ("state/lists/partial", "cache/archives/partial"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        status, sources = directory / "state" / "status", directory / "sources.list"
        status.write_text("")
        sources.write_text(f"deb [signed-by={KEYRING}] {archive()} unstable main\n")
        settings = {
            "Dir::State": directory / "state",
            "Dir::State::status": status,
            "Dir::Cache": directory / "cache",
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Update::Error-Mode": "any",
            "APT::Sandbox::User": "root",  # nobody else may enter the cache
            "Acquire::Languages": "none",
            "Acquire::Retries": "1",
            "Acquire::http::Timeout": "30",
        }
        self._options = [f"-o{name}={value}" for name, value in settings.items()]
        self.fetched = directory / "cache" / "archives"

    def get(self, *arguments: str) -> str:
        return _run("apt-get", *self._options, "-qq", *arguments, timeout=1200)

    def version(self, package: str) -> str:
        shown = _run("apt-cache", *self._options, "show", "--no-all-versions", package, timeout=60)
        return next(line.split()[1] for line in shown.splitlines() if line.startswith("Version: "))


def _unpack(packages: list[Path], system: Path) -> None:
    """Lay the files of the packages out below ``system``; none of their scripts is run."""
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -xp --keep-directory-symlink -C "$2"'
    for package in packages:
        subprocess.run(["bash", "-o", "pipefail", "-c", unpack, "bash", package, system], check=True)
    # What the packages' scripts would have done, as far as it is needed.
    (system / "usr/bin/awk").symlink_to("mawk")
    subprocess.run(["depmod", "-b", system, _kernel(system).release], check=True)
    (system / "build").mkdir()


def _kernel(system: Path) -> Kernel:
    (image,) = system.glob("usr/lib/modules/*/vmlinuz")
    release = image.parent.name
    return Kernel(release, image, system / "usr/src" / f"linux-headers-{release}", system)


def _make(apt: Apt, system: Path) -> None:
    """Fetch the packages and lay them out; ``system`` is whole or not there."""
    apt.get("install", "--yes", "--download-only", "--no-install-recommends", *PACKAGES)
    with tempfile.TemporaryDirectory(dir=system.parent, prefix="unpacking-") as name:
        made = Path(name) / "system"
        made.mkdir()
        _unpack(sorted(apt.fetched.glob("*.deb")), made)
        made.rename(system)
    apt.get("clean")


def newest() -> Kernel:
    """The archive's newest kernel, fetched if it is not here."""
    home = cache() / NAME
    apt = Apt(home / "apt")
    apt.get("update")
    version = apt.version(PACKAGES[0])
    system = home / version
    if not system.exists():
        say(f"fetching Linux {version} with its headers and compiler (300 megabytes, once for each new kernel)")
        _make(apt, system)
    for other in home.iterdir():
        if other not in {system, home / "apt"}:
            shutil.rmtree(other)
    return _kernel(system)


def main() -> int:
    """0 always: where there is no such kernel, its tests say why."""
    if os.geteuid() != 0:
        return 0  # the whole ring is skipped, and says so
    with one_at_a_time(NAME + ".lock"):
        try:
            kernel = newest()
        except UnreachableError as error:
            kernel = remembered(NAME)
            reason = f"Debian's unstable archive cannot be had: {error}"
            if kernel.missing or not kernel.image.exists():
                kernel = missing(NAME, reason)
                say(f"{reason}; the tests with its kernel are skipped")
            else:
                say(f"{reason}; the tests use {kernel.release}, fetched before")
        else:
            say(f"{kernel.release} is the archive's newest kernel")
        remember(NAME, kernel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
