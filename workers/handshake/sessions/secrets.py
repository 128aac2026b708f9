"""Session secrets that outlive this process: a memfd that the supervisor holds and never maps.

It holds what a restarted handshake worker needs to continue every live session: traffic secrets of the key epoch that
the data plane is known to have reached (later ones are derived, earlier ones are gone), header keys, addresses,
connection IDs. Whoever reads this file can decrypt the sessions. It must never hold a secret of an earlier epoch for
longer than one write takes, nor any data of a session that has ended.

Layout, big-endian; 2 MiB, 2047 slots of 1024 bytes behind a header of 1024 bytes::

    header   0  8 bytes  magic
    slot     0  1 byte   0: free, 1: copy 0 is valid, 2: copy 1 is valid (written last)
            16  504      copy 0
           520  504      copy 1

A copy, in order::

    session id 32 | short id 8 | role 1 (1 server, 2 client) | flags 1 (1 confirmed, 2 connection IDs settled,
        4 packets in two datagrams, 8 the outer addresses are IPv6)
    local ip 4 | local port 2 | peer ip 4 | peer port 2 (of IPv6 the addresses are 0 here)
    routed CID: length 1, bytes 20 | client CID: length 1, bytes 20 | spare CID: length 1, bytes 20
    spare sequence 8 | sequence to retire 8 (all ones: none) | next CID sequence 8 | socket number 8
    key epoch 8 | transmit secret 32 | receive secret 32 | transmit hp key 16 | receive hp key 16
    peer's max_idle_timeout 8 (ms) | ack_delay_exponent 1 | max_ack_delay 2 (ms) | max_udp_payload_size 2
    reset token: length 1, bytes 16 | addresses: count 1, then 8 of (version 1, prefix length 1, address 16)
    before the last 32 bytes: sequence of the routed CID plus 1, 8 bytes (0: written by an earlier version)
    at the end, when the outer addresses are IPv6: local ip 16 | peer ip 16

A change is written to the copy that is not valid, made valid by one byte, and then the other copy is zeroed: a
process that is killed in between leaves one whole record.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address

from qre.addresses import Interface
from qre.dataplane.protocol import Underlay
from qre.ends import Role
from qre.errors import MachineError, UntrustedInputError
from qre.quic.handed_over import HandedOver, advance

SIZE = 1 << 21
#: As an earlier version made them; a daemon that follows one goes on with its own.
EARLIER_SIZE = 1 << 20
SLOT = 1024
SLOTS = SIZE // SLOT - 1
MAGIC = b"qresecr1"
COPIES = (16, 520)
COPY_LENGTH = 504
MAX_ADDRESSES = 8

_RECORD = struct.Struct("!32s8sBB4sH4sH" + "B20s" * 3 + "QQQQ" + "Q32s32s16s16s" + "QBHH" + "B16sB")
_ADDRESS = struct.Struct("!BB16s")
_NO_SEQUENCE = (1 << 64) - 1
_ROLES = {Role.SERVER: 1, Role.CLIENT: 2}
_CONFIRMED, _SETTLED, _SPLITS, _OUTER_IPV6 = 1, 2, 4, 8
_OUTER = struct.Struct("!16s16s")
_ROUTED = struct.Struct("!Q")
_ROUTED_AT = COPY_LENGTH - _OUTER.size - _ROUTED.size
_MLOCK_ONFAULT = 1
_LONGEST_EPOCH = (1 << 63) - 1


@dataclass(frozen=True)
class SessionRecord:
    """One live session. The secrets in ``handed_over`` are those of its ``key_epoch``."""

    role: Role
    handed_over: HandedOver
    underlay: Underlay
    socket_number: int = 0  # client: the number of its UDP socket
    confirmed: bool = False
    settled: bool = False  # the CID frames that follow the hand-over are acknowledged
    spare_cid: bytes = b""
    spare_sequence: int = 0
    routed_sequence: int | None = None  # server: of the routed CID; None: the one before the next

    @property
    def used_sequence(self) -> int:
        """Server: the sequence number of the routed CID."""
        return self.handed_over.next_cid_sequence - 1 if self.routed_sequence is None else self.routed_sequence

    @property
    def session_id(self) -> bytes:
        """32 bytes, the same at both ends."""
        return self.handed_over.session_id

    @property
    def short_id(self) -> bytes:
        """The client's short id, 8 bytes."""
        return self.handed_over.short_id

    @property
    def key_epoch(self) -> int:
        """How often the keys have changed (RFC 9001 §6)."""
        return self.handed_over.key_epoch

    def connection_ids(self) -> tuple[bytes, ...]:
        """The routed connection IDs that lead to this session."""
        return tuple(cid for cid in (self.handed_over.routed_cid, self.spare_cid) if cid)

    def at(self, key_epoch: int) -> SessionRecord:
        """The same session at a later key epoch."""
        return replace(self, handed_over=advance(self.handed_over, key_epoch))

    def __repr__(self) -> str:
        return f"SessionRecord(session_id={self.session_id.hex()[:8]}…, role={self.role})"


