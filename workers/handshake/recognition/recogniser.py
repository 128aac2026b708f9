"""Whether an authenticated hello is accepted: our replay file has to take it first, then the store of several
servers.

The file answers at once, the store as soon as it can. As long as it has not, the flow is watched as before: the
client's datagrams go to Dest, and whatever Dest says first makes it a visitor of Dest. So a store that is farther
away than Dest lets nobody in, and an observer sees nothing of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.ipc.messages import Party, StoreRequest
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.profile_secrets import ProfileSecrets
from qre.quic.server.inspector import Authenticated
from qre.reality.hello_store import StoreConnection, key_prefix
from qre.reality.replay import ReplayFilter
from qre.workers.handshake.port.flow_effects import Copied, Effect
from qre.workers.handshake.port.flow_parts import Flow, FlowState, ForgedHello, Handshake, Hello
from qre.workers.handshake.port.flows import FlowTable
from qre.workers.handshake.port.performer import LATER, Later
from qre.workers.handshake.recognition.store_link import ReplayStoreLink
from qre.workers.handshake.shared.guests import Guests

#: Of the supervisor's attempt to connect (seconds).
_CONNECTING = 5.0


class Memory(Protocol):
    """The part of ``acceptance.Acceptance`` that is used here: our replay file, and handshakes that begin."""

    replay: ReplayFilter
    unrecorded: str

    def remember(self, found: Authenticated) -> bool:
        """Record a hello; False when it is a replay, or cannot be recorded."""
        ...

    def admit(self, hello: Hello) -> Handshake:
        """A handshake for a hello that is recorded."""
        ...


class Recogniser:
    """``ours``: the short ids of our own clients; all others are guests'. ``perform`` takes the table's effects when
    the store has answered, ``told`` is called when ``why_nobody`` has changed. ``copy_of`` makes what answers a copy
    of a resumed hello, and one with a false binder."""

    def __init__(
        self,
        context: WorkerContext,
        acceptance: Memory,
        guests: Guests,
        ours: Callable[[], Collection[bytes]],
        table: FlowTable,
        perform: Callable[[Sequence[Effect], float], None],
        told: Callable[[], None],
        copy_of: Callable[[Hello | ForgedHello], Handshake | None],
    ) -> None:
        self._context = context
        self._acceptance = acceptance
        self._guests = guests
        self._ours = ours
        self._table = table
        self._perform = perform
        self._told = told
        self._copy_of = copy_of
        self._asked: dict[Flow, Hello] = {}
        self._store: ReplayStoreLink | None = None
        self._used: object = None  # where the store is, and the account there
        self._tasks = Tasks(context.internal_error)
        self._store_says = ""

    # --- the store ---

    @property
    def why_nobody(self) -> str:
        """Why no client is let in at present; empty when clients are."""
        return self._acceptance.unrecorded or self._store_says

    def use(self, secrets: ProfileSecrets) -> None:
        """The store of the configuration, with its account, from now on. The connection to the same one stays."""
        config = self._context.config
        public = X25519PrivateKey.from_private_bytes(secrets.private_key).public_key().public_bytes_raw()
        account = (key_prefix(public), secrets.store_user, secrets.store_password, secrets.store_database)
        if self._store is not None and self._used == (config.replay_store, account):
            return
        self.close()
        self._used = (config.replay_store, account)
        if not config.replay_store:
            self._store_told("")
            return

        def new_connection() -> StoreConnection:
            prefix, user, password, database = account
            return StoreConnection(prefix, user=user, password=password, database=database)

        self._store = ReplayStoreLink(new_connection, self._connect, self._store_told)
        self._tasks.spawn(self._store.run())

    async def _connect(self) -> None:
        await self._context.request(Party.SUPERVISOR, StoreRequest(), _CONNECTING)

    def connected(self, fd: int) -> None:
        """A socket that leads to the store; it is ours from here on."""
        if self._store is not None:
            self._store.use(fd)
        else:
            os.close(fd)

    def _store_told(self, why: str) -> None:
        if why != self._store_says:
            self._store_says = why
            if why:
                self._context.limited("replay store", f"{why}: clients are not recognised, and forwarded to Dest")
            self._told()

    def close(self) -> None:
        """End the connection to the store."""
        self._tasks.cancel()
        if self._store is not None:
            self._store.close()
        self._store = None

    # --- hellos ---

    def accept(self, flow: Flow, hello: Hello | ForgedHello) -> Handshake | Copied | Later | None:
        """The handshake that begins, or what answers a copy; None when the hello is a stranger's."""
        if isinstance(hello, ForgedHello):
            return self._copied(flow, hello)
        if flow in self._asked:
            self._asked[flow] = hello  # the same one, with what came since
            return LATER
        if not self._acceptance.remember(hello.found):
            return self._copied(flow, hello)
        if self._store is None:
            return self._admit(hello)
        if flow.state is not FlowState.WATCHED:
            return None  # a second connection from a client's address: it comes again, from another one
        self._asked[flow] = hello
        window = self._acceptance.replay.window
        self._store.ask(hello.found.random_hash, window, lambda new: self._answered(flow, new=new))
        return LATER

    def _copied(self, flow: Flow, hello: Hello | ForgedHello) -> Copied | None:
        if flow.state is not FlowState.WATCHED:
            return None  # from a client's address: its handshake goes on
        copy = self._copy_of(hello)
        return None if copy is None else Copied(copy)

    def _answered(self, flow: Flow, *, new: bool) -> None:
        hello, now = self._asked.pop(flow), time.monotonic()
        begins_again = flow.held[:1] != hello.datagrams[:1]  # Dest's Retry makes it
        if flow.state is not FlowState.WATCHED or begins_again:
            return
        handshake = self._admit(hello) if new else None
        table = self._table
        self._perform(table.hello_refused(flow) if handshake is None else table.hello_accepted(flow, handshake), now)

    def _admit(self, hello: Hello) -> Handshake | None:
        if hello.found.short_id in self._ours():
            return self._acceptance.admit(hello)
        return self._guests.accept(hello)
