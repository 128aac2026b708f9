"""After the hand-over: connection IDs of the handshake retired, spare ones issued, the CONNECT stream's end. Sans-IO.

RFC 9000 §5.1. A frame is asked of the data plane and its fate comes back; what is lost is sent again, the same one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from qre.dataplane.protocol import CidAdoptFor, CidReleaseFor, DataplaneRequest, FrameSend
from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.wire.frames import Frame, NewConnectionId, RetireConnectionId, encode_frame
from qre.workers.handshake.sessions.control_frames import parse_control_frames_untrusted
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_rules import SessionStage
from qre.workers.handshake.sessions.session_state import CidsChanged, Event, Live, Then

#: A frame whose fate is bad, or not known, is sent again after this (seconds).
_RETRY: Final = 5.0
#: Spare connection IDs that one peer may use up.
_MAX_SPARES: Final = 64


class SettlingOwner(Protocol):
    """The table of sessions, as settling needs it."""

    @property
    def cids(self) -> RoutedCids | None: ...

    @property
    def events(self) -> deque[Event]: ...

    def ask(self, make: Callable[[int], DataplaneRequest], then: Then | None) -> int | None: ...

    def change(self, live: Live, record: SessionRecord) -> None: ...

    def is_live(self, live: Live) -> bool: ...

    def delete(self, session_id: bytes, reason: str) -> None: ...


class Settling:
    """One for all sessions; what belongs to one is in its ``Live``."""

    def __init__(self, owner: SettlingOwner) -> None:
        self._owner = owner

    def settle(self, live: Live, now: float) -> None:
        """After the hand-over a client retires the handshake's connection ID; then the server issues a spare one."""
        record = live.record
        if record.settled or live.settling is not None or live.stage is not SessionStage.UP:
            return
        if record.role is Role.CLIENT:
            sequence = record.handed_over.retire_sequence
            if sequence is None:
                self._owner.change(live, replace(record, settled=True))
            else:
                self._send_frame(live, RetireConnectionId(sequence), now)
        elif record.spare_cid or record.handed_over.next_cid_sequence == 1:
            # Otherwise the handshake's own is still counted: RETIRE_CONNECTION_ID is waited for.
            self._issue_spare(live, now)

    def _issue_spare(self, live: Live, now: float) -> None:
        """The same one again when its fate is not known: a sequence number must not name two."""
        record = live.record
        if self._owner.cids is None or live.spares >= _MAX_SPARES:
            return
        sequence = record.handed_over.next_cid_sequence
        if not record.spare_cid or record.spare_sequence != sequence:
            live.spares += 1
            record = replace(record, spare_cid=self._owner.cids.make(), spare_sequence=sequence, settled=False)
            self._owner.change(live, record)
            self._owner.events.append(CidsChanged())
        self.adopt_spare(live)
        token = self._owner.cids.reset_token(record.spare_cid)
        self._send_frame(live, NewConnectionId(sequence, sequence - 1, record.spare_cid, token), now)

    def adopt_spare(self, live: Live) -> None:
        """Have the data plane take packets for the spare connection ID."""
        record = live.record
        self._owner.ask(
            lambda id: CidAdoptFor(
                id=id,
                session_id=record.session_id,
                connection_id=record.spare_cid,
                sequence=record.spare_sequence,
            ),
            None,
        )

    def _send_frame(self, live: Live, frame: Frame, now: float) -> None:
        session_id = live.record.session_id
        live.settling = self._owner.ask(
            lambda id: FrameSend(id=id, session_id=session_id, frames=encode_frame(frame)),
            lambda answer, now: self.settled(live, False, now) if answer.refusal is not None else None,
        )
        if live.settling is None:
            live.settle_at = now + _RETRY

    def settled(self, live: Live, acknowledged: bool, now: float) -> None:
        """What became of the frame that was sent last."""
        live.settling = None
        if not self._owner.is_live(live):
            return
        if acknowledged:
            self._owner.change(live, replace(live.record, settled=True))
        else:
            live.settle_at = now + _RETRY

    def frames_received(self, live: Live, data: bytes, now: float) -> None:
        """Frames that no data plane owns: the peer retires connection IDs, or ends the tunnel."""
        try:
            frames = parse_control_frames_untrusted(data)
        except UntrustedInputError:
            self._owner.delete(live.record.session_id, "the peer sent malformed frames")
            return
        if frames.tunnel_ended:
            self._owner.delete(live.record.session_id, "the peer ended the tunnel")
            return
        if live.record.role is Role.SERVER:
            for sequence in frames.retired:
                self._retired(live, sequence, now)

    def _retired(self, live: Live, sequence: int, now: float) -> None:
        record = live.record
        following = record.handed_over.next_cid_sequence
        if not record.spare_cid and sequence == 0 and following > 1:
            self._issue_spare(live, now)
        elif record.spare_cid and sequence == record.spare_sequence:
            handed_over = replace(record.handed_over, next_cid_sequence=following + 1)
            self._owner.change(live, replace(record, handed_over=handed_over))
            self._issue_spare(live, now)
        elif record.spare_cid and sequence == following - 1:
            self._moved_on(live, now)

    def _moved_on(self, live: Live, now: float) -> None:
        """The client uses the spare connection ID and has given the other back: it has moved (RFC 9000 §9.5)."""
        record = live.record
        before = record.handed_over.routed_cid
        following = record.handed_over.next_cid_sequence
        handed_over = replace(record.handed_over, routed_cid=record.spare_cid, next_cid_sequence=following + 1)
        self._owner.change(live, replace(record, handed_over=handed_over, spare_cid=b"", spare_sequence=0))
        self._owner.events.append(CidsChanged())
        self._owner.ask(
            lambda id: CidReleaseFor(id=id, session_id=record.session_id, connection_id=before),
            None,
        )
        self._issue_spare(live, now)
