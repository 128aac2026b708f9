"""The wheel and the source distribution have everything, and the wheel installs where pip alone is."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import qre
from tests.support.kernels import ROOT

pytestmark = pytest.mark.timeout(900)

ROOMS = ("cli", "supervisor", "workers")  # links in qre


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / "packaging/build-wheel.sh", directory], check=True, capture_output=True)
    return directory


def tracked(*parts: str) -> set[str]:
    """The files of the tree below ``parts``, as git knows them; links are none."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", *parts], check=True, capture_output=True, text=True
    ).stdout
    return {name for name in listed.split("\0") if name and not (ROOT / name).is_symlink()}


def test_the_wheel_has_every_module_and_what_is_not_python(out: Path) -> None:
    (wheel,) = out.glob("qre-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        data = f"qre-{qre.__version__}.data/data/share"
        dkms = file.read(f"{data}/qre/kmod/dkms.conf").decode()
    ours = tracked("qre") | {f"qre/{name}" for name in tracked(*ROOMS)} - {"qre/cli/qre-tool"}
    assert sorted(ours - names) == []
    assert "qre/workers/bpf_loader/qre_reuseport.bpf.o" in names
    kmod = {f"{data}/qre/{name}" for name in tracked("kmod") if not name.endswith(".yaml")}
    documents = {
        f"{data}/doc/qre/{name.removeprefix('docs/')}"
        for name in tracked("docs")
        # not what pictures are drawn from
        if "/qre.conf.5" not in name and not name.endswith((".dot", ".msc", ".gp", ".dat"))
    }
    pages = {f"{data}/man/man8/qre-tool.8", f"{data}/man/man5/qre.conf.5"}
    units = {
        f"{data}/qre/{name}"
        for name in ("qred@.service", "qre-metrics.socket", "sysusers.d/qre.conf", "tmpfiles.d/qre.conf")
    }
    assert sorted((kmod | documents | pages | units) - names) == []
    assert f'PACKAGE_VERSION="{qre.__version__}"' in dkms


def test_the_source_distribution_has_what_the_packages_are_built_from(out: Path) -> None:
    (archive,) = out.glob("qre-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    ours = tracked("qre", "bpf", "kmod", "docs", "packaging") | {f"qre/{name}" for name in tracked(*ROOMS)}
    assert sorted(ours - names - {"qre/cli/qre-tool"}) == []
    assert {"cli/qre-tool", "packaging/made/qre-tool.8", "Makefile", "run", "LICENSE", "CHANGELOG.md"} <= names
    assert "qre/workers/bpf_loader/qre_reuseport.bpf.o" in names


def test_the_wheel_installs_and_says_its_version(out: Path, tmp_path: Path) -> None:
    (wheel,) = out.glob("qre-*.whl")
    subprocess.run(["/usr/bin/python3", "-m", "venv", tmp_path / "there"], check=True)
    pip = (tmp_path / "there/bin/pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps")
    subprocess.run([*pip, wheel], check=True)
    said = subprocess.run([tmp_path / "there/bin/qre-tool", "version"], check=True, capture_output=True, text=True)
    assert said.stdout == f"qre-tool {qre.__version__}\n"
    assert (tmp_path / "there/share/qre/kmod/Kbuild").exists()
