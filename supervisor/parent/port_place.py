"""Who leads a server's port: this daemon, or one that has it already and that this daemon joins."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Final

from qre.addresses import address_ports
from qre.config.model import GlobalConfig
from qre.device.control_client import front_path, remove_left
from qre.device.device_lock import hold_device, port_name
from qre.errors import MachineError, UserError
from qre.ipc.messages import WorkerConfig
from qre.supervisor.front import FrontChannel, FrontGoneError, join_front, join_of

#: The time that another daemon on our port may take to start or to end (seconds).
_TIMEOUT: Final = 120.0
_RETRY: Final = 0.2


class PortPlace:
    """``front`` is the connection to the daemon whose port we have joined, None while we lead the port;
    ``front_device`` is that daemon's device."""

    def __init__(self, config: GlobalConfig) -> None:
        self._config = config
        self.front: FrontChannel | None = None
        self.front_device = ""

    def lead_or_join(self, config: WorkerConfig, stack: ExitStack, supplies: dict[str, int]) -> bool:
        """True: we lead the port while ``stack`` is open. Otherwise ``front`` leads it, and its descriptors are in
        ``supplies``. Blocks: nothing else runs yet."""
        name = port_name(config.listen_ip, config.listen_port)
        deadline = time.monotonic() + _TIMEOUT
        while True:
            self.front, self.front_device = None, ""
            try:
                stack.enter_context(hold_device(self._config, name, "daemon"))
                stack.callback(remove_left, front_path(self._config.runtime_dir, name))
                for key in ("front_feed", "front"):
                    if (fd := supplies.pop(key, None)) is not None:
                        os.close(fd)
                return True
            except UserError as busy:  # another daemon has it
                if time.monotonic() > deadline:
                    where = f"Listen {address_ports(config.listen, config.listen_port)}"
                    raise MachineError(where, busy.why, "see the log of that daemon") from busy
            try:
                self.front, self.front_device, held = join_front(
                    self._config.runtime_dir, name, join_of(config), supplies["profile_secrets"]
                )
            except FrontGoneError:
                time.sleep(_RETRY)  # it is starting or ending
                continue
            held["front"] = os.dup(self.front.fileno())  # the supervisor's, for reloads
            for key, fd in held.items():
                old, supplies[key] = supplies.get(key), fd
                if old is not None:
                    os.close(old)
            return False
