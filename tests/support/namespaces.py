"""Network namespaces with veth pairs between them, made for one run and gone after it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def run(*command: str, check: bool = True, timeout: float = 120) -> str:
    """The standard output of ``command``; a failure shows what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def processes_in(namespace: os.stat_result) -> list[int]:
    """Other processes than this one that live in a network namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if os.path.samestat(os.stat(entry / "ns/net"), namespace):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def kill_processes_in(namespace: os.stat_result) -> None:
    """What a test that failed has left there, and what that starts meanwhile."""
    while left := processes_in(namespace):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


class Namespace:
    """One network namespace; only the network is its own (mounts are shared, so BPF pins stay visible)."""

    def __init__(self, name: str) -> None:
        self.name = f"qre-{name}-{os.getpid()}-{secrets.token_hex(2)}"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        # Loopback-free of IPv6 chatter: captures and counters show the tunnel's packets only.
        self.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.autoconf=0")

    @property
    def prefix(self) -> list[str]:
        """What to put before a command to run it inside."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> str:
        return run(*self.prefix, *command, check=check, timeout=timeout)

    def ip(self, *arguments: str) -> str:
        return run("ip", "-n", self.name, *arguments)

    def popen(
        self, command: Sequence[str], *, env: dict[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` inside; what it says goes to ``log``."""
        output = log.open("ab") if log else subprocess.DEVNULL
        try:
            return subprocess.Popen(
                [*self.prefix, *command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def delete(self) -> None:
        """It and all processes in it."""
        with suppress(FileNotFoundError):
            kill_processes_in(os.stat(f"/run/netns/{self.name}"))
        run("ip", "netns", "del", self.name, check=False)


def join(one: Namespace, address: str, other: Namespace, other_address: str) -> tuple[str, str]:
    """A veth pair between two namespaces, addresses with prefix length; the names of its ends.

    Segmentation offloads are off, so that a capture shows the datagrams as they would be on a cable.
    """
    ends = f"v{secrets.token_hex(3)}a", f"v{secrets.token_hex(3)}b"
    one.ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", other.name)
    for namespace, device, cidr in ((one, ends[0], address), (other, ends[1], other_address)):
        namespace.run("ethtool", "-K", device, "gso", "off", "tso", "off", "gro", "off", check=False)
        namespace.ip("addr", "add", cidr, "dev", device)
        namespace.ip("link", "set", device, "up")
    return ends
