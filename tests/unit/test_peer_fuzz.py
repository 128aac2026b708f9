"""No peer that has the keys makes an end raise or work for long: a short run of the fuzzer, of the same seed each
time. The long one is ``make fuzz``.
"""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_peers import KINDS, Run

#: CPU seconds for one input: ten times what the long run allows: this one may be traced, and run beside others.
SLOW = 0.5


@pytest.fixture(scope="module")
def run() -> Run:
    run = Run(seed=1, limit=SLOW)
    run.go(1800)
    return run


def test_a_short_fuzzing_run_finds_nothing(run: Run) -> None:
    assert run.finds == []
    assert run.inputs >= 1800


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_play_arrives_at_its_installation(run: Run, kind: str) -> None:
    tally = run.tallies[kind]
    assert tally.installs * 8 > tally.plays > 0, str(tally)
    assert tally.inputs_installed > 0


def test_a_seed_repeats_a_play(run: Run) -> None:
    once, again = (run.repeat("server", 3) for _ in range(2))
    assert once is not None and again is not None
    assert once.outcome.worst > 0
    assert (once.outcome.inputs, once.outcome.installed) == (again.outcome.inputs, again.outcome.installed)