def encode_record(record: SessionRecord) -> bytes:
    """One copy, ``COPY_LENGTH`` bytes. Raises MachineError for more than MAX_ADDRESSES addresses."""
    h, u = record.handed_over, record.underlay
    if len(h.addresses) > MAX_ADDRESSES:
        raise MachineError("session secrets", f"more than {MAX_ADDRESSES} addresses")
    local_ip, peer_ip, flags, outer = u.local_ip.packed, u.peer_ip.packed, 0, b""
    if u.peer_ip.version == 6:
        local_ip, peer_ip, flags, outer = bytes(4), bytes(4), _OUTER_IPV6, _OUTER.pack(local_ip, peer_ip)
    fixed = _RECORD.pack(
        h.session_id,
        h.short_id,
        _ROLES[record.role],
        flags | record.confirmed * _CONFIRMED | record.settled * _SETTLED | h.splits * _SPLITS,
        local_ip,
        u.local_port,
        peer_ip,
        u.peer_port,
        len(h.routed_cid),
        h.routed_cid,
        len(h.client_cid),
        h.client_cid,
        len(record.spare_cid),
        record.spare_cid,
        record.spare_sequence,
        _NO_SEQUENCE if h.retire_sequence is None else h.retire_sequence,
        h.next_cid_sequence,
        record.socket_number,
        h.key_epoch,
        h.tx_secret,
        h.rx_secret,
        h.tx_hp_key,
        h.rx_hp_key,
        h.peer_idle_ms,
        h.peer_ack_delay_exponent,
        h.peer_max_ack_delay_ms,
        min(h.peer_max_udp_payload, 0xFFFF),
        len(h.reset_token or b""),
        h.reset_token or b"",
        len(h.addresses),
    )
    addresses = b"".join(
        _ADDRESS.pack(a.version, a.network.prefixlen, a.ip.packed.ljust(16, b"\0")) for a in h.addresses
    )
    routed = 0 if record.routed_sequence is None else record.routed_sequence + 1
    return (fixed + addresses).ljust(_ROUTED_AT, b"\0") + _ROUTED.pack(routed) + outer.rjust(_OUTER.size, b"\0")


def parse_record_untrusted(data: bytes) -> SessionRecord:
    """Parse one copy, which a process that died may have left incomplete. Raises UntrustedInputError."""
    if len(data) != COPY_LENGTH:
        raise UntrustedInputError("session secrets", "a record has the wrong length")
    fields = _RECORD.unpack_from(data)
    session_id, short_id, role, flags, local_ip, local_port, peer_ip, peer_port = fields[:8]
    routed, client, spare = (
        _cid_untrusted(length, cid) for length, cid in zip(fields[8:14:2], fields[9:14:2], strict=True)
    )
    spare_sequence, retire, next_sequence, socket_number, key_epoch, tx, rx, tx_hp, rx_hp = fields[14:23]
    idle, exponent, ack_delay, payload, token_length, token, count = fields[23:]
    roles = {number: known for known, number in _ROLES.items()}
    if role not in roles or not routed or not local_port or not peer_port or token_length not in {0, 16}:
        raise UntrustedInputError("session secrets", "a record has an invalid role, port or length")
    if flags & _OUTER_IPV6:
        local_ip, peer_ip = _OUTER.unpack_from(data, COPY_LENGTH - _OUTER.size)
    if count > MAX_ADDRESSES or exponent > 20 or ack_delay > 16383 or key_epoch > _LONGEST_EPOCH:
        raise UntrustedInputError("session secrets", "a record has a value out of range")
    (routed_sequence,) = _ROUTED.unpack_from(data, _ROUTED_AT)
    handed_over = HandedOver(
        session_id=session_id,
        routed_cid=routed,
        client_cid=client,
        tx_secret=tx,
        rx_secret=rx,
        tx_hp_key=tx_hp,
        rx_hp_key=rx_hp,
        key_epoch=key_epoch,
        peer_idle_ms=idle,
        peer_ack_delay_exponent=exponent,
        peer_max_ack_delay_ms=ack_delay,
        peer_max_udp_payload=payload,
        reset_token=token if token_length else None,
        addresses=tuple(
            _address_untrusted(*_ADDRESS.unpack_from(data, _RECORD.size + at * _ADDRESS.size)) for at in range(count)
        ),
        short_id=short_id,
        retire_sequence=None if retire == _NO_SEQUENCE else retire,
        next_cid_sequence=next_sequence,
        splits=bool(flags & _SPLITS),
    )
    return SessionRecord(
        role=roles[role],
        handed_over=handed_over,
        underlay=Underlay(
            local_ip=ip_address(local_ip),
            local_port=local_port,
            peer_ip=ip_address(peer_ip),
            peer_port=peer_port,
        ),
        socket_number=socket_number,
        confirmed=bool(flags & _CONFIRMED),
        settled=bool(flags & _SETTLED),
        spare_cid=spare,
        spare_sequence=spare_sequence,
        routed_sequence=routed_sequence - 1 if routed_sequence else None,
    )


