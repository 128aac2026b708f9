"""DKMS builds the module for each kernel, as it does on a machine whose kernel was renewed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from qre import __version__ as VERSION
from tests.support.kernels import KMOD, Kernel, installed

pytestmark = [pytest.mark.timeout(600), pytest.mark.every_kernel]


@pytest.mark.parametrize("kernel", installed(), ids=lambda kernel: kernel.series)
def test_dkms_builds_it_and_takes_it_away_again(kernel: Kernel, tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "-C", KMOD, "dkms-source", f"DESTDIR={tmp_path}"], check=True)
    trees = tmp_path / "dkms"
    trees.mkdir()

    def dkms(*arguments: str) -> str:
        done = subprocess.run(
            ["dkms", *arguments, "--dkmstree", str(trees), "--sourcetree", str(tmp_path / "usr/src")],
            env=os.environ | {"sign_file": "/nonexistent"},  # no signing key is made on this machine
            capture_output=True,
            text=True,
            check=False,
        )
        logs = "".join(path.read_text() for path in trees.rglob("make.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
        return done.stdout

    which = ("-m", f"qre/{VERSION}", "-k", kernel.release)
    dkms("add", *which[:2])
    dkms("build", *which)
    assert re.search(rf"qre/{VERSION}, {re.escape(kernel.release)}, x86_64: built", dkms("status"))
    (module,) = trees.glob(f"qre/{VERSION}/{kernel.release}/x86_64/module/qre.ko*")
    magic = subprocess.run(["modinfo", "-F", "vermagic", module], check=True, capture_output=True, text=True).stdout
    assert magic.startswith(kernel.release + " ")
    dkms("remove", *which[:2], "--all")
    assert "qre" not in dkms("status")
