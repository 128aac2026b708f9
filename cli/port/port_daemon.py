"""``shared-port-handshake-daemon``: several server configurations on one port, each run by a daemon of its own.

The first has the port, the others join it, and a client's short id selects its daemon. Each is the daemon that
``qre-tool daemon`` runs, with its own processes; here they are started in order, watched, and ended together.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qre.cli.commands import Options
from qre.cli.port.end_signals import EndSignals
from qre.cli.port.port_fields import Loading, parse_daemon_fields
from qre.cli.port.ready_file import check_ready_file, remove_ready_file, write_ready_file
from qre.config.model import GlobalConfig, Profile, ServerSettings
from qre.config.profile import load_profile_file
from qre.config.settings import load_global
from qre.errors import MachineError, QreError, UserError, UserErrors
from qre.kernel.bpf_pins import check_pin_dir
from qre.supervisor.members.process import FreshProcess
from qre.supervisor.parent.notify import Notifier
from qre.supervisor.parent.preconditions import SERVER_CAPABILITIES, open_elf

_COMMAND: Final = "shared-port-handshake-daemon"
_START_TIMEOUT: Final = 180.0
_STOP_TIMEOUT: Final = 30.0
_MAX_CONFIGS: Final = 16
_READY: Final = b"READY=1"


def handshake_daemon(arguments: list[str], options: Options) -> int:
    """SERVER-CONFIG… BpfElf=PATH [Key=Value]…"""
    del options
    count = next((number for number, word in enumerate(arguments) if "=" in word), len(arguments))
    files, fields = arguments[:count], parse_daemon_fields(arguments[count:])
    profiles = [load_profile_file(file) for file in files]
    check_together(profiles)
    if not fields.loading.register and len(profiles) > 1:
        why = "qre.ko mirrors the connection IDs of every device; without it one device alone can be served"
        raise UserError("field RegisterCidMap", why, "leave it out, or give one configuration")
    from qre.kernel.capabilities import require_capabilities

    require_capabilities(_COMMAND, SERVER_CAPABILITIES)
    lasting = fields.lasting
    if lasting.ready_file is not None:
        check_ready_file(lasting.ready_file)
    os.close(open_elf(fields.loading.bpf_elf))  # what each daemon would say, said once
    check_pin_dir(fields.loading.pin_dir)
    manager = Notifier()
    with EndSignals() as signals, _Daemons(files, profiles, fields.loading) as daemons:
        if not daemons.start_all(signals):
            return daemons.end()
        try:
            if lasting.ready_file is not None:
                write_ready_file(lasting.ready_file, {"devices": [profile.device for profile in profiles]})
            manager.tell("READY=1")
            daemons.wait(signals, lasting.run_for_s)
            manager.tell("STOPPING=1")
        finally:
            if lasting.ready_file is not None:
                remove_ready_file(lasting.ready_file)
        return daemons.end()


def check_together(profiles: Sequence[Profile]) -> None:
    """Raise UserErrors, one for each difference, unless one port can serve them all."""
    errors: list[UserError] = []
    if not profiles:
        raise UserError(_COMMAND, "no server configuration is given", "name their files first")
    if len(profiles) > _MAX_CONFIGS:
        raise UserError(_COMMAND, f"{len(profiles)} configurations are more than {_MAX_CONFIGS}", "give fewer")
    for profile in profiles:
        if profile.server is None:
            errors.append(
                UserError(f"configuration {profile.name}", "it is a client profile", "give server profiles")
            )
    if errors:
        raise UserErrors(tuple(errors))
    first = profiles[0]
    devices: dict[str, str] = {}
    names: dict[str, str] = {}
    owners: dict[bytes, str] = {}
    for profile in profiles:
        assert first.server is not None and profile.server is not None
        errors += _differences(first.name, first.server, profile.name, profile.server)
        for what, value, seen in (("Device", profile.device, devices), ("name", profile.name, names)):
            if seen.setdefault(value, profile.name) is not profile.name:
                errors.append(UserError(f"configuration {profile.name}", f"its {what} {value} is another's, too"))
        for short_id in profile.server.accepted_ids:
            owner = owners.setdefault(short_id, profile.name)
            if owner is not profile.name:
                why = f"short id {short_id.hex()} is in {owner}, too"
                errors.append(
                    UserError(f"configuration {profile.name}", why, "give each client a short id of its own")
                )
    if errors:
        raise UserErrors(tuple(errors))


def _differences(first: str, ours: ServerSettings, name: str, its: ServerSettings) -> list[UserError]:
    compared = (
        ("Listen", str(ours.listen), str(its.listen)),
        ("ServerName", ours.server_name.lower(), its.server_name.lower()),
        ("Dest", str(ours.dest), str(its.dest)),
        ("RealityMaxTimeDiff", f"{ours.max_time_diff_ms}ms", f"{its.max_time_diff_ms}ms"),
    )
    errors = [
        UserError(f"configuration {name}", f"{key} is {theirs}, and {mine} in {first}", "make them equal")
        for key, mine, theirs in compared
        if mine != theirs
    ]
    if ours.replay_store != its.replay_store:
        errors.append(
            UserError(f"configuration {name}", f"ReplayStore differs from that of {first}", "make them equal")
        )
    if ours.private_key != its.private_key:
        errors.append(
            UserError(f"configuration {name}", f"RealityPrivateKey differs from that of {first}", "make them equal")
        )
    return errors


def run_one(file: str, loading: Loading) -> None:
    """A daemon of one configuration, in a process of its own. Ends with SystemExit."""
    from qre.supervisor.parent.parent import run_daemon
    from qre.supervisor.parent.process_settings import DaemonOptions

    os.setpgid(0, 0)  # Ctrl-C ends the command, which ends this process
    try:
        profile, config = load_profile_file(file), _config(loading)
        options = DaemonOptions(register_cid_map=loading.register)
        sys.exit(run_daemon(profile, config, options, lambda: load_profile_file(file)))
    except QreError as error:
        print(f"qre-tool: {error}", file=sys.stderr)
        sys.exit(2)


def _config(loading: Loading) -> GlobalConfig:
    config = load_global(os.environ, bpf_elf=loading.bpf_elf, pin_dir=loading.pin_dir)
    return GlobalConfig(**{**vars(config), "routed_cid_len": loading.routed_cid_len})


class _Daemons:
    """The processes, in the order of the configurations; those that run are ended with the ``with`` block."""

    def __init__(self, files: Sequence[str], profiles: Sequence[Profile], loading: Loading) -> None:
        self._files, self._profiles, self._loading = files, profiles, loading
        self._processes: list[FreshProcess] = []
        self._directory = tempfile.TemporaryDirectory(prefix="qre-front-")
        self._failed = ""

    def __enter__(self) -> _Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_all()
        self._directory.cleanup()

    def start_all(self, signals: EndSignals) -> bool:
        """Each after the one before it is ready. False: a signal came, or one failed."""
        return all(self._start(number, signals) for number in range(len(self._files)))

    def _start(self, number: int, signals: EndSignals) -> bool:
        path = Path(self._directory.name) / f"notify.{number}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(path))
            process = FreshProcess(target=run_one, args=(self._files[number], self._loading))
            os.environ["NOTIFY_SOCKET"] = str(path)
            try:
                process.start()
            finally:
                del os.environ["NOTIFY_SOCKET"]
            self._processes.append(process)
            deadline = time.monotonic() + _START_TIMEOUT
            while not signals.received and time.monotonic() < deadline:
                readable, _, _ = select.select([told.fileno(), signals.fileno(), process.sentinel], [], [], 1.0)
                if told.fileno() in readable:
                    if told.recv(4096).startswith(_READY):
                        return True
                elif process.sentinel in readable:
                    self._failed = f"the daemon of {self._profiles[number].name} did not start"
                    return False
        if not signals.received:
            self._failed = f"the daemon of {self._profiles[number].name} was not ready in {_START_TIMEOUT:g} s"
        return False

    def wait(self, signals: EndSignals, seconds: float | None) -> None:
        """Until a signal, the time, or the end of one of them."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not signals.received and (deadline is None or time.monotonic() < deadline):
            left = 3600.0 if deadline is None else min(3600.0, max(0.0, deadline - time.monotonic()))
            sentinels = [process.sentinel for process in self._processes]
            readable, _, _ = select.select([signals.fileno(), *sentinels], [], [], left)
            ended = [n for n, sentinel in enumerate(sentinels) if sentinel in readable]
            if ended:
                self._failed = f"the daemon of {self._profiles[ended[0]].name} ended"
                return

    def end(self) -> int:
        """End them all; 0, or MachineError when one had failed."""
        self._end_all()
        if self._failed:
            raise MachineError(_COMMAND, self._failed, "see its messages above")
        return 0

    def _end_all(self) -> None:
        """The front last, so that no other daemon takes its place."""
        for process in reversed(self._processes):
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGTERM)
                process.join(_STOP_TIMEOUT)
            if process.is_alive():
                process.kill()
                process.join()
            if process.exitcode and not self._failed:
                self._failed = f"a daemon ended with status {process.exitcode}"
        self._processes.clear()