def _cid_untrusted(length: int, cid: bytes) -> bytes:
    if length > len(cid):
        raise UntrustedInputError("session secrets", "a connection ID is too long")
    return cid[:length]


def _address_untrusted(version: int, prefix: int, packed: bytes) -> Interface:
    if version == 4 and prefix <= 32:
        return IPv4Interface((IPv4Address(packed[:4]), prefix))
    if version == 6 and prefix <= 128:
        return IPv6Interface((IPv6Address(packed), prefix))
    raise UntrustedInputError("session secrets", "a record has an invalid address")


def _written(fd: int, size: int) -> range:
    """The slots that an earlier process may have used: behind the last of them nothing was ever written."""
    end = 0
    try:
        while True:
            end = os.lseek(fd, os.lseek(fd, end, os.SEEK_DATA), os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:  # no more data
            raise
    return range(SLOT, min(end, size), SLOT)


class SecretsStore:
    """The mapped memfd. Exactly one process uses it at a time. ``removed`` is called when a session was forgotten."""

    def __init__(self, fd: int) -> None:
        """Map ``fd`` (it may be closed afterwards). Raises MachineError when it is not a memfd of secrets."""
        try:
            self._size = os.fstat(fd).st_size
            if self._size not in (SIZE, EARLIER_SIZE):
                raise MachineError("session secrets", f"the descriptor is not {SIZE} bytes long")
            self._written = _written(fd, self._size)
            self._map = mmap.mmap(fd, self._size)
            self._map.madvise(mmap.MADV_DONTDUMP)
        except OSError as error:
            raise MachineError("session secrets", str(error)) from error
        if self._map[: len(MAGIC)] not in {MAGIC, bytes(len(MAGIC))}:
            self._map.close()
            raise MachineError("session secrets", "the descriptor holds other data")
        self._map[: len(MAGIC)] = MAGIC
        self.removed: Callable[[], None] = lambda: None
        self._slots: dict[bytes, int] = {}
        self._free = list(reversed(range(SLOT, self._size, SLOT)))

    def load(self) -> tuple[list[SessionRecord], int]:
        """The sessions that an earlier process left, and the number of unreadable records, which are wiped."""
        found: list[SessionRecord] = []
        damaged = 0
        self._free = []
        for at in range(SLOT, self._size, SLOT):
            if at not in self._written:  # reading it would take a page
                self._free.append(at)
                continue
            state = self._map[at]
            record: SessionRecord | None = None
            if state:
                try:
                    record = self._read_untrusted(at, state)
                except UntrustedInputError:
                    damaged += 1
            if record is None:
                self._wipe(at)
                self._free.append(at)
                continue
            self._zero(at + COPIES[2 - state], COPY_LENGTH)  # left by a process that was killed while writing
            self._slots[record.session_id] = at
            found.append(record)
        self._free.reverse()
        return found, damaged

    def _read_untrusted(self, at: int, state: int) -> SessionRecord:
        if state > len(COPIES):
            raise UntrustedInputError("session secrets", "a slot has an unknown state")
        start = at + COPIES[state - 1]
        record = parse_record_untrusted(self._map[start : start + COPY_LENGTH])
        if record.session_id in self._slots:
            raise UntrustedInputError("session secrets", "a session has two records")
        return record

    @property
    def full(self) -> bool:
        """Whether ``put`` refuses a new session."""
        return not self._free

    def put(self, record: SessionRecord) -> None:
        """Write a session, new or known; from then on it survives this process. Raises MachineError without room."""
        data = encode_record(record)
        at = self._slots.get(record.session_id)
        if at is None:
            if not self._free:
                raise MachineError("session secrets", "no room for another session")
            at = self._free.pop()
            self._slots[record.session_id] = at
        old = self._map[at]
        new = 1 if old != 1 else 2
        start = at + COPIES[new - 1]
        self._map[start : start + COPY_LENGTH] = data
        self._map[at] = new
        if old:
            self._zero(at + COPIES[old - 1], COPY_LENGTH)

    def remove(self, session_id: bytes) -> None:
        """Forget a session that has ended."""
        at = self._slots.pop(session_id, None)
        if at is not None:
            self._wipe(at)
            self._free.append(at)
            self.removed()

    def lock(self) -> bool:
        """Keep it out of swap, if the limit on locked memory allows it: each page from the moment it is used."""
        view = (ctypes.c_char * self._size).from_buffer(self._map)
        lock = ctypes.CDLL(None).mlock2
        return int(lock(ctypes.byref(view), ctypes.c_size_t(self._size), _MLOCK_ONFAULT)) == 0

    def close(self, *, wipe: bool = False) -> None:
        """Unmap the memfd; with ``wipe`` zero it first: no process will continue these sessions."""
        if wipe:
            self._zero(0, self._size)
        self._map.close()

    def _wipe(self, at: int) -> None:
        self._map[at] = 0
        self._zero(at, SLOT)

    def _zero(self, at: int, length: int) -> None:
        self._map[at : at + length] = bytes(length)
