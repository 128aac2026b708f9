"""The sessions of one device: checks and carries out the handshake worker's requests. No sockets here.

Requests take effect completely or not at all. A session's transmit keys pass the number marks before anything else,
so that no sequence of requests and crashes repeats a number under a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from qre.addresses import host_port
from qre.dataplane.protocol import (
    MAX_CIDS_PER_SESSION,
    MAX_SESSIONS_PER_DEVICE,
    SESSIONS_PER_ANSWER,
    Answer,
    CidAdoptFor,
    CidReleaseFor,
    DataplaneRequest,
    FrameSend,
    NewPort,
    PathProven,
    Refusal,
    SessionDelete,
    SessionInstall,
    SessionList,
    SessionMark,
    SessionRefusedError,
    SessionUpdate,
    digest,
    refused,
)
from qre.dataplane.status import SessionStatus
from qre.ends import Role
from qre.errors import QreError
from qre.wire import overhead
from qre.workers.dataplane.inner.ecn import NOT_ECT
from qre.workers.dataplane.loss.client_session import ClientSession, new_session
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.dataplane.session.session import Session
from qre.workers.dataplane.session.session_life import LifeState
from qre.workers.dataplane.session.wiping import wipe_install, wipe_keys
from qre.workers.dataplane.table import AllowedIps, table_keys

_SHOWN = {
    LifeState.HELD: "held",
    LifeState.ESTABLISHED: "established",
    LifeState.CLOSING: "closing",
    LifeState.ENDED: "ended",
}


class Registry:
    """``drops`` counts packets by reason; ``random`` gives bytes for path challenges; ``ecn`` is the codepoint of
    Dest's packets."""

    def __init__(
        self, marks: NumberMarks, drops: Counter[str], random: Callable[[int], bytes], ecn: int = NOT_ECT
    ) -> None:
        self._marks = marks
        self._drops = drops
        self._random = random
        self.ecn = ecn
        self.sessions: dict[bytes, Session] = {}
        self.routes = AllowedIps()
        #: Server sessions by routed CID, spare ones included.
        self.by_cid: dict[bytes, Session] = {}
        self._cids: dict[bytes, dict[bytes, int]] = {}  # session id -> routed CID -> sequence
        #: Lengths of routed CIDs in use, most often one, and how many have each.
        self.cid_lengths: list[int] = []
        self._of_length: Counter[int] = Counter()

    def answer(self, request: DataplaneRequest, now: float) -> Answer:
        """Carry the request out."""
        try:
            match request:
                case SessionInstall():
                    self._install(request, now)
                case SessionUpdate():
                    session = self._known(request.session_id)
                    session.update(request, now)
                    return Answer(id=request.id, key_epoch=session.phases.epoch)
                case SessionDelete():
                    self._known(request.session_id).close(now, tell=request.close, reason=request.reason)
                case CidAdoptFor():
                    self._adopt(self._known(request.session_id), request.connection_id, request.sequence)
                case CidReleaseFor():
                    self._release(self._known(request.session_id), request.connection_id)
                case FrameSend():
                    self._known(request.session_id).send_frames(request.id, request.frames, now)
                case PathProven():
                    self._known(request.session_id).path_proven(request.size, request.ago_ms / 1000, now)
                case NewPort():
                    self._client(request.session_id).new_port(request.number, now)
                case SessionList():
                    marks = self.marks(request.after)
                    page = marks[:SESSIONS_PER_ANSWER]
                    return Answer(id=request.id, sessions=page, more=len(marks) > len(page))
        except SessionRefusedError as error:
            return refused(request.id, error.refusal, error.what, error.key_epoch)
        except QreError as error:
            return refused(request.id, Refusal.OTHER, str(error))
        finally:
            self._wipe_unless_kept(request)
        return Answer(id=request.id)

    def _wipe_unless_kept(self, request: object) -> None:
        """The keys of a request that is refused, or repeats what is known, are nobody's."""
        match request:
            case SessionInstall(session_id=session_id):
                session = self.sessions.get(session_id)
                if session is None or session.install is not request:
                    wipe_install(request)
            case SessionUpdate(session_id=session_id):
                session = self.sessions.get(session_id)
                kept = (session.phases.keys, session.phases.next_keys) if session is not None else ()
                unkept = (keys for keys in (request.keys, request.next_keys) if not any(keys is one for one in kept))
                wipe_keys(*unkept)

    def _known(self, session_id: bytes) -> Session:
        session = self.sessions.get(session_id)
        if session is None or session.state in {LifeState.CLOSING, LifeState.ENDED}:
            raise SessionRefusedError(Refusal.NO_SUCH, "no such session")
        return session

    def _client(self, session_id: bytes) -> ClientSession:
        session = self._known(session_id)
        if not isinstance(session, ClientSession):
            raise SessionRefusedError(Refusal.OTHER, "a server's session has no port of its own")
        return session

    def _install(self, install: SessionInstall, now: float) -> None:
        present = self.sessions.get(install.session_id)
        if present is not None:
            return self._install_again(present, install)
        if len(self.sessions) >= MAX_SESSIONS_PER_DEVICE:
            raise SessionRefusedError(Refusal.NO_ROOM, "no room for another session")
        if install.role is Role.SERVER and install.connection_id in self.by_cid:
            raise QreError("another session has this connection id")
        prefixes = table_keys(install.allowed_ips)
        mark = self._marks.claim(
            install.session_id,
            install.key_epoch,
            install.keys.tx_key,
            install.packet_number,
            install.next_keys.tx_key if install.next_keys is not None else None,
        )
        session = new_session(install, mark, now, self._drops, self._random, self.ecn)
        self.sessions[session.session_id] = session
        self.routes.add(session, prefixes)
        self._adopt(session, install.connection_id, install.cid_sequence)
        return None

    @staticmethod
    def _install_again(session: Session, install: SessionInstall) -> None:
        """A repeat is harmless; any difference needs SessionUpdate."""
        epoch = session.phases.epoch
        if install.key_epoch < epoch:
            raise SessionRefusedError(Refusal.EPOCH_BEHIND, "key epoch behind", epoch)
        if session.state is LifeState.CLOSING:
            raise SessionRefusedError(Refusal.CLOSING, "the session is closing", epoch)
        if install.key_epoch != epoch:
            raise SessionRefusedError(Refusal.INSTALLED, "the session is installed already", epoch)
        if install.keys != session.phases.keys:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "the session is installed already, with other keys", epoch)

    def _adopt(self, session: Session, connection_id: bytes, sequence: int) -> None:
        cids = self._cids.setdefault(session.session_id, {})
        if session.role is Role.SERVER:
            if self.by_cid.get(connection_id, session) is not session:
                raise QreError("another session has this connection id")
            if len(connection_id) != session.packets.rx_cid_length:
                raise QreError("this connection id has another length")
            if len(cids) >= MAX_CIDS_PER_SESSION and connection_id not in cids:
                raise QreError("no room for another connection id")
            if connection_id not in self.by_cid:
                self._count_length(connection_id, 1)
            self.by_cid[connection_id] = session
            session.cid_issued(sequence)
        cids[connection_id] = sequence

    def _release(self, session: Session, connection_id: bytes) -> None:
        cids = self._cids[session.session_id]
        if connection_id not in cids:
            raise QreError("the session has no such connection id")
        if len(cids) == 1:
            raise QreError("it is the session's last connection id")
        del cids[connection_id]
        self._forget_cid(connection_id)

    def _forget_cid(self, connection_id: bytes) -> None:
        if self.by_cid.pop(connection_id, None) is not None:
            self._count_length(connection_id, -1)

    def _count_length(self, connection_id: bytes, more: int) -> None:
        self._of_length[len(connection_id)] += more
        self.cid_lengths = sorted(length for length, count in self._of_length.items() if count)

    def remove(self, session: Session) -> None:
        """Remove a session that has ended."""
        self.sessions.pop(session.session_id, None)
        session.forget_keys()
        self.routes.remove(session)
        for cid in self._cids.pop(session.session_id, {}):
            if self.by_cid.get(cid) is session:
                self._forget_cid(cid)

    def marks(self, after: bytes = b"") -> tuple[SessionMark, ...]:
        """The progress of each session, in the order of their ids."""
        return tuple(
            SessionMark(
                session_id=session.session_id,
                connection_id=session.install.connection_id,
                key_epoch=session.phases.epoch,
                packet_number=session.packets.next_number,
                confirmed=session.confirmed,
                begun=session.begun,
                routed=digest(session.install.allowed_ips),
                port=session.port_use,
                lent=session.lent,
            )
            for session_id, session in sorted(self.sessions.items())
            if session_id > after and session.state in {LifeState.HELD, LifeState.ESTABLISHED}
        )

    def status(self, now: float) -> tuple[SessionStatus, ...]:
        """One entry a session; ``now`` is monotonic, in seconds."""
        return tuple(self._status_of(session, now) for session in self.sessions.values())

    def _status_of(self, session: Session, now: float) -> SessionStatus:
        heard = session.last_receive
        install, client = session.install, session.role is Role.CLIENT
        return SessionStatus(
            session_id=session.session_id,
            connection_id=session.packets.tx_cid if client else install.connection_id,
            client_connection_id=install.client_connection_id,
            short_id=install.short_id,
            state=_SHOWN[session.state],
            key_epoch=session.phases.epoch,
            tx_packet_number=session.packets.next_number,
            rx_packet_number=session.packets.received.highest,
            endpoint=host_port(*session.peer),
            allowed_ips=install.allowed_ips,
            age_ms=int((now - session.created) * 1000),
            last_receive_ms=None if heard is None else int((now - heard) * 1000),
            rx_packets=session.rx_packets,
            rx_bytes=session.rx_bytes,
            tx_packets=session.tx_packets,
            tx_bytes=session.tx_bytes,
            cids=tuple(self._cids.get(session.session_id, {})),
            path_mtu=overhead.path_mtu(session.path_mtu.size, session.peer[0]),
            inner_mtu=session.max_inner,
            inner_mtu_ipv6=max(session.max_inner_ipv6, 0),
            inner_mtu_in_two=session.max_in_two or None,
            tx_acknowledged=session.recovery.packets_acknowledged,
            tx_lost=session.recovery.packets_lost,
            unanswered_ms=session.unanswered_ms(now),
        )
