"""Every command, called rightly by a user who is nobody: it works, or names what is missing, and changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.cli.commands import COMMANDS
from tests.support.calls import CALLS
from tests.support.daemons import PATIENCE, TOOL
from tests.support.network import everything, own_network
from tests.support.ordinary_user import NOBODY, as_nobody

pytestmark = pytest.mark.root

OTHER_PAIR = ("ServerProfile=server1", "ClientProfile=client1")
WORK = {
    "help", "version", "genkey", "pubkey", "genshortid", "init", "completion", "strip", "showconf", "show",
    "session-plan", "session-capture", "add-client", "list-clients", "export", "remove-client", "rename-client",
    "import", "rotate-key",
}  # fmt: skip
NET_ADMIN = {
    "up", "reload", "down", "daemon", "syncconf", "delete", "set", "install-session", "update-session", "adopt-cid",
    "release-cid", "session-demo", "register-cid-map", "unregister-cid-map", "register-shared-socket",
    "unregister-shared-socket", "shared-port-loader", "shared-port-loader-check", "shared-port-session-demo",
    "shared-port-handshake-daemon",
}  # fmt: skip
BPF = {name for name in NET_ADMIN if name.startswith("shared-port-")} | {
    "create-cid-map",
    "create-reuseport-socket-map",
}
#: What they ask is not here, whoever asks; the words that say so.
ANSWERED = {
    "watch": "device qre9 : it is not up", "metrics": "device qre9 : it is not up",
    "refresh": "device qre9 : it is not up", "check": "not ready", "find-dest": "it cannot be used",
    "show-cid-map": "pinned map /nonexistent/map", "shared-port-handshake-client": "no answer in time",
}  # fmt: skip


@pytest.fixture
def directory() -> Iterator[Path]:
    """Nobody's own, with a pair of profiles."""
    with own_network(), tempfile.TemporaryDirectory(prefix="qre-n-") as path:
        made = Path(path)
        fields = ("Endpoint=127.0.0.1:4443", "Dest=203.0.113.9:443", "ServerName=site.example")
        assert run(made, [TOOL, "init", *fields]) == (0, "")
        for each in (made, *made.iterdir()):
            shutil.chown(each, NOBODY, NOBODY)
        yield made


def run(directory: Path, command: list[str]) -> tuple[int, str]:
    """The exit status, and what is said on standard error."""
    places = {"QRE_CONFIG_DIR": "", "QRE_GLOBAL_CONFIG": "none", "QRE_STATE_DIR": "state", "RUNTIME_DIRECTORY": "run"}
    environment = os.environ | {name: str(directory / place) for name, place in places.items()}
    key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"
    done = subprocess.run(
        command, cwd=directory, env=environment, input=key, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_every_command_works_or_names_what_is_missing(directory: Path) -> None:
    assert WORK | NET_ADMIN | BPF | set(ANSWERED) == set(COMMANDS)
    before = everything()
    for name, call in CALLS.items():
        words = {"show": [], "init": [*(call or []), *OTHER_PAIR]}.get(name, call or [])
        status, said = run(directory, as_nobody(TOOL, name, *words))
        if name in WORK:
            warned = "profile client0 has this short id, too" if name == "import" else ""  # it is imported again
            assert (status, warned in said, bool(said)) == (0, True, bool(warned)), (name, said)
            continue
        assert (status, said.count("\n")) == (2, 1), (name, said)
        assert said.startswith("qre-tool: ")
        missing = [word for word, names in (("CAP_NET_ADMIN", NET_ADMIN), ("CAP_BPF", BPF)) if name in names]
        assert all(word in said for word in (*missing, ANSWERED.get(name, ""))), (name, said)
    assert everything() == before
    made = {path.name for path in directory.iterdir()}
    assert made == {f"{end}{n}.conf" for end in ("server", "client") for n in (0, 1)} | {"made.pcap", "other.conf"}
