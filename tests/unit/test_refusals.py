"""What a program must tell apart is a type, never the words of a message."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from qre.dataplane.protocol import Answer, DataplaneRequest, Refusal, SessionUpdate, refused
from qre.ends import Role
from tests.support.two_ends import Lost, TwoEnds

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("cli", "supervisor", "workers", "qre")
#: What holds an error's words, and what asks them.
WORDS = {"error", "why", "what", "remedy", "words", "strerror", "text"}
ASKING = {"startswith", "endswith", "find", "index", "count", "match", "search", "fullmatch"}
#: Names of what was caught.
CAUGHT = {"error", "exception", "exc", "caught"}


def holds_words(node: ast.expr) -> bool:
    """``answer.error``, ``error.why``, ``str(error)``, ``repr(error)``, ``error.args[0]``."""
    match node:
        case ast.Attribute(attr=name, value=ast.Name(id=owner)):
            of_error = owner in CAUGHT or owner in {"answer", "ack", "refusal"}
            return of_error and (name in WORDS or name == "args")
        case ast.Subscript(value=value):
            return holds_words(value)
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[ast.Name(id=name)]):
            return name in CAUGHT
        case ast.Call(func=ast.Attribute(value=value, attr="lower" | "strip" | "casefold")):
            return holds_words(value)
    return False


def decisions_by_words(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                textual = any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in ops)
                empty = any(isinstance(each, ast.Constant) and each.value == "" for each in others)
                if textual and not empty and any(holds_words(each) for each in (left, *others)):
                    yield node.lineno
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments) if name in ASKING:
                if any(holds_words(each) for each in (value, *arguments)):
                    yield node.lineno
            case ast.Match(subject=subject) if holds_words(subject):
                yield node.lineno


def test_words_of_a_refusal_without_one_are_no_answer() -> None:
    with pytest.raises(ValueError, match="without a refusal"):
        Answer(id=1, error="the session's socket is gone")
    whole = msgspec.msgpack.encode(refused(1, Refusal.OTHER, "gone"))
    assert msgspec.msgpack.decode(whole, type=Answer).refusal is Refusal.OTHER
    bare = msgspec.msgpack.encode(msgspec.msgpack.decode(whole) | {"refusal": None})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(bare, type=Answer)


def test_no_decision_is_made_by_the_words_of_an_error() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in PRODUCT
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in decisions_by_words(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'if answer.error == "no such session": pass',
        'if "other" in answer.error: pass',
        'if str(error).startswith("the session is "): pass',
        'x = error.why != "gone"',
        're.search("a", error.what)',
        'if "full" in error.args[0]: pass',
    ],
)
def test_such_a_decision_would_be_found(line: str) -> None:
    assert list(decisions_by_words(ast.parse(line))) == [1]


def test_a_lack_of_memory_leaves_a_session_alive_whatever_its_device_is_called() -> None:
    """The words once decided: a device named mother0 has "other" in them."""
    failed = []

    def refuse(request: DataplaneRequest) -> Answer | None:
        if isinstance(request, SessionUpdate) and len(failed) < 2:
            failed.append(request)
            return refused(request.id, Refusal.OTHER, "device mother0: Cannot allocate memory")
        return None

    with TwoEnds(interval=2.0) as ends:
        ends.install().run(1)
        ends.ends[Role.CLIENT].refuse = refuse
        ends.talk(40)
        assert len(failed) == 2
        assert [lost for end in ends.ends.values() for lost in end.said(Lost)] == []
        assert ends.client.epoch > 0
        ends.assert_works()
