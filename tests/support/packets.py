"""Reads QUIC v1 datagrams with the keys: packet numbers and payloads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qre.wire.frames import Crypto, Frame, Padding, Ping, frames_untrusted
from qre.wire.packet import PacketType, packets_untrusted
from qre.wire.protection import Protection, initial_secrets


@dataclass(frozen=True)
class Packet:
    """One packet of a datagram, still protected; ``offset`` is that of its packet number."""

    kind: PacketType
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
    end = 0
    for header in packets_untrusted(datagram, short_cid_length=cid_length):
        end = header.end
        yield Packet(
            header.type,
            header.destination_cid,
            header.source_cid,
            header.token,
            datagram[header.start : end],
            header.number_offset - header.start,
        )
    if end != len(datagram):
        raise ValueError("bytes that are no packet")


def open_initial(packet: Packet, first_destination_cid: bytes, *, by_client: bool = True) -> Plain:
    """An Initial, which everybody can open."""
    secrets = initial_secrets(first_destination_cid)
    return _open(packet, Protection(secrets[0 if by_client else 1]))


def open_one_rtt(packet: Packet, secret: bytes) -> Plain:
    """A 1-RTT packet of key epoch 0 whose number is below 128, or has two bytes."""
    return _open(packet, Protection(secret))


def _open(packet: Packet, protection: Protection) -> Plain:
    header, number, payload = protection.unprotect_untrusted(packet.data, packet.offset, 0)
    return Plain(number, (header[0] & 3) + 1, payload)


@dataclass(frozen=True)
class Layout:
    """The frames of a first flight's packet, in order."""

    frames: tuple[Frame, ...]

    @property
    def crypto(self) -> dict[int, bytes]:
        """By offset."""
        return {frame.offset: frame.data for frame in self.frames if isinstance(frame, Crypto)}

    @property
    def pings(self) -> int:
        return sum(frame.count for frame in self.frames if isinstance(frame, Ping))

    @property
    def padding(self) -> int:
        return sum(frame.length for frame in self.frames if isinstance(frame, Padding))


def layout(payload: bytes) -> Layout:
    """ValueError for frames that a first flight does not have."""
    frames = tuple(frames_untrusted(payload))
    for frame in frames:
        if not isinstance(frame, Padding | Ping | Crypto):
            raise ValueError(type(frame).__name__)
    return Layout(frames)
