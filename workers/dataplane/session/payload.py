"""The payload of an authenticated packet, its frames sorted by owner.

A data plane's own (DATAGRAM, ACK, PING, PADDING, PATH_*, NEW_CONNECTION_ID, HANDSHAKE_DONE, CONNECTION_CLOSE) are
taken apart; the others stay whole frames, byte for byte, for the handshake worker. The hot path handles the plain
DATAGRAM itself and never comes here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from qre.wire.datagram import DATAGRAM_HEAD, SPLIT_CONTEXT, SPLIT_HEAD, parse_http_datagram_untrusted
from qre.wire.frames import (
    PROTOCOL_VIOLATION,
    STREAM_DATA_BLOCKED,
    STREAM_STATE_ERROR,
    Ack,
    ConnectionClose,
    Datagram,
    FlowControl,
    Frame,
    HandshakeDone,
    NewConnectionId,
    NewToken,
    Padding,
    PathChallenge,
    PathResponse,
    Ping,
    ResetStream,
    RetireConnectionId,
    StopSending,
    Stream,
    encode_frame,
    read_frame_untrusted,
)

PING: Final = encode_frame(Ping())
#: With the PADDING that an idle browser's has: 25 bytes with a connection ID of four.
IDLE_PING: Final = b"\0\0\x01"
#: RFC 9000 §9.1.
_PROBING: Final = frozenset({Padding, NewConnectionId, PathChallenge, PathResponse})
#: RFC 9000 §13.2.
_NOT_ELICITING: Final = frozenset({Padding, Ack, ConnectionClose})


class Sender(msgspec.Struct, frozen=True):
    """The sender of a payload, which decides the frames that are allowed in it."""

    client: bool
    gives_cids: bool  # what we send to it bears a connection ID that is not empty
    takes_cids: bool  # its packets have one of our connection IDs
    issued: int  # the highest sequence number of our connection IDs

    def misplaced(self, frame: Frame) -> int:
        """The transport error if this sender may not send the frame (RFC 9000 §19); 0: none."""
        match frame:
            case HandshakeDone() | NewToken():
                return PROTOCOL_VIOLATION if self.client else 0
            case NewConnectionId():
                return 0 if self.gives_cids else PROTOCOL_VIOLATION
            case RetireConnectionId(sequence=sequence):
                return 0 if self.takes_cids and sequence <= self.issued else PROTOCOL_VIOLATION
            case Stream(stream_id=stream) | ResetStream(stream_id=stream):
                return self._one_way(stream, from_us=True)
            case StopSending(stream_id=stream):
                return self._one_way(stream, from_us=False)
            case FlowControl(type=kind, stream_id=int(stream)):  # MAX_STREAM_DATA, STREAM_DATA_BLOCKED
                return self._one_way(stream, from_us=kind == STREAM_DATA_BLOCKED)
        return 0

    def _one_way(self, stream: int, *, from_us: bool) -> int:
        """The error when only we, or only the sender, may send on this stream (§2.1)."""
        by_client = not stream & 1
        return STREAM_STATE_ERROR if stream & 2 and by_client == (self.client != from_us) else 0


class Payload:
    """The content of one packet. ``error``: its transport error; 0: none, and the other fields are valid."""

    __slots__ = (
        "acks",
        "challenges",
        "close",
        "datagrams",
        "eliciting",
        "error",
        "issued",
        "passed",
        "probing_only",
        "responses",
        "unknown_datagrams",
    )

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []  # each is DATAGRAM_HEAD and an IP packet, or SPLIT_HEAD and a part of one
        self.unknown_datagrams = 0  # of another stream or context
        self.acks: list[Ack] = []
        self.challenges: list[bytes] = []
        self.responses: list[bytes] = []
        self.issued: list[NewConnectionId] = []
        self.close: int | None = None  # the error code
        self.passed: list[bytes] = []  # whole frames for the handshake worker
        self.eliciting = False
        self.probing_only = True
        self.error = 0

    def _sort_untrusted(self, frame: Frame) -> bool:
        """Sort one frame; whether it belongs to a data plane."""
        kind = type(frame)
        if kind not in _PROBING:
            self.probing_only = False
        if kind not in _NOT_ELICITING:
            self.eliciting = True
        match frame:
            case Ack():
                self.acks.append(frame)
            case Datagram(data=data):
                self._datagram_untrusted(data)
            case Padding() | Ping() | HandshakeDone():
                pass
            case PathChallenge(data=data):
                self.challenges.append(data)
            case PathResponse(data=data):
                self.responses.append(data)
            case NewConnectionId():
                self.issued.append(frame)
            case ConnectionClose(error=error):
                self.close = error
            case _:
                return False
        return True

    def _datagram_untrusted(self, data: bytes) -> None:
        if data[:2] == DATAGRAM_HEAD[1:]:
            self.datagrams.append(DATAGRAM_HEAD[:1] + data)
            return
        quarter_stream_id, context_id, packet = parse_http_datagram_untrusted(data)
        if quarter_stream_id == 0 and context_id in {0, SPLIT_CONTEXT}:
            self.datagrams.append((SPLIT_HEAD if context_id else DATAGRAM_HEAD) + packet)
        else:
            self.unknown_datagrams += 1


def parse_payload_untrusted(data: bytes, sender: Sender) -> Payload:
    """Raises UntrustedInputError when it is not a sequence of QUIC frames."""
    found, at, end = Payload(), 0, -1
    while end != len(data):
        frame, end = read_frame_untrusted(data, at)
        found.error = sender.misplaced(frame)
        if found.error:
            return found
        if not found._sort_untrusted(frame):
            found.passed.append(data[at:end])
        at = end
    return found
