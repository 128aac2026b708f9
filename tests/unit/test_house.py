"""The structure of the program: which room may import which, and the largest folder, file and function.

Rooms lie in layers. Nothing imports upward, workers never import each other, there is no circle of modules or of
folders, and the command line reaches workers by starting them alone. ``pytest -s`` prints the table. Complexity is
ruff's (C901 in pyproject.toml). A test says what it expects.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: From the bottom. What stands in one line may import what stands below it, and each other.
LAYERS = (
    {
        "causes",
        "errors",
        "ends",
        "addresses",
        "structs",
        "dest_profile",
        "profile_secrets",
        "exact_timers",
        "freed_memory",
        "",
    },  # modules beside the rooms; "" is qre itself
    {"wire", "reality", "config"},
    {"quic"},
    {"ipc", "kernel", "visit", "dataplane"},
    {"device"},
    {
        "supervisor",
        "workers.bpf_loader",
        "workers.dataplane",
        "workers.handshake",
        "workers.netlink",
        "workers.visit",
        "workers.resolver",
        "workers",
    },
    {"cli"},
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
_IMPORT = re.compile(
    r"^[ \t]*(?:from (?P<module>qre[\w.]*) import (?:\((?P<wrapped>[^)]*)\)|(?P<names>.*))"
    r"|import (?P<whole>qre[\w.]*))",
    re.MULTILINE,
)
#: Sources of randomness and time, files, sockets, and what is the whole process's.
_IMPURE = re.compile(
    r"\bos\.|SystemRandom|\bsecrets\.token|\.generate\(\)|\btime\.(?:time|monotonic)"
    r"|\bopen\(|Path\(|resources|getLogger|import socket"
)
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 15, 450, 60


class Arrow(NamedTuple):
    """One import: who, what, and where it is written."""

    importer: str
    imported: str
    where: str


@cache
def modules() -> dict[str, Path]:
    """Every module of the program by its name; ``qre/cli`` and the like are links, and followed."""
    found = {}
    for directory, folders, files in os.walk(ROOT / "qre", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            if name.endswith(".py"):
                path = Path(directory, name)
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def text(path: Path) -> str:
    return path.read_text()


def imports(source: str, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """What is imported of the program, wherever it stands, and its line. Not by ``ast``, which takes a second."""
    for found in _IMPORT.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        if found["whole"]:
            yield found["whole"], line
            continue
        for name in re.findall(
            r"(\w+)(?: as \w+)?(?:,|\s|$)", re.sub(r"#.*", "", found["wrapped"] or found["names"])
        ):
            full = f"{found['module']}.{name}"
            yield (full if full in known else found["module"]), line


@cache
def arrows() -> list[Arrow]:
    return [
        Arrow(name, imported, f"{path.relative_to(ROOT)}:{line}")
        for name, path in modules().items()
        for imported, line in imports(text(path), modules())
    ]


def room(module: str) -> str:
    """``qre.workers.netlink.main`` -> workers.netlink, ``qre.cli.show.show`` -> cli, ``qre.errors`` -> errors."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["workers"] else 1])


def folder(module: str) -> str:
    """The package that a module lies in; a package is its own."""
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


def offence(arrow: Arrow) -> str:
    """Why this arrow may not be; empty when it may."""
    importer, imported = room(arrow.importer), room(arrow.imported)
    if importer == imported:
        return ""
    if HEIGHT[importer] < HEIGHT[imported]:
        return f"{importer} lies below {imported}"
    if imported.startswith("workers"):
        return f"{imported} is started, and never imported"
    return ""


def circles(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Groups that can all be reached from each other (Tarjan)."""
    ahead: dict[str, list[str]] = {}
    for one, other in sorted(pairs):
        ahead.setdefault(one, []).append(other)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for following in ahead.get(node, ()):
            if following not in number:
                visit(following)
            if following in stack:
                lowest[node] = min(lowest[node], lowest[following])
        if lowest[node] == number[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(ahead):
        if node not in number:
            visit(node)
    return found


def table() -> str:
    """How many imports go from which room to which."""
    counted = Counter(
        pair for arrow in arrows() if len(set(pair := (room(arrow.importer), room(arrow.imported)))) > 1
    )
    return "\n".join(
        f"{one or 'qre':>20} -> {other or 'qre':<20} {count:4}" for (one, other), count in sorted(counted.items())
    )


def test_nothing_imports_upward_and_nobody_imports_a_worker() -> None:
    print(f"\n{table()}")
    unknown = {room(name) for name in modules()} - HEIGHT.keys()
    assert not unknown, f"rooms in no layer: {sorted(unknown)}"
    offences = [
        f"{arrow.where}: {arrow.importer} -> {arrow.imported}: {why}" for arrow in arrows() if (why := offence(arrow))
    ]
    assert not offences, "\n".join(["", *offences, table()])


def test_no_modules_and_no_folders_import_each_other_in_a_circle() -> None:
    assert circles({(arrow.importer, arrow.imported) for arrow in arrows()}) == []
    between = {(folder(arrow.importer), folder(arrow.imported)) for arrow in arrows()}
    assert circles({pair for pair in between if pair[0] != pair[1]}) == []


@pytest.mark.parametrize(
    ("importer", "line", "why"),
    [
        ("qre.supervisor.crew", "from qre.cli.main import main", "supervisor lies below cli"),
        ("qre.cli.show.show", "from qre.workers.netlink import monitor", "workers.netlink is started"),
        ("qre.workers.netlink.main", "import qre.workers.dataplane.device", "workers.dataplane is started"),
        ("qre.wire.capsule", "def f():\n    from qre.device.state import load", "wire lies below device"),
        ("qre.quic.connection", "from qre.dataplane.protocol import Answer", "quic lies below dataplane"),
        ("qre.errors", "from qre.config import model", "errors lies below config"),
        ("qre.kernel.rtnl", "from qre.device import steps", "kernel lies below device"),
    ],
)
def test_an_import_that_is_put_back_is_found(importer: str, line: str, why: str) -> None:
    ((imported, _),) = imports(line, modules())
    assert why in offence(Arrow(importer, imported, ""))


def test_circles_are_found() -> None:
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")}) == [["a", "b", "c"]]


def folders() -> list[Path]:
    return sorted({path.parent for path in modules().values()})


@pytest.mark.parametrize("path", folders(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_says_what_lives_there_and_holds_at_most_15_files(path: Path) -> None:
    files = [entry for entry in path.iterdir() if entry.suffix == ".py"]
    assert len(files) <= MOST_FILES
    assert text(path / "__init__.py").startswith('"""')


def test_a_name_is_one_modules_in_the_whole_program() -> None:
    names = Counter(path.stem for path in modules().values() if path.stem not in {"__init__", "main"})
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_and_no_function_is_too_long_to_be_seen_whole() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in modules().values()
        if (lines := len(text(path).splitlines())) > MOST_LINES
    ]
    for path in modules().values():
        long += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"
            for node in ast.walk(ast.parse(text(path)))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
        ]
    assert long == []


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its public classes, Protocol members and overrides among them."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)


