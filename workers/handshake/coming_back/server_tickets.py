"""A server's ticket keys and their file: what ``ServerHandshake`` seals and opens tickets with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from qre.ipc.worker import WorkerContext
from qre.quic.resumption.dest_tokens import DestTokens
from qre.quic.resumption.file_lengths import TICKET_KEYS_LENGTH
from qre.quic.resumption.ticket_keys import OpenedTicket, TicketKeys
from qre.workers.handshake.coming_back.ticket_file import TicketFile


class ServerTickets:
    """``fd``: of the file, which belongs to this object; None: the keys are this process's alone, as are those that
    cannot be written."""

    def __init__(self, context: WorkerContext, private_key: bytes, fd: int | None) -> None:
        self._file = TicketFile(fd, lambda why: context.limited("ticket keys", f"the file of ticket keys: {why}"))
        self._keys = TicketKeys(
            self._file.read(TICKET_KEYS_LENGTH),
            private_key=private_key,
            random=os.urandom,
            unix_time=int(time.time()),
        )
        self._file.write(self._keys.image)
        known = context.config.dest_profile
        self._tokens = DestTokens(known.tokens if known is not None else ())

    def use(self, private_key: bytes) -> None:
        """RealityPrivateKey may have changed: then no ticket given so far is taken."""
        if self._keys.replace_all(private_key, int(time.time())):
            self._file.write(self._keys.image)

    def _refresh(self, now: int) -> None:
        if self._keys.refresh(now):
            self._file.write(self._keys.image)

    def seal(self, secret: bytes, short_id: bytes, length: int) -> bytes:
        """A ticket of ``length`` bytes."""
        now = int(time.time())
        self._refresh(now)
        return self._keys.seal(secret, short_id, now, length)

    def open_untrusted(self, identity: bytes) -> OpenedTicket:
        """Raises UntrustedInputError for what no key has sealed."""
        self._refresh(int(time.time()))
        return self._keys.open_untrusted(identity)

    def take_token(self, tokens: Sequence[bytes], room: int) -> bytes:
        """One of these that no client has, of at most ``room`` bytes; empty: there is none."""
        return self._tokens.take(tokens, room)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
