"""A data plane's account of its sessions and its device, for ``show``. No keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from qre.dataplane.protocol import (
    ConnectionId,
    PacketNumber,
    PeerConnectionId,
    Prefixes,
    RoutedCidLen,
    SessionId,
    ShortId,
)
from qre.structs import U16, U64, Struct, Text

#: The most prefixes in one status; a session's list is cut beyond them.
_SHOWN_PREFIXES: Final = 16_384


class SessionStatus(Struct, frozen=True, kw_only=True):
    session_id: SessionId
    connection_id: ConnectionId
    client_connection_id: PeerConnectionId
    short_id: ShortId
    state: Annotated[str, msgspec.Meta(max_length=16)]  # held, established, closing
    key_epoch: U64
    tx_packet_number: PacketNumber  # the next one to be sent
    rx_packet_number: PacketNumber  # the highest received
    endpoint: Text  # ip:port of the peer
    allowed_ips: Prefixes
    age_ms: U64
    last_receive_ms: U64 | None  # age of the last authenticated packet
    rx_packets: U64
    rx_bytes: U64  # inner bytes
    tx_packets: U64
    tx_bytes: U64
    cids: Annotated[tuple[ConnectionId, ...], msgspec.Meta(max_length=16)]
    path_mtu: U16 | None = None  # the largest outer IP packet that the path is known to take; None: not known
    inner_mtu: U16 | None = None  # the largest inner packet that is sent in one datagram
    inner_mtu_ipv6: U16 | None = None  # the same of IPv6; 0: the path is too narrow for it; None: as inner_mtu says
    inner_mtu_in_two: U16 | None = None  # the largest that is sent in two datagrams; None: none is
    #: packets of this session that the peer has acknowledged, and that are lost; None: this data plane does not count
    tx_acknowledged: U64 | None = None
    tx_lost: U64 | None = None
    #: for how long packets that ask for an acknowledgement have had none; None: this data plane does not know
    unanswered_ms: U64 | None = None


class DeviceCounters(Struct, frozen=True, kw_only=True):
    rx_packets: U64 = 0
    rx_bytes: U64 = 0
    tx_packets: U64 = 0
    tx_bytes: U64 = 0
    #: reason (kebab-case, e.g. ``replayed``, ``decrypt-failed``, ``unknown-cid``, ``source-not-allowed``,
    #: ``no-session``, ``held``, ``malformed``, ``too-big``, ``ipv6-refused``, ``below-base``) -> packets
    drops: Annotated[dict[str, int], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=dict)


def bounded(statuses: Sequence[SessionStatus]) -> tuple[SessionStatus, ...]:
    """The sessions with their prefix lists cut to what fits into one message."""
    if sum(len(status.allowed_ips) for status in statuses) <= _SHOWN_PREFIXES:
        return tuple(statuses)
    most = _SHOWN_PREFIXES // len(statuses)
    return tuple(msgspec.structs.replace(status, allowed_ips=status.allowed_ips[:most]) for status in statuses)


class SharedLoader(Struct, frozen=True, kw_only=True):
    """The loader that steers the port, as registered with qre.ko."""

    program: Text
    pin_dir: Text
    routed_cid_len: RoutedCidLen
    pid: U64


class SharedPort(Struct, frozen=True, kw_only=True):
    """A server's port in qre.ko."""

    socket: Text = ""  # ip:port; empty: none is registered
    rx_packets: U64 = 0
    passed_packets: U64 = 0
    map_id: U64 | None = None  # None: no map is registered
    map_entries: U64 = 0
    map_missing: U64 = 0
    sync_failures: U64 = 0
    mirrored_by_loader: bool = False
    loader: SharedLoader | None = None
