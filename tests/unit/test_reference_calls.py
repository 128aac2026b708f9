"""The calls of the reference as they are written: what the test of the ring vm is to run."""

from __future__ import annotations

from tests.support.reference_calls import SET_ALIASES, calls, lines
from tests.vm.test_reference import VALUES


def test_every_line_of_the_reference_is_called_with_and_without_what_may_be_left_out() -> None:
    made = list(calls(VALUES))
    assert {call.line for call in made} == set(lines())
    assert len(lines()) == 39
    words = [" ".join(call.words) for call in made]
    assert words[:2] == ["--json show qre0", "--dry-run up qre0"]
    assert words.index("--dry-run reload qre0") < words.index("reload qre0")
    assert any(call.startswith("shared-port-loader bpf-elf=") and "reuseport" in call for call in words)
    assert any("routed_cid_len=" in call for call in words)
    assert [call.split()[1] for call in words if call.startswith("session-capture") and "=" in call] == [
        "valid-client", "invalid-short-id", "wrong-sni", "malformed-initial", "random-udp",
    ]  # fmt: skip


def test_every_alias_of_set_is_called() -> None:
    words = [word.partition("=")[0] for call in calls(VALUES) if call.command == "set" for word in call.words]
    for field, aliases in SET_ALIASES.items():
        assert {field, *aliases} <= set(words), field


def test_no_placeholder_is_left() -> None:
    for call in calls(VALUES):
        assert not set("<>[]|") & set("".join(call.words)), call
