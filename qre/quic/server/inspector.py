"""Decides about one pending flow of the server: whether its first flight comes from a client with the keys.

Four verdicts. UNDECIDED: its ClientHello is not complete yet. STRANGER: relay it to Dest, with everything received
so far. ``Forged``: a stranger, too, whom the site that gave its ticket would refuse. ``Authenticated``: answer it
(after the replay filter has agreed). A verdict other than UNDECIDED is final.

Any bytes give a verdict and never an exception. The memory is bounded by the constants below. Everything about a
complete hello is checked in one path: whichever check fails, the same key agreement and the same decryption are done
first, so that the time to the verdict does not reveal which one failed. A flow that ends earlier (garbage, another
version) was never a hello, and costs less.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.errors import UntrustedInputError
from qre.quic.resumption.psk import binder_of, bound_secret, covered_part
from qre.quic.resumption.ticket_keys import OpenedTicket
from qre.quic.tls.client_hello import (
    ClientHello,
    OfferedKey,
    hello_length_untrusted,
    parse_client_hello_untrusted,
)
from qre.reality.authenticator import (
    RANDOM_END,
    RANDOM_OFFSET,
    Authenticator,
    SharedSecrets,
    open_untrusted,
    share_secrets_untrusted,
)
from qre.reality.replay import random_hash
from qre.wire.initial import (
    MAX_DATAGRAM,
    MIN_DATAGRAM,
    MIN_FIRST_CID,
    ClientInitialKeys,
    CryptoStream,
    crypto_frames_untrusted,
    parse_initial_header_untrusted,
)
from qre.wire.packet import is_early_data

#: Chromium's hello has 1876 to 1980 bytes.
MAX_HELLO: Final = 4096
#: Chromium's chaos makes at most 24 pieces of it.
MAX_PIECES: Final = 64
#: Datagrams examined before a flow counts as a stranger's, retransmissions of a first flight included.
MAX_DATAGRAMS: Final = 8
#: Initials examined in one datagram.
MAX_PACKETS: Final = 4
#: In place of what a hello lacks, so that the work is the same: the X25519 base point, keys that open nothing.
_SUBSTITUTE_SHARE: Final = b"\x09".ljust(32, b"\x00")
_SUBSTITUTE_SECRETS: Final = SharedSecrets(bytes(16), bytes(12), bytes(32))
_NOBODY: Final = Authenticator((0, 0, 0), 0, bytes(8))


class Undecided(enum.Enum):
    """The verdicts without further fields."""

    UNDECIDED = "undecided"
    STRANGER = "stranger"


UNDECIDED: Final = Undecided.UNDECIDED
STRANGER: Final = Undecided.STRANGER


@dataclass(frozen=True)
class Authenticated:
    """The sender of this hello holds the server's public key and a configured short id.

    ``random_hash`` identifies it in the replay filter; ``original_destination_cid`` the DCID of the very first
    Initial; ``retry_source_cid`` the one of a Retry that Dest sent in between; ``ticket`` is what the hello offers.
    ``repeated``: its time is over, or it was accepted before. Nothing may be granted to it, and it is never recorded.
    """

    client_hello: bytes = field(repr=False)
    random_hash: bytes
    secrets: SharedSecrets
    server_name: str
    short_id: bytes
    client_version: tuple[int, int, int]
    unix_time: int
    original_destination_cid: bytes
    retry_source_cid: bytes | None = None
    ticket: bytes | None = field(default=None, repr=False)
    repeated: bool = False


@dataclass(frozen=True)
class Forged:
    """Somebody offers a ticket of ours with another binder than its key's. Nothing may be granted to it."""

    original_destination_cid: bytes


Verdict = Undecided | Authenticated | Forged


class TicketOpener(Protocol):
    """Opens tickets, with the keys of now."""

    def open_untrusted(self, identity: bytes) -> OpenedTicket:
        """Raises UntrustedInputError for what no key has sealed."""


