"""Numbers and packet protection of one session: RFC 9000 §12.3, §17.3.1, Appendix A; RFC 9001 §5.3, §5.4, §6.

The hot path, in batches: one block cipher call makes the header masks of them all. A number is used once, after it
was reserved in the marks; the receive mark is written before ``open`` returns. Unauthenticated packets change
nothing but counters. Numbers always leave in four bytes, so the sample of header protection is the first
block of the ciphertext.
"""

from __future__ import annotations

import hmac
import struct
from collections import Counter
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qre.dataplane.protocol import HARD_PACKET_LIMIT, INTEGRITY_LIMIT, SessionInstall
from qre.ends import Role
from qre.wire.ackwin import ReceivedNumbers
from qre.wire.datagram import DATAGRAM_HEAD, SPLIT_HEAD
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.workers.dataplane.session.keyphase import KeyPhases, ReceiveKeys
from qre.workers.dataplane.session.marks import Mark

#: RFC 9000 §10.3.
SHORTEST_RESET = 21
_INNER = (DATAGRAM_HEAD, SPLIT_HEAD)
_HALF, _MASK = 1 << 31, (1 << 32) - 1
#: Numbers of one and of two bytes, while fewer packets than this are not acknowledged.
_ONE_BYTE, _TWO_BYTES = 64, 1 << 14
_masks_of = struct.Struct(">BI11x").iter_unpack


class LimitReachedError(Exception):
    """RFC 9001 §6.6: these keys must not be used any more."""


class Opened:
    """The result of opening one batch."""

    __slots__ = ("datagrams", "follow", "new", "others", "out_of_order", "probing", "reset", "resets", "unreadable")

    def __init__(self, resets: bool) -> None:
        self.datagrams: list[bytes] = []  # DATAGRAM_HEAD + inner packet, or SPLIT_HEAD + part, each
        #: Everything else, in order: plaintext, first byte unmasked, key epoch, whether its number was the highest.
        self.others: list[tuple[bytes, int, int, bool]] = []
        self.new = 0  # packets
        self.unreadable: list[bytes] = []  # whole packets that no key of the session opens; a duplicate is none
        self.out_of_order = False
        self.probing = True  # no datagram among the packets that had the highest number yet
        self.resets = resets  # whether they may be
        self.reset = False  # a stateless reset was among them
        self.follow = False  # the peer began a key phase: our transmit keys must follow before anything is sent


