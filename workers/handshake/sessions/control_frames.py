"""Frames that arrive after the handshake and that the data plane leaves to user space.

RFC 9000 §19.3 ff. Read after the hand-over, from authenticated packets; the peer may still be hostile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qre.wire.frames import ResetStream, RetireConnectionId, StopSending, Stream, frames_untrusted

#: The CONNECT stream of the tunnel: the client's first bidirectional one.
CONNECT_STREAM: Final = 0


@dataclass(frozen=True)
class ControlFrames:
    """The frames of one packet that matter to the handshake worker."""

    retired: tuple[int, ...] = ()  # sequence numbers of RETIRE_CONNECTION_ID
    tunnel_ended: bool = False  # the CONNECT stream was finished, reset or refused


def parse_control_frames_untrusted(data: bytes) -> ControlFrames:
    """Parse the frames of one packet. Raises UntrustedInputError. Capsules are ignored (RFC 9297 §3.3)."""
    retired: list[int] = []
    ended = False
    for frame in frames_untrusted(data):
        match frame:
            case RetireConnectionId(sequence=sequence):
                retired.append(sequence)
            case Stream(stream_id=stream_id, fin=True) | ResetStream(stream_id=stream_id):
                ended |= stream_id == CONNECT_STREAM
            case StopSending(stream_id=stream_id):
                ended |= stream_id == CONNECT_STREAM
            case _:
                pass
    return ControlFrames(tuple(retired), ended)
