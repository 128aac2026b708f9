"""docs/tasks.md changes profiles by sed: each line does something to what `init` wrote, and may be typed twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qre.cli.main import main
from qre.config.profile import load_profile_file
from tests.support.conformance import ROOT

PAGE = (ROOT / "docs" / "tasks.md").read_text()
EDITS = re.findall(r"^sed -i (.*) /etc/qre/dev/(\w+\.conf)$", PAGE, re.MULTILINE)
#: Of the addresses that an edit leaves to clients, those that a second try may not have again.
SHOWN = {"192.168.50.0/24": ["10.77.0.0/24", "192.168.50.0/24"], "= 0.0.0.0/0": ["0.0.0.0/0"]}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two profiles of the page's first task."""
    for name in ("QRE_CONFIG_DIR", "QRE_STATE_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))
    (words,) = re.findall(r"^qre-tool (init .*)$", PAGE, re.MULTILINE)
    assert main(words.split()) == 0
    return tmp_path


def test_the_page_has_the_edits_that_are_looked_for() -> None:
    assert len(EDITS) == PAGE.count("sed -i ") - PAGE.count('sed -i "s|^$key')
    assert len(EDITS) >= 7


@pytest.mark.parametrize(("script", "name"), EDITS, ids=[script for script, _ in EDITS])
def test_an_edit_does_what_its_task_says_to_a_fresh_profile(directory: Path, script: str, name: str) -> None:
    path = directory / name
    fresh = path.read_text()
    for _ in range(2):
        subprocess.run(["sh", "-ec", f"sed -i {script} {path}"], check=True)
        assert path.read_text() != fresh
        profile = load_profile_file(path)
        for part, networks in SHOWN.items():
            if part in script:
                assert [str(each) for each in profile.allowed_ips] == networks


def test_three_servers_become_one_profile(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block that puts three profiles together, as it stands."""
    monkeypatch.chdir(directory)
    for number, name in enumerate(("one", "two", "three"), 1):
        there = directory / name
        monkeypatch.setenv("QRE_CONFIG_DIR", str(there))
        assert main(["init", f"Endpoint=192.0.2.{number}:443", "Dest=www.example.org:443"]) == 0
        assert main(["add-client", "server0", "laptop", "Address=10.77.0.20", f"File={name}.conf"]) == 0
    (block,) = re.findall(r"^# on the client\n(for key in .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    tool = f'qre-tool() {{ {sys.executable} -m qre.cli.main "$@"; }}\n'
    env = os.environ | {"PYTHONPATH": str(ROOT), "QRE_CONFIG_DIR": str(directory / "dev")}
    subprocess.run(["bash", "-ec", tool + block], cwd=directory, env=env, check=True)
    made = load_profile_file(directory / "dev" / "vpn.conf").client
    assert made is not None
    places = [made.endpoint, *(each.endpoint for each in made.others)]
    assert [str(each) for each in places] == [f"192.0.2.{number}:443" for number in (1, 2, 3)]
    assert len({made.public_key, *(each.public_key for each in made.others)}) == 3
    assert len({made.short_id, *(each.short_id for each in made.others)}) == 3
