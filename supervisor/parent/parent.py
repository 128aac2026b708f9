"""The daemon's parent, the process of ``qre-tool daemon``: up, supervise the supervisor, notify, clean up.

It parses nothing that comes from the network. It holds the device's lock and the TUN device, makes memfds, pins BPF
objects through descriptors it receives, and notifies systemd. However the supervisor ends, every process is gone and
everything it made is undone before this returns; only a SIGKILL of this process leaves things in place, and the next
start takes them over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import msgspec

from qre.config.model import GlobalConfig, Profile
from qre.device.device_lock import hold_device
from qre.device.kernel_device import kernel_holds_port
from qre.device.lifecycle import refuse_replacement, up_profile
from qre.device.name_servers import name_service
from qre.device.route_table import chosen_table
from qre.device.state import save_state, state_of
from qre.ends import Dataplane, Role
from qre.errors import MachineError, PassingError, QreError, UntrustedInputError
from qre.freed_memory import give_back
from qre.ipc import sandbox
from qre.ipc.channel import Channel
from qre.ipc.journal import lines_are_of, log_to_stderr
from qre.ipc.messages import WorkerConfig
from qre.ipc.tasks import Tasks
from qre.kernel.bpf_pins import check_pin_dir, pin
from qre.supervisor.members.process import FreshProcess
from qre.supervisor.parent import fdstore
from qre.supervisor.parent.clean_up import HANDLED, Remains, clean_up
from qre.supervisor.parent.descendants import adopt_orphans, kill_descendants, reap_all
from qre.supervisor.parent.early_end import EarlyEnd, TerminatedError, run_in_whole_loop
from qre.supervisor.parent.notify import Notifier, one_line
from qre.supervisor.parent.port_place import PortPlace
from qre.supervisor.parent.preconditions import check_able, check_passable, open_elf
from qre.supervisor.parent.process_settings import DaemonOptions, bpf_elf, empty_memfds, secrets_memfd, worker_config
from qre.supervisor.parent.profile_files import ProfileFiles
from qre.supervisor.parent.profile_reload import ProfileReload
from qre.supervisor.parent.tunnel_names import TunnelNames
from qre.supervisor.parent_messages import (
    MAX_SIZE,
    Alive,
    AllReady,
    ApplyReload,
    DaemonFailed,
    DaemonState,
    DestProbed,
    EndAll,
    GuestCount,
    Pinned,
    PinThese,
    Reloaded,
    ReloadFinished,
    ReloadWanted,
    Setup,
    Supply,
    ToParent,
    ToSupervisor,
)
from qre.supervisor.supervisor import run_supervisor

Loader = Callable[[], Profile]
Work = Coroutine[Any, Any, None]

_STOP_TIMEOUT: Final = 12.0
_RELOAD_TIMEOUT: Final = 30.0
_NOTIFY_RETRY: Final = 0.5
_RESTART: Final = "down and up"  # the remedy for a change that a reload cannot make


class Daemon:
    """One run of ``qre-tool daemon``. ``load`` reads the profile again, for a reload."""

    def __init__(self, profile: Profile, config: GlobalConfig, options: DaemonOptions, load: Loader) -> None:
        self._profile = profile
        self._config = config
        self._options = options
        self._files = ProfileFiles(profile.name, config)
        self._load = load
        self._notifier = Notifier()
        self._log = logging.getLogger("qre.daemon")
        self._ready = False
        self._table = 0
        self._dataplane = Dataplane.USER
        self._listen: tuple[str, int] | None = None  # set when the supervisor may bind the port
        self._port = PortPlace(config)
        self._front_gone = False
        self._followed = False
        self._guests = 0
        self._stored_secrets = fdstore.take_back(os.environ)
        #: It is one that may pass by itself.
        self._failure, self._may_pass = "", False
        self._stopping = False
        self._early_end = EarlyEnd()
        self._flushing = False
        self._reload = ProfileReload(
            self._reload_once, lambda: self._ready and not self._stopping, self._reload_begun, self._reload_finished
        )
        self._reloaded: asyncio.Future[str] | None = None
        self._channel: Channel[ToParent]
        self._tasks = Tasks(self._task_failed)
        self._names = TunnelNames(self._tasks, self._end_at_once)

    def run(self) -> int:
        """0 after an ordered end. Raises QreError: it could not start; PassingError: it could not go on."""
        self._early_end.listen()
        signal.signal(signal.SIGHUP, self._reload_later)
        try:
            self._run()
        except TerminatedError:
            return 0  # during the start: the steps done so far are undone
        if self._failure:
            raise (PassingError if self._may_pass else MachineError)(f"daemon {self._profile.name}", self._failure)
        return 0

    def _reload_later(self, number: int, frame: object) -> None:
        self._reload.wanted = True

    def _run(self) -> None:
        check_able(self._profile, self._config)
        with ExitStack() as stack:
            stack.enter_context(hold_device(self._config, self._profile.device, "daemon"))
            check_passable(self._config.runtime_dir)
            if self._profile.role is Role.SERVER:
                check_pin_dir(self._config.bpf_pin_dir)
            supplies = stack.enter_context(self._supplies())  # errors come before anything is changed
            result = up_profile(self._profile, self._config, keep_tun=True)
            self._dataplane, self._table = result.dataplane, result.table
            stack.enter_context(self._taken_down(result.tun_fd, closed_before=result.closed_before))
            if result.tun_fd is not None:
                supplies["tun"] = result.tun_fd
            stored, self._stored_secrets = self._stored_secrets, None
            if fdstore.supply(self._notifier, supplies, stored, kernel=self._dataplane is Dataplane.KERNEL):
                self._log.info("session secrets of the previous daemon are reused")
            self._serve(supplies)

    def _serve(self, supplies: dict[str, int]) -> None:
        """Supervise; again each time that the front of a joined port is gone, as front or joined to the next one."""
        with ExitStack() as stack:
            leading = self._profile.role is not Role.SERVER
            while True:
                if not leading:
                    leading = self._port.lead_or_join(self._worker_config(self._profile), stack, supplies)
                    self._front_gone = False
                run_in_whole_loop(lambda: self._supervise(supplies))
                if not self._front_gone or self._stopping:
                    return
                self._log.info("the port's front is gone")
                self._followed = True
                self._early_end.listen()
                signal.signal(signal.SIGHUP, self._reload_later)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
                reap_all()
                os.close(supplies["profile_secrets"])
                supplies["profile_secrets"] = secrets_memfd(self._profile)  # a reload may have changed them

    def _front_ended(self) -> None:
        """The connection to the front is readable, which means that it was closed."""
        assert self._port.front is not None
        asyncio.get_running_loop().remove_reader(self._port.front.fileno())
        if not self._stopping:
            self._front_gone = True
            kill_descendants(os.getpid())

    @contextmanager
    def _taken_down(self, tun_fd: int | None, *, closed_before: bool) -> Iterator[None]:
        """Undo ``up`` at the end, and remove what the processes left; tries everything, reports the first error.
        Only an end that was asked for gives the machine its own way back: after any other, and before another daemon,
        what a default route took stays shut in."""
        ordered = False
        try:
            yield
            ordered = self._stopping or not self._failure
        except TerminatedError:
            ordered = True
            raise
        finally:
            closed = self._early_end.another_follows or (not ordered and (self._ready or closed_before))
            listen = None if self._guests or self._profile.role is not Role.SERVER else self._listen
            left = Remains(self._profile, self._dataplane, listen, tun_fd, closed)
            clean_up(left, self._config, self._notifier, self._reported)

    def _kernel_holds_port(self, listen: tuple[str, int]) -> bool:
        """Whether qre.ko has a shared socket of a killed daemon on our address."""
        kernel = self._dataplane is Dataplane.KERNEL and self._profile.role is Role.SERVER
        return kernel and kernel_holds_port(self._profile.device, listen)

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except (QreError, OSError) as error:
            self._failure = self._failure or f"clean-up of {what}: {error}"
            self._log.error("clean-up of %s: %s", what, error)

    @contextmanager
    def _supplies(self) -> Iterator[dict[str, int]]:
        """The descriptors for the workers, closed at the end."""
        fds: dict[str, int] = {}
        try:
            fds["profile_secrets"] = secrets_memfd(self._profile)
            fds |= empty_memfds()
            fds |= self._files.open(self._worker_config(self._profile))
            if self._profile.role is Role.SERVER:
                fds["bpf_elf"] = open_elf(bpf_elf(self._config))
            yield fds
        finally:
            fds.pop("tun", None)  # closed after the device was taken down
            for fd in fds.values():
                os.close(fd)

    # --- while it runs ---

    async def _supervise(self, supplies: dict[str, int]) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = Channel.pair()
        # Workers whose supervisor was killed become our children: their end is waited for before the clean-up. Not
        # before this, nor after: what hooks leave in the background is the user's.
        adopt_orphans(True)
        process = FreshProcess(
            target=run_supervisor, args=(theirs, os.getpid(), self._config.log_level), name="qre-supervisor"
        )
        process.start()
        theirs.close()
        self._channel = Channel(ours, ToParent, MAX_SIZE)
        ended = asyncio.Event()
        sentinel = os.pidfd_open(process.pid or 0)
        loop.add_reader(sentinel, ended.set)
        loop.add_reader(self._channel.fileno(), self._receive)
        if self._port.front is not None:
            loop.add_reader(self._port.front.fileno(), self._front_ended)
        self._early_end.is_over(loop, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.spawn(self._reload.run()))
        try:
            if self._early_end.wanted:  # and its exception was lost
                self._stop()
            else:
                self._set_up(supplies)
            await ended.wait()
            self._receive()
        finally:
            # Closing the loop restores the signals' default action: ignore them first.
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
            loop.remove_reader(sentinel)
            os.close(sentinel)
            process.kill()
            process.join()
            self._judge(process.exitcode or 0)
            loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._tasks.cancel()
            if self._port.front is not None:
                if not self._front_gone:
                    loop.remove_reader(self._port.front.fileno())
                self._port.front.close()
            if not self._stopping and not self._front_gone:
                self._notifier.tell("STOPPING=1")

    def _set_up(self, supplies: dict[str, int]) -> None:
        for name, fd in supplies.items():
            self._tell(Supply(name=name), fd)
        config = self._worker_config(self._profile)
        self._listen = None if config.joined else (config.listen_ip, config.listen_port)
        client = self._profile.underlay.client
        self._tell(
            Setup(
                config=config,
                runtime_dir=str(self._config.runtime_dir),
                pin_dir=str(self._config.bpf_pin_dir),
                front_device=self._port.front_device,
                client_bind_ip=str(client.ip) if client else "",
                client_bind_port=client.port if client else 0,
                kernel_holds_port=self._listen is not None and self._kernel_holds_port(self._listen),
            )
        )

    def _worker_config(self, profile: Profile) -> WorkerConfig:
        made = worker_config(profile, self._config, self._files.dest_profile(), self._dataplane, self._table)
        return msgspec.structs.replace(
            made,
            joined=self._port.front is not None,
            followed=self._followed,
            register_cid_map=self._options.register_cid_map,
        )

    def _judge(self, exitcode: int) -> None:
        """Record why the supervisor ended, unless it was told to."""
        if self._failure or self._stopping or self._front_gone:
            return
        killed = f"was killed by signal {-exitcode}; `journalctl -k` says whether memory was short"
        how = killed if exitcode < 0 else f"ended with status {exitcode}"
        self._failure, self._may_pass = f"the supervisor {how}", self._ready

    def _stop(self) -> None:
        """End in order, within a bounded time."""
        if self._stopping:
            return
        self._stopping = True
        self._notify("STOPPING=1")
        self._tell(EndAll())
        asyncio.get_running_loop().call_later(_STOP_TIMEOUT, self._kill_children)

    def _kill_children(self) -> None:
        self._failure = self._failure or f"its processes did not end in {_STOP_TIMEOUT:g} s, and were killed"
        kill_descendants(os.getpid())

    def _tell(self, message: ToSupervisor, fd: int | None = None) -> None:
        try:
            self._channel.send(message, [] if fd is None else [fd])
        except MachineError as error:
            self._log.debug("the supervisor: %s", error)

    def _receive(self) -> None:
        self._channel.drain(self._handle, closed=self._nothing_more, malformed=self._malformed)

    def _nothing_more(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())

    def _malformed(self, error: UntrustedInputError) -> None:
        self._end_at_once(f"the supervisor sent a malformed message: {error}")

    def _handle(self, message: ToParent, fds: list[int]) -> None:
        match message:
            case AllReady() if not self._ready:
                self._ready = True
                self._files.tell_warnings()
                self._notify("READY=1")
                give_back()
                if self._reload.wanted:
                    self._tasks.spawn(self._reload.run())
                if self._options.run_for_ms is not None:  # of work; the start has its own time limits
                    asyncio.get_running_loop().call_later(self._options.run_for_ms / 1000, self._stop)
            case DaemonFailed(reason=reason, passing=passing, final=final):
                self._may_pass = (passing or self._ready) and not final
                self._failure = self._failure or one_line(reason)
            case GuestCount(count=count):
                self._guests = count
            case DaemonState(up=up, text=text):
                self._notify(f"STATUS={one_line(text)}")
                with self._reported("ready file"):
                    self._files.set_ready(up and not self._stopping)
                if up and not self._stopping:
                    self._names.tunnel_is_up(self._profile)
            case Alive():
                self._notify("WATCHDOG=1")
            case PinThese():
                self._tell(Pinned(error=self._pin(fds)))
            case Reloaded(error=error):
                if self._reloaded is not None and not self._reloaded.done():
                    self._reloaded.set_result(error)
            case ReloadWanted():
                self._tasks.spawn(self._reload.run())
            case DestProbed(profile=profile):
                with self._reported("Dest profile"):
                    self._files.keep_dest_profile(profile)

    def _pin(self, fds: list[int]) -> str:
        try:
            pin(self._config.bpf_pin_dir, self._profile.device, fds)
        except QreError as error:
            return str(error)[:512]
        return ""

    def _notify(self, text: str) -> None:
        """Notify systemd; unsent messages go in a moment, and nothing ever waits for them."""
        if not self._notifier.tell(text) and not self._flushing:
            self._tasks.spawn(self._flush_notifier())

    async def _flush_notifier(self) -> None:
        self._flushing = True
        while not self._notifier.flush():
            await asyncio.sleep(_NOTIFY_RETRY)
        self._flushing = False

    # --- reload ---

    def _reload_begun(self) -> None:
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def _reload_finished(self, error: str) -> None:
        self._tell(ReloadFinished(error=error[:512]))
        self._notify("READY=1")

    async def _reload_once(self) -> None:
        """Read the profile again and apply what may change. Raises QreError when it is refused."""
        profile, old = self._load(), self._profile
        refuse_replacement(profile, state_of(old, self._table), _RESTART)
        if profile.dns is not None:
            name_service()
        table = self._table or chosen_table(profile, self._config)
        config = msgspec.structs.replace(self._worker_config(profile), table=table)
        secrets = secrets_memfd(profile)
        try:
            self._tell(Supply(name="new_profile_secrets"), secrets)
        finally:
            os.close(secrets)
        self._reloaded = asyncio.get_running_loop().create_future()
        self._tell(ApplyReload(config=config))
        async with asyncio.timeout(_RELOAD_TIMEOUT):
            if error := await self._reloaded:
                raise MachineError("reload", error)
        self._profile, self._table = profile, table
        save_state(self._config, state_of(profile, table))
        self._names.follow(profile)

    def _task_failed(self, error: BaseException) -> None:
        """A failing task of this process is a defect: the daemon ends."""
        self._end_at_once(f"internal error: {type(error).__name__}: {error}")

    def _end_at_once(self, why: str) -> None:
        self._failure, self._may_pass = self._failure or why, self._ready
        kill_descendants(os.getpid())


def run_daemon(profile: Profile, config: GlobalConfig, options: DaemonOptions, load: Loader) -> int:
    """Run until a signal, the time bound, or a failure (QreError)."""
    sandbox.forbid_dumps()
    log_to_stderr("qre-tool", config.log_level)
    lines_are_of(profile.name, profile.device)
    return Daemon(profile, config, options, load).run()
