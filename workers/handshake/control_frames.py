"""The few QUIC frames that outlive the handshake: what of them concerns user space after the hand-over.

The data plane passes up whole frames that it does not own. What comes in was authenticated, but the peer may still be
hostile; only UntrustedInputError is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from qre.wire.frames import (
    NewConnectionId,
    ResetStream,
    RetireConnectionId,
    StopSending,
    Stream,
    encode_frame,
    frames_untrusted,
)

#: The CONNECT stream of the tunnel: the client's first bidirectional one.
CONNECT_STREAM = 0


@dataclass(frozen=True)
class ControlFrames:
    """What of a packet's frames concerns user space."""

    retired: tuple[int, ...] = ()  # sequence numbers of RETIRE_CONNECTION_ID
    tunnel_ended: bool = False  # the CONNECT stream was finished, reset or refused


def parse_control_frames_untrusted(data: bytes) -> ControlFrames:
    """Read whole frames one after the other. Data of the CONNECT stream is a capsule that we need not answer
    (RFC 9297 §3.3)."""
    retired: list[int] = []
    ended = False
    for frame in frames_untrusted(data):
        match frame:
            case RetireConnectionId(sequence=sequence):
                retired.append(sequence)
            case Stream(stream_id=stream_id, fin=True):
                ended |= stream_id == CONNECT_STREAM
            case ResetStream(stream_id=stream_id) | StopSending(stream_id=stream_id):
                ended |= stream_id == CONNECT_STREAM
    return ControlFrames(tuple(retired), ended)


def encode_retire_connection_id(sequence: int) -> bytes:
    return encode_frame(RetireConnectionId(sequence))


def encode_new_connection_id(sequence: int, retire_prior_to: int, cid: bytes, reset_token: bytes) -> bytes:
    return encode_frame(NewConnectionId(sequence, retire_prior_to, cid, reset_token))
