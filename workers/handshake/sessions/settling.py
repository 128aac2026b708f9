"""After the hand-over: retire the handshake's connection IDs, issue spare ones, see the tunnel's end. Sans-IO.

RFC 9000 §5.1. The data plane is asked to send a frame and reports its fate; a lost frame is sent again unchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final, Protocol

from qre.dataplane.protocol import CidAdoptFor, CidReleaseFor, DataplaneRequest, FrameSend
from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.wire.close_reason import CloseReason
from qre.wire.frames import Frame, NewConnectionId, RetireConnectionId, encode_frame
from qre.workers.handshake.sessions.control_frames import parse_control_frames_untrusted
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_rules import SessionStage
from qre.workers.handshake.sessions.session_state import CidsChanged, Event, Live, Then

#: A frame that was lost, or whose fate is unknown, is sent again after this (seconds).
_RETRY: Final = 5.0
#: After the hand-over, before a spare connection ID is issued (seconds): what a site says at that time is known, and
#: this packet is none of it.
_QUIET: Final = (2.0, 6.0)
#: A connection ID that the peer has retired leads here for so long (seconds): packets that are on their way come to
#: the session, and not to a site that would answer them with a stateless reset.
_LEAVES: Final = 5.0
#: So many lead here at a time.
_MOST_LEAVING: Final = 4
#: Spare connection IDs that one peer may consume.
_MAX_SPARES: Final = 64


class SettlingOwner(Protocol):
    """What settling needs of ``Sessions``."""

    @property
    def cids(self) -> RoutedCids | None:
        """The source of spare connection IDs; None on a client."""
        ...

    @property
    def random(self) -> Random:
        """For times."""
        ...

    @property
    def events(self) -> deque[Event]:
        """What the owner of the sessions is to be told."""
        ...

    def ask(self, make: Callable[[int], DataplaneRequest], then: Then | None) -> int | None:
        """Queue a request; its id. None without a data plane."""
        ...

    def has_connection_id(self, connection_id: bytes) -> bool:
        """Whether it is a session's."""
        ...

    def change(self, live: Live, record: SessionRecord) -> None:
        """Write the record before anything else happens."""
        ...

    def is_live(self, live: Live) -> bool:
        """Whether the session still exists."""
        ...

    def delete(self, session_id: bytes, words: str, reason: CloseReason) -> None:
        """End the session and tell the peer the reason."""
        ...


