"""What several tests of the ring unit share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.cli.main import main
from tests.support.dataplane import Ends
from tests.support.kmod.codec import KernelCodec


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelCodec]:
    """The state machines of kmod in a program of their own, one for each file of tests."""
    with KernelCodec(tmp_path_factory.mktemp("codec")) as running:
        yield running


@pytest.fixture
def ends() -> Ends:
    """Two ends of a session of the user data plane, both confirmed."""
    made = Ends()
    made.establish()
    return made


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of one test: its profiles are in `dev`, and nothing of this machine's configuration is seen."""
    for variable, name in (("QRE_CONFIG_DIR", "dev"), ("QRE_STATE_DIR", "state"), ("RUNTIME_DIRECTORY", "run")):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "qre.conf"))
    for variable in ("QRE_DATAPLANE", "QRE_MODULE_LOAD", "QRE_BPF_ELF", "QRE_BPF_PIN_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def profiles(machine: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    """The files of a server and its client, as ``init`` writes them."""
    assert main(["init", "Endpoint=192.0.2.1:443", "Dest=site.example:443"]) == 0
    capsys.readouterr()
    return machine / "dev" / "server0.conf", machine / "dev" / "client0.conf"