class HelloInspector:
    """One flow. Feed it every datagram until its verdict is final, or give the flow up at any time."""

    def __init__(
        self,
        *,
        server_name: str,
        private_key: bytes | X25519PrivateKey,
        short_ids: Collection[bytes],
        max_time_diff_ms: int,
        previous_key: X25519PrivateKey | None = None,
        tickets: TicketOpener | None = None,
    ) -> None:
        """A key given as an object need not be loaded again for every flow. Hellos for ``previous_key`` are accepted,
        too. Without ``tickets`` nothing is ``Forged``."""
        self._tickets = tickets
        self._server_name = server_name.lower()
        self._private_key = private_key
        self._previous_key = previous_key
        self._short_ids = frozenset(short_ids)
        self._max_time_diff_ms = max_time_diff_ms
        self._verdict: Verdict = UNDECIDED
        self._opened = False
        self._datagrams = 0
        self._crypto = CryptoStream(MAX_HELLO, MAX_PIECES)
        self._original_cid: bytes | None = None
        self._retry_cid: bytes | None = None
        self._cid: bytes | None = None
        self._shown_cid: bytes | None = None
        self._keys: ClientInitialKeys | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict so far."""
        return self._verdict

    @property
    def opened(self) -> bool:
        """Whether an Initial came that decrypts: its sender took the trouble of making one."""
        return self._opened

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict:
        """The verdict after ``data``; a final one does not change again. Malformed input means STRANGER."""
        if self._verdict is UNDECIDED:
            try:
                self._verdict = self._inspect_untrusted(data, unix_time_ms)
            except UntrustedInputError:
                self._verdict = STRANGER
        return self._verdict

    def retry_relayed(self, source_cid: bytes) -> None:
        """Dest sent a Retry (RFC 9000 §8.1.2): the same hello comes again, to this CID."""
        if self._verdict is UNDECIDED and self._original_cid is not None and self._retry_cid is None:
            self._retry_cid = self._cid = source_cid
            self._keys = ClientInitialKeys(source_cid)
            self._shown_cid = None
            self._datagrams = 0

    def cid_shown(self, source_cid: bytes) -> None:
        """Dest acknowledged a part of the hello: the rest may come to this CID, under the same keys (§7.2)."""
        if self._verdict is UNDECIDED:
            self._shown_cid = source_cid

    def _inspect_untrusted(self, data: bytes, unix_time_ms: int) -> Verdict:
        self._datagrams += 1
        if self._datagrams <= MAX_DATAGRAMS and is_early_data(data):
            return UNDECIDED  # of a first flight: it may overtake the hello
        if self._datagrams > MAX_DATAGRAMS or not MIN_DATAGRAM <= len(data) <= MAX_DATAGRAM:
            return STRANGER
        try:
            self._read_initials_untrusted(data)
        except UntrustedInputError:
            # Anyone can send a datagram in the client's name: only the first of a flow must be flawless.
            if self._datagrams == 1:
                raise
        message = self._crypto.contiguous
        length = hello_length_untrusted(message)
        if length is None:
            return UNDECIDED
        if length > MAX_HELLO or self._crypto.highest > length:
            return STRANGER
        return UNDECIDED if len(message) < length else self._decide(message, unix_time_ms)

    def _read_initials_untrusted(self, data: bytes) -> None:
        """Feed the CRYPTO data of every Initial in a datagram; anything behind them is padding or irrelevant."""
        start = 0
        for _ in range(MAX_PACKETS):
            header = parse_initial_header_untrusted(data, start)
            payload = self._keys_for_untrusted(header.destination_cid).open_untrusted(data, header)
            self._opened = True
            for offset, piece in crypto_frames_untrusted(payload):
                self._crypto.add_untrusted(offset, piece)
            start = header.end
            if start >= len(data) or data[start] & 0xC0 != 0xC0:
                return

    def _keys_for_untrusted(self, destination_cid: bytes) -> ClientInitialKeys:
        if self._keys is None:
            if len(destination_cid) < MIN_FIRST_CID:
                raise UntrustedInputError("Initial", "its destination CID is too short")
            self._original_cid = self._cid = destination_cid
            self._keys = ClientInitialKeys(destination_cid)
        elif destination_cid not in (self._cid, self._shown_cid):
            raise UntrustedInputError("Initial", "another destination CID")
        return self._keys

    def _decide(self, message: bytes, unix_time_ms: int) -> Verdict:
        """Make every check, whatever the results of the ones before."""
        hello = _parse_or_none(message)
        share = hello.x25519_share if hello is not None and hello.x25519_share is not None else None
        sealed = covered_part(message) if hello is not None and hello.has_pre_shared_key else message
        secrets, opened = self._open(self._private_key, sealed, share or _SUBSTITUTE_SHARE)
        if self._previous_key is not None:  # whatever the first says: the time must not tell which key it was
            others, opened_too = self._open(self._previous_key, sealed, share or _SUBSTITUTE_SHARE)
            secrets, opened = (secrets, opened) if opened is not None else (others, opened_too)
        found = opened or _NOBODY
        difference_ms = abs(unix_time_ms - found.unix_time * 1000)
        accepted = (
            (hello is not None and self._is_acceptable(hello))
            & (share is not None)
            & (opened is not None)
            & (found.short_id in self._short_ids)
        )
        ticket = hello.ticket if hello is not None else None
        in_time = not self._max_time_diff_ms or difference_ms <= self._max_time_diff_ms
        accepted &= in_time | (ticket is not None)  # a site takes a ticket for days
        digest = random_hash(message[RANDOM_OFFSET:RANDOM_END])
        offered = hello.offered if hello is not None else None
        forged = offered is not None and self._is_false(offered, secrets.proof)
        if forged and self._original_cid is not None and self._retry_cid is None:
            return Forged(self._original_cid)
        if not accepted or self._original_cid is None:
            return STRANGER
        return Authenticated(
            client_hello=message,
            ticket=ticket,
            repeated=not in_time,
            random_hash=digest,
            secrets=secrets,
            server_name=self._server_name,
            short_id=found.short_id,
            client_version=found.version,
            unix_time=found.unix_time,
            original_destination_cid=self._original_cid,
            retry_source_cid=self._retry_cid,
        )

    def _is_acceptable(self, hello: ClientHello) -> bool:
        name = hello.server_name or b""
        return (
            (name.lower() == self._server_name.encode("ascii"))
            & (not hello.session_id)  # RFC 9001 §8.4
            & (hello.ticket is not None or not hello.has_pre_shared_key)
        )

    def _is_false(self, offered: OfferedKey, proof: bytes) -> bool:
        """Whether it is a ticket of ours with another binder than its key's. ``proof``: that of the hello's key
        agreement with us, whoever made it: without the ticket's secret no binder is right."""
        if self._tickets is None:
            return False
        try:
            opened = self._tickets.open_untrusted(offered.identity)
        except UntrustedInputError:
            return False
        right = binder_of(offered.covered, bound_secret(opened.secret, proof))
        return not hmac.compare_digest(right, offered.binder)

    @staticmethod
    def _open(
        private_key: bytes | X25519PrivateKey, message: bytes, share: bytes
    ) -> tuple[SharedSecrets, Authenticator | None]:
        try:
            secrets = share_secrets_untrusted(private_key, share)
        except UntrustedInputError:
            secrets = _SUBSTITUTE_SECRETS
        try:
            opened = open_untrusted(secrets, message)
        except UntrustedInputError:
            return secrets, None
        return secrets, None if secrets is _SUBSTITUTE_SECRETS else opened


def _parse_or_none(message: bytes) -> ClientHello | None:
    try:
        return parse_client_hello_untrusted(message)
    except UntrustedInputError:
        return None
