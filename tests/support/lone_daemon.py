"""One daemon alone in a namespace, nothing to connect to: for tests of processes, start and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.daemons import PATIENCE, Daemon, left_behind, wait_for
from tests.support.namespaces import Namespace, run
from tests.support.profiles import CLIENT, SERVER, write_profile

ROOT = Path(__file__).resolve().parents[2]
STRANGE = [sys.executable, "-m", "tests.support.strange_daemon"]
LISTEN = "127.0.0.1:4433"


class LoneDaemon(Daemon):
    """A daemon with strange workers: ``strange`` is ``role=behaviour,…``; the others are the real ones."""

    strange = ""
    umask = 0o022

    def start(self) -> LoneDaemon:
        super().start()
        return self

    def command(self) -> list[str]:
        program = [*STRANGE, "daemon", self.profile, *self.options]
        return ["sh", "-c", f'umask {self.umask:o}; cd "$0"; exec "$@"', str(ROOT), *program]

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"QRE_STRANGE": self.strange}

    def ends(self, timeout: float = PATIENCE) -> int:
        """Wait for its end without asking for it; the exit status."""
        if self.process is None:
            raise RuntimeError("not started")
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it still runs after {timeout:g} s: {self.said()}") from None

    def status(self) -> str:
        """The last STATUS= that was told."""
        lines = self.notify.poll() if self.notify is not None else []
        return next((line.removeprefix("STATUS=") for line in reversed(lines) if line.startswith("STATUS=")), "")

    def wait_status(self, words: str, timeout: float = PATIENCE) -> str:
        try:
            wait_for(f"STATUS={words}", lambda: words in self.status(), timeout)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {self.status()!r}, {self.said()[-3000:]}") from None
        return self.status()

    def shown(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self.tool("--json", "show", self.profile))["devices"][0]
        return described

    def control(self) -> Path:
        return self.directory / "run" / f"{self.profile}.sock"

    def kill_worker(self, name: str) -> int:
        pid = self.workers()[name]
        os.kill(pid, signal.SIGKILL)
        return pid


class Lone:
    """A namespace, directories and a BPF file system for one daemon; ``close`` proves that nothing is left."""

    def __init__(self, text: str, name: str, settings: str = "") -> None:
        self.stack = ExitStack()
        try:
            self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="qre-t-")))
            self.directory.chmod(0o711)
            self.pin_dir = self.directory / "bpf"
            for path, mode in ((self.pin_dir, 0o700), (self.directory / "dev", 0o700)):
                path.mkdir(mode=mode)
            run("mount", "-t", "bpf", "bpf", str(self.pin_dir))
            self.stack.callback(run, "umount", str(self.pin_dir))
            self.namespace = Namespace("t")
            self.stack.callback(self.namespace.delete)
            (self.directory / "qre.conf").write_text(settings)
            self.profile = write_profile(self.directory / "dev", name, text)
            self.before = self.network()
            self.daemon = LoneDaemon(self.namespace, name, self.directory, self.pin_dir)
        except BaseException:
            self.stack.close()
            raise

    def network(self) -> str:
        """Links, addresses and rules of the namespace."""
        return self.namespace.ip("-o", "addr") + self.namespace.ip("rule")

    def edit(self, old: str, new: str) -> None:
        text = self.profile.read_text()
        assert old in text
        self.profile.write_text(text.replace(old, new))

    def nothing_left(self) -> None:
        """The daemon has ended: an AssertionError names what it left."""
        left = left_behind(self.directory, self.pin_dir)
        left += [path.name for path in (self.directory / "run").glob("*")]
        left += [path.name for path in (self.directory / "state").glob("*.state")]
        assert not left, f"left behind: {left}\n{self.daemon.said()}"
        assert self.network() == self.before

    def close(self) -> None:
        try:
            if self.daemon.process is not None:
                self.daemon.stop()
                self.nothing_left()
        finally:
            self.stack.close()

    def __enter__(self) -> Lone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.daemon.said()[-4000:])
        self.close()


def client(strange: str = "handshake=quiet", *, more: str = "") -> Lone:
    made = Lone(CLIENT + more, "client0")
    made.daemon.strange = strange
    return made


def server(strange: str = "handshake=quiet", *, more: str = "") -> Lone:
    made = Lone(SERVER.replace("10.9.0.1:443", LISTEN) + more, "server0")
    made.daemon.strange = strange
    return made


@contextmanager
def small_disk(directory: Path, size: str = "64k") -> Iterator[Path]:
    """A file system of that size at ``directory``; ``fill`` it with a file."""
    directory.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(directory))
    try:
        yield directory
    finally:
        run("umount", str(directory))


def fill(directory: Path) -> Path:
    """Leave no byte free."""
    path = directory / "filler"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while os.write(fd, bytes(4096)):
            pass
    except OSError:
        return path
    finally:
        os.close(fd)
