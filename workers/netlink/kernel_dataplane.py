"""The kernel's data plane for the handshake worker: carries out its requests in qre.ko and reports events.

Requests come with the keys over their own pair, one after the other, and each is answered exactly once, with the same
kinds of refusal as the user data plane. A client's SessionInstall brings its UDP socket, which is checked and handed
to the kernel. On a server an answer to SessionInstall or CidAdoptFor means that packets with the connection ID are
steered: qre.ko or, where it cannot, the bpf_loader worker has written it into the BPF map. No key stays here, and no
error contains one.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from qre.addresses import host_port
from qre.dataplane.protocol import (
    SESSIONS_PER_ANSWER,
    Answer,
    CidAdoptFor,
    CidReleaseFor,
    DataplaneReport,
    DataplaneRequest,
    FrameSend,
    NewPort,
    PathProven,
    Refusal,
    SessionDelete,
    SessionInstall,
    SessionList,
    SessionUpdate,
    refused,
)
from qre.dataplane.status import SharedLoader, SharedPort, bounded
from qre.dest_profile import DestProfile
from qre.device.session_end import end_session
from qre.ends import Role
from qre.errors import MachineError, QreError
from qre.ipc.messages import DataplaneStatus, UseLoader
from qre.ipc.steering import Steering
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.kernel import abi
from qre.kernel.answers import (
    EventsLost,
    FramesLimited,
    KernelSession,
    LoaderDescription,
    MapSyncFailed,
)
from qre.kernel.events import EventSocket
from qre.kernel.port_registration import register, release, store_dest_profile
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.wire.close_reason import CloseReason
from qre.workers.netlink.kernel_ports import KernelPorts, PortNews, client_socket
from qre.workers.netlink.kernel_sessions import CLOSING, KernelSessions, mark_of

#: The sessions are listed this often (seconds), whatever the events say: other programs may change them.
_LOOK_INTERVAL: Final = 15.0
#: The time that a held session waits for its client.
_STEERING_TIMEOUT: Final = 8.0
_MAX_QUEUED: Final = 4096
#: Consecutive reads of the event socket, so that other tasks get their turn.
_READS: Final = 4

_GONE: Final = (errno.ENOENT, errno.ENODEV)
#: The meaning of qre.ko's error numbers (kmod/session.c). EEXIST for an installed session is INSTALLED.
_REFUSALS: Final = {
    errno.ENOENT: Refusal.NO_SUCH,
    errno.ENODEV: Refusal.NO_SUCH,
    errno.EAGAIN: Refusal.NOT_CONFIRMED,
    errno.ESHUTDOWN: Refusal.CLOSING,
    errno.ESTALE: Refusal.EPOCH_BEHIND,
    errno.EKEYREJECTED: Refusal.OTHER_KEYS,
    errno.EEXIST: Refusal.KEY_USED,
    errno.ENOSPC: Refusal.NO_ROOM,
    errno.ENOBUFS: Refusal.NO_ROOM,
}


class KernelDataplane:
    """``report`` sends to the handshake worker, in order."""

    def __init__(self, context: WorkerContext, report: Callable[[DataplaneReport], None]) -> None:
        """Raises MachineError when qre.ko or its device is missing."""
        self._context = context
        self._device = context.config.device
        self._role = context.config.role
        self._report = report
        self._sessions = KernelSessions(self._role, context.config.rekey_after_packets)
        self._queue: deque[tuple[DataplaneRequest, list[int]]] = deque()
        self._steering: Steering | None = None
        self._tasks = Tasks(self._failed)
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.qre = Qre()
        try:
            if self.qre.device(self._device) is None:
                raise MachineError(f"device {self._device}", "it is not a device of qre.ko", "restart the daemon")
            self._events = EventSocket(self.qre.family)  # before the first listing, so that no event is missed
            try:
                self._frames = EventSocket(self.qre.family, abi.GENL_FRAMES)
            except BaseException:
                self._events.close()
                raise
        except BaseException:
            self.qre.close()
            raise
        self._ports = KernelPorts(self.qre, self._device, report)
        self._sessions.look(self.qre.sessions(self._device))
        self._loop.add_reader(self._events.fileno(), self._events_readable)
        self._loop.add_reader(self._frames.fileno(), self._frames_readable)
        self._tasks.spawn(self._work())
        self._timer = self._loop.call_later(_LOOK_INTERVAL, self._look_again)

    def close(self) -> None:
        """Close everything here; the kernel continues."""
        self._timer.cancel()
        self._tasks.cancel()
        self._loop.remove_reader(self._events.fileno())
        self._loop.remove_reader(self._frames.fileno())
        self.forget_requests()
        self._events.close()
        self._frames.close()
        self.qre.close()

    def end(self) -> None:
        """The daemon ends in order: close the sessions and release the port from the kernel."""
        for session in self.qre.sessions(self._device):
            try:
                end_session(self.qre, self._device, session.status.session_id, self._role, CloseReason.STOPPED)
            except NetlinkRefusedError as error:
                if error.code not in _GONE:
                    raise
        if self._role is Role.SERVER:
            release(self.qre, self._device, (self._context.config.listen_ip, self._context.config.listen_port))

    def _failed(self, error: BaseException) -> None:
        reason = str(error) if isinstance(error, QreError) else type(error).__name__
        self._context.fail(f"the kernel's data plane: {reason}")

    # --- requests ---

    def handle(self, request: DataplaneRequest, fds: list[int]) -> None:
        """Take a request and its descriptors, which are closed here."""
        if len(self._queue) >= _MAX_QUEUED:
            _close(fds)
            self._report(refused(request.id, Refusal.NO_ROOM, "too many requests at once"))
            return
        self._queue.append((request, fds))
        self._wake.set()

    def forget_requests(self) -> None:
        """Drop the requests of a dead handshake worker; the next one compares the sessions."""
        for _, fds in self._queue:
            _close(fds)
        self._queue.clear()
        self._sessions.forget_silence()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                request, fds = self._queue.popleft()
                try:
                    await self._serve(request, fds)
                finally:
                    _close(fds)

    async def _serve(self, request: DataplaneRequest, fds: list[int]) -> None:
        """Events that came before a refusal are reported before it (they explain it), others after the answer."""
        try:
            self._carry_out(request, fds)
        except NetlinkRefusedError as error:
            self._read_events()
            self._report(self._refused(request, error))
            return
        except MachineError:
            raise  # the kernel did not answer: whether it did it is unknown
        except (QreError, ValueError) as error:
            self._report(refused(request.id, Refusal.OTHER, str(error)))
            return
        self._report(await self._answer(request))
        self._read_events()

    def _carry_out(self, request: DataplaneRequest, fds: list[int]) -> None:
        device, qre = self._device, self.qre
        match request:
            case SessionInstall():
                qre.session_install(device, request, self._socket(request, fds))
                self._sessions.installed(request)
            case SessionUpdate():
                qre.session_update(device, request)
                self._sessions.updated(request)
            case SessionDelete(id=number, session_id=session_id, close=True, reason=reason):
                end_session(qre, device, session_id, self._role, reason, number)
                self._sessions.deleted(session_id)
            case SessionDelete(session_id=session_id):
                qre.session_delete(device, session_id, close=False)
                self._sessions.deleted(session_id)
            case CidAdoptFor(session_id=session_id, connection_id=cid, sequence=sequence):
                qre.cid_adopt(device, cid, session_id, sequence)
                self._sessions.adopted(request)
            case CidReleaseFor(session_id=session_id, connection_id=cid):
                qre.cid_release(device, cid, session_id)
                self._sessions.released(request)
            case FrameSend(id=number, session_id=session_id, frames=frames):
                qre.frame_send(device, session_id, number, frames)
                self._sessions.frames_sent(request)
            case PathProven(session_id=session_id, size=size, ago_ms=ago):
                qre.path_proven(device, session_id, size, ago)
            case NewPort():
                self._ports.lend(request, fds)
            case SessionList():
                pass

    def _socket(self, request: SessionInstall, fds: list[int]) -> int | None:
        """The client's socket; a server's session uses the shared one."""
        if request.role is not self._role:
            raise QreError("session", f"the device is a {self._role}'s")
        if request.role is Role.SERVER:
            return None
        return client_socket(fds)

    async def _answer(self, request: DataplaneRequest) -> Answer:
        """The answer to a request that the kernel has carried out."""
        match request:
            case SessionList(after=after):
                marks = sorted(
                    (
                        self._ports.marked(mark_of(session))
                        for session in self._living()
                        if session.status.session_id > after
                    ),
                    key=lambda mark: mark.session_id,
                )
                page = tuple(marks[:SESSIONS_PER_ANSWER])
                return Answer(id=request.id, sessions=page, more=len(marks) > len(page))
            case SessionUpdate(key_epoch=epoch):
                return Answer(id=request.id, key_epoch=epoch)
            case SessionInstall() | CidAdoptFor() if self._role is Role.SERVER:
                why = await self._steered(request)
                return refused(request.id, Refusal.OTHER, why) if why else Answer(id=request.id)
            case SessionDelete() | CidReleaseFor():
                self._want()
        return Answer(id=request.id)

    def _living(self) -> list[KernelSession]:
        return [session for session in self.qre.sessions(self._device) if session.status.state != CLOSING]

    def _refused(self, request: DataplaneRequest, error: NetlinkRefusedError) -> Answer:
        """The kernel's refusal, with the session's key epoch where the handshake worker may have missed a change."""
        epoch, refusal = None, _REFUSALS.get(error.code, Refusal.OTHER)
        if isinstance(request, SessionInstall | SessionUpdate):
            present = self._present(request.session_id)
            epoch = present.status.key_epoch if present is not None else None
            if present is not None and isinstance(request, SessionInstall) and error.code == errno.EEXIST:
                refusal = Refusal.INSTALLED
            elif present is None and isinstance(request, SessionUpdate):
                refusal = Refusal.NO_SUCH
        return refused(request.id, refusal, str(error), epoch)

    def _present(self, session_id: bytes) -> KernelSession | None:
        present = self.qre.session(self._device, session_id)
        return present if present is not None and present.status.state != CLOSING else None

    # --- events ---

    def _events_readable(self) -> None:
        try:
            self._read_events()
        except MachineError as error:
            self._context.fail(str(error))

    def _read_events(self) -> None:
        """Report new events; list the sessions when some were lost."""
        lost = False
        for _ in range(_READS):
            for event in self._events.read():
                if isinstance(event.what, EventsLost):
                    lost = True
                elif event.device != self._device:
                    continue
                elif isinstance(event.what, MapSyncFailed):
                    self._map_failed(os.strerror(event.what.code))
                elif isinstance(event.what, PortNews):
                    self._ports.happened(event.what)
                elif isinstance(event.what, FramesLimited):
                    short = event.what.session_id.hex()[:8]
                    self._context.limited("frames", f"the peer of session {short} sends too many control frames")
                elif (report := self._sessions.happened(event)) is not None:
                    self._report(report)
        self._want()
        if lost:
            self._context.limited("events", "events of qre.ko were lost: its sessions are listed and compared")
            self._look(events_lost=True)

    def _frames_readable(self) -> None:
        """Report peers' frames for user space, after the events that came before them. Lost frames cannot be
        recovered."""
        try:
            self._read_events()
            for event in self._frames.read():
                if isinstance(event.what, EventsLost):
                    self._context.limited("frames", "control frames of peers were lost: the event socket was full")
                elif event.device == self._device and (report := self._sessions.happened(event)) is not None:
                    self._report(report)
        except MachineError as error:
            self._context.fail(str(error))

    def _look_again(self) -> None:
        self._timer = self._loop.call_later(_LOOK_INTERVAL, self._look_again)
        try:
            self._look()
        except MachineError as error:
            self._context.fail(str(error))

    def _look(self, *, events_lost: bool = False) -> None:
        sessions = self.qre.sessions(self._device)
        if not events_lost:
            self._read_events()  # waiting events say more than a missing session
        for report in self._sessions.look(sessions, events_lost=events_lost):
            self._report(report)
        self._ports.look(sessions)
        self._want()

    # --- the server's port ---

    def use_loader(self, message: UseLoader) -> None:
        """Register the shared socket and the loader's map; the loader mirrors when the kernel cannot."""
        config, held = self._context.config, self._context.descriptors
        missing = {"cid_routes", "program", "udp_kernel_slot"} - held.keys()
        if missing:
            raise MachineError("netlink worker", f"descriptors are missing: {', '.join(sorted(missing))}")
        listen = (config.listen_ip, config.listen_port)
        wanted = held["cid_routes"] if config.register_cid_map else None
        why = register(
            self.qre,
            self._device,
            LoaderDescription(
                program=message.program,
                pin_dir=message.pin_dir,
                cid_length=message.routed_cid_len,
                pid=message.pid,
            ),
            listen=listen,
            socket_fd=held["udp_kernel_slot"],
            map_fd=wanted,
            map_id=message.map_id,
            program_fd=held["program"],
        )
        if why:
            self._map_failed(why)

    def _map_failed(self, why: str) -> None:
        """The kernel does not write the map: from now on the loader does."""
        if self._steering is None:
            self._context.log.warning("qre.ko does not mirror connection IDs (%s): the BPF loader does", why)
            self._steering = Steering(self._context.request, lambda text: self._context.limited("steering", text))
            self._tasks.spawn(self._steering.run())
        self._want()

    def _want(self) -> None:
        if self._steering is not None:
            self._steering.want(self._sessions.connection_ids())

    async def _steered(self, request: SessionInstall | CidAdoptFor) -> str:
        """Wait until packets with the connection ID reach the kernel; on failure undo the request and return the
        reason."""
        self._read_map_failures()
        if self._steering is None:
            return ""
        self._want()
        try:
            await self._steering.adopted(request.connection_id, _STEERING_TIMEOUT)
        except MachineError as error:
            self._take_back(request)
            return str(error)[:512]
        return ""

    def _read_map_failures(self) -> None:
        """Check whether the map refused a connection ID, which the kernel records before it answers."""
        device = self.qre.device(self._device) if self._steering is None else None
        if device is not None and device.cid_map is not None and device.cid_map.missing:
            self._map_failed("the map refused a connection ID")

    def _take_back(self, request: SessionInstall | CidAdoptFor) -> None:
        try:
            if isinstance(request, SessionInstall):
                self.qre.session_delete(self._device, request.session_id, close=False)
                self._sessions.deleted(request.session_id)
            else:
                self.qre.cid_release(self._device, request.connection_id, request.session_id)
                released = CidReleaseFor(
                    id=request.id, session_id=request.session_id, connection_id=request.connection_id
                )
                self._sessions.released(released)
        except NetlinkRefusedError as error:
            if error.code not in _GONE:
                raise
        self._want()

    def store_dest_profile(self, profile: DestProfile) -> None:
        """Store a Dest profile with the device, whose packets get Dest's ECN field."""
        store_dest_profile(self.qre, self._device, profile)

    # --- what ``show`` tells ---

    def status(self) -> tuple[DataplaneStatus | None, SharedPort | None, tuple[bytes, ...]]:
        """Counters and sessions, the shared port (server), CIDs without a session. None: the device is gone."""
        device = self.qre.device(self._device)
        if device is None:
            return None, None, ()
        sessions = bounded([session.status for session in self.qre.sessions(self._device)])
        if self._role is Role.CLIENT:
            return DataplaneStatus(counters=device.counters, sessions=sessions), None, ()
        dataplane = DataplaneStatus(counters=device.counters, sessions=sessions)
        shared, mapped, loader = device.shared_socket, device.cid_map, device.loader
        port = SharedPort(
            socket=host_port(shared.ip, shared.port) if shared is not None else "",
            rx_packets=shared.rx if shared is not None else 0,
            passed_packets=shared.passed if shared is not None else 0,
            map_id=mapped.map_id if mapped is not None else None,
            map_entries=mapped.entries if mapped is not None else 0,
            map_missing=mapped.missing if mapped is not None else 0,
            sync_failures=mapped.sync_failures if mapped is not None else 0,
            mirrored_by_loader=self._steering is not None,
            loader=SharedLoader(
                program=loader.program, pin_dir=loader.pin_dir, routed_cid_len=loader.cid_length, pid=loader.pid
            )
            if loader is not None
            else None,
        )
        return dataplane, port, device.cids


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
