"""A server's ticket keys, and the tickets that are sealed with them. Sans-IO: the caller keeps ``image`` in a file.

A ticket is ``nonce (12) ‖ AES-256-GCM(secret (32) ‖ Unix time (8) ‖ short id (8) ‖ zeros) ‖ mark (8)``: random bytes
to everybody else, as many as the tickets of Dest have. The mark is a MAC under the secret, by which the client knows
a ticket that will be taken from one that only looks like one.

A key is random and replaced every day; the one before opens tickets for another day, then it is overwritten. What
seals is derived from the key and from RealityPrivateKey: no ticket survives another RealityPrivateKey.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qre.errors import UntrustedInputError
from qre.quic.resumption.file_lengths import TICKET_KEYS_LENGTH
from qre.quic.resumption.held_ticket import SECRET_LENGTH

_KEY_LENGTH: Final = 32
_TIME_LENGTH: Final = 8
_RECORD_LENGTH: Final = _TIME_LENGTH + _KEY_LENGTH
_BINDING_LENGTH: Final = 16
#: How long a key seals, and then only opens (seconds).
LIFE_OF_A_KEY: Final = 86_400
_NONCE_LENGTH: Final = 12
_TAG_LENGTH: Final = 16
_SHORT_ID_LENGTH: Final = 8
_MARK_LENGTH: Final = 8
_BODY_LENGTH: Final = SECRET_LENGTH + _TIME_LENGTH + _SHORT_ID_LENGTH
#: A Dest whose tickets are shorter has clients without tickets.
SHORTEST_TICKET: Final = _NONCE_LENGTH + _BODY_LENGTH + _TAG_LENGTH + _MARK_LENGTH
_LABEL: Final = b"qre ticket v1"


@dataclass(frozen=True)
class OpenedTicket:
    """What a ticket of ours says."""

    secret: bytes
    unix_time: int
    short_id: bytes

    def __repr__(self) -> str:
        return "OpenedTicket(hidden)"


def is_marked(identity: bytes, secret: bytes) -> bool:
    """Whether a server of ours that takes tickets has made this one, in a session with this resumption secret."""
    rest, mark = identity[:-_MARK_LENGTH], identity[-_MARK_LENGTH:]
    return hmac.compare_digest(_mark(rest, secret), mark)


def _mark(rest: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, _LABEL + rest, "sha256")[:_MARK_LENGTH]


class TicketKeys:
    """``image``: the file as it was read, any length. ``private_key`` is RealityPrivateKey, ``random(n)`` gives n
    random bytes, ``unix_time`` is in seconds."""

    def __init__(self, image: bytes, *, private_key: bytes, random: Callable[[int], bytes], unix_time: int) -> None:
        self._random = random
        self._binding = self._bound_to(private_key)
        self._keys: list[tuple[int, bytes]] = []  # the newest first
        known = len(image) >= TICKET_KEYS_LENGTH and hmac.compare_digest(image[:_BINDING_LENGTH], self._binding_shown)
        for at in (_BINDING_LENGTH, _BINDING_LENGTH + _RECORD_LENGTH) if known else ():
            record = image[at : at + _RECORD_LENGTH]
            if any(record):
                self._keys.append((int.from_bytes(record[:_TIME_LENGTH], "big"), record[_TIME_LENGTH:]))
        self.refresh(unix_time)

    @staticmethod
    def _bound_to(private_key: bytes) -> bytes:
        return hashlib.sha256(_LABEL + private_key).digest()

    @property
    def _binding_shown(self) -> bytes:
        return hashlib.sha256(self._binding).digest()[:_BINDING_LENGTH]

    @property
    def image(self) -> bytes:
        """What the file has to hold."""
        records = b"".join(time.to_bytes(_TIME_LENGTH, "big") + key for time, key in self._keys)
        return (self._binding_shown + records).ljust(TICKET_KEYS_LENGTH, b"\0")

    def refresh(self, unix_time: int) -> bool:
        """Replace and forget keys whose time is over, or that come from the future. Whether ``image`` has changed."""
        before = list(self._keys)
        self._keys = [each for each in self._keys if 0 <= unix_time - each[0] < 2 * LIFE_OF_A_KEY]
        if not self._keys or unix_time - self._keys[0][0] >= LIFE_OF_A_KEY:
            self._keys = [(max(unix_time, 0), self._random(_KEY_LENGTH)), *self._keys][:2]
        return self._keys != before

    def replace_all(self, private_key: bytes, unix_time: int) -> bool:
        """Another RealityPrivateKey: no ticket given so far is taken. Whether ``image`` has changed."""
        binding = self._bound_to(private_key)
        if hmac.compare_digest(binding, self._binding):
            return False
        self._binding = binding
        self._keys = []
        return self.refresh(unix_time)

    def seal(self, secret: bytes, short_id: bytes, unix_time: int, length: int) -> bytes:
        """A ticket of ``length`` bytes, at least ``SHORTEST_TICKET``. Nonces are random: a million tickets of one key
        have two that are equal with a probability below 2^-50."""
        body = secret + max(unix_time, 0).to_bytes(_TIME_LENGTH, "big") + short_id
        body = body.ljust(length - _NONCE_LENGTH - _TAG_LENGTH - _MARK_LENGTH, b"\0")
        nonce = self._random(_NONCE_LENGTH)
        rest = nonce + self._cipher(self._keys[0][1]).encrypt(nonce, body, b"")
        return rest + _mark(rest, secret)

    def open_untrusted(self, identity: bytes) -> OpenedTicket:
        """Raises UntrustedInputError for what none of the keys has sealed."""
        if len(identity) >= SHORTEST_TICKET:
            rest = identity[:-_MARK_LENGTH]
            for _, key in self._keys:
                try:
                    body = self._cipher(key).decrypt(rest[:_NONCE_LENGTH], rest[_NONCE_LENGTH:], b"")
                except InvalidTag:
                    continue
                secret, time = body[:SECRET_LENGTH], body[SECRET_LENGTH : SECRET_LENGTH + _TIME_LENGTH]
                short_id = body[SECRET_LENGTH + _TIME_LENGTH : _BODY_LENGTH]
                return OpenedTicket(secret, int.from_bytes(time, "big"), short_id)
        raise UntrustedInputError("ticket", "no key of this server has sealed it")

    def _cipher(self, key: bytes) -> AESGCM:
        return AESGCM(hmac.digest(key, self._binding, "sha256"))
