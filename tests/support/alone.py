"""One daemon alone in a namespace, without a peer: for tests of its processes, not of its packets."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.daemons import PATIENCE, TOOL, Daemon, left_behind, wait_for
from tests.support.namespaces import Namespace, run
from tests.support.profiles import list_short_ids

LISTEN = "127.0.0.1:4433"
DEST = "127.0.0.1:9"  # nobody answers there


class Alone:
    """Profiles ``server0`` and ``client0`` of one namespace. ``Alone.open`` proves that nothing is left."""

    def __init__(self, stack: ExitStack, settings: str = "") -> None:
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qre-test-")))
        self.directory.chmod(0o711)
        self.pin_dir = self.directory / "bpf"
        self.pin_dir.mkdir()
        run("mount", "-t", "bpf", "bpf", str(self.pin_dir))
        stack.callback(run, "umount", str(self.pin_dir))
        self.namespace = Namespace("alone")
        stack.callback(self.namespace.delete)
        (self.directory / "dev").mkdir(mode=0o700)
        (self.directory / "qre.conf").write_text(f"WhenDestIsDown = imitate\n{settings}")
        self._daemons: list[Daemon] = []
        self.server = self.daemon("server0")
        self.client = self.daemon("client0")
        self.server.tool(
            "init", "ServerProfile=server0", "ClientProfile=client0", f"Endpoint={LISTEN}", f"Dest={DEST}",
            "ServerName=site.test", "ServerAddress=10.77.0.1/24", "ClientAddress=10.77.0.2/24",
        )  # fmt: skip
        list_short_ids(self.profile("server0"))
        for name, device in (("server0", "server0"), ("client0", "client0")):
            self.edit(name, "Device", device)
        self.edit("server0", "Listen", LISTEN)

    @staticmethod
    @contextmanager
    def open(settings: str = "") -> Iterator[Alone]:
        with ExitStack() as stack:
            made = Alone(stack, settings)
            try:
                yield made
            except BaseException as error:
                error.add_note("".join(f"--- {daemon.profile}\n{daemon.said()[-3000:]}" for daemon in made._daemons))
                made._kill()
                raise
            made._end()

    def daemon(self, profile: str) -> Daemon:
        made = Daemon(self.namespace, profile, self.directory, self.pin_dir)
        self._daemons.append(made)
        return made

    def profile(self, name: str) -> Path:
        return self.directory / "dev" / f"{name}.conf"

    def value(self, name: str, key: str) -> str:
        for line in self.profile(name).read_text().splitlines():
            if line.split("=")[0].strip().lower() == key.lower():
                return line.split("=", 1)[1].strip()
        raise KeyError(key)

    def edit(self, name: str, key: str, value: str) -> None:
        path = self.profile(name)
        lines = path.read_text().splitlines()
        kept = [line for line in lines if line.split("=")[0].strip().lower() != key.lower()]
        path.write_text("\n".join([*kept, f"{key} = {value}", ""]))

    def once(
        self, daemon: Daemon, *options: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> tuple[int, list[str]]:
        """Run the daemon where it is expected to end by itself: exit status, and the lines that it said."""
        assignments = [f"{key}={value}" for key, value in {**daemon.env, "NOTIFY_SOCKET": "", **(env or {})}.items()]
        command = [*self.namespace.prefix, *prefix, "env", *assignments, TOOL, "daemon", daemon.profile, *options]
        for name in ("state", "run"):
            (self.directory / name).mkdir(mode=0o755, exist_ok=True)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return done.returncode, done.stderr.splitlines()

    def left(self) -> list[str]:
        """What is there now that would not be there if no daemon ever ran."""
        found = left_behind(self.directory, self.pin_dir)
        state = self.directory / "state"
        found += [f"state {path.name}" for path in state.glob("*.state")] if state.exists() else []
        links = self.namespace.ip("-o", "link")
        return found + [f"device {name}" for name in ("server0", "client0") if f" {name}:" in links]

    def _kill(self) -> None:
        for daemon in self._daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop(signal.SIGKILL)
            elif daemon.notify is not None:
                daemon.notify.close()
        wait_for("killed daemons", lambda: not any("process" in entry for entry in self.left()))

    def _end(self) -> None:
        try:
            statuses = {daemon.profile: daemon.stop() for daemon in self._daemons if daemon.process}
        except RuntimeError:
            self._kill()
            raise
        assert not self.left(), self.left()
        assert set(statuses.values()) <= {0, 1, 2}, statuses
