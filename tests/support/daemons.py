"""Real daemons for demo and tests: ``qre-tool daemon`` in a namespace, its readiness, its processes, its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.namespaces import Namespace, run
from tests.support.unfolded import unfolded

#: Another version's can be judged, too: QRE_TOOL names it.
TOOL = os.environ.get("QRE_TOOL") or str(Path(sys.executable).parent / "qre-tool")


#: Seconds until a fact that does not come fails a test. What comes is waited for no longer than it takes: this is
#: for a machine with much else to do, and no test's measure of how fast the program is.
PATIENCE = 120.0


def wait_for(what: str, true: Callable[[], bool], timeout: float = PATIENCE, interval: float = 0.05) -> None:
    """Return when ``true()``; a RuntimeError that names ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout:g} s in vain for: {what}")
        time.sleep(interval)


async def until(true: Callable[[], bool], timeout: float = PATIENCE, interval: float = 0.01) -> None:
    """The same in a loop, which goes on meanwhile."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain")
        await asyncio.sleep(interval)


class NotifySocket:
    """What systemd would listen on: remembers every message and the process it came from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(path))
        self.received: list[tuple[int, str]] = []

    def poll(self) -> list[str]:
        """Every message so far, one assignment each, oldest first."""
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(4096, 256)
            except BlockingIOError:
                break
            pid = int.from_bytes(ancillary[0][2][:4], sys.byteorder) if ancillary else 0
            self.received += [(pid, line) for line in data.decode().splitlines()]
        return [line for _, line in self.received]

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Thread:
    """What /proc says of one thread."""

    pid: int
    tid: int
    command: str
    uid: int
    capabilities: tuple[int, int, int, int, int]  # inheritable, permitted, effective, bounding, ambient
    no_new_privs: int
    seccomp: int


def read_thread(pid: int, tid: int) -> Thread:
    """/proc/PID/task/TID/status, parsed."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines() if ":" in line
    )
    inheritable, permitted, effective, bounding, ambient = (
        int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    )
    return Thread(
        pid=pid,
        tid=tid,
        command=Path(f"/proc/{pid}/comm").read_text().strip(),
        uid=int(fields["Uid"].split()[0]),
        capabilities=(inheritable, permitted, effective, bounding, ambient),
        no_new_privs=int(fields["NoNewPrivs"]),
        seccomp=int(fields["Seccomp"]),
    )


def threads(pid: int) -> list[Thread]:
    """Every thread of a process; those that end meanwhile are left out."""
    found = []
    for entry in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.append(read_thread(pid, int(entry.name)))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def children(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    try:
        direct = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in direct:
        yield child
        yield from children(child)


def state_of(pid: int) -> str:
    """What a process that should have ended does: its state, where in the kernel, signals pending, blocked, ignored
    and handled."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        where = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return f"process {pid} has ended"
    wanted = ("Name:", "State:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:")
    return f"process {pid} in {where}: " + ", ".join(
        " ".join(line.split()) for line in lines if line.startswith(wanted)
    )


@dataclass
class Daemon:
    """One ``qre-tool daemon``: its directories, its process, what it said."""

    namespace: Namespace
    profile: str
    directory: Path  # config in dev/, state/, run/ below it
    pin_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    etc: Path | None = None  # what it has in place of /etc
    process: subprocess.Popen[bytes] | None = None
    notify: NotifySocket | None = None

    @property
    def env(self) -> dict[str, str]:
        return {
            "QRE_CONFIG_DIR": str(self.directory / "dev"),
            "QRE_GLOBAL_CONFIG": str(self.directory / "qre.conf"),
            "QRE_STATE_DIR": str(self.directory / "state"),
            "RUNTIME_DIRECTORY": str(self.directory / "run"),
            "QRE_BPF_PIN_DIR": str(self.pin_dir),
            "QRE_DATAPLANE": "user",
            "NOTIFY_SOCKET": str(self.directory / f"{self.profile}.notify"),
            **self.environment,
        }

    @property
    def log(self) -> Path:
        return self.directory / f"{self.profile}.log"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError("not started")
        return self.process.pid

    def start(self) -> Daemon:
        for name in ("state", "run"):
            (self.directory / name).mkdir(mode=0o755, exist_ok=True)
        if self.notify is None:
            self.notify = NotifySocket(self.directory / f"{self.profile}.notify")
        self.notify.poll()
        self.notify.received.clear()
        self.process = self.namespace.popen(self.command(), env=self.env, log=self.log)
        return self

    def command(self) -> list[str]:
        command = [TOOL, "daemon", self.profile, *self.options]
        if self.etc is None:
            return command
        mounted = f'mount --bind {self.etc} /etc && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounted, "sh", *command]

    def wait_ready(self, timeout: float = PATIENCE) -> Daemon:
        def ready() -> bool:
            if self.process is None or self.notify is None:
                raise RuntimeError("not started")
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.profile} ended with {self.process.returncode}: {self.said()[-3000:]}")
            return "READY=1" in self.notify.poll()

        try:
            wait_for(f"READY=1 of {self.profile}", ready, timeout)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {self.said()[-3000:]}") from None
        return self

    def wait_session(self, timeout: float = PATIENCE) -> Daemon:
        """A client's ready file: a session is up."""
        path = self.directory / "run" / f"{self.profile}.ready"
        try:
            wait_for(f"{path.name}", path.exists, timeout)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {self.said()[-3000:]}") from None
        return self

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tool(self, *arguments: str, check: bool = True, folded: bool = False) -> str:
        """``qre-tool ARGUMENTS`` in the daemon's namespace and environment; its standard output. What is folded for
        people is whole, unless that is what is wanted."""
        assignments = [f"{key}={value}" for key, value in self.env.items()]
        said = run(*self.namespace.prefix, "env", *assignments, TOOL, *arguments, check=check)
        return said if folded or arguments[0] not in ("show", "check", "watch") else unfolded(said)

    def workers(self) -> dict[str, int]:
        """Worker name -> pid of those that the daemon keeps."""
        return {name: pid for name, pid in self.processes().items() if name != "visit"}

    def processes(self) -> dict[str, int]:
        """Worker name -> pid, from the command names of the daemon's descendants (``qre:NAME``)."""
        found = {}
        for pid in children(self.pid):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith("qre:"):
                found[name.removeprefix("qre:")] = pid
        return found

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """End it and everything it started; its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            hangs = "\n".join(state_of(pid) for pid in (self.pid, *children(self.pid)))
            self.process.kill()
            self.process.wait()
            raise RuntimeError(
                f"{self.profile} did not end in {timeout:g} s: {self.said()[-3000:]}\n{hangs}"
            ) from None
        finally:
            if self.notify is not None:
                self.notify.poll()
                self.notify.close()
                self.notify = None
        return status


def left_behind(directory: Path, pin_dir: Path) -> list[str]:
    """What a daemon of ``directory`` should have taken away: processes, devices of ours, pins, runtime files."""
    found = []
    marker = str(directory).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            ours = marker in (entry / "environ").read_bytes()
            name = (entry / "comm").read_text().strip()
        except (OSError, ValueError):
            continue
        if ours and (name.startswith("qre") or "python" in name):
            found.append(f"process {entry.name} ({name})")
    found += [f"pin {path.name}" for path in pin_dir.iterdir() if path.name.startswith("QRE")]
    if (run_dir := directory / "run").exists():
        found += [f"file {path.relative_to(directory)}" for path in run_dir.rglob("*") if not path.is_dir()]
    return found


def which(name: str) -> str:
    """The path of a program that the set-up step installs."""
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is missing: run make setup-tests")
    return path
