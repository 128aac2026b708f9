"""The handshake worker: performs handshakes with clients or a server, relays strangers to Dest, keeps session
secrets.

It has no capability, may write no file, and reads only the resolver's files. Everything that it will ever import is
imported in ``create``, before its sandbox closes. Keys go to the data plane over their own pair and nowhere else.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Final

import msgspec

from qre.ends import Role
from qre.errors import MachineError, QreError
from qre.ipc.messages import (
    DestProfileReport,
    Done,
    GuestJoin,
    GuestLeave,
    HandshakeStatus,
    NetworkChanged,
    Party,
)
from qre.ipc.worker import WorkerContext
from qre.profile_secrets import ProfileSecrets
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.structs import Message, decoder
from qre.visit.rehearsal import rehearse
from qre.visit.visitor_files import load_fingerprint, load_trust
from qre.workers.handshake.client import Client
from qre.workers.handshake.server import Server
from qre.workers.handshake.sessions.secrets import SecretsStore

_MAX_SECRETS: Final = 1 << 20
_OF_A_GUEST: Final = ("guest_secrets", "guest_feed")
_MAX_GUEST_DESCRIPTORS: Final = 32


def parse_profile_secrets_untrusted(fd: int) -> ProfileSecrets:
    """Read the memfd of the profile's secrets and close it. Raises MachineError, whose text contains nothing of
    them."""
    try:
        secrets: ProfileSecrets = decoder(ProfileSecrets).decode(os.pread(fd, _MAX_SECRETS, 0))
    except (OSError, msgspec.DecodeError):
        raise MachineError("profile secrets", "they cannot be read") from None
    finally:
        os.close(fd)
    return secrets


class HandshakeWorker:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self, fingerprint: Fingerprint, trust: TrustStore) -> None:
        self._fingerprint = fingerprint
        self._trust = trust
        self._secrets: ProfileSecrets | None = None
        self._store: SecretsStore | None = None
        self._half: Server | Client | None = None
        #: Descriptors of daemons that are about to join, by name and number.
        self._guest_descriptors: dict[tuple[str, int], int] = {}

    async def start(self, context: WorkerContext) -> None:
        """Take over descriptors and secrets, start Server or Client. Raises MachineError when one is missing."""
        self._tell_supervisor = partial(context.send, Party.SUPERVISOR)
        descriptors = context.descriptors
        server = context.config.role is Role.SERVER
        secrets = self._secrets = parse_profile_secrets_untrusted(descriptors.pop("profile_secrets"))
        fd = descriptors.pop("session_secrets")
        try:
            store = self._store = SecretsStore(fd)
            if not store.lock():
                context.log.debug(
                    "the limit on locked memory is too low for the sessions' secrets: they may be swapped"
                )
        finally:
            os.close(fd)
        half: Server | Client
        if server:
            half = Server(context, secrets, store)
        else:
            half = Client(context, secrets, store, self._fingerprint, self._trust)
        await half.start()
        self._half = half
        keys = descriptors.pop("keys", None)  # only now: a newer pair may have come during the start
        if keys is not None:
            half.link.use(keys)

    async def reload(self) -> None:
        """Apply the changed configuration; live sessions stay."""
        if self._half is not None and self._secrets is not None:
            await self._half.reload(self._secrets)

    async def handle(self, source: Party, message: Message) -> Message:
        """A server's guest joins, changes or leaves, Dest was visited by a command, a client's network has changed.
        Raises QreError for any other message."""
        match message:
            case GuestJoin(number=number, profile=profile) if isinstance(self._half, Server):
                self._guest_joins(self._half, number, profile)
            case GuestLeave(number=number) if isinstance(self._half, Server):
                self._half.guest_leaves(number)
            case DestProfileReport(profile=found) if isinstance(self._half, Server) and source is Party.SUPERVISOR:
                await self._half.dest_found(found)
            case NetworkChanged() if isinstance(self._half, Client):
                await self._tell_supervisor(message)  # sockets may have to be led anew
                self._half.network_changed()
            case _:
                raise QreError("handshake worker", f"{type(message).__name__} from {source} is not for it")
        return Done()

    def _guest_joins(self, server: Server, number: int, profile: str) -> None:
        secrets, feed = (self._guest_descriptors.pop((name, number), None) for name in _OF_A_GUEST)
        try:
            if secrets is None:
                raise MachineError(f"profile {profile}", "its descriptors did not arrive")
            its = parse_profile_secrets_untrusted(secrets)
        except MachineError:
            if feed is not None:
                os.close(feed)
            raise
        if feed is None:
            server.guest_reloads(number, its)
        else:
            server.guest_joins(number, profile, its, feed)

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """A new pair to the data plane, a client's socket, or the secrets of a reloaded profile."""
        match name:
            case "keys" if self._half is not None:
                self._half.link.use(fd)
            case "client_udp" if isinstance(self._half, Client):
                self._half.socket_arrived(number, fd)
            case "store_ipv4" | "store_unix" if isinstance(self._half, Server):
                self._half.recogniser.connected(fd)
            case "profile_secrets":
                self._secrets = parse_profile_secrets_untrusted(fd)
            case "guest_secrets" | "guest_feed" if len(self._guest_descriptors) < _MAX_GUEST_DESCRIPTORS:
                held = self._guest_descriptors.pop((name, number), None)
                if held is not None:
                    os.close(held)
                self._guest_descriptors[name, number] = fd
            case _:
                os.close(fd)

    async def status(self) -> Message:
        """Of the server or client half; ``starting`` before there is one."""
        if self._half is None:
            return HandshakeStatus(up=False, text="starting")
        return self._half.status()

    async def stop(self) -> None:
        """No process continues these sessions: wipe their secrets."""
        if self._half is not None:
            await self._half.stop()
            self._half = None
        if self._store is not None:
            self._store.close(wipe=True)
            self._store = None


def create() -> HandshakeWorker:
    """The worker, before its sandbox."""
    trust = load_trust()
    fingerprint = load_fingerprint()
    rehearse(fingerprint, trust)
    return HandshakeWorker(fingerprint, trust)
