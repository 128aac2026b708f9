"""A small change of the sources, found by the name of what it is in and never by a file or a line: files move.

In Python the name is the qualified one inside its module (``Maps.attach``), and what is replaced is an expression or
some statements, compared as syntax. In C it is a function, a macro or a variable, and what is replaced is text, in
which all white space is the same. In a unit of systemd it is the file's name. Exactly one place must fit.
"""

from __future__ import annotations

import ast
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.conformance import ROOT

#: Nothing in here is a source of the program.
_NO_SOURCES = {"tests", "demo", "docs", "build", "dist"}
_C = {".c", ".h"}
_UNITS = {".service"}
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class NoPlaceError(Exception):
    """A change that fits nowhere, or in several places."""


@dataclass(frozen=True)
class Mutant:
    """What of a row it breaks, in what, what is there and what replaces it; nothing means that it goes."""

    clause: str
    symbol: str
    old: str
    new: str = ""


@dataclass(frozen=True)
class Place:
    """Bytes of a file, and what takes their place."""

    path: Path
    start: int
    end: int
    new: bytes

    def apply(self, text: bytes) -> bytes:
        return text[: self.start] + self.new + text[self.end :]


def sources(root: Path = ROOT) -> list[Path]:
    """Every file of the program, each once: links are not followed."""
    found = []
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _NO_SOURCES)
        paths = (Path(directory, name) for name in sorted(files))
        found += [path for path in paths if path.suffix in {".py"} | _C | _UNITS and not path.is_symlink()]
    return found


class Sources:
    """The program's files, read once."""

    def __init__(self, root: Path = ROOT) -> None:
        self._python: dict[str, list[tuple[Path, bytes, ast.AST]]] = {}
        self._text: list[tuple[Path, str]] = []
        for path in sources(root):
            text = path.read_bytes()
            if path.suffix == ".py":
                for name, node in _scopes(ast.parse(text)):
                    self._python.setdefault(name, []).append((path, text, node))
            else:
                self._text.append((path, text.decode()))

    def place(self, mutant: Mutant) -> Place:
        """The only place that fits. Raises NoPlaceError."""
        found = [*self._in_python(mutant), *self._in_text(mutant)]
        if len(found) == 1:
            return found[0]
        known = mutant.symbol in self._python or any(
            True for file in self._text for _ in _regions(*file, mutant.symbol)
        )
        why = f"{len(found)} places fit" if found else "what it replaces is not in it" if known else "no such symbol"
        raise NoPlaceError(f"{mutant.symbol}: {why}: {mutant.old!r}")

    def _in_python(self, mutant: Mutant) -> Iterator[Place]:
        for path, text, node in self._python.get(mutant.symbol, []):
            for start, end, column in _matches(node, mutant.old, text):
                new = _replacement(mutant, column)
                try:
                    changed = ast.parse(text[:start] + new + text[end:])
                except SyntaxError as error:
                    raise NoPlaceError(f"{mutant.symbol}: it makes no Python: {mutant.new!r}") from error
                if ast.dump(changed) == ast.dump(ast.parse(text)):
                    raise NoPlaceError(f"{mutant.symbol}: it changes nothing: {mutant.old!r}")
                yield Place(path, start, end, new)

    def _in_text(self, mutant: Mutant) -> Iterator[Place]:
        wanted = re.compile(r"\s+".join(map(re.escape, mutant.old.split())))
        for path, text in self._text:
            for start, end in _regions(path, text, mutant.symbol):
                for match in wanted.finditer(text, start, end):
                    begins, ends = (len(text[:at].encode()) for at in match.span())
                    yield Place(path, begins, ends, mutant.new.encode())


def _scopes(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """What has a name of its own, of a module or inside of another, with its qualified name."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if isinstance(node, _SCOPES):
                yield prefix + node.name, node
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)):
                    yield prefix + name.id, node

    yield from walk(tree.body, "")


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        return False
    return True


def _matches(scope: ast.AST, old: str, text: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, end and column of what is ``old`` in ``scope``."""
    starts = [0]
    for line in text.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def span(first: ast.expr | ast.stmt, last: ast.expr | ast.stmt) -> tuple[int, int, int]:
        assert last.end_lineno is not None and last.end_col_offset is not None
        start = starts[first.lineno - 1] + first.col_offset
        return start, starts[last.end_lineno - 1] + last.end_col_offset, first.col_offset

    if _is_expression(old):
        wanted = ast.dump(ast.parse(old.strip(), mode="eval").body)
        for node in _nodes(scope):
            if isinstance(node, ast.expr) and ast.dump(node) == wanted:
                yield span(node, node)
        return
    statements = [ast.dump(each) for each in ast.parse(textwrap.dedent(old)).body]
    if isinstance(scope, ast.stmt) and [ast.dump(scope)] == statements:
        yield span(scope, scope)
    for node in _nodes(scope):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if not isinstance(body, list):
                continue
            for at in range(len(body) - len(statements) + 1):
                if [ast.dump(each) for each in body[at : at + len(statements)]] == statements:
                    yield span(body[at], body[at + len(statements) - 1])


def _nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Every node, but those inside an f-string: Python 3.11 does not know where they are."""
    yield scope
    if not isinstance(scope, ast.JoinedStr):
        for child in ast.iter_child_nodes(scope):
            yield from _nodes(child)


def _replacement(mutant: Mutant, column: int) -> bytes:
    new = textwrap.dedent(mutant.new).strip()
    if _is_expression(mutant.old) and _is_expression(new):
        return f"({new})".encode()
    return textwrap.indent(new or "pass", " " * column).lstrip().encode()


def _regions(path: Path, text: str, symbol: str) -> Iterator[tuple[int, int]]:
    """Where the symbol is defined: a C function, macro or variable; a whole unit."""
    if path.suffix in _UNITS:
        if path.name == symbol:
            yield 0, len(text)
        return
    name = re.escape(symbol)
    for pattern in (
        rf"^[a-z][^\n#;{{}}]*\b{name}\([^;{{}}]*\)\s*\n\{{.*?^\}}",
        rf"^#define {name}\b(?:[^\n]*\\\n)*[^\n]*",
        rf"^(?:static |const |struct )[^;{{}}\n]*\{{(?:(?!^\}}).)*?^\}} {name}\b[^;]*;",
        rf"^[a-z][^;{{}}()\n]*\b{name}\b(?:\[[^\]]*\])* = [^;]*;",
    ):
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
            yield match.span()
