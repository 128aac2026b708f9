"""What anyone reads of a server's datagrams without a key, and how far two groups of values are apart."""

from __future__ import annotations

from collections.abc import Sequence

from qre.wire.packet import Header, PacketType, packets_untrusted

#: Of each packet of a datagram: its type, the length of its source connection ID, and the bytes of its Length field.
Shape = tuple[tuple[PacketType, int, int], ...]
#: Of a Length field of so many bytes (RFC 9000 §16).
_PREFIX = {1: 0, 2: 1, 4: 2}


def shape(data: bytes) -> Shape:
    """Raises UntrustedInputError for what is no datagram of QUIC."""
    packets = packets_untrusted(data, short_cid_length=0)
    return tuple((each.type, len(each.source_cid), _length_size(data, each)) for each in packets)


def _length_size(data: bytes, packet: Header) -> int:
    """The Length field ends where the packet number begins, and says how long the rest is; 0: there is none."""
    if packet.type is PacketType.ONE_RTT:
        return 0
    at, length = packet.number_offset, packet.end - packet.number_offset
    return next(n for n in _PREFIX if int.from_bytes(data[at - n : at], "big") == length | _PREFIX[n] << 8 * n - 2)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The statistic of Kolmogorov and Smirnov: how far the two cumulative distributions are apart at most."""
    return max(
        abs(sum(each <= at for each in one) / len(one) - sum(each <= at for each in other) / len(other))
        for at in {*one, *other}
    )
