"""The files that a running daemon keeps of a profile: Dest's last profile, a port's replay filter, the addresses that
its clients had, session tickets and their keys, whether the tunnel is up."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import msgspec

from qre.config.model import SHORTEST_RELAY_IDLE_MS, GlobalConfig
from qre.config.values import show_duration
from qre.dest_profile import DestProfile, dest_profile_file, read_dest_profile
from qre.device.control_client import ready_path
from qre.device.state import ticket_paths, write_atomically
from qre.ends import Role
from qre.errors import MachineError, UntrustedInputError
from qre.ipc.messages import WorkerConfig
from qre.quic.resumption.file_lengths import TICKET_KEYS_LENGTH, TICKETS_LENGTH
from qre.quic.server import address_leases
from qre.reality import replay
from qre.supervisor.parent.preconditions import open_regular
from qre.supervisor.parent.ticket_files import open_tickets


class ProfileFiles:
    """The files of profile ``name`` in StateDir and RuntimeDir."""

    def __init__(self, name: str, config: GlobalConfig) -> None:
        self._config = config
        self._ready = ready_path(config, name)
        self._dest = dest_profile_file(config.state_dir, name)
        #: Which addresses each short id of a server had last.
        self._leases = config.state_dir / f"{name}.leases"
        self._tickets, self._ticket_keys = ticket_paths(config, name)
        self._warnings: list[str] = []

    def _make_state_dir(self) -> None:
        """Create StateDir with mode 0700 unless it exists. Raises MachineError."""
        directory = self._config.state_dir
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"StateDir {directory}", os.strerror(error.errno or 0), "see StateDir") from error

    def open(self, config: WorkerConfig) -> dict[str, int]:
        """What a server or a client keeps in StateDir. Raises MachineError."""
        return self.open_servers(config) if config.role is Role.SERVER else self._open_clients()

    def _open_clients(self) -> dict[str, int]:
        """What a client keeps: its tickets."""
        try:
            self._make_state_dir()
        except MachineError as error:
            self._warnings.append(f"{error}: after a restart no connection is resumed")
            return {}
        return self._open_tickets("tickets", self._tickets, TICKETS_LENGTH)

    def _open_tickets(self, name: str, path: Path, length: int) -> dict[str, int]:
        """Tickets or their keys: both ends do without the file, and then remember nothing after a restart."""
        try:
            return {name: open_tickets(path, length)}
        except MachineError as error:
            self._warnings.append(f"{error}: after a restart no connection is resumed")
            return {}

    def open_servers(self, config: WorkerConfig) -> dict[str, int]:
        """What a server keeps: hellos that it has accepted, which client had which address last, and the keys of its
        tickets."""
        self._make_state_dir()
        if (asked := self._config.relay_idle_ms) < SHORTEST_RELAY_IDLE_MS:
            least = show_duration(SHORTEST_RELAY_IDLE_MS)
            self._warnings.append(f"RelayIdle = {show_duration(asked)} is below {least}, and {least} is used")
        without = "after a restart another client may take an address"
        opened: dict[str, int] = {}
        try:
            opened["leases"] = self._open_whole(self._leases, address_leases.FILE_LENGTH, without)
            opened["replay"] = self._open_replay(config)
            opened |= self._open_tickets("ticket_keys", self._ticket_keys, TICKET_KEYS_LENGTH)
        except BaseException:
            for fd in opened.values():
                os.close(fd)
            raise
        return opened

    def _open_replay(self, config: WorkerConfig) -> int:
        """The replay file of the port, not of the profile: the next front must know the same hellos. It gets its
        whole size now: a disk that is full later takes no client away."""
        path = self._config.state_dir / f"{config.listen_ip}_{config.listen_port}.replay"
        return self._open_whole(path, replay.FILE_LENGTH, "clients that cannot be recorded there are not recognised")

    def _open_whole(self, path: Path, length: int, without: str) -> int:
        """The file with its whole size, or as much as there is room for; ``without``: what is missing then."""
        fd = open_regular(path, os.O_RDWR | os.O_CREAT, "see StateDir")
        try:
            os.posix_fallocate(fd, 0, length)
        except OSError as error:
            self._warnings.append(f"{path} has no room ({error.strerror}): {without}")
        return fd

    def tell_warnings(self) -> None:
        """Once the daemon runs: a start that is refused says why, and nothing else."""
        for line in self._warnings:
            logging.getLogger("qre").warning("%s", line)
        self._warnings.clear()

    def set_ready(self, up: bool) -> None:
        """``RuntimeDir/<profile>.ready`` exists exactly while a session is up."""
        if up:
            self._ready.touch(mode=0o644)
        else:
            self._ready.unlink(missing_ok=True)

    def dest_profile(self) -> DestProfile | None:
        """The last probe of Dest; None when there is none that parses."""
        with contextlib.suppress(OSError, UntrustedInputError):
            return read_dest_profile(self._dest)
        return None

    def keep_dest_profile(self, profile: DestProfile) -> None:
        """Replace the stored measurement of Dest, atomically."""
        write_atomically(self._dest, msgspec.json.encode(profile))
