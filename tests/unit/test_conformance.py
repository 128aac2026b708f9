"""docs/conformance.md names tests that exist, at least one for each statement, and every command of qre-tool."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.conformance import ROOT, Row, rows

REFERENCE = (
    "help", "show", "refresh", "showconf", "strip", "up", "reload", "down", "daemon", "syncconf", "delete", "set",
    "install-session", "update-session", "adopt-cid", "release-cid", "create-cid-map", "create-reuseport-socket-map",
    "register-cid-map", "unregister-cid-map", "show-cid-map", "register-shared-socket", "unregister-shared-socket",
    "shared-port-loader", "shared-port-loader-check", "shared-port-session-demo", "shared-port-handshake-daemon",
    "shared-port-handshake-client", "session-plan", "session-demo", "session-capture",
)  # fmt: skip


@cache
def functions_in(path: Path) -> set[str]:
    """The functions that pytest would collect."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", rows(), ids=[row.statement for row in rows()])
def test_every_statement_has_tests_that_exist(row: Row) -> None:
    assert row.tests
    for each in row.tests:
        file, _, function = each.partition("::")
        assert re.fullmatch(r"(unit|host|vm)/test_\w+\.py", file), each
        assert function in functions_in(ROOT / "tests" / file), each


def test_no_two_rows_say_the_same() -> None:
    statements = [row.statement for row in rows()]
    assert len(set(statements)) == len(statements)


@pytest.mark.parametrize("command", REFERENCE)
def test_every_command_of_the_reference_has_a_row(command: str) -> None:
    assert any(re.search(rf"`(--\S+ )?{command}\b", row.statement) for row in rows()), command
