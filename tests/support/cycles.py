"""Starts and ends of one daemon, again and again, some cut off while it starts; what must be as before after each."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.support.daemons import PATIENCE, Daemon, wait_for
from tests.support.namespaces import Namespace, run
from tests.support.tunnel import Tunnel

#: Of so many cycles one is cut off.
CUT_EVERY = 4
#: What docs and manual page say: 0 for a daemon that SIGTERM stops, and as any command that it ends, before that.
ENDINGS = frozenset({0, 128 + signal.SIGTERM})
#: What the kernel would be asked by somebody who looks for something that was left.
_ASKED = ("-o link", "-o addr", "rule", "-6 rule", "route show table all", "-6 route show table all")


def network_of(namespace: Namespace) -> dict[str, str]:
    """Links, addresses, rules and routes of a namespace, its sockets and processes, and what is filtered."""
    found = {asked: namespace.ip(*asked.split()) for asked in _ASKED}
    found["sockets"] = namespace.run("ss", "-Hanut")
    found["filters"] = namespace.run("nft", "list", "ruleset", check=False)
    found["processes"] = run("ip", "netns", "pids", namespace.name)
    return found


def settled(namespace: Namespace) -> bool:
    """Its links are up at both ends, and the kernel has given them their addresses."""
    links, addresses = namespace.ip("-o", "link"), namespace.ip("-o", "-6", "addr", "show", "scope", "link")
    others = len(links.splitlines()) - 1  # less lo
    return "NO-CARRIER" not in links and "tentative" not in addresses and len(addresses.splitlines()) == others


class Cycles:
    """Of ``daemon``. ``whole`` waits until it has started; ``statuses`` counts how cut and whole ones ended."""

    def __init__(self, tunnel: Tunnel, daemon: Daemon, whole: Callable[[Daemon], object], seed: int) -> None:
        self.statuses: dict[str, Counter[int]] = {"whole": Counter(), "cut": Counter()}
        self._tunnel = tunnel
        self._daemon = daemon
        self._whole = whole
        self._random = Random(seed)
        self._takes = 1.0  # seconds, a start
        wait_for("settled links", lambda: settled(daemon.namespace), interval=0.5)
        self._network = network_of(daemon.namespace)
        self._others = self._surroundings()

    def run(self, count: int) -> None:
        """So many; an AssertionError names the cycle, and what was left of it."""
        for number in range(1, count + 1):
            cut = number % CUT_EVERY == 0
            moment = self._random.uniform(0, 1.2) * self._takes if cut else None
            self._one(number, moment)

    def _one(self, number: int, moment: float | None) -> None:
        daemon, began = self._daemon, time.monotonic()
        daemon.log.unlink(missing_ok=True)
        daemon.start()
        if moment is None:
            self._whole(daemon)
            self._takes = time.monotonic() - began
        else:
            time.sleep(moment)
        status = daemon.stop(timeout=PATIENCE)
        status = 128 - status if status < 0 else status  # as a shell says it
        which = f"cycle {number}" + ("" if moment is None else f", cut off after {moment:.3f} s")
        self.statuses["whole" if moment is None else "cut"][status] += 1
        said = daemon.said()[-3000:]
        assert status == 0 if moment is None else status in ENDINGS, f"{which}: exit status {status}\n{said}"
        assert "Traceback" not in said, f"{which}\n{said}"
        left = self._left()
        assert not left, f"{which}: left behind: {left}\n{said}"

    def _left(self) -> list[str]:
        now = network_of(self._daemon.namespace)
        others = self._surroundings()
        found = [f"{what}: {now[what]!r}, was {was!r}" for what, was in self._network.items() if now[what] != was]
        return found + [
            f"{what}: {others[what]}, was {was}" for what, was in self._others.items() if others[what] != was
        ]

    def _surroundings(self) -> dict[str, list[str]]:
        """What is not of the namespace: processes and files of the daemons, pins, mounts."""
        directory = self._tunnel.directory
        kept = (directory / "state", directory / "run")
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
        return {
            "processes": self._processes(),
            "pins": sorted(path.name for path in self._tunnel.pin_dir.iterdir()),
            "files": sorted(
                str(path) for top in kept if top.exists() for path in top.rglob("*") if self._counts(path)
            ),
            "mounts": mounts,
        }

    def _processes(self) -> list[str]:
        """Of this daemon, in whatever namespace."""
        marker = f"{self._tunnel.directory}/{self._daemon.profile}.notify".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                    found.append(f"{entry.name} ({(entry / 'comm').read_text().strip()})")
            except OSError:
                continue  # it has ended
        return found

    def _counts(self, path: Path) -> bool:
        """What outlives a daemon on purpose does not."""
        return path.name.startswith(self._daemon.profile) and path.suffix not in {
            ".replay",
            ".dest",
            ".leases",
            ".tickets",
            ".ticket-keys",
        }
