"""Why an end closes a session, for the other end: an error code of CONNECTION_CLOSE (RFC 9000 §19.19).

The code is one of HTTP/3's reserved ones, 0x1f * N + 0x21, which any other peer takes for H3_NO_ERROR (RFC 9114
§8.1). All take two bytes, as H3_NO_ERROR does, so that a CLOSE with a reason is as long as one without; and a code,
unlike a reason phrase, is what every data plane reports. A phrase is neither sent nor shown. It must never be read
from a packet that is not authenticated.
"""

from __future__ import annotations

import enum
from typing import Final

from qre.ends import Role
from qre.wire.frames import H3_NO_ERROR, ConnectionClose, encode_frame
from qre.wire.overhead import packet_overhead

_STEP: Final = 0x1F
_OFFSET: Final = 0x21
#: The first N: the codes take two bytes up to N = 527.
_FIRST: Final = 256
#: A Chromium that is closed sends ACK and CLOSE in 49 bytes, when the server's connection ID has 4. Without that ID.
_BROWSER_CLOSE: Final = 49 - 4
#: PADDING behind a CLOSE of 4 bytes that makes a packet with a number of 1 byte as long.
BROWSER_CLOSE_PADDING: Final = _BROWSER_CLOSE - (1 + 1 + 16) - 4


class CloseReason(enum.IntEnum):
    """What the closing end says. A value is never given to another reason: older peers know it."""

    STOPPED = 1  # its daemon or device was taken down
    REPLACED = 2  # a newer session of the same client took the place
    REMOVED = 3  # the client's short id is no longer in the server's profile
    FORGOTTEN = 4  # it was restarted and lost the session's secrets
    OUT_OF_STEP = 5  # the keys of its data plane and of its handshake worker differ
    MALFORMED = 6  # the other end sent what cannot be read
    TUNNEL_ENDED = 7  # the other end has ended the tunnel's stream
    NOT_INSTALLED = 8  # its data plane did not take the session
    TOO_MUCH = 9  # the other end went beyond a bound
    NO_ROOM = 11  # the server has no room for another session
    TWIN = 12  # another machine connects with the same profile
    CHANGED = 13  # the server's profile gives the client other addresses or networks

    @property
    def error_code(self) -> int:
        """What the CLOSE carries."""
        return _STEP * (_FIRST + self) + _OFFSET


_OF_CODE: Final = {reason.error_code: reason for reason in CloseReason}

#: What the end that hears it says about the other one.
_HEARD: Final = {
    CloseReason.STOPPED: "it was stopped",
    CloseReason.REPLACED: "a newer session with the same short id has replaced this one",
    CloseReason.REMOVED: "this short id was removed from its profile; ask for a new one",
    CloseReason.FORGOTTEN: "it was restarted and has lost the session's keys",
    CloseReason.OUT_OF_STEP: "its keys no longer matched its data plane's",
    CloseReason.MALFORMED: "it received frames from here that it could not read",
    CloseReason.TUNNEL_ENDED: "the tunnel's stream was ended from here",
    CloseReason.NOT_INSTALLED: "its data plane did not take the session; its log says why",
    CloseReason.TOO_MUCH: "it received more from here than its bounds allow; its log says of what",
    CloseReason.NO_ROOM: "it has no room for another session",
    CloseReason.CHANGED: "its profile now gives this client other addresses or networks",
    CloseReason.TWIN: "another machine connects with the same profile; give each its own short id",
}
#: RFC 9000 §20.1, as an end that ran into them says.
_BROKEN: Final = {
    0x01: "INTERNAL_ERROR",
    0x02: "CONNECTION_REFUSED",
    0x03: "FLOW_CONTROL_ERROR",
    0x04: "STREAM_LIMIT_ERROR",
    0x05: "STREAM_STATE_ERROR",
    0x06: "FINAL_SIZE_ERROR",
    0x07: "FRAME_ENCODING_ERROR",
    0x08: "TRANSPORT_PARAMETER_ERROR",
    0x09: "CONNECTION_ID_LIMIT_ERROR",
    0x0A: "PROTOCOL_VIOLATION",
    0x0B: "INVALID_TOKEN",
    0x0C: "APPLICATION_ERROR",
    0x0D: "CRYPTO_BUFFER_EXCEEDED",
    0x0E: "KEY_UPDATE_ERROR",
    0x0F: "AEAD_LIMIT_REACHED",
    0x10: "NO_VIABLE_PATH",
}


def reason_of(error_code: int) -> CloseReason | None:
    """What the other end said with this error code; None for any other code."""
    return _OF_CODE.get(error_code)


def close_words(error_code: int) -> str:
    """What the other end's CLOSE says, in words; "" when it says nothing."""
    reason = reason_of(error_code)
    if reason is not None:
        return _HEARD[reason]
    if error_code in _BROKEN:
        return f"it reports {_BROKEN[error_code]} (QUIC error {error_code:#x})"
    return "" if error_code in {0, H3_NO_ERROR} else f"it gave the unknown error code {error_code:#x}"


def close_frames(reason: CloseReason | None, role: Role) -> bytes:
    """The frames of a packet that closes a session in order: CONNECTION_CLOSE, and a client's PADDING up to the
    length of a browser's. A site's own CLOSE has no more than this one."""
    code = H3_NO_ERROR if reason is None else reason.error_code
    frame = encode_frame(ConnectionClose(code, application=True))
    return frame.ljust(_BROWSER_CLOSE - packet_overhead(0), b"\0") if role is Role.CLIENT else frame
