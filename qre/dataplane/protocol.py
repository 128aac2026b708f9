"""Sessions as every part of QRE sees them, and the interface between handshakes and a data plane.

A handshake worker establishes a session and hands it to *a data plane*: the kernel's (qre.ko, through the
netlink worker) or the user one (the dataplane worker). Both use the messages below over one
SOCK_SEQPACKET pair that the supervisor makes and never reads, so keys do not pass it. Field names are those of
``qre-tool install-session``. Packet number and key rules: RFC 9000 §12.3, RFC 9001 §6.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated

import msgspec

from qre.addresses import Address, Network
from qre.ends import MAX_CLIENTS, Role
from qre.errors import QreError
from qre.structs import U16, U64, IpText, Message, Port, Struct, Text
from qre.wire.close_reason import CloseReason
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.overhead import MAX_UDP_PAYLOAD

#: Send numbers are reserved in blocks of this size before they are used.
PACKET_NUMBER_BLOCK = 65_536
#: Packets after which a data plane asks for new keys (``RekeyDue``).
REKEY_AFTER_PACKETS = 1 << 22
#: Packets after which a session ends rather than break RFC 9001 §6.6 (AES-128-GCM, packets up to 2^11 bytes).
HARD_PACKET_LIMIT = 1 << 28
#: Failed openings after which a session ends: RFC 9001 §6.6, integrity limit of AES-128-GCM.
INTEGRITY_LIMIT = 1 << 52
#: The longest stray packet that is passed on (bytes).
MAX_STRAY = 1500
#: A held server session that is not confirmed within this time is deleted (seconds).
CONFIRM_TIMEOUT = 10.0
MAX_SESSIONS_PER_DEVICE = MAX_CLIENTS
#: Sessions in one answer; longer lists are requested page by page.
SESSIONS_PER_ANSWER = 64
#: The most routed CIDs of one session, and the most addresses in a ``SessionMark``.
MAX_CIDS_PER_SESSION = 8

PacketNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)]
SessionId = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
ConnectionId = Annotated[bytes, msgspec.Meta(min_length=1, max_length=20)]
#: Bytes of routed connection IDs, or LIKE_DEST.
RoutedCidLen = Annotated[int, msgspec.Meta(ge=0, le=20)]
PeerConnectionId = Annotated[bytes, msgspec.Meta(max_length=20)]
Key = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Iv = Annotated[bytes, msgspec.Meta(min_length=12, max_length=12)]
ResetToken = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
ShortId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Prefixes = Annotated[tuple[Network, ...], msgspec.Meta(max_length=256)]
FrameBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_UDP_PAYLOAD)]  # as much as one packet can carry


class Refusal(enum.StrEnum):
    """Why a data plane refuses a request: what programs act on. The text beside it is for people."""

    NO_SUCH = "no-such"  # there is no such session (any more)
    INSTALLED = "installed"  # it is installed, and differs from what was asked for
    NOT_CONFIRMED = "not-confirmed"  # the peer has not acknowledged the current key phase: RFC 9001 section 6.1
    CLOSING = "closing"  # it is neither held nor established
    EPOCH_BEHIND = "epoch-behind"  # of an earlier key epoch than the session's
    OTHER_KEYS = "other-keys"  # not the keys that it has, or knows to come next
    KEY_USED = "key-used"  # a packet number might repeat under this transmit key
    NO_ROOM = "no-room"
    OTHER = "other"


class SessionRefusedError(QreError):
    """A request that a data plane refuses; nothing has changed. ``key_epoch``: the session's, where the request's is
    behind."""

    def __init__(self, refusal: Refusal, words: str, key_epoch: int | None = None) -> None:
        super().__init__(words)
        self.refusal = refusal
        self.key_epoch = key_epoch


class LossReason(enum.StrEnum):
    """Why a session ended."""

    IDLE = "idle"
    CLOSED = "closed"  # the peer's CONNECTION_CLOSE
    RESET = "reset"  # a stateless reset
    UNCONFIRMED = "unconfirmed"  # a held session that was not confirmed in time
    LIMIT = "limit"  # the hard packet or integrity limit
    PROTOCOL = "protocol"  # the peer broke QUIC inside an authenticated packet
    REPLACED = "replaced"  # a newer session of the same short id was confirmed
    DELETED = "deleted"  # we asked for it
    UNANSWERED = "unanswered"  # a client has heard nothing for as long as a browser waits


class Underlay(Struct, frozen=True, kw_only=True):
    """The outer addresses of a session."""

    local_ip: Address
    local_port: Port
    peer_ip: Address
    peer_port: Port


def underlay_of(local: tuple[str, int], peer: tuple[str, int]) -> Underlay:
    """From addresses as sockets have them."""
    return Underlay(
        local_ip=ip_address(local[0]), local_port=local[1], peer_ip=ip_address(peer[0]), peer_port=peer[1]
    )


# --- requests: handshake worker -> data plane. Each is answered by exactly one Answer with the same id. ---


class SessionKeys(Struct, frozen=True, kw_only=True):
    """Packet protection of one key epoch, both directions (RFC 9001 §5.1)."""

    tx_key: Key
    rx_key: Key
    tx_iv: Iv
    rx_iv: Iv

    def __repr__(self) -> str:
        return "SessionKeys(hidden)"


class SessionInstall(Message, frozen=True, kw_only=True):
    """Install a session. The client's comes with its UDP socket as an SCM_RIGHTS descriptor (``SocketFd``)."""

    id: U64
    session_id: SessionId
    role: Role
    connection_id: ConnectionId  # the routed CID: on packets from client to server
    client_connection_id: PeerConnectionId = b""  # on packets from server to client; Chromium's is empty
    keys: SessionKeys
    next_keys: SessionKeys | None = None
    tx_hp_key: Key
    rx_hp_key: Key
    key_epoch: U64 = 0
    packet_number: PacketNumber = PACKET_NUMBER_BASE
    underlay: Underlay
    allowed_ips: Prefixes = ()  # empty: all
    short_id: ShortId = bytes(8)
    held: bool = False  # server: transmit nothing until the peer's first packet at or above the base
    idle_timeout_ms: U64 = 30_000  # effective: the smallest of ours and both max_idle_timeout
    keepalive_ms: U64 = 0  # 0: only the client's own PING after half of the idle timeout
    ack_delay_exponent: Annotated[int, msgspec.Meta(ge=0, le=20)] = 3  # the peer's
    max_ack_delay_ms: Annotated[int, msgspec.Meta(ge=0, le=16383)] = 25  # the peer's
    max_datagram_payload: U16 = MAX_UDP_PAYLOAD  # nothing larger is sent: what the peer takes, or a browser sends
    #: what inner packets travel in, but IPv6 that needs more for its 1,280 bytes
    usual_payload: U16 = MAX_UDP_PAYLOAD
    splits: bool = False  # the client sends a packet above that in two datagrams, and the server joins them
    reset_token: ResetToken | None = None  # of connection_id, held by the client (RFC 9000 §10.3)
    #: the sequence number of connection_id; at a server the highest that was issued, too
    cid_sequence: U64 = 0
    rekey_after_packets: U64 = REKEY_AFTER_PACKETS

    def __repr__(self) -> str:
        return f"SessionInstall(session_id={self.session_id.hex()[:8]}…, role={self.role})"


