"""What the Debian packages are made from: one version, locked requirements, users; which tunnel is restarted how."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import qre
from qre.ipc.roles import ROLES

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"

#: A fake systemctl: two units, of which systemd keeps the secrets of the first; it tells what is wanted of it.
SYSTEMCTL = """#!/bin/sh
case "$*" in
    list-units*) printf 'qred@%s.service loaded active running QRE\\n' one two ;;
    *NFileDescriptorStore*one*) echo 1 ;;
    *NFileDescriptorStore*) echo 0 ;;
    *) echo "$*" >>"$TOLD" ;;
esac
"""


def test_the_version_has_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "qre.__version__"}
    said = subprocess.run(
        ["make", "-s", "-C", ROOT / "kmod", "-p", "-n", "clean"], capture_output=True, text=True, check=False
    ).stdout
    assert f"VERSION := {qre.__version__}\n" in said


def test_every_requirement_is_locked_with_hashes() -> None:
    lock = (PACKAGING / "python-lock.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE))
    assert len(locked) == len(re.findall("^[a-z]", lock, re.MULTILINE))
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, relation, version = re.fullmatch(r"([a-z0-9_-]+)(?:([=>])=(.*))?", text).groups()  # type: ignore[union-attr]
        numbers = [tuple(map(int, re.findall(r"\d+", each))) for each in (locked[name], version or "0")]
        assert numbers[0] == numbers[1] if relation == "=" else numbers[0] >= numbers[1], text


def test_a_purge_deletes_the_units_user_and_those_of_every_role() -> None:
    text = (PACKAGING / "debian/qre.postrm").read_text()
    (names,) = re.findall(r"for user in (.*); do", text)
    assert set(names.split()) == {"qre"} | {role.user for role in ROLES.values()}


def test_tunnels_are_restarted_as_their_sessions_need_it_by_a_fake_systemctl(tmp_path: Path) -> None:
    program, told = tmp_path / "systemctl", tmp_path / "told"
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(told)}
    subprocess.run([PACKAGING / "restart-daemons"], check=True, env=environment)
    assert told.read_text().splitlines() == [
        "kill --signal=SIGKILL qred@one.service",
        "--no-block try-restart qred@two.service",
    ]
