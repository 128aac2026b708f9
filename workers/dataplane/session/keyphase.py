"""Packet protection keys of one session and the key phase: RFC 9001 §5 and §6.1 to §6.5.

The transmit side is at ``epoch``; the receive side at the same one, or one behind while the peer has not yet followed
our update. The phase bit of an epoch is its lowest bit. Which receive key a packet wants is told by its phase bit and
its number, never by trying. It must never send under a key whose use the number marks have not recorded.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qre.dataplane.protocol import SessionKeys
from qre.workers.dataplane.session.wiping import wipe_keys

#: Old receive keys live for at most three PTO (RFC 9001 §6.5) and never longer than this: the peer does not begin the
#: next update earlier, and the generation after next is not tried while they are kept.
OLD_KEYS_LIMIT = 0.075

_Seal = Callable[[bytes, bytes, bytes | None], bytes]


class SendKeys:
    """``encrypt(nonce, plaintext, associated data)`` of one epoch."""

    __slots__ = ("encrypt", "epoch", "first_byte", "iv")

    def __init__(self, key: bytes, iv: bytes, epoch: int) -> None:
        self.encrypt: _Seal = AESGCM(key).encrypt
        self.iv = int.from_bytes(iv, "big")
        self.epoch = epoch
        #: Short header: fixed bit, spin bit 0, reserved bits 0, key phase, four bytes of packet number.
        self.first_byte = 0x43 | (epoch & 1) << 2


class ReceiveKeys:
    """``decrypt(nonce, ciphertext, associated data)`` of one epoch."""

    __slots__ = ("decrypt", "epoch", "iv", "phase")

    def __init__(self, key: bytes, iv: bytes, epoch: int) -> None:
        self.decrypt: _Seal = AESGCM(key).decrypt
        self.iv = int.from_bytes(iv, "big")
        self.epoch = epoch
        self.phase = (epoch & 1) << 2  # as it stands in the first byte


class KeyPhases:
    """Current, next and previous keys of both directions."""

    __slots__ = (
        "confirmed_at",
        "first_received",
        "first_sent",
        "keys",
        "next_keys",
        "previous_until",
        "rx",
        "rx_next",
        "rx_previous",
        "tx",
    )

    def __init__(self, keys: SessionKeys, next_keys: SessionKeys | None, epoch: int, first_sent: int) -> None:
        self.keys = keys  # of the transmit epoch
        self.next_keys = next_keys
        self.tx = SendKeys(keys.tx_key, keys.tx_iv, epoch)
        self.rx = ReceiveKeys(keys.rx_key, keys.rx_iv, epoch)
        self.rx_previous: ReceiveKeys | None = None
        self.previous_until = 0.0
        self.rx_next = self._receive_keys(next_keys, epoch + 1)
        self.first_sent = first_sent  # first number under the transmit key
        self.first_received = 1 << 62  # lowest number received under the current receive key
        #: When the peer acknowledged a packet of the current transmit epoch; None: not yet.
        self.confirmed_at: float | None = None

    @staticmethod
    def _receive_keys(keys: SessionKeys | None, epoch: int) -> ReceiveKeys | None:
        return ReceiveKeys(keys.rx_key, keys.rx_iv, epoch) if keys is not None else None

    @property
    def epoch(self) -> int:
        """The key epoch of packets sent now."""
        return self.tx.epoch

    def choose(self, phase: int, number: int) -> ReceiveKeys | None:
        """The receive keys for a packet with this phase bit (0 or 4) and number; None: such a packet is dropped."""
        if phase == self.rx.phase:
            return self.rx
        if self.rx_previous is not None:
            return self.rx_previous if number < self.first_received else None
        return self.rx_next if number > self.first_received or self.first_received == 1 << 62 else None

    def learn_next(self, next_keys: SessionKeys | None) -> None:
        """``next_keys`` of epoch + 1 (a repeat, or the answer to KeyPhaseChanged)."""
        if next_keys is None or self.next_keys is not None:
            return
        self.next_keys = next_keys
        if self.rx.epoch == self.epoch:
            self.rx_next = self._receive_keys(next_keys, self.epoch + 1)

    def initiate(self, keys: SessionKeys, next_keys: SessionKeys | None, first_sent: int) -> None:
        """We begin the next key phase: transmit keys change now, receive keys when the peer follows (§6.1)."""
        epoch = self.epoch + 1
        self.tx = SendKeys(keys.tx_key, keys.tx_iv, epoch)
        wipe_keys(self.keys, self.next_keys)  # these are the same as ``keys``, read from another message
        self.keys, self.next_keys = keys, next_keys
        self.rx_next = self._receive_keys(keys, epoch)
        self.first_sent = first_sent
        self.confirmed_at = None

    def flipped(self, number: int, until: float) -> bool:
        """The packet ``number`` opened under the next receive keys. True when our transmit keys must follow (§6.2):
        then call ``follow``, after the mark was advanced."""
        assert self.rx_next is not None
        self.rx_previous, self.previous_until = self.rx, until
        self.rx, self.rx_next = self.rx_next, None
        self.first_received = number
        if self.rx.epoch > self.epoch:
            return True
        self.rx_next = self._receive_keys(self.next_keys, self.epoch + 1)
        return False

    def follow(self, first_sent: int) -> None:
        """Change the transmit keys after the peer's (§6.2); ``first_sent`` is the first number under them."""
        assert self.next_keys is not None
        keys, epoch = self.next_keys, self.epoch + 1
        self.tx = SendKeys(keys.tx_key, keys.tx_iv, epoch)
        wipe_keys(self.keys)
        self.keys, self.next_keys = keys, None
        self.first_sent = first_sent
        self.confirmed_at = None