def test_every_public_function_has_a_docstring() -> None:
    """One line that says what the signature does not: units, errors, the section of an RFC."""
    places = {str(path.resolve().relative_to(ROOT)): text(path) for path in modules().values()}
    places["demo/__main__.py"] = text(ROOT / "demo" / "__main__.py")
    missing = [
        f"{place}:{node.lineno} {node.name}"
        for place, source in places.items()
        for node in public_functions(ast.parse(source).body)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_quic_is_given_its_randomness_its_time_and_its_files() -> None:
    """The parts that do no I/O: what they would need for some is not even named there."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for name, path in modules().items()
        if name.startswith(("qre.quic", "qre.wire", "qre.reality"))
        for match in _IMPURE.finditer(text(path))
    ]
    assert found == []


def test_importing_quic_changes_nothing_of_the_process() -> None:
    quic = [name for name in modules() if name.startswith("qre.quic")]
    program = (
        "import aioquic.quic.connection, aioquic.h3.connection, logging, random, warnings\n"
        "def state():\n"
        "    loggers = {n: (l.disabled, l.level, l.propagate, list(l.handlers)) for n, l in"
        " logging.root.manager.loggerDict.items() if isinstance(l, logging.Logger)}\n"
        "    return loggers, logging.root.level, random.getstate(), list(warnings.filters)\n"
        "import cryptography, certifi, OpenSSL.crypto, service_identity, brotli, msgspec\n"
        "before = state()\n"
        f"import {', '.join(quic)}\n"
        "after = state()\n"
        "assert before[1:] == after[1:]\n"
        "assert {name: after[0][name] for name in before[0]} == before[0]\n"
        "assert not any(disabled for disabled, *_ in after[0].values())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_in_the_product_is_there_for_tests_alone() -> None:
    """Functions and classes of a module that nothing else in the product names."""
    everything = "\n".join(text(path) for path in modules().values()) + (ROOT / "cli" / "qre-tool").read_text()
    counted = Counter(re.findall(r"\w+", everything))
    unused = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules().values()
        for name in re.findall(r"^(?:async )?(?:def|class) (\w+)", text(path), re.MULTILINE)
        if counted[name] == 1
    ]
    assert unused == []


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("mention", sorted(set(re.findall(r"`([\w/]+\.py:[\w.]+)`", ARCHITECTURE))))
def test_every_function_that_the_architecture_names_is_there(mention: str) -> None:
    path, _, symbol = mention.partition(":")
    inside: list[ast.stmt] = ast.parse(text(ROOT / path)).body
    for name in symbol.split("."):
        found = [node for node in inside if getattr(node, "name", "") == name]
        assert len(found) == 1, f"{name} in {path}"
        inside = getattr(found[0], "body", [])


def test_the_architecture_draws_every_room() -> None:
    rooms = {name.split(".")[-1] for layer in LAYERS for name in layer if name}
    assert [name for name in sorted(rooms) if not re.search(rf"\b{name}\b", ARCHITECTURE)] == []


# --- tests ---

#: What a helper that asserts is called.
_ASSERTING = re.compile(r"_?(?:assert|check|expect)_\w+|raises")


def says_what_it_expects(test: ast.AST) -> bool:
    """Whether it has an ``assert`` of its own, a ``pytest.raises``, or calls a helper that asserts by its name."""
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and _ASSERTING.fullmatch(ast.unparse(node.func).rpartition(".")[2]))
        for node in ast.walk(test)
    )


def test_every_test_says_what_it_expects() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.parse(text(path)).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
        if not says_what_it_expects(node)
    ]
    assert silent == []


def test_a_test_that_expects_nothing_is_found() -> None:
    found = [
        says_what_it_expects(ast.parse(body))
        for body in ("run()", "until(lambda: up)", "assert up", "check_up(tunnel)", "with pytest.raises(E): run()")
    ]
    assert found == [False, False, True, True, True]
