"""The calls of the reference as they are written: what the test of the ring vm is to run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.reference_calls import SET_ALIASES, calls, elsewhere, lines
from tests.vm.test_reference import VALUES

ROOT = Path(__file__).resolve().parents[2]


def test_every_line_of_the_reference_is_called_with_and_without_what_may_be_left_out() -> None:
    made = list(calls(VALUES))
    assert {call.line for call in made} == set(lines()) - set(elsewhere())
    assert len(lines()) == 41
    words = [" ".join(call.words) for call in made]
    assert words[:2] == ["--json show qre0", "--dry-run up qre0"]
    assert words.index("--dry-run reload qre0") < words.index("reload qre0")
    assert any(call.startswith("shared-port-loader bpf-elf=") and "reuseport" in call for call in words)
    assert any("routed_cid_len=" in call for call in words)
    assert [call.split()[1] for call in words if call.startswith("session-capture") and "=" in call] == [
        "valid-client", "invalid-short-id", "wrong-sni", "malformed-initial", "random-udp",
    ]  # fmt: skip
    assert any(call.startswith("session-capture valid ") for call in words), "by its other name"


def test_a_call_that_is_run_elsewhere_is_run_there() -> None:
    assert list(elsewhere()) == ["sudo systemctl reload qred@qre0"]
    for line, why in elsewhere().items():
        assert line in lines()
        (path,) = re.findall(r"tests/\S+\.py", why)
        called = line.removeprefix("sudo ").replace("qred@qre0", "{machine.unit}")
        assert called in (ROOT / path).read_text(), "the unit there is a profile's, too"


def test_every_alias_of_set_is_called() -> None:
    words = [word.partition("=")[0] for call in calls(VALUES) if call.command == "set" for word in call.words]
    for field, aliases in SET_ALIASES.items():
        assert {field, *aliases} <= set(words), field


def test_no_placeholder_is_left() -> None:
    for call in calls(VALUES):
        assert not set("<>[]|") & set("".join(call.words)), call
