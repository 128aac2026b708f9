"""What somebody with keys reads in QUIC v1 datagrams: packet numbers and payloads. On aioquic's primitives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aioquic.buffer import Buffer
from aioquic.quic.crypto import AEAD, CryptoPair, HeaderProtection
from aioquic.quic.packet import QuicFrameType, QuicPacketType, pull_quic_header

from qre.wire.protection import derive


@dataclass(frozen=True)
class Packet:
    """One packet of a datagram, still protected; ``offset`` is that of its packet number."""

    kind: QuicPacketType
    destination_cid: bytes
    source_cid: bytes
    token: bytes
    data: bytes
    offset: int


@dataclass(frozen=True)
class Plain:
    """``length`` is that of the packet number's encoding."""

    number: int
    length: int
    payload: bytes


def packets(datagram: bytes, cid_length: int) -> Iterator[Packet]:
    """All of them; ValueError when bytes follow the last one that are none."""
    buf = Buffer(data=datagram)
    while not buf.eof():
        start = buf.tell()
        header = pull_quic_header(buf, host_cid_length=cid_length)
        offset = buf.tell() - start
        end = start + header.packet_length
        yield Packet(
            header.packet_type,
            header.destination_cid,
            header.source_cid,
            header.token,
            datagram[start:end],
            offset,
        )
        buf.seek(end)


def open_initial(packet: Packet, first_destination_cid: bytes) -> Plain:
    """A client's Initial."""
    pair = CryptoPair()
    pair.setup_initial(cid=first_destination_cid, is_client=False, version=1)
    header, payload, number = pair.decrypt_packet(packet.data, packet.offset, 0)
    return Plain(number, (header[0] & 3) + 1, payload)


def open_one_rtt(packet: Packet, secret: bytes) -> Plain:
    """A 1-RTT packet of key epoch 0 whose number is below 128, or has two bytes."""
    key, iv, hp = derive(secret)
    header, truncated = HeaderProtection(b"aes-128-ecb", hp).remove(packet.data, packet.offset)
    payload = AEAD(b"aes-128-gcm", key, iv).decrypt(packet.data[len(header) :], header, truncated)
    return Plain(truncated, (header[0] & 3) + 1, payload)


@dataclass(frozen=True)
class Layout:
    """The frames of a first flight's packet, in order: (type, offset, length); PADDING in one piece each."""

    frames: tuple[tuple[int, int, int], ...]
    crypto: dict[int, bytes]

    def count(self, kind: int) -> int:
        return sum(frame[0] == kind for frame in self.frames)

    @property
    def padding(self) -> int:
        return sum(length for kind, _, length in self.frames if kind == QuicFrameType.PADDING)


def layout(payload: bytes) -> Layout:
    """ValueError for frames that a first flight does not have."""
    buf = Buffer(data=payload)
    frames: list[tuple[int, int, int]] = []
    crypto: dict[int, bytes] = {}
    while not buf.eof():
        match buf.pull_uint_var():
            case QuicFrameType.PADDING:
                if frames and frames[-1][0] == QuicFrameType.PADDING:
                    frames[-1] = (QuicFrameType.PADDING, 0, frames[-1][2] + 1)
                else:
                    frames.append((QuicFrameType.PADDING, 0, 1))
            case QuicFrameType.PING:
                frames.append((QuicFrameType.PING, 0, 0))
            case QuicFrameType.CRYPTO:
                offset = buf.pull_uint_var()
                data = buf.pull_bytes(buf.pull_uint_var())
                frames.append((QuicFrameType.CRYPTO, offset, len(data)))
                crypto[offset] = data
            case kind:
                raise ValueError(f"frame {kind:#x}")
    return Layout(tuple(frames), crypto)
