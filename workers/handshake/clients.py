"""Who a server's clients are, what each may have, and which of their sessions may go on.

Holds the identities of the profile, the grants of addresses, and the file of leases, through which every short id
without a section finds its last addresses kept for it after a restart of anything. A session ends when a reload takes
its short id, its addresses or the networks behind it away, or when a newer one of the same short id is confirmed;
twins (``twins``) are told apart from a client that has moved.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Hashable, Iterable
from ipaddress import ip_network
from typing import Final, NamedTuple

from qre.addresses import Address
from qre.dataplane.protocol import SessionMark, digest
from qre.errors import MachineError
from qre.ipc.worker import WorkerContext
from qre.profile_secrets import ListedClient, ProfileSecrets
from qre.quic.server.address_grants import Grants
from qre.quic.server.address_leases import FILE_LENGTH, Change, Leases
from qre.quic.server.identities import Identities
from qre.wire.close_reason import CloseReason
from qre.workers.handshake.coming_back.server_tickets import ServerTickets
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_state import SessionEnd, Settings
from qre.workers.handshake.twins import Twins
from qre.workers.handshake.worker_settings import identities, session_settings

#: A client that renews its session closes the old one itself before this, when nothing for it is on its way any more
#: (seconds).
_GRACE: Final = 3.0


class _Over(NamedTuple):
    """Why a session may not go on: for the log, and for the client."""

    words: str
    reason: CloseReason


class Clients:
    """``leases`` is the descriptor of their file, which belongs to this object. Raises MachineError when it cannot be
    read."""

    def __init__(self, context: WorkerContext, secrets: ProfileSecrets, leases: int) -> None:
        self._context = context
        self._fd = leases
        #: None where another daemon has the port: its clients come with nothing that it would have to open.
        self.tickets = self._new_tickets(secrets)
        self._twins = Twins()
        self.identities = self._before = identities(context.config, secrets)
        try:
            image = os.pread(leases, FILE_LENGTH, 0)
        except OSError as error:
            raise MachineError("leases file", error.strerror or "cannot be read") from error
        self.grants = Grants(context.config.address, self.identities, Leases(image))
        self._changed()

    def _new_tickets(self, secrets: ProfileSecrets) -> ServerTickets | None:
        fd = self._context.descriptors.pop("ticket_keys", None)
        if not self._context.config.joined:
            return ServerTickets(self._context, secrets.private_key, fd)
        if fd is not None:
            os.close(fd)
        return None

    def close(self) -> None:
        """Close the files."""
        os.close(self._fd)
        if self.tickets is not None:
            self.tickets.close()

    @property
    def short_ids(self) -> frozenset[bytes]:
        """Every short id that is let in."""
        return self.identities.short_ids

    def who(self, short_id: bytes) -> str:
        """The name of a client, of one that the last reload removed, too; or else its short id."""
        return (self.identities if short_id in self.short_ids else self._before).who(short_id)

    def listed(self) -> tuple[ListedClient, ...]:
        """Every client of the profile, those with a name first."""
        named = (
            ListedClient(name=one.name, short_id=one.short_id, address=tuple(each.ip for each in one.address))
            for one in self.identities.sections.values()
        )
        others = (ListedClient(name=None, short_id=short_id) for short_id in sorted(self.identities.others))
        return (*named, *others)

    def settings(self) -> Settings:
        """Of the sessions: each client's networks belong to it."""
        return session_settings(self._context.config, self.identities)

    # --- start and reload ---

    def restore(self, records: Iterable[SessionRecord]) -> list[SessionRecord]:
        """Those sessions of an earlier process that may go on; they hold their addresses."""
        kept = [record for record in records if not self._why_over(record.short_id, _granted(record))]
        for record in kept:
            self.grants.hold(record.session_id, record.short_id, _granted(record))
            if record.confirmed:
                self._keep(record.short_id, _granted(record))
        return kept

    def reload(self, secrets: ProfileSecrets, sessions: Sessions) -> None:
        """Apply the profile; end sessions whose short id, addresses or networks it takes away."""
        before = self._before = self.identities
        self.identities = self.grants.identities = identities(self._context.config, secrets)
        self.grants.own = self._context.config.address
        if self.tickets is not None:
            self.tickets.use(secrets.private_key)
        self._changed()
        for record in sessions.records():
            end = self._why_over(record.short_id, _granted(record), before)
            if end is not None:
                sessions.delete(record.session_id, end.words, end.reason)
        for mark in list(sessions.orphans.values()):
            end = self._why_over(mark.short_id, self._addresses(mark), before)
            if end is not None:
                sessions.delete_orphan(mark.session_id, end.reason)

    def may_go_on(self, holder: Hashable, short_id: bytes) -> bool:
        """Whether a handshake may go on after a reload."""
        return not self._why_over(short_id, self.grants.held(holder))

    def _changed(self) -> None:
        self._twins.keep(self.identities.short_ids)
        for change in self.grants.leases.keep(self.identities.others):
            self._write(change)
        if self.identities.unowned:
            networks = ", ".join(map(str, self.identities.unowned))
            self._context.log.warning(
                "AllowedIPs %s: routed to the device, but no client has it; name the client that does in a section"
                " [Client NAME] with this AllowedIPs",
                networks,
            )

    def _why_over(
        self, short_id: bytes, addresses: Iterable[Address], before: Identities | None = None
    ) -> _Over | None:
        """Why a session may not go on; None when it may."""
        if short_id not in self.identities.short_ids:
            return _Over("its short id was removed", CloseReason.REMOVED)
        if not self.grants.still_its(short_id, addresses):
            return _Over("its addresses are no longer its own", CloseReason.CHANGED)
        if before is not None and before.behind(short_id) != self.identities.behind(short_id):
            return _Over("the networks behind it have changed", CloseReason.CHANGED)
        return None

    # --- sessions ---

    def take_over(self, marks: tuple[SessionMark, ...], sessions: Sessions) -> None:
        """Keep orphans until their clients reconnect; end those that may not go on."""
        kept = 0
        for mark in marks:
            addresses = self._addresses(mark)
            end = self._why_over(mark.short_id, addresses)
            networks = (*map(ip_network, addresses), *self.identities.behind(mark.short_id))
            if end is None and mark.routed not in {b"", digest(networks)}:
                end = _Over("its networks have changed", CloseReason.CHANGED)
            if end is None:
                kept += 1
                self.grants.hold(mark.session_id, mark.short_id, addresses)
                if mark.confirmed:
                    self._keep(mark.short_id, addresses)
            else:
                sessions.delete_orphan(mark.session_id, end.reason)
        self._context.log.warning(
            "the kernel has %d sessions of an earlier daemon, without their secrets: %d carry traffic until their"
            " keys change, %d with unknown short ids or other clients' addresses were ended",
            len(marks),
            kept,
            len(marks) - kept,
        )

    def welcome(self, session_id: bytes, sessions: Sessions) -> None:
        """A confirmed session replaces the others of its short id, and its addresses are kept for that."""
        live = sessions.find(session_id)
        if live is None:
            return
        fresh = live.record
        client, place = self.identities.who(fresh.short_id), fresh.underlay.peer_ip
        self._context.limited(f"up {client}", f"client {client} is connected from {place}", logging.INFO)
        self._keep(fresh.short_id, _granted(fresh))
        for record in sessions.records_of(fresh.short_id):
            if record.session_id != session_id and record.confirmed and not sessions.ends(record.session_id):
                self._replace(record, fresh, sessions)

    def _replace(self, old: SessionRecord, new: SessionRecord, sessions: Sessions) -> None:
        places = str(old.underlay.peer_ip), str(new.underlay.peer_ip)
        now = time.monotonic()
        if not self._twins.replaced(new.short_id, *places, now):
            sessions.delete(old.session_id, "replaced by a newer session", CloseReason.REPLACED, now + _GRACE)
            return
        self._tell_twins(new.short_id, places[1])
        sessions.delete(old.session_id, "replaced by a newer session from another machine", CloseReason.TWIN)

    def turn_away(self, short_id: bytes, coming: str, sessions: Sessions) -> bool:
        """Whether a newcomer of this short id is turned away, because another machine has it and is connected."""
        ours = (one for one in sessions.records_of(short_id) if one.confirmed)
        connected = next((one for one in ours if not sessions.ends(one.session_id)), None)
        place = str(connected.underlay.peer_ip) if connected is not None else ""
        if connected is None or not self._twins.turn_away(short_id, place, coming, time.monotonic()):
            return False
        self._tell_twins(short_id, place)
        return True

    def _tell_twins(self, short_id: bytes, place: str) -> None:
        client, places = self.who(short_id), " and ".join(self._twins.addresses(short_id))
        self._context.limited(
            f"twins {client}",
            f"client {client} is on two machines, seen at {places}: the one at {place} stays connected, the other is"
            f" turned away; give each machine a short id of its own (`qre-tool genshortid`)",
        )

    def twins(self) -> list[str]:
        """The clients that are on two machines."""
        return [self.who(short_id) for short_id in self._twins.known(time.monotonic())]

    def lost(self, record: SessionRecord, end: SessionEnd) -> None:
        """The session has ended: its addresses are free for the next of the client. A newer one in its place is
        nothing to tell of."""
        self.grants.free(record.session_id)
        if record.confirmed and end.reason is not CloseReason.REPLACED:
            client = self.who(record.short_id)
            self._context.limited(f"lost {client} {end.words}", f"client {client}: the session ended: {end.words}")

    def _keep(self, short_id: bytes, addresses: Iterable[Address]) -> None:
        if short_id in self.identities.others:
            change = self.grants.leases.put(short_id, addresses)
            if change is not None:
                self._write(change)

    def _addresses(self, mark: SessionMark) -> list[Address]:
        """What an orphan was granted: the host prefixes that are not networks behind the client."""
        behind = self.identities.behind(mark.short_id)
        return [network.network_address for network in mark.addresses if network not in behind]

    def _write(self, change: Change) -> None:
        offset, record = change
        try:
            written = os.pwrite(self._fd, record, offset) == len(record)
            why = "the disk is full"
        except OSError as error:
            written, why = False, error.strerror or "an error"
        if not written:
            text = f"the leases file cannot be written ({why}): after a restart another client may take an address"
            self._context.limited("leases", text)


def _granted(record: SessionRecord) -> list[Address]:
    return [address.ip for address in record.handed_over.addresses]
