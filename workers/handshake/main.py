"""The handshake worker: shakes hands with clients or a server, relays strangers to Dest, keeps session secrets.

It has no capability, may write no file, and reads only the resolver's. Everything that it will ever import or load is
loaded in ``create``, before its sandbox closes. Keys go to the data plane over their own pair and nowhere else.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from qre.errors import MachineError, QreError
from qre.ipc.messages import HandshakeStatus, Party, ProfileSecrets
from qre.ipc.worker import WorkerContext
from qre.quic.fingerprint import Fingerprint, load_fingerprint
from qre.quic.trust import TrustStore
from qre.session import Message, Role
from qre.workers.handshake.client import Client
from qre.workers.handshake.dest import preload
from qre.workers.handshake.rehearsal import rehearse
from qre.workers.handshake.secrets import SecretsStore
from qre.workers.handshake.server import Server

_MAX_SECRETS: Final = 65_536


def parse_profile_secrets_untrusted(fd: int) -> ProfileSecrets:
    """Read the memfd of the profile's secrets and close it. Raises MachineError; its text tells nothing of them."""
    try:
        return msgspec.msgpack.decode(os.pread(fd, _MAX_SECRETS, 0), type=ProfileSecrets)
    except (OSError, msgspec.DecodeError):
        raise MachineError("profile secrets", "they cannot be read") from None
    finally:
        os.close(fd)


class HandshakeWorker:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self, fingerprint: Fingerprint, trust: TrustStore) -> None:
        self._fingerprint = fingerprint
        self._trust = trust
        self._secrets: ProfileSecrets | None = None
        self._store: SecretsStore | None = None
        self._half: Server | Client | None = None

    async def start(self, context: WorkerContext) -> None:
        descriptors = context.descriptors
        server = context.config.role is Role.SERVER
        wanted = {"profile_secrets", "session_secrets"} | ({"udp_userspace", "replay"} if server else set())
        if server and not context.config.user_dataplane:
            wanted.add("udp_kernel_slot")
        missing = wanted - descriptors.keys()
        if missing:
            raise MachineError("handshake worker", f"descriptors are missing: {', '.join(sorted(missing))}")
        secrets = self._secrets = parse_profile_secrets_untrusted(descriptors.pop("profile_secrets"))
        fd = descriptors.pop("session_secrets")
        try:
            store = self._store = SecretsStore(fd)
        finally:
            os.close(fd)
        half: Server | Client
        if server:
            half = Server(context, secrets, store, self._fingerprint, self._trust)
        else:
            half = Client(context, secrets, store, self._fingerprint, self._trust)
        await half.start()
        self._half = half
        keys = descriptors.pop("keys", None)  # not before: while we started, a newer pair may have come
        if keys is not None:
            half.link.use(keys)

    async def reload(self) -> None:
        if self._half is not None and self._secrets is not None:
            await self._half.reload(self._secrets)

    async def handle(self, source: Party, message: Message) -> Message:
        raise QreError("handshake worker", f"{type(message).__name__} from {source} is not for it")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """A new pair to the data plane, a client's socket, or the secrets of a reloaded profile."""
        match name:
            case "keys" if self._half is not None:
                self._half.link.use(fd)
            case "client_udp" if isinstance(self._half, Client):
                self._half.socket_arrived(number, fd)
            case "profile_secrets":
                self._secrets = parse_profile_secrets_untrusted(fd)
            case _:
                os.close(fd)

    async def status(self) -> Message:
        if self._half is None:
            return HandshakeStatus(up=False, text="starting")
        return self._half.status()

    async def stop(self) -> None:
        """No process goes on with these sessions: what is left of them is wiped."""
        if self._half is not None:
            await self._half.stop()
            self._half = None
        if self._store is not None:
            self._store.close(wipe=True)
            self._store = None


def create() -> HandshakeWorker:
    """The worker, before its sandbox."""
    preload()
    trust = TrustStore.load()
    rehearse(trust)
    return HandshakeWorker(load_fingerprint(), trust)
