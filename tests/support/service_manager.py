"""Stands in for systemd where none runs: one service of ``Type=notify`` with a file descriptor store (sd_notify(3)).

``python -m tests.support.service_manager DIRECTORY COMMAND…`` starts COMMAND and writes what it notifies
to DIRECTORY/notified, and its number to DIRECTORY/pid. SIGUSR1 starts it again once it has died, with what it had
stored (LISTEN_FDS). SIGTERM ends it, and then this. Exits with the command's status.
"""

from __future__ import annotations

import array
import fcntl
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

_FIRST = 3  # SD_LISTEN_FDS_START
_ABOVE = 50  # where stored descriptors are, clear of the numbers that they are handed over as


class Service:
    """The command, what it said, and what it stored."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self.directory, self.command = directory, command
        self.stored: dict[str, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "notify"
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.notified = (directory / "notified").open("w", buffering=1)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.notified.truncate(self.notified.seek(0))
        environment = os.environ | {"NOTIFY_SOCKET": str(self.directory / "notify")}
        environment |= {"LISTEN_FDS": str(len(self.stored)), "LISTEN_FDNAMES": ":".join(self.stored)}
        moved = " ".join(f"{_FIRST + number}<&{fd} {fd}<&-" for number, fd in enumerate(self.stored.values()))
        # The shell becomes the command: LISTEN_PID has to be the number of the very process.
        shell = ["/bin/bash", "-c", f'LISTEN_PID=$$ exec "$@" {moved}', "service"]
        with (self.directory / "said").open("a") as said:
            process = subprocess.Popen(
                [*shell, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                start_new_session=True,
                pass_fds=tuple(self.stored.values()),
            )
        (self.directory / "pid").write_text(f"{process.pid}\n")
        return process

    def take(self) -> None:
        text, ancillary, _, _ = self.socket.recvmsg(65_536, socket.CMSG_SPACE(64))
        given = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                given.frombytes(data[: len(data) // given.itemsize * given.itemsize])
        said = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
        name = said.get("FDNAME", "")
        if "FDSTOREREMOVE" in said and name in self.stored:
            os.close(self.stored.pop(name))
        if "FDSTORE" in said and given:
            self.stored[name] = fcntl.fcntl(given[0], fcntl.F_DUPFD_CLOEXEC, _ABOVE)
        for fd in given:
            os.close(fd)
        self.notified.write(text.decode() + "\n")


def main(directory: str, *command: str) -> int:
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    service = Service(Path(directory), list(command))
    ending = False
    with selectors.DefaultSelector() as selector:
        selector.register(service.socket, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is service.socket:
                    service.take()
                    continue
                asked = set(woken.recv(4096))
                dead = service.process.poll() is not None
                if signal.SIGTERM in asked:
                    ending = True
                    if not dead:
                        service.process.terminate()
                elif signal.SIGUSR1 in asked and dead:
                    service.process = service.start()
            if ending and service.process.poll() is not None:
                return service.process.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
