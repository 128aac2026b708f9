"""The payload of an authenticated packet, its frames sorted by owner.

A data plane's own (DATAGRAM, ACK, PING, PADDING, PATH_*, CONNECTION_CLOSE) are taken apart; the others stay whole
frames, byte for byte, for the handshake worker. The hot path handles the plain DATAGRAM itself and never comes here.
"""

from __future__ import annotations

from typing import Final

from qre.wire.datagram import DATAGRAM_HEAD, parse_http_datagram_untrusted
from qre.wire.frames import (
    Ack,
    ConnectionClose,
    Datagram,
    Frame,
    NewConnectionId,
    Padding,
    PathChallenge,
    PathResponse,
    Ping,
    encode_frame,
    read_frame_untrusted,
)

PING: Final = encode_frame(Ping())
#: RFC 9000 §9.1.
_PROBING: Final = frozenset({Padding, NewConnectionId, PathChallenge, PathResponse})
#: RFC 9000 §13.2.
_NOT_ELICITING: Final = frozenset({Padding, Ack, ConnectionClose})


class Payload:
    """What one packet carried."""

    __slots__ = (
        "acks",
        "challenges",
        "close",
        "datagrams",
        "eliciting",
        "passed",
        "probing_only",
        "responses",
        "unknown_datagrams",
    )

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []  # each is DATAGRAM_HEAD and an IP packet
        self.unknown_datagrams = 0  # of another stream or context
        self.acks: list[Ack] = []
        self.challenges: list[bytes] = []
        self.responses: list[bytes] = []
        self.close: int | None = None  # the error code
        self.passed: list[bytes] = []  # whole frames for the handshake worker
        self.eliciting = False
        self.probing_only = True

    def _sort_untrusted(self, frame: Frame) -> bool:
        """Whether it was a data plane's own."""
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
            case Padding() | Ping():
                pass
            case PathChallenge(data=data):
                self.challenges.append(data)
            case PathResponse(data=data):
                self.responses.append(data)
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
        if quarter_stream_id == 0 and context_id == 0:
            self.datagrams.append(DATAGRAM_HEAD + packet)
        else:
            self.unknown_datagrams += 1


def parse_payload_untrusted(data: bytes) -> Payload:
    """Raises UntrustedInputError when it is no sequence of QUIC frames."""
    found, at, end = Payload(), 0, -1
    while end != len(data):
        frame, end = read_frame_untrusted(data, at)
        if not found._sort_untrusted(frame):
            found.passed.append(data[at:end])
        at = end
    return found
