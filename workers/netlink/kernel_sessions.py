"""The known state of the sessions in qre.ko: turns events and listings into reports. No I/O.

The kernel drops events that are not read in time. Then, and periodically because other programs may change sessions,
the sessions are listed and compared with the known state; every difference is reported as the missing event would
have been. Lost frames of a peer cannot be recovered that way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qre.dataplane.protocol import (
    MAX_CIDS_PER_SESSION,
    REKEY_AFTER_PACKETS,
    CidAdoptFor,
    CidReleaseFor,
    DataplaneReport,
    FrameFate,
    FrameSend,
    KeyPhaseChanged,
    LossReason,
    PeerMoved,
    RekeyDue,
    SessionBegun,
    SessionConfirmed,
    SessionInstall,
    SessionLost,
    SessionMark,
    SessionSilent,
    SessionUpdate,
    Underlay,
    digest,
)
from qre.ends import Role
from qre.kernel.answers import KernelEvent, KernelSession, MapSyncFailed, SessionInstalled

#: The most frames whose fate is outstanding; the oldest are forgotten.
_MAX_FRAMES = 4096
CLOSING, ESTABLISHED = "closing", "established"
_Noted = SessionBegun | SessionConfirmed | KeyPhaseChanged | PeerMoved | SessionSilent


@dataclass
class _Known:
    """One session, as last reported to the handshake worker."""

    epoch: int
    confirmed: bool
    underlay: Underlay | None
    cids: set[bytes]
    #: The packet number that this epoch epoch_from with, or a later one; None until the next listing.
    epoch_from: int | None
    rekey_after: int
    begun: bool = False
    silent: bool = False


@dataclass
class KernelSessions:
    """The sessions of one device."""

    role: Role
    #: Packets of one key, for sessions that another program installed: their RekeyDue did not come here.
    rekey_after: int = REKEY_AFTER_PACKETS
    _known: dict[bytes, _Known] = field(default_factory=dict)
    _frames: dict[int, bytes] = field(default_factory=dict)  # FrameSend's id -> session id

    def connection_ids(self) -> frozenset[bytes]:
        """The routed CIDs of all sessions; a client has none."""
        return frozenset(cid for known in self._known.values() for cid in known.cids)

    # --- what the kernel was asked and did ---

    def installed(self, install: SessionInstall) -> None:
        """The kernel accepted ``install``; a repeat changes nothing."""
        if install.session_id in self._known:
            return  # a repeat
        self._known[install.session_id] = _Known(
            epoch=install.key_epoch,
            confirmed=self.role is Role.SERVER and not install.held,
            underlay=install.underlay,
            cids={install.connection_id} if self.role is Role.SERVER else set(),
            epoch_from=install.packet_number,
            rekey_after=install.rekey_after_packets,
        )

    def updated(self, update: SessionUpdate) -> None:
        """The kernel accepted ``update``; only a newer key epoch matters here."""
        known = self._known.get(update.session_id)
        if known is not None and update.key_epoch > known.epoch:
            known.epoch, known.epoch_from = update.key_epoch, None

    def deleted(self, session_id: bytes) -> None:
        """The session is gone from the kernel; an unknown one is ignored."""
        self._known.pop(session_id, None)
        self._frames = {number: owner for number, owner in self._frames.items() if owner != session_id}

    def adopted(self, request: CidAdoptFor) -> None:
        """The session is reachable under one more connection ID."""
        if request.session_id in self._known:
            self._known[request.session_id].cids.add(request.connection_id)

    def released(self, request: CidReleaseFor) -> None:
        """The session is reachable under one connection ID less."""
        if request.session_id in self._known:
            self._known[request.session_id].cids.discard(request.connection_id)

    def frames_sent(self, request: FrameSend) -> None:
        """Remember whose frames ``request.id`` are; of more than _MAX_FRAMES the oldest is forgotten."""
        if len(self._frames) >= _MAX_FRAMES:
            del self._frames[next(iter(self._frames))]
        self._frames[request.id] = request.session_id

    def forget_silence(self) -> None:
        """There is another handshake worker: the next listing tells it which sessions are silent."""
        for known in self._known.values():
            known.silent = False

    # --- what it says ---

    def happened(self, event: KernelEvent) -> DataplaneReport | None:
        """The report for an event, if any. The caller handles lost events and the map."""
        what = event.what
        if isinstance(what, SessionInstalled):
            # Another program, unless we did it: the next listing shows more.
            self._known.setdefault(what.session_id, _Known(0, False, None, set(), None, self.rekey_after))
            return None
        if isinstance(what, SessionLost):
            self.deleted(what.session_id)
        elif isinstance(what, FrameFate):
            self._frames.pop(what.id, None)
        elif isinstance(what, _Noted):
            self._note(what)
        return None if isinstance(what, MapSyncFailed) or not isinstance(what, DataplaneReport) else what

    def _note(self, what: _Noted) -> None:
        known = self._known.get(what.session_id)
        if known is None:
            return
        match what:
            case SessionBegun():
                known.begun = True
            case SessionConfirmed():
                known.confirmed = True
            case KeyPhaseChanged(key_epoch=epoch) if epoch > known.epoch:
                known.epoch, known.epoch_from = epoch, None
            case PeerMoved(underlay=underlay):
                known.underlay = underlay
            case SessionSilent(silent=silent):
                known.silent = silent

    def look(self, sessions: Iterable[KernelSession], *, events_lost: bool = False) -> list[DataplaneReport]:
        """Compare with a listing of all sessions of the device; the missing reports."""
        reports: list[DataplaneReport] = []
        if events_lost:
            reports += [
                FrameFate(session_id=session_id, id=number, acknowledged=False)
                for number, session_id in self._frames.items()
            ]
            self._frames.clear()
        present = {session.status.session_id: session for session in sessions if session.status.state != CLOSING}
        for session_id in self._known.keys() - present.keys():
            self.deleted(session_id)
            reports.append(SessionLost(session_id=session_id, reason=LossReason.DELETED))
        for session_id, session in present.items():
            known = self._known.get(session_id)
            if known is None:
                self._known[session_id] = self._known_from(session)
            else:
                reports += self._differences(known, session)
        return reports

    def _differences(self, known: _Known, session: KernelSession) -> list[DataplaneReport]:
        status, reports = session.status, list[DataplaneReport]()
        if known.epoch_from is None:
            known.epoch_from = status.tx_packet_number
        if session.begun and not known.begun:
            known.begun = True
            reports.append(SessionBegun(session_id=status.session_id))
        if session.confirmed and not known.confirmed:
            known.confirmed = True
            reports.append(SessionConfirmed(session_id=status.session_id))
        if status.key_epoch > known.epoch:
            known.epoch, known.epoch_from = status.key_epoch, status.tx_packet_number
            reports.append(KeyPhaseChanged(session_id=status.session_id, key_epoch=status.key_epoch))
        elif status.tx_packet_number - known.epoch_from >= known.rekey_after:
            known.epoch_from = status.tx_packet_number
            reports.append(RekeyDue(session_id=status.session_id, key_epoch=status.key_epoch))
        if session.underlay is not None and session.underlay != known.underlay:
            if known.underlay is not None and self._peer_moved(known.underlay, session.underlay):
                reports.append(PeerMoved(session_id=status.session_id, underlay=session.underlay))
            known.underlay = session.underlay
        if session.silent is not known.silent:
            known.silent = session.silent
            reports.append(SessionSilent(session_id=status.session_id, silent=session.silent))
        if self.role is Role.SERVER:
            known.cids = set(status.cids)
        return reports

    def _peer_moved(self, before: Underlay, now: Underlay) -> bool:
        """A client's own port changes when the client moves: that is no news of its peer."""
        ends = ((each.peer_ip, each.peer_port) for each in (before, now))
        return self.role is Role.SERVER or next(ends) != next(ends)

    def _known_from(self, session: KernelSession) -> _Known:
        status = session.status
        return _Known(
            epoch=status.key_epoch,
            confirmed=session.confirmed,
            underlay=session.underlay,
            cids=set(status.cids) if self.role is Role.SERVER else set(),
            epoch_from=status.tx_packet_number,
            rekey_after=self.rekey_after,
            begun=session.begun,
        )


def mark_of(session: KernelSession) -> SessionMark:
    """The mark that the handshake worker compares with its record."""
    status = session.status
    return SessionMark(
        session_id=status.session_id,
        connection_id=status.connection_id,
        key_epoch=status.key_epoch,
        packet_number=status.tx_packet_number,
        confirmed=session.confirmed,
        begun=session.begun,
        short_id=status.short_id,
        connection_ids=status.cids[:MAX_CIDS_PER_SESSION],
        addresses=tuple(network for network in status.allowed_ips if network.prefixlen == network.max_prefixlen)[
            :MAX_CIDS_PER_SESSION
        ],
        routed=digest(status.allowed_ips),
    )
