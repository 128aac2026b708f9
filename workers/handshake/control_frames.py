"""The few QUIC frames that outlive the handshake: what user space still reads and writes after the hand-over.

RFC 9000 §19. The data plane passes up whole frames that it does not own; here the ones that mean something to us are
picked out and the rest is skipped. What comes in was authenticated, but the peer may still be hostile: every parser
is bounded by its input and raises only UntrustedInputError.
"""

from __future__ import annotations

from dataclasses import dataclass

from aioquic.buffer import Buffer, BufferReadError

from qre.errors import UntrustedInputError

#: The CONNECT stream of the tunnel: the client's first bidirectional one.
CONNECT_STREAM = 0
_NEW_CONNECTION_ID, _RETIRE_CONNECTION_ID = 0x18, 0x19
_RESET_STREAM, _STOP_SENDING, _CRYPTO, _NEW_TOKEN = 0x04, 0x05, 0x06, 0x07
#: Frames that are nothing but varints: how many follow the type.
_VARINTS = {0x01: 0, 0x10: 1, 0x11: 2, 0x12: 1, 0x13: 1, 0x14: 1, 0x15: 2, 0x16: 1, 0x17: 1, 0x1E: 0}
_LENGTH, _OFFSET, _FIN = 2, 4, 1


@dataclass(frozen=True)
class ControlFrames:
    """What of a packet's frames concerns user space."""

    retired: tuple[int, ...] = ()  # sequence numbers of RETIRE_CONNECTION_ID
    tunnel_ended: bool = False  # the CONNECT stream was finished, reset or refused


def parse_control_frames_untrusted(data: bytes) -> ControlFrames:
    """Read whole frames one after the other."""
    buf = Buffer(data=data)
    retired: list[int] = []
    ended = False
    try:
        while not buf.eof():
            kind = buf.pull_uint_var()
            if kind == _RETIRE_CONNECTION_ID:
                retired.append(buf.pull_uint_var())
            elif 0x08 <= kind <= 0x0F:
                ended |= _skip_stream(buf, kind)
            elif kind in {_RESET_STREAM, _STOP_SENDING}:
                ended |= buf.pull_uint_var() == CONNECT_STREAM
                for _ in range(2 if kind == _RESET_STREAM else 1):
                    buf.pull_uint_var()
            else:
                _skip(buf, kind)
    except BufferReadError as error:
        raise UntrustedInputError("frame", "it is cut off") from error
    return ControlFrames(tuple(retired), ended)


def _skip_stream(buf: Buffer, kind: int) -> bool:
    """Whether it ends the CONNECT stream. Its data is a capsule that we need not answer (RFC 9297 §3.3)."""
    stream = buf.pull_uint_var()
    if kind & _OFFSET:
        buf.pull_uint_var()
    length = buf.pull_uint_var() if kind & _LENGTH else buf.capacity - buf.tell()
    buf.pull_bytes(length)
    return bool(kind & _FIN) and stream == CONNECT_STREAM


def _skip(buf: Buffer, kind: int) -> None:
    if kind == 0x00:
        return
    if kind in _VARINTS:
        for _ in range(_VARINTS[kind]):
            buf.pull_uint_var()
    elif kind == _CRYPTO:
        buf.pull_uint_var()
        buf.pull_bytes(buf.pull_uint_var())
    elif kind == _NEW_TOKEN:
        buf.pull_bytes(buf.pull_uint_var())
    elif kind == _NEW_CONNECTION_ID:
        buf.pull_uint_var()
        buf.pull_uint_var()
        buf.pull_bytes(buf.pull_uint8())
        buf.pull_bytes(16)
    else:
        raise UntrustedInputError("frame", f"of an unknown type {kind:#x}")


def encode_retire_connection_id(sequence: int) -> bytes:
    buf = Buffer(capacity=16)
    buf.push_uint_var(_RETIRE_CONNECTION_ID)
    buf.push_uint_var(sequence)
    return buf.data


def encode_new_connection_id(sequence: int, retire_prior_to: int, cid: bytes, reset_token: bytes) -> bytes:
    buf = Buffer(capacity=64)
    buf.push_uint_var(_NEW_CONNECTION_ID)
    buf.push_uint_var(sequence)
    buf.push_uint_var(retire_prior_to)
    buf.push_uint8(len(cid))
    buf.push_bytes(cid)
    buf.push_bytes(reset_token)
    return buf.data
