"""One visit to Dest, in a process of its own: what the site answers is read by nobody who holds a key or a port.

It has no capability, may open no file, and is started by the supervisor for one visit. Everything that it will ever
import is imported in ``create``, before its sandbox closes.
"""

from __future__ import annotations

import socket

from qre.errors import MachineError, QreError
from qre.ipc.errand import ErrandWorker
from qre.ipc.messages import DestVisited, Party, VisitDest
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.structs import Message
from qre.visit.probe import probe
from qre.visit.rehearsal import rehearse
from qre.visit.visitor_files import load_fingerprint, load_trust

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class VisitWorker(ErrandWorker):
    """See ``qre.ipc.errand``."""

    def __init__(self, fingerprint: Fingerprint, trust: TrustStore) -> None:
        self._fingerprint = fingerprint
        self._trust = trust

    async def handle(self, source: Party, message: Message) -> Message:
        """Visit Dest; the answer is DestVisited. Raises QreError for any other message."""
        if not isinstance(message, VisitDest):
            raise QreError("visit worker", f"{type(message).__name__} from {source} is not for it")
        where = _FAMILIES[message.address.version], (str(message.address), message.port)
        try:
            patience = message.patience_ms / 1000
            profile = await probe(
                where,
                message.server_name,
                self._fingerprint,
                self._trust,
                patience,
                comes_back=message.comes_back,
            )
        except MachineError as error:
            return DestVisited(profile=None, why=str(error)[:512], cause=error.cause)
        return DestVisited(profile=profile)


def create() -> VisitWorker:
    """The worker, before its sandbox."""
    trust = load_trust()
    fingerprint = load_fingerprint()
    rehearse(fingerprint, trust)
    return VisitWorker(fingerprint, trust)
