"""What the light commands load: nothing that takes time. (How long they take: ``python -m tests.bench.startup``.)"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.profiles import SERVER, write_profile

TOOL = Path(sys.executable).parent / "qre-tool"
ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "aioquic", "asyncio", "bcc", "cryptography", "dataclasses", "inspect", "json", "logging", "msgspec", "pathlib",
    "pyroute2", "re", "typing", "zmq", "multiprocessing", "sdnotify",
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "argument"),
    [("help", ""), ("strip", "qre0"), ("showconf", "qre0.conf"), ("genkey", ""), ("version", "")],
)
def test_a_light_command_loads_nothing_heavy(command: str, argument: str, tmp_path: Path) -> None:
    write_profile(tmp_path, "qre0", SERVER)
    words = [command, str(tmp_path / argument) if command == "showconf" else argument] if argument else [command]
    program = (
        "import sys; from qre.cli.main import main; status = main(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {program}", *words],
        env=os.environ | {"QRE_CONFIG_DIR": str(tmp_path), "QRE_GLOBAL_CONFIG": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stderr.split())
    assert done.stdout
    assert not loaded & HEAVY
    assert len(loaded) < 80


def test_the_launcher_is_found_through_a_symbolic_link(tmp_path: Path) -> None:
    link = tmp_path / "qre-tool"
    link.symlink_to(TOOL)
    for words in (["version"], ["--json", "version"], ["shwo"]):
        direct, linked = (
            subprocess.run([program, *words], capture_output=True, check=False, cwd=tmp_path)
            for program in (TOOL, link)
        )
        assert (direct.returncode, direct.stdout, direct.stderr) == (linked.returncode, linked.stdout, linked.stderr)
        assert direct.returncode == (0 if "version" in words else 2)
        assert b"Traceback" not in direct.stderr


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_tree_that_was_moved_says_what_to_do(tmp_path: Path, copied: bool) -> None:
    """Its environment names the place where it was made: nobody is there any more, or another tree."""
    tree = tmp_path / "moved"
    packages = tree / ".venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for directory in (tree / ".venv/bin", packages, tree / "packaging"):
        directory.mkdir(parents=True)
    (tree / "packaging/setup.sh").touch()
    (tree / ".venv/pyvenv.cfg").write_text((TOOL.parents[1] / "pyvenv.cfg").read_text())
    (tree / ".venv/bin/python3").symlink_to("/usr/bin/python3")
    shutil.copy(TOOL, tree / ".venv/bin/qre-tool")
    (packages / "qre.pth").write_text(f"{ROOT if copied else tmp_path / 'gone'}\n")
    seen = f"it was made in {ROOT}" if copied else "it finds no QRE"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for word in ("version", "show"):  # without the whole of `site`, and with it
        command = [tree / ".venv/bin/qre-tool", word]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"qre-tool: the Python environment of {tree}: {seen}; run `make setup` in {tree}\n"
    (packages / "qre.pth").write_text(f"{tree}\n")  # made again
    (tree / "qre").symlink_to(ROOT / "qre")
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(tree)
    for place in (tree, elsewhere):
        done = subprocess.run([place / ".venv/bin/qre-tool", "version"], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("qre-tool "), done.stderr


@pytest.mark.parametrize("name", ["moved", "a name with blanks"])
def test_a_tree_that_set_up_prepared_runs_wherever_it_is_moved_or_copied_to(tmp_path: Path, name: str) -> None:
    place = next((TOOL.parents[1] / "lib").glob("python3*/site-packages/__editable__.qre-*.pth"))
    tree = tmp_path / name
    copy = tree / ".venv" / place.relative_to(TOOL.parents[1])
    for directory in (tree / ".venv/bin", copy.parent):
        directory.mkdir(parents=True)
    for path in (TOOL, TOOL.parents[1] / "pyvenv.cfg", place):
        shutil.copy(path, tree / ".venv" / path.relative_to(TOOL.parents[1]))
    (tree / ".venv/bin/python3").symlink_to("/usr/bin/python3")
    shutil.copytree(ROOT / "qre", tree / "qre", symlinks=True)
    for room in ("cli", "supervisor", "workers"):
        (tree / room).symlink_to(ROOT / room)
    done = subprocess.run([tree / ".venv/bin/qre-tool", "version"], capture_output=True, text=True, check=False)
    assert (done.stdout[:9], done.stderr) == ("qre-tool ", "")


def test_a_module_in_the_current_directory_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "qre").mkdir()
    (tmp_path / "qre" / "__init__.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "enum.py").write_text("raise SystemExit('loaded')")
    for words in (["version"], ["pubkey"], ["shwo"]):
        done = subprocess.run(
            [TOOL, *words], capture_output=True, check=False, cwd=tmp_path, stdin=subprocess.DEVNULL
        )
        assert b"loaded" not in done.stdout + done.stderr


@pytest.mark.parametrize("module", ["sitecustomize", "qre.cli.main", "qre.cli.show.watch", "qre.config.settings"])
def test_an_interrupt_while_it_starts_ends_it_without_a_word(module: str, tmp_path: Path) -> None:
    """Ctrl-C comes when ``module`` is looked for: one of the environment, of the program, of the command."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {signal.SIGINT.value})\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"if {module!r} == 'sitecustomize': os.kill(os.getpid(), {signal.SIGINT.value})\n"
    )
    done = subprocess.run(
        [TOOL, "watch"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "QRE_CONFIG_DIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
