"""The rows of docs/conformance.md: a statement of the reference, the tests that prove it, what differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conformance.md"


@dataclass(frozen=True)
class Row:
    """``tests`` are named by file below ``tests/`` and function."""

    statement: str
    tests: tuple[str, ...]
    differs: str


def rows() -> list[Row]:
    """In the order of the page."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [Row(row[0], tuple(row[1].split(", ")), row[2]) for row in cells if row[0] != "statement"]
