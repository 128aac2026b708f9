"""Which kernels the ring vm takes, and what it says of one that it asked for and cannot have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import unstable
from tests.support.kernels import Kernel, kernels, remember, remembered


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("QRE_VM_ALL", "QRE_VM_KASAN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("release", "series"),
    [
        ("6.1.0-56-amd64", "6.1"),
        ("6.12.117+deb12-amd64", "6.12"),
        ("7.2.13+deb14-amd64", "7.2"),
        ("6.1.192-qre-kasan", "6.1-kasan"),
    ],
)
def test_a_kernel_is_called_by_its_series_and_by_what_is_special_about_it(release: str, series: str) -> None:
    assert Kernel(release, Path("/boot"), Path("/usr/src")).series == series


def test_a_kernel_that_was_fetched_is_found_again_as_long_as_its_files_are_there(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"")
    kernel = Kernel("7.2.13+deb14-amd64", image, tmp_path / "headers", tmp_path)
    remember("unstable", kernel)
    assert remembered("unstable") == kernel
    image.unlink()
    assert remembered("unstable").missing == "no kernel unstable: its files are gone"


def test_only_who_asks_for_all_kernels_is_told_that_the_newest_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [kernel for kernel in kernels() if kernel.missing]
    monkeypatch.setenv("QRE_VM_ALL", "1")
    newest = kernels()[-1]
    assert newest.series == "unstable"
    assert "python -m tests.support.unstable" in newest.missing


def test_an_archive_that_cannot_be_reached_is_one_line_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable() -> Kernel:
        raise unstable.UnreachableError("Could not connect")

    monkeypatch.setattr(unstable, "newest", unreachable)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert unstable.main() == 0
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "Could not connect" in told and "skipped" in told
    assert "Could not connect" in remembered("unstable").missing
