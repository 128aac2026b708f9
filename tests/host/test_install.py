"""The user guide's installation from the tree, typed as it stands there, on a layer over this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qre.ipc.roles import ROLES
from tests.support.kernels import ROOT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd is not installed"),
]

#: Runs the script on its standard input in the tree $2, in a root whose changes are in $1 and nowhere else.
WITHIN = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mkdir -p "$1/root$2" && mount --bind "$2" "$1/root$2" && mount -o remount,bind,ro "$1/root$2"
mount -t proc proc "$1/root/proc" && mount --rbind /dev "$1/root/dev"
exec chroot "$1/root" env -C "$2" -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_OFFLINE=1 bash -e
"""


def typed() -> list[str]:
    """Every line of the guide's chapter, but for the set-up, which is done."""
    chapter = (
        (ROOT / "docs" / "user-guide.md")
        .read_text()
        .partition("\n## Install from the tree\n")[2]
        .partition("\n## ")[0]
    )
    blocks = re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(blocks) == 2
    assert lines[0].startswith("make setup ")
    return lines[1:]


#: What it should have made: each line's output.
LOOK = (
    "echo ---",
    "stat -c '%n %a' /etc/systemd/system/qred@.service /etc/qre/dev /var/lib/qre /run/qre",
    "/usr/bin/qre-tool version",
    "grep ^qre- /etc/passwd | cut -d: -f1",
    "man --path qre-tool; man --path qre.conf",
    "(. /usr/share/bash-completion/completions/qre-tool; complete -p qre-tool) >/dev/null",
    "systemd-analyze verify --recursive-errors=no qred@server0.service",
)
MADE = """\
/etc/systemd/system/qred@.service 644
/etc/qre/dev 700
/var/lib/qre 700
/run/qre 711
""".splitlines()
MANUALS = ["qre-tool.8", "qre.conf.5"]


def test_what_the_user_guide_has_one_type_installs_everything(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    clean = "rm -rf /usr/bin/qre-tool /etc/qre; sed -i /^qre-/d /etc/passwd /etc/group"  # where QRE is installed
    apart = ("unshare", "--mount", "--propagation=private", "sh", "-ec", WITHIN, "sh")
    done = subprocess.run(
        [*apart, str(tmp_path / "layer"), str(ROOT)],
        input="\n".join((clean, *typed(), *LOOK)), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made, (version, *users) = done.stdout.splitlines()[1:5], done.stdout.splitlines()[5:-2]
    assert made == MADE
    assert version.startswith("qre-tool ")
    assert sorted(users) == sorted(role.user for role in ROLES.values())
    assert [Path(line).name for line in done.stdout.splitlines()[-2:]] == MANUALS
    assert not list((tmp_path / "layer").iterdir())