class SessionUpdate(Message, frozen=True, kw_only=True):
    """New keys: ``key_epoch`` is the current one (identical keys; adds ``next_keys``) or current + 1."""

    id: U64
    session_id: SessionId
    keys: SessionKeys
    next_keys: SessionKeys | None
    key_epoch: U64
    packet_number: PacketNumber = 0

    def __repr__(self) -> str:
        return f"SessionUpdate(session_id={self.session_id.hex()[:8]}…, key_epoch={self.key_epoch})"


class SessionDelete(Message, frozen=True, kw_only=True):
    """Remove a session; with ``close`` a CONNECTION_CLOSE is sent first, which tells the peer ``reason``."""

    id: U64
    session_id: SessionId
    close: bool = True
    reason: CloseReason | None = None


class CidAdoptFor(Message, frozen=True, kw_only=True):
    """One more routed CID for this session (the spare one of NEW_CONNECTION_ID)."""

    id: U64
    session_id: SessionId
    connection_id: ConnectionId
    sequence: U64


class CidReleaseFor(Message, frozen=True, kw_only=True):
    id: U64
    session_id: SessionId
    connection_id: ConnectionId


class FrameSend(Message, frozen=True, kw_only=True):
    """Send these whole frames (not DATAGRAM, not ACK) in the session's packets; their fate comes as an event."""

    id: U64
    session_id: SessionId
    frames: FrameBytes