class Settling:
    """Serves all sessions; the state of each is in its ``Live``."""

    def __init__(self, owner: SettlingOwner) -> None:
        self._owner = owner

    def settle(self, live: Live, now: float) -> None:
        """Client: retire the handshake's connection ID. Server: issue a spare one once that is retired."""
        record = live.record
        if record.settled or live.settling is not None or live.stage is not SessionStage.UP:
            return
        if record.role is Role.CLIENT:
            sequence = record.handed_over.retire_sequence
            if sequence is None:
                self._owner.change(live, replace(record, settled=True))
            else:
                self._send_frame(live, RetireConnectionId(sequence), now)
        elif record.handed_over.next_cid_sequence == 1 and not record.spare_cid and not live.began:
            live.began, live.settle_at = True, now + self._owner.random.uniform(*_QUIET)
        elif record.spare_cid or record.handed_over.next_cid_sequence == 1:
            # Otherwise wait for RETIRE_CONNECTION_ID: the handshake's connection ID still counts.
            self._issue_spare(live, now)

    def _issue_spare(self, live: Live, now: float) -> None:
        """Issue a spare connection ID, or the same again: a sequence number must not name two."""
        record = live.record
        if self._owner.cids is None or live.spares >= _MAX_SPARES:
            return
        sequence = record.handed_over.next_cid_sequence
        if not record.spare_cid or record.spare_sequence != sequence:
            live.spares += 1
            record = replace(
                record,
                spare_cid=self._free(self._owner.cids, record.handed_over.routed_cid),
                spare_sequence=sequence,
                settled=False,
            )
            self._owner.change(live, record)
            self._owner.events.append(CidsChanged())
        self.adopt_spare(live)
        token = self._owner.cids.reset_token(record.spare_cid)
        self._send_frame(live, NewConnectionId(sequence, record.used_sequence, record.spare_cid, token), now)

    def _free(self, cids: RoutedCids, routed: bytes) -> bytes:
        """A connection ID like ``routed`` that no session has: as short as Dest's, two would meet one day."""
        cid = cids.like(routed)
        while self._owner.has_connection_id(cid):
            cid = cids.like(routed)
        return cid

    def adopt_spare(self, live: Live) -> None:
        """Ask the data plane to accept packets for the spare connection ID."""
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
        """The frame that was sent last is acknowledged, or lost and due again."""
        live.settling = None
        if not self._owner.is_live(live):
            return
        if acknowledged:
            self._owner.change(live, replace(live.record, settled=True))
        else:
            live.settle_at = now + _RETRY

    def frames_received(self, live: Live, data: bytes, now: float) -> None:
        """Handle frames that the data plane passes on: retired connection IDs, or the end of the tunnel."""
        try:
            frames = parse_control_frames_untrusted(data)
        except UntrustedInputError:
            self._owner.delete(live.record.session_id, "the peer sent malformed frames", CloseReason.MALFORMED)
            return
        if frames.tunnel_ended:
            self._owner.delete(live.record.session_id, "the peer ended the tunnel", CloseReason.TUNNEL_ENDED)
            return
        if live.record.role is Role.SERVER:
            for sequence in frames.retired:
                self._retired(live, sequence, now)

    def _retired(self, live: Live, sequence: int, now: float) -> None:
        record = live.record
        following = record.handed_over.next_cid_sequence
        if not record.spare_cid and sequence == 0 and following > 1:
            self._issue_spare(live, now)
        elif record.spare_cid and sequence == record.spare_sequence:  # it has tried another path in vain
            spent, used = record.spare_cid, record.used_sequence
            handed_over = replace(record.handed_over, next_cid_sequence=following + 1)
            kept = replace(record, handed_over=handed_over, spare_cid=b"", spare_sequence=0, routed_sequence=used)
            self._retires(live, spent, kept, now)
        elif record.spare_cid and sequence == record.used_sequence:
            self._moved_on(live, now)

    def _moved_on(self, live: Live, now: float) -> None:
        """The client uses the spare connection ID and has retired the other: it has migrated (RFC 9000 §9.5)."""
        record = live.record
        before, used = record.handed_over.routed_cid, record.spare_sequence
        following = record.handed_over.next_cid_sequence
        handed_over = replace(record.handed_over, routed_cid=record.spare_cid, next_cid_sequence=following + 1)
        kept = replace(record, handed_over=handed_over, spare_cid=b"", spare_sequence=0, routed_sequence=used)
        self._retires(live, before, kept, now)

    def _retires(self, live: Live, cid: bytes, kept: SessionRecord, now: float) -> None:
        """The client has retired ``cid``, and the record is ``kept``. It leads here a little longer."""
        leaving = (*live.leaving, (now + _LEAVES, cid))
        live.leaving = leaving[-_MOST_LEAVING:]
        self._owner.change(live, kept)
        for _, gone in leaving[:-_MOST_LEAVING]:
            self._release(live, gone)
        self._issue_spare(live, now)

    def leave(self, live: Live, now: float) -> None:
        """Connection IDs whose time is over lead here no more."""
        gone = [cid for at, cid in live.leaving if at <= now]
        live.leaving = tuple((at, cid) for at, cid in live.leaving if at > now)
        for cid in gone:
            self._release(live, cid)

    def _release(self, live: Live, cid: bytes) -> None:
        self._owner.events.append(CidsChanged())
        session_id = live.record.session_id
        self._owner.ask(lambda id: CidReleaseFor(id=id, session_id=session_id, connection_id=cid), None)
