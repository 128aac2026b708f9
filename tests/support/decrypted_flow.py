"""A client's connection read from a capture with its keys: the packets of each datagram, and their frames.

Of Handshake and 0-RTT packets the lengths alone can be read: no daemon keeps those keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qre.errors import UntrustedInputError
from qre.wire.frames import Frame, Padding, frames_untrusted
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.packet import PacketType
from qre.wire.protection import Protection, initial_secrets
from tests.support.capture import SessionSecrets
from tests.support.packets import Packet, packets
from tests.support.tcpdump import Datagram

_LETTERS = {
    PacketType.INITIAL: "I",
    PacketType.ZERO_RTT: "0",
    PacketType.HANDSHAKE: "H",
    PacketType.ONE_RTT: "1",
}


@dataclass(frozen=True)
class Read:
    """One packet. ``number`` and ``frames``, without PADDING: None and empty where the key is not known."""

    kind: str
    length: int
    number: int | None = None
    number_length: int = 0
    payload: bytes = b""
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class Sent:
    """One datagram. ``at``: seconds after the client's first."""

    at: float
    length: int
    packets: tuple[Read, ...]
    datagram: Datagram

    @property
    def kinds(self) -> str:
        """Such as ``IH1``."""
        return "".join(each.kind for each in self.packets)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Of all its packets."""
        return tuple(frame for each in self.packets for frame in each.frames)


@dataclass
class DecryptedFlow:
    """Both directions of one connection."""

    by_client: list[Sent] = field(default_factory=list)
    by_server: list[Sent] = field(default_factory=list)

    @property
    def until_handed_over(self) -> list[Sent]:
        """What the client sent in its handshake."""
        last = [
            place
            for place, each in enumerate(self.by_client)
            for one in each.packets
            if one.number is not None and one.number < PACKET_NUMBER_BASE
        ]
        return self.by_client[: max(last) + 1]


def read_flow(flow: Iterable[Datagram], port: int, session: SessionSecrets | None) -> DecryptedFlow:
    """The datagrams of one client's port in order; ``port``: the server's."""
    flow = list(flow)
    first = next(packets(flow[0].payload, 0))
    initial = tuple(Protection(secret) for secret in initial_secrets(first.destination_cid))
    lengths = {each.source_cid for each in _long_packets(flow, port)}
    cid_length = len(next(iter(lengths), b""))
    secrets = (b"", b"") if session is None else (session.client_secret, session.server_secret)
    readers = [_Reader(*each) for each in zip(initial, secrets, strict=True)]
    found = DecryptedFlow()
    for each in flow:
        mine = each.destination[1] == port
        read = tuple(readers[0 if mine else 1].read(packets(each.payload, cid_length if mine else 0)))
        sent = Sent(each.time - flow[0].time, len(each.payload), read, each)
        (found.by_client if mine else found.by_server).append(sent)
    return found


def _long_packets(flow: list[Datagram], port: int) -> Iterator[Packet]:
    for each in flow:
        if each.source[1] == port and each.payload[0] & 0x80:
            yield from (one for one in packets(each.payload, 0) if one.kind is not PacketType.ONE_RTT)


class _Reader:
    """One direction."""

    def __init__(self, initial: Protection, secret: bytes) -> None:
        self._keys = {PacketType.INITIAL: initial}
        if secret:
            self._keys[PacketType.ONE_RTT] = Protection(secret)
        self._expected = dict.fromkeys(self._keys, 0)

    def read(self, found: Iterable[Packet]) -> Iterator[Read]:
        for packet in found:
            kind, keys = _LETTERS[packet.kind], self._keys.get(packet.kind)
            try:
                if keys is None:
                    raise UntrustedInputError("no key")
                expected = self._expected[packet.kind]
                header, number, payload = keys.unprotect_untrusted(packet.data, packet.offset, expected)
            except UntrustedInputError:
                yield Read(kind, len(packet.data))
                continue
            self._expected[packet.kind] = max(expected, number + 1)
            frames = tuple(each for each in frames_untrusted(payload) if not isinstance(each, Padding))
            yield Read(kind, len(packet.data), number, (header[0] & 3) + 1, payload, frames)
