"""Captures read with the keys: every 1-RTT packet of a tunnel decrypted, and who used which packet number once.

The product writes no key log. ``KeyLog`` reads, as root, the memfd ``session_secrets`` that a running daemon holds,
again and again, and keeps what stood there of each session at key epoch 0; every later generation follows from that
(RFC 9001 §6.1). ``decrypt`` then judges what was on the wire, knowing nothing else of the programs.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final

from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.quic.handed_over import session_id as session_id_of
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.packet import KEY_PHASE, Header, PacketType, packets_untrusted
from qre.wire.protection import Protection, next_secret
from qre.workers.handshake.sessions.secrets import COPIES, COPY_LENGTH, SIZE, SLOT, SLOTS, parse_record_untrusted
from tests.support.daemons import Daemon, wait_for
from tests.support.tcpdump import Datagram

Address = tuple[str, int]
_POLL: Final = 0.02
#: Generations beyond the newest seen that a packet is tried with: an end may be ahead by one, or a packet late.
_TRIED: Final = (0, 1, -1, 2, -2, 3, -3)


@dataclass
class SessionSecrets:
    """One session, as a key log would have it: the secrets of epoch 0 and where its packets go."""

    session_id: bytes
    client: Address
    server: Address
    client_secret: bytes
    server_secret: bytes
    server_cids: set[bytes] = field(default_factory=set)  # on packets to the server
    client_cid: bytes = b""

    def __repr__(self) -> str:
        return f"SessionSecrets({self.session_id.hex()[:8]}…, client {self.client})"


class KeyLog:
    """Watches the secrets of daemons from their start on, in a thread, until it is closed."""

    def __init__(self) -> None:
        self.sessions: dict[bytes, SessionSecrets] = {}
        self.missed: set[bytes] = set()  # sessions that were only ever seen at a later epoch
        self.epochs: dict[bytes, int] = {}  # the latest key epoch that stood there
        self._maps: list[mmap.mmap] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key log", daemon=True)
        self._thread.start()

    def watch(self, daemon: Daemon) -> None:
        """Follow the memfd that this daemon holds; every handshake worker of it maps the same one."""
        found: list[Path] = []

        def there() -> bool:
            found[:] = [link for link in Path(f"/proc/{daemon.pid}/fd").iterdir() if _is_secrets(link)]
            return bool(found)

        wait_for(f"the session secrets of {daemon.profile}", there)
        wait_for("its size", lambda: found[0].stat().st_size == SIZE)
        fd = os.open(found[0], os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._maps.append(mmap.mmap(fd, SIZE, prot=mmap.PROT_READ))
        finally:
            os.close(fd)

    def read(self, secrets: bytes) -> None:
        """The same of a copy of such a memfd, for daemons that are out of reach."""
        assert len(secrets) == SIZE
        self._look(secrets)

    def _run(self) -> None:
        try:
            while not self._ended.wait(_POLL):
                for mapped in tuple(self._maps):
                    self._look(mapped)
        except BaseException as error:  # noqa: BLE001 - raised again where the log is closed
            self._error = error

    def _look(self, mapped: mmap.mmap | bytes) -> None:
        states = mapped[SLOT::SLOT]
        for slot in range(SLOTS):
            state = states[slot]
            if state not in (1, 2):
                continue
            start = SLOT * (slot + 1) + COPIES[state - 1]
            data = mapped[start : start + COPY_LENGTH]
            if mapped[SLOT * (slot + 1)] == state:  # otherwise it was written meanwhile: next time
                self._record(data)

    def _record(self, data: bytes) -> None:
        try:
            record = parse_record_untrusted(data)
        except UntrustedInputError:
            return  # being written; it is read again
        h, u = record.handed_over, record.underlay
        self.epochs[h.session_id] = max(record.key_epoch, self.epochs.get(h.session_id, 0))
        known = self.sessions.get(h.session_id)
        if known is not None:
            known.server_cids.update(record.connection_ids())
            return
        server = record.role is Role.SERVER
        client_secret, server_secret = (h.rx_secret, h.tx_secret) if server else (h.tx_secret, h.rx_secret)
        if record.key_epoch or session_id_of(client_secret) != h.session_id:
            self.missed.add(h.session_id)
            return
        self.missed.discard(h.session_id)
        ours, theirs = (str(u.local_ip), u.local_port), (str(u.peer_ip), u.peer_port)
        self.sessions[h.session_id] = SessionSecrets(
            session_id=h.session_id,
            client=theirs if server else ours,
            server=ours if server else theirs,
            client_secret=client_secret,
            server_secret=server_secret,
            server_cids=set(record.connection_ids()),
            client_cid=h.client_cid,
        )

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> KeyLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_secrets(link: Path) -> bool:
    try:
        return os.readlink(link).startswith("/memfd:session_secrets")
    except OSError:
        return False


class Direction:
    """The packets of one session in one direction, in the order of the wire; which key each one was under."""

    def __init__(self, secret: bytes) -> None:
        self._hp_secret = secret
        self._secrets = [secret]
        self._protections = [Protection(secret)]
        self.epoch = 0  # the newest seen
        self.largest = -1
        #: (generation, packet number) -> digests of the ciphertexts seen under it. One each, or keys are lost.
        self.ciphertexts: dict[tuple[int, int], set[bytes]] = {}
        self.wrong_phase = 0  # packets whose key phase bit is not their generation's

    def _protection(self, epoch: int) -> Protection:
        while len(self._protections) <= epoch:
            self._secrets.append(next_secret(self._secrets[-1]))
            self._protections.append(Protection(self._secrets[-1], self._hp_secret))
        return self._protections[epoch]

    def take(self, packet: bytes, number_offset: int) -> bool:
        """Decrypt it and note its number; False when no key opens it."""
        for step in _TRIED:
            epoch = self.epoch + step
            if epoch < 0:
                continue
            try:
                header, number, _ = self._protection(epoch).unprotect_untrusted(
                    packet, number_offset, self.largest + 1
                )
            except UntrustedInputError:
                continue
            self.ciphertexts.setdefault((epoch, number), set()).add(sha256(packet).digest())
            self.wrong_phase += bool(header[0] & KEY_PHASE) != epoch & 1
            self.epoch, self.largest = max(self.epoch, epoch), max(self.largest, number)
            return True
        return False

    @property
    def generations(self) -> set[int]:
        """Those that packets were seen of."""
        return {epoch for epoch, _ in self.ciphertexts}

    def reused(self) -> list[tuple[int, int]]:
        """(generation, packet number) pairs with more than one ciphertext: there must be none."""
        return [pair for pair, digests in self.ciphertexts.items() if len(digests) > 1]

    def numbers_of(self, *, user_space: bool) -> set[tuple[int, int]]:
        return {pair for pair in self.ciphertexts if (pair[1] < PACKET_NUMBER_BASE) is user_space}


@dataclass
class Decrypted:
    """What captures held: per (session id, "client" or "server": the sender) its packets, and what was left over."""

    directions: dict[tuple[bytes, str], Direction] = field(default_factory=dict)
    packets: int = 0  # different 1-RTT packets of flows whose secrets are known
    undecrypted: list[tuple[float, Address, int]] = field(default_factory=list)  # time, source, length
    other_flows: dict[Address, int] = field(default_factory=dict)  # 1-RTT packets of flows without a session

    def sent_by(self, session_id: bytes) -> tuple[Direction, Direction]:
        return self.directions[session_id, "client"], self.directions[session_id, "server"]


def decrypt(sessions: Iterable[SessionSecrets], datagrams: Iterable[Datagram], port: int) -> Decrypted:
    """Read the 1-RTT packets of all captures together; a datagram that was seen at both ends is read once.

    ``port`` is the server's. Every flow has one session, because a client takes a fresh port for each.
    """
    result = Decrypted()
    by_client: dict[Address, SessionSecrets] = {}
    for session in sessions:
        assert session.client not in by_client, "two sessions on one client socket"
        by_client[session.client] = session
        for sender, secret in (("client", session.client_secret), ("server", session.server_secret)):
            result.directions[session.session_id, sender] = Direction(secret)
    handshake_cids: dict[tuple[Address, str], set[bytes]] = {}  # (client, receiver) -> what the handshake showed
    seen: set[tuple[Address, str, bytes]] = set()
    for datagram in sorted(datagrams, key=lambda one: one.time):
        sender = "client" if datagram.destination[1] == port else "server"
        client = datagram.source if sender == "client" else datagram.destination
        if (client, sender, datagram.payload) in seen:
            continue
        seen.add((client, sender, datagram.payload))
        known = by_client.get(client)
        receiver = "server" if sender == "client" else "client"
        cids = set(handshake_cids.get((client, receiver), ()))
        if known is not None:
            cids |= known.server_cids if sender == "client" else {known.client_cid}
        for header in _packets(datagram.payload, cids):
            if header.type is not PacketType.ONE_RTT:
                handshake_cids.setdefault((client, sender), set()).add(header.source_cid)
                continue
            if known is None:
                result.other_flows[client] = result.other_flows.get(client, 0) + 1
                continue
            result.packets += 1
            packet = datagram.payload[header.start : header.end]
            direction = result.directions[known.session_id, sender]
            if not direction.take(packet, header.number_offset - header.start):
                result.undecrypted.append((datagram.time, datagram.source, len(packet)))
    return result


def _packets(payload: bytes, cids: set[bytes]) -> list[Header]:
    """The packets of a datagram. A short header's connection ID is one of ``cids``, the longest that fits."""
    try:
        headers = list(packets_untrusted(payload, short_cid_length=0))
    except UntrustedInputError:
        return []
    if not headers or headers[-1].type is not PacketType.ONE_RTT:
        return headers
    start = headers[-1].start
    fitting = [len(cid) for cid in cids if payload[start + 1 : start + 1 + len(cid)] == cid]
    length = max(fitting, default=0)
    last = Header(
        PacketType.ONE_RTT,
        payload[start + 1 : start + 1 + length],
        b"",
        b"",
        start,
        start + 1 + length,
        len(payload),
    )
    return [*headers[:-1], last]
