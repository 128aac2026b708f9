"""Fuzzing after the handshake: ``python -m tests.fuzz.fuzz_peers [INPUTS [SEED]]``, or ``--repeat KIND SEED NUMBER``.

A peer that has the keys (an authenticated client, a proven server, a site, the other end of a session) plays against
one end of the product, see ``hostile_plays``. An input is one packet of frames of its making. Nothing may raise, and
no input may cost more than ``MAX_SECONDS`` of CPU or make a play grow beyond ``MAX_GROWTH``. Exits 0 when nothing was
found; a find is printed with the call that repeats it.

Plays run in forks of a process that has completed their handshakes, many in each, so that an input costs as little as
it can. A play that was too slow is played three times more, because a busy machine stalls a process and counts that
as its own time; only what was slow each time is a find.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from random import Random

from tests.fuzz.hostile_ends import ClientPlay, ServerLikeDestPlay, ServerPlay, VisitPlay
from tests.fuzz.hostile_plays import Outcome, Play
from tests.fuzz.hostile_sessions import TunnelClientPlay, TunnelPlay

#: CPU seconds for one input, with the timer that is due before it and the answers that it causes.
MAX_SECONDS = 0.05
#: KiB, for one play.
MAX_GROWTH = 48 << 10
KINDS: dict[str, type[Play]] = {
    one.kind: one for one in (ServerPlay, ServerLikeDestPlay, ClientPlay, VisitPlay, TunnelPlay, TunnelClientPlay)
}
#: Plays of each kind in one fork.
SHARES = {"server": 6, "server-like-dest": 3, "client": 6, "visit": 3, "dataplane-server": 3, "dataplane-client": 3}
#: CPU seconds of a fork: it hangs.
_HANGS = 60
#: Handshakes are made anew after so many batches, so that their keys vary.
_FRESH = 100


@dataclass
class Played:
    """One play as a fork reports it. ``growth`` in KiB."""

    kind: str
    number: int
    growth: int
    outcome: Outcome


@dataclass
class Tally:
    """Of all plays of a kind."""

    plays: int = 0
    installs: int = 0
    inputs: int = 0
    inputs_installed: int = 0
    worst: float = 0.0
    growth: int = 0

    def add(self, played: Played) -> None:
        """Count one play."""
        outcome = played.outcome
        self.plays += 1
        self.installs += outcome.installed
        self.inputs += outcome.inputs
        self.inputs_installed += outcome.inputs_installed
        self.growth = max(self.growth, played.growth)

    def __str__(self) -> str:
        share = 100 * self.installs // max(1, self.plays)
        return (
            f"{self.inputs} inputs in {self.plays} plays, {share} % of which were installed; {self.inputs_installed} "
            f"inputs after that; worst {self.worst * 1000:.1f} ms, growth {self.growth} KiB"
        )


@dataclass
class Run:
    """All of one seed."""

    seed: int
    limit: float = MAX_SECONDS
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    finds: list[str] = field(default_factory=list)
    _stock: dict[str, list[Play]] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Of all kinds so far."""
        return sum(tally.inputs for tally in self.tallies.values())

    def go(self, inputs: int) -> None:
        """Play until so many inputs were made."""
        batch = 0
        while self.inputs < inputs:
            if batch % _FRESH == 0:
                self._stock = {kind: [KINDS[kind]() for _ in range(share)] for kind, share in SHARES.items()}
                gc.collect()
                gc.freeze()
            plays = [(kind, batch * share + at, at) for kind, share in SHARES.items() for at in range(share)]
            for played in self._fork(plays):
                self.tallies[played.kind].add(played)
                self._judge(played)
            batch += 1

    def repeat(self, kind: str, number: int) -> Played | None:
        """One play alone; None when it did not come to its end, which is a find."""
        self._stock = {kind: [KINDS[kind]()]}
        return next(self._fork([(kind, number, 0)]), None)

    def _fork(self, plays: list[tuple[str, int, int]]) -> Iterator[Played]:
        """Play these in a child process: kind, number, and which prepared play."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _child(self, plays, writing)
        os.close(writing)
        reported = 0
        with open(reading) as lines:
            for line in lines:
                told = json.loads(line)
                yield Played(**(told | {"outcome": Outcome(**told["outcome"])}))
                reported += 1
        _, status = os.waitpid(child, 0)
        if status:
            kind, number, _at = plays[reported]
            self._found(kind, number, f"the process ended with status {status}, or takes without end")

    def play(self, kind: str, number: int, at: int) -> Played:
        """In the child."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = self._stock[kind][at].play(Random(f"{self.seed} {kind} {number}"))
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return Played(kind, number, growth, outcome)

    def _judge(self, played: Played) -> None:
        kind, number, outcome = played.kind, played.number, played.outcome
        tally = self.tallies[kind]
        if outcome.error:
            self._found(kind, number, f"input {outcome.inputs} raised:\n{outcome.error}")
        if played.growth > MAX_GROWTH:
            self._found(kind, number, f"grew by {played.growth} KiB")
        if outcome.worst <= self.limit:
            tally.worst = max(tally.worst, outcome.worst)
            return
        stock = self._stock
        again = [self.repeat(kind, number) for _ in range(3)]
        self._stock = stock
        least = min([outcome.worst, *(one.outcome.worst for one in again if one is not None)])
        tally.worst = max(tally.worst, least)
        if least > self.limit:
            what = f"input {outcome.worst_at} took {least * 1000:.0f} ms each time: {outcome.worst_payload}"
            self._found(kind, number, what)

    def _found(self, kind: str, number: int, what: str) -> None:
        find = f"FIND --repeat {kind} {self.seed} {number}: {what}"
        self.finds.append(find)
        print(find, flush=True)


def _child(run: Run, plays: list[tuple[str, int, int]], writing: int) -> None:
    """Never returns."""
    gc.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _HANGS)
    status = 1
    try:
        with open(writing, "w") as out:
            for play in plays:
                out.write(json.dumps(asdict(run.play(*play))) + "\n")
        status = 0
    except Exception:  # noqa: BLE001 - a fork must end here, and its parent counts it as a find
        traceback.print_exc()
    finally:
        os._exit(status)


def main(arguments: list[str]) -> int:
    """See above."""
    if arguments[:1] == ["--repeat"]:
        kind, seed, number = arguments[1], int(arguments[2]), int(arguments[3])
        played = Run(seed).repeat(kind, number)
        print(played)
        return int(played is None or bool(played.outcome.error) or played.outcome.worst > MAX_SECONDS)
    inputs = int(arguments[0]) if arguments else 100_000
    run = Run(int(arguments[1]) if len(arguments) > 1 else 1)
    began = time.monotonic()
    run.go(inputs)
    for kind, tally in run.tallies.items():
        print(f"{kind}: {tally}")
    plays, installs = (sum(getattr(tally, name) for tally in run.tallies.values()) for name in ("plays", "installs"))
    worst = max(tally.worst for tally in run.tallies.values()) * 1000
    print(
        f"seed {run.seed}: {run.inputs} inputs in {time.monotonic() - began:.0f} s, {plays} plays, {installs} of "
        f"them installed; worst {worst:.1f} ms; {len(run.finds)} finds"
    )
    return int(bool(run.finds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