class PathProven(Message, frozen=True, kw_only=True):
    """The session's path carries UDP payloads of ``size`` bytes: the handshake's largest, ``ago_ms`` old, has been
    acknowledged. The search goes on behind it."""

    id: U64
    session_id: SessionId
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_UDP_PAYLOAD)]
    ago_ms: U64


class NewPort(Message, frozen=True, kw_only=True):
    """The answer to ``PortWanted``: UDP socket ``number``, which comes as an SCM_RIGHTS descriptor (``SocketFd``).
    ``again``: it was lent to an earlier process, and the kernel may try it still."""

    id: U64
    session_id: SessionId
    number: U64
    again: bool = False


class SessionList(Message, frozen=True, kw_only=True):
    """List the installed sessions: the answer has ``Answer.sessions``, ordered by id, beginning behind ``after``."""

    id: U64
    after: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class PortUse(Struct, frozen=True, kw_only=True):
    """What a client's session sends with since it has moved to another port: the number of the socket, and the
    peer's connection ID."""

    number: U64
    connection_id: ConnectionId
    sequence: U64
    reset_token: ResetToken | None

    def __repr__(self) -> str:
        return f"PortUse(number={self.number})"


class SessionMark(Struct, frozen=True, kw_only=True):
    """The progress of a session of the data plane, without keys. The fields with defaults are for a handshake worker
    without a record of the session: a data plane that loses its sessions together with their secrets omits them."""

    session_id: SessionId
    connection_id: ConnectionId
    key_epoch: U64
    packet_number: PacketNumber  # the next one to be sent
    confirmed: bool
    begun: bool = False  # a client's: as ``SessionBegun``
    short_id: ShortId = bytes(8)
    connection_ids: Annotated[tuple[ConnectionId, ...], msgspec.Meta(max_length=MAX_CIDS_PER_SESSION)] = ()
    #: the host prefixes among its AllowedIPs
    addresses: Annotated[tuple[Network, ...], msgspec.Meta(max_length=MAX_CIDS_PER_SESSION)] = ()
    routed: Annotated[bytes, msgspec.Meta(max_length=8)] = b""  # ``digest`` of its AllowedIPs; empty: not told
    port: PortUse | None = None  # a client's, if it is no more the one that it was installed with
    lent: U64 = 0  # the number of the socket that it tries; 0: none


def digest(prefixes: Iterable[Network]) -> bytes:
    """The same for the same prefixes in any order, and for others another: 8 bytes."""
    return hashlib.sha256("\n".join(sorted(set(map(str, prefixes)))).encode()).digest()[:8]


class Answer(Message, frozen=True, kw_only=True):
    """The one answer to a request. ``refusal`` is None on success, and ``error`` empty; ``key_epoch`` tells the
    session's epoch when a request was refused because its own was behind (a restarted data plane knows from its
    marks). ``more``: there are sessions behind the last of these."""

    id: U64
    refusal: Refusal | None = None
    error: Text = ""  # the refusal in words
    key_epoch: U64 | None = None
    sessions: Annotated[tuple[SessionMark, ...], msgspec.Meta(max_length=SESSIONS_PER_ANSWER)] = ()
    more: bool = False

    def __post_init__(self) -> None:
        if self.error and self.refusal is None:
            raise ValueError("an error text without a refusal")