class Packets:
    """Both directions. ``phases`` and ``received`` are read and, for key updates, changed by the session."""

    def __init__(self, install: SessionInstall, mark: Mark, drops: Counter[str]) -> None:
        client = install.role is Role.CLIENT
        self.drops = drops
        self.mark = mark
        self.next_number = max(install.packet_number, mark.send_mark, PACKET_NUMBER_BASE)
        self._reserved = mark.send_mark
        self.received = ReceivedNumbers(max(mark.receive_mark, PACKET_NUMBER_BASE) - 1)
        self.phases = KeyPhases(install.keys, install.next_keys, install.key_epoch, mark.phase_first)
        self.rekey_after = install.rekey_after_packets
        self.tx_cid = install.connection_id if client else install.client_connection_id
        self.rx_cid_length = len(install.client_connection_id if client else install.connection_id)
        self._rx_header = struct.Struct(f">B{self.rx_cid_length}sI").pack
        self.use_cid(self.tx_cid)
        self._tx_mask = Cipher(algorithms.AES(install.tx_hp_key), modes.ECB()).encryptor().update
        self._rx_mask = Cipher(algorithms.AES(install.rx_hp_key), modes.ECB()).encryptor().update
        #: Of the peer's connection ID in use; None: not known.
        self.reset_token = install.reset_token
        self.failed_opens = 0

    @property
    def used(self) -> int:
        """Packets that may have left under the current transmit key."""
        return self.next_number - self.phases.first_sent

    def use_cid(self, cid: bytes) -> None:
        """Use this connection ID of the peer for all packets from now on."""
        self.tx_cid = cid
        self._tx_header = struct.Struct(f">B{len(cid)}sI").pack

    def seal_for(self, cid: bytes, plaintext: bytes) -> bytes:
        """One packet that bears another one, for another path. Raises LimitReachedError."""
        own = self.tx_cid
        self.use_cid(cid)
        try:
            return self.seal([plaintext])[0]
        finally:
            self.use_cid(own)

    def seal(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        """Number, encrypt and mask. Raises LimitReachedError before the key is used too often."""
        number = self.next_number
        self._take_numbers(len(plaintexts))
        after, keys = self.next_number, self.phases.tx
        encrypt, iv, first, cid, header = keys.encrypt, keys.iv, keys.first_byte, self.tx_cid, self._tx_header
        sealed = [
            encrypt((iv ^ n).to_bytes(12, "big"), plaintext, header(first, cid, n & _MASK))
            for n, plaintext in enumerate(plaintexts, number)
        ]
        masks = _masks_of(self._tx_mask(b"".join([text[:16] for text in sealed])))
        return [
            header(first ^ (m0 & 0x1F), cid, (n & _MASK) ^ m) + text
            for n, text, (m0, m) in zip(range(number, after), sealed, masks, strict=True)
        ]

    def seal_brief(self, plaintext: bytes, acknowledged: int) -> bytes:
        """One packet with a number as short as a browser's (RFC 9000 §17.1), and four bytes while the peer has not
        acknowledged one of ours: ``acknowledged`` is the largest. Raises LimitReachedError."""
        behind = self.next_number - acknowledged
        if acknowledged < PACKET_NUMBER_BASE or behind >= _TWO_BYTES:
            return self.seal([plaintext])[0]
        size, number = (1 if behind < _ONE_BYTE else 2), self.next_number
        self._take_numbers(1)
        keys, cid = self.phases.tx, self.tx_cid
        first, short = keys.first_byte & 0xFC | size - 1, (number & (1 << 8 * size) - 1).to_bytes(size, "big")
        plaintext = plaintext.ljust(4 - size, b"\0")  # there must be enough to sample (RFC 9001 §5.4.2)
        text = keys.encrypt((keys.iv ^ number).to_bytes(12, "big"), plaintext, bytes([first]) + cid + short)
        mask = self._tx_mask(text[4 - size : 20 - size])
        masked = bytes(byte ^ other for byte, other in zip(short, mask[1:], strict=False))
        return bytes([first ^ (mask[0] & 0x1F)]) + cid + masked + text

    def skip_number(self) -> int:
        """Leave out a number, which no packet ever has; it. Raises LimitReachedError."""
        self._take_numbers(1)
        return self.next_number - 1

    def _take_numbers(self, count: int) -> None:
        """Raises LimitReachedError before the key is used too often."""
        after = self.next_number + count
        if after - self.phases.first_sent > HARD_PACKET_LIMIT:
            raise LimitReachedError
        if after > self._reserved:
            self._reserved = self.mark.reserve(after)
        self.next_number = after

    def open(self, datagrams: Sequence[bytes], old_keys_until: float, resets: bool = False) -> Opened:  # noqa: PLR0915
        """Open short-header packets with one connection ID. Raises LimitReachedError.

        The receive keys flip when a packet of the next phase is authentic; the old ones live until then. With
        ``resets`` they came from the peer's address, and an unreadable one may be a stateless reset.
        """
        opened = Opened(resets)
        at = 1 + self.rx_cid_length
        number_end, sample_end = at + 4, at + 20
        good = [d for d in datagrams if sample_end <= len(d) <= MAX_UDP_PAYLOAD and d[0] & 0xC0 == 0x40]
        if len(good) != len(datagrams):
            self._malformed(datagrams, sample_end, opened)
            if not good:
                return opened
        masks = _masks_of(self._rx_mask(b"".join([d[number_end:sample_end] for d in good])))
        header, from_bytes, cid = self._rx_header, int.from_bytes, good[0][1:at]
        received, inner, rx = self.received, opened.datagrams, self.phases.rx
        decrypt, iv, fast = rx.decrypt, rx.iv, 0x43 | rx.phase
        expected = received.highest + 1
        for datagram, (m0, m) in zip(good, masks, strict=True):
            first = datagram[0] ^ (m0 & 0x1F)
            if first == fast:  # current phase, four bytes of number, spin and reserved bits 0
                truncated = from_bytes(datagram[at:number_end], "big") ^ m
                number = expected + ((truncated - expected + _HALF) & _MASK) - _HALF
                try:
                    nonce = (iv ^ number).to_bytes(12, "big")
                    plaintext = decrypt(nonce, datagram[number_end:], header(first, cid, truncated))
                except (InvalidTag, OverflowError):
                    self._failed(datagram, opened)
                    continue
                keys = rx
            else:
                result = self._open_general(datagram, first, m, expected, opened)
                if result is None:
                    continue
                number, plaintext, keys = result
            if number == expected and received.ends:
                received.ends[-1] = number
                expected += 1
                newest = True
            elif self._accept(number, keys, opened):
                newest = number >= expected
                expected = received.highest + 1
            else:
                continue
            opened.new += 1
            if keys is not rx:
                self._flip_if_next(keys, number, old_keys_until, opened)
                rx = self.phases.rx
                decrypt, iv, fast = rx.decrypt, rx.iv, 0x43 | rx.phase
            if first & 0x18 == 0 and plaintext.startswith(_INNER):
                inner.append(plaintext)
                if newest:
                    opened.probing = False
            else:
                opened.others.append((plaintext, first, keys.epoch, newest))
        if opened.new:
            self.mark.received(received.highest)
        return opened

    def _open_general(
        self, datagram: bytes, first: int, mask: int, expected: int, opened: Opened
    ) -> tuple[int, bytes, ReceiveKeys] | None:
        """Any number length, key phase and spin bit; None when it does not open."""
        at, size = 1 + self.rx_cid_length, (first & 0x03) + 1
        window = 1 << 8 * size
        truncated = int.from_bytes(datagram[at : at + size], "big") ^ mask >> 32 - 8 * size
        number = expected + ((truncated - expected + window // 2) % window) - window // 2
        if number < 0:
            number += window
        keys = self.phases.choose(first & 0x04, number)
        if keys is None:
            self._unreadable(datagram, "no-keys", opened)
            return None
        aad = bytes((first,)) + datagram[1:at] + truncated.to_bytes(size, "big")
        try:
            nonce = (keys.iv ^ number).to_bytes(12, "big")
            return number, keys.decrypt(nonce, datagram[at + size :], aad), keys
        except (InvalidTag, OverflowError):
            self._failed(datagram, opened)
            return None

    def _malformed(self, datagrams: Sequence[bytes], shortest: int, opened: Opened) -> None:
        for datagram in datagrams:
            if not shortest <= len(datagram) <= MAX_UDP_PAYLOAD or datagram[0] & 0xC0 != 0x40:
                self._unreadable(datagram, "malformed", opened)

    def _unreadable(self, datagram: bytes, why: str, opened: Opened) -> bool:
        """Check an unreadable packet for a stateless reset; otherwise count it as noise and return True."""
        if opened.resets and self.is_reset(datagram):
            opened.reset = True
            return False
        self.drops[why] += 1
        opened.unreadable.append(datagram)
        return True

    def is_reset(self, datagram: bytes) -> bool:
        """Whether a datagram of the peer's that cannot be read ends as a stateless reset does, its token compared in
        constant time (RFC 9000 §10.3.1): of any length, its first bytes are random."""
        token = self.reset_token
        return token is not None and len(datagram) >= SHORTEST_RESET and hmac.compare_digest(datagram[-16:], token)

    def _failed(self, datagram: bytes, opened: Opened) -> None:
        """Count a packet that is not authentic."""
        if self._unreadable(datagram, "decrypt-failed", opened):
            self.failed_opens += 1
            if self.failed_opens >= INTEGRITY_LIMIT:
                raise LimitReachedError

    def _accept(self, number: int, keys: ReceiveKeys, opened: Opened) -> bool:
        """The replay check for a packet out of order, or the first one."""
        if number < PACKET_NUMBER_BASE:
            self.drops["below-base"] += 1
            return False
        if not self.received.accept(number):
            self.drops["replayed"] += 1
            return False
        if number != self.received.highest or len(self.received.starts) > 1:
            opened.out_of_order = True
        if keys is self.phases.rx and number < self.phases.first_received:
            self.phases.first_received = number
        return True

    def _flip_if_next(self, keys: ReceiveKeys, number: int, old_keys_until: float, opened: Opened) -> None:
        if keys is self.phases.rx_next and self.phases.flipped(number, old_keys_until):
            opened.follow = True
