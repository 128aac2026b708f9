"""The tickets of a client and their file: the handshakes that use one, and what they bring."""

from __future__ import annotations

import time
from collections.abc import Iterable
from random import Random

from qre.ipc.worker import WorkerContext
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.quic.resumption.file_lengths import TICKETS_LENGTH
from qre.quic.resumption.ticket_store import TicketStore, name_of
from qre.visit.servers import KnownServer
from qre.workers.handshake.coming_back.ticket_file import TicketFile


class ClientTickets:
    """``fd``: of the file, which belongs to this object; None: tickets are kept in memory alone."""

    def __init__(self, context: WorkerContext, fd: int | None, fingerprint: Fingerprint, trust: TrustStore) -> None:
        self._context = context
        self._fingerprint = fingerprint
        self._trust = trust
        self._kept = fd is not None
        self._file = TicketFile(fd, lambda why: context.limited("tickets", f"the file of tickets: {why}"))
        self._store = TicketStore(self._file.read(TICKETS_LENGTH))

    def _name_of(self, server: KnownServer) -> bytes:
        return name_of(self._context.config.server_name, server.public_key, server.short_id)

    def use(self, servers: Iterable[KnownServer]) -> None:
        """Those of the profile: what is kept of others is forgotten."""
        before = self._store.image
        self._store.keep({self._name_of(server) for server in servers})
        if self._store.image != before:
            self._file.write(self._store.image)

    def handshake(self, server: KnownServer, random: Random) -> ClientHandshake:
        """A handshake with ``server``, with a ticket if there is one. A ticket whose use cannot be recorded is not
        used: it might be used again."""
        name, config = self._name_of(server), self._context.config
        ticket = self._store.take(name, int(time.time() * 1000))
        if ticket is not None and self._kept and not self._file.write(self._store.image):
            ticket = None
        return ClientHandshake(
            server_name=config.server_name,
            public_key=server.public_key,
            short_id=server.short_id,
            addresses=config.address,
            fingerprint=self._fingerprint,
            trust=self._trust,
            unix_time=int(time.time()),
            now=time.monotonic(),
            random=random,
            ticket=ticket,
            round_trip_us=self._store.round_trip_us(name),
        )

    def done(self, server: KnownServer, handshake: ClientHandshake) -> None:
        """Keep what a handshake that was complete has brought."""
        self._store.put(self._name_of(server), *handshake.brought())
        self._file.write(self._store.image)

    def refused(self, server: KnownServer, handshake: ClientHandshake) -> bool:
        """The site has answered: whether that may be because of a ticket. Then the next hello has none."""
        if not handshake.offers_ticket:
            return False
        self._store.forget(self._name_of(server))
        self._file.write(self._store.image)
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