def refused(request: int, refusal: Refusal, words: str, key_epoch: int | None = None) -> Answer:
    """The answer to request number ``request`` that was not carried out."""
    return Answer(id=request, refusal=refusal, error=words[:512], key_epoch=key_epoch)


# --- events: data plane -> handshake worker ---


class SessionConfirmed(Message, frozen=True, kw_only=True):
    """The peer was heard: a first authentic packet of this session has come. At a server it lets the session send; at
    a client it says that the server's data plane has the session, too."""

    session_id: SessionId


class SessionBegun(Message, frozen=True, kw_only=True):
    """Of a client's session: its first packet has left, and inner packets pass. The server was heard in the
    handshake; whether it is with this session, ``SessionConfirmed`` tells."""

    session_id: SessionId


class SessionLost(Message, frozen=True, kw_only=True):
    session_id: SessionId
    reason: LossReason
    error_code: U64 = 0  # of the CONNECTION_CLOSE received (``close_reason``) or sent


class RekeyDue(Message, frozen=True, kw_only=True):
    """The packet limit is near: install new keys (``SessionUpdate`` with key_epoch + 1)."""

    session_id: SessionId
    key_epoch: U64


class KeyPhaseChanged(Message, frozen=True, kw_only=True):
    """The peer flipped the key phase and we followed: ``key_epoch`` is the new one. Next keys are wanted."""

    session_id: SessionId
    key_epoch: U64


class KeyPhaseConfirmed(Message, frozen=True, kw_only=True):
    """The peer acknowledged a packet of ``key_epoch``: another update is allowed (RFC 9001 §6.1)."""

    session_id: SessionId
    key_epoch: U64


class PeerMoved(Message, frozen=True, kw_only=True):
    session_id: SessionId
    underlay: Underlay


class FrameReceived(Message, frozen=True, kw_only=True):
    """Whole frames that the data plane does not own (STREAM, RETIRE_CONNECTION_ID, …)."""

    session_id: SessionId
    frames: FrameBytes


class FrameFate(Message, frozen=True, kw_only=True):
    """Whether the frames of ``FrameSend`` number ``id`` were acknowledged or lost."""

    session_id: SessionId
    id: U64
    acknowledged: bool


class SessionSilent(Message, frozen=True, kw_only=True):
    """Of a client's session: what was sent has had no answer for three probe timeouts (RFC 9002 §6.2). Told once more
    when it has one."""

    session_id: SessionId
    silent: bool


class PortWanted(Message, frozen=True, kw_only=True):
    """Of a client's session: nothing comes back, and another port is to be tried. ``NewPort`` may answer."""

    session_id: SessionId


class PortTried(Message, frozen=True, kw_only=True):
    """Socket ``number`` was tried. None: in vain, it may go."""

    session_id: SessionId
    number: U64
    moved: PortUse | None


class Stray(Message, frozen=True, kw_only=True):
    """A packet with the connection ID of a server's session that does not open, from another address than its peer's:
    a stranger's, whose site has chosen the same connection ID. It is the site's to answer."""

    session_id: SessionId
    ip: IpText
    port: Port
    ecn: Annotated[int, msgspec.Meta(ge=0, le=3)]
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_STRAY)]


DataplaneRequest = (
    SessionInstall
    | SessionUpdate
    | SessionDelete
    | CidAdoptFor
    | CidReleaseFor
    | FrameSend
    | PathProven
    | NewPort
    | SessionList
)
DataplaneReport = (
    Answer
    | SessionBegun
    | SessionConfirmed
    | SessionLost
    | RekeyDue
    | KeyPhaseChanged
    | KeyPhaseConfirmed
    | PeerMoved
    | FrameReceived
    | FrameFate
    | SessionSilent
    | PortWanted
    | PortTried
    | Stray
)
