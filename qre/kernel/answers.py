"""Devices, sessions and events of qre.ko as values, and the readers of its answers.

Every reader is named ``…_untrusted`` and raises UntrustedInputError for malformed answers; no answer carries a key.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Final, TypeVar

import msgspec

from qre.addresses import Network, host_port
from qre.dataplane.giving_up import RoundTrip
from qre.dataplane.protocol import (
    DataplaneReport,
    FrameFate,
    FrameReceived,
    KeyPhaseChanged,
    KeyPhaseConfirmed,
    LossReason,
    PeerMoved,
    RekeyDue,
    SessionBegun,
    SessionConfirmed,
    SessionLost,
    SessionSilent,
    Underlay,
    underlay_of,
)
from qre.dataplane.status import DeviceCounters, SessionStatus
from qre.ends import Role
from qre.errors import UntrustedInputError
from qre.kernel import abi
from qre.kernel.abi import Attribute
from qre.kernel.attributes import Fields, split_attributes_untrusted

_ROLES: Final = {abi.KernelRole.SERVER: Role.SERVER, abi.KernelRole.CLIENT: Role.CLIENT}
_LOSSES: Final = {abi.Loss[reason.name].value: reason for reason in LossReason}
_NUMBER_MAX: Final = (1 << 62) - 1
_DROPS_MAX: Final = 64  # as DeviceCounters takes
_DRIVER_MAX: Final = 127  # CRYPTO_MAX_ALG_NAME
_NAME_MAX: Final = 15  # IFNAMSIZ
_PROGRAM_MAX: Final = 31

_Value = TypeVar("_Value")


class CidMapStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The BPF map that the kernel mirrors adopted CIDs into."""

    map_id: int
    entries: int
    missing: int  # CIDs that are missing from it
    sync_failures: int


class SharedSocketStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The registered shared socket."""

    ip: str
    port: int
    rx: int  # packets of live CIDs that it received
    passed: int  # packets left to its queue


class LoaderDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The loader of the shared port, as SHARED_LOADER_SET registers it."""

    program: str
    pin_dir: str
    cid_length: int
    pid: int


class KernelDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device of qre.ko, with the shared objects of its namespace."""

    index: int
    name: str
    role: Role | None
    mtu: int
    dest: str
    server_name: str
    listen: tuple[str, int] | None
    endpoint: str
    keepalive_s: int
    max_sessions: int
    fwmark: int
    counters: DeviceCounters
    sessions: int
    whole: bool  # whether the caller has CAP_NET_ADMIN: without it only counters are filled in
    adopted: int  # CIDs, sessions' included
    cids: tuple[bytes, ...]  # CIDs of no session
    cid_map: CidMapStatus | None
    shared_socket: SharedSocketStatus | None
    loader: LoaderDescription | None
    dest_profile: bytes  # JSON of qre.dataplane.protocol.DestProfile; empty: none
    ecn: int


class KernelSession(msgspec.Struct, frozen=True, kw_only=True):
    """One session in the kernel: its status for ``show``, and further fields."""

    status: SessionStatus
    confirmed: bool
    underlay: Underlay | None
    aead_driver: str
    silent: bool = False  # of a client: as SESSION_SILENT and SESSION_ANSWERS told last
    tries: bool = False  # of a client: it tries another port
    begun: bool = False  # of a client: its first packet has left; of an earlier module, never


class MapSyncFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The BPF map refused this connection ID."""

    connection_id: bytes
    code: int  # errno


class SessionInstalled(msgspec.Struct, frozen=True, kw_only=True):
    """A session was installed, by any program."""

    session_id: bytes


class FramesLimited(msgspec.Struct, frozen=True, kw_only=True):
    """A peer sends more frames for user space than the kernel reports. Reported once a session."""

    session_id: bytes


class PathDegraded(msgspec.Struct, frozen=True, kw_only=True):
    """Of a client's session: for four probe timeouts nothing new was acknowledged. ``several``: more than one packet
    was under way when it began."""

    session_id: bytes
    round_trip: RoundTrip
    several: bool
    #: Whether another port can be tried; never with a module of an earlier version.
    spare: bool = False


class PortAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """The other port that a client's session tries has answered; with this connection ID of the peer's."""

    session_id: bytes
    connection_id: bytes
    sequence: int


class PortDropped(msgspec.Struct, frozen=True, kw_only=True):
    """The other port that a client's session tried did not answer."""

    session_id: bytes


class EventsLost(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel had no room for events: list the sessions to find out what happened."""


Happened = (
    DataplaneReport | MapSyncFailed | SessionInstalled | FramesLimited | PathDegraded | PortAnswered | PortDropped
)


class KernelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. ``device`` is empty, and ``index`` 0, when it concerns no device (``EventsLost``)."""

    device: str = ""
    index: int = 0
    what: Happened | EventsLost


# --- readers ---


def device_untrusted(fields: Fields) -> KernelDevice:
    """One message of DEVICE_GET's answer."""
    return KernelDevice(
        index=fields.u32(Attribute.IFINDEX) or 0,
        name=_device_name(fields),
        role=_role(fields),
        mtu=fields.u32(Attribute.MTU) or 0,
        dest=fields.text(Attribute.DEST, abi.NAME_MAX) or "",
        server_name=fields.text(Attribute.SERVER_NAME, abi.NAME_MAX) or "",
        listen=_address(fields, Attribute.LISTEN_IP, Attribute.LISTEN_IPV6, Attribute.LISTEN_PORT),
        endpoint=fields.text(Attribute.ENDPOINT, abi.NAME_MAX) or "",
        keepalive_s=fields.u16(Attribute.KEEPALIVE) or 0,
        max_sessions=fields.u32(Attribute.MAX_SESSIONS) or 0,
        fwmark=fields.u32(Attribute.FWMARK) or 0,
        counters=_counters(fields),
        sessions=fields.u32(Attribute.SESSIONS) or 0,
        whole=fields.u32(Attribute.ADOPTED) is not None,
        adopted=fields.u32(Attribute.ADOPTED) or 0,
        cids=fields.cids(Attribute.CIDS, abi.CIDS_MAX),
        cid_map=_cid_map(fields),
        shared_socket=_shared_socket(fields),
        loader=_loader(fields),
        dest_profile=fields.octets(Attribute.DEST_PROFILE, 0, abi.DEST_PROFILE_MAX) or b"",
        ecn=fields.u8(Attribute.ECN, 3) or 0,
    )


def session_untrusted(fields: Fields) -> KernelSession:
    """One message of SESSION_GET's answer."""
    underlay = _underlay(fields)
    state = fields.u8(Attribute.STATE, max(abi.SessionState))
    client_cid = fields.octets(Attribute.CLIENT_CID, 0, abi.CID_MAX)
    cid = _needed(fields.octets(Attribute.CID, 1, abi.CID_MAX), "a connection ID")
    status = SessionStatus(
        session_id=_session_id(fields),
        connection_id=cid,
        client_connection_id=cid if client_cid is None else client_cid,
        short_id=fields.octets(Attribute.SHORT_ID, abi.SHORT_ID_SIZE) or bytes(abi.SHORT_ID_SIZE),
        state=abi.SessionState(_needed(state, "a state")).name.lower(),
        key_epoch=_needed(fields.u64(Attribute.KEY_EPOCH), "a key epoch"),
        tx_packet_number=fields.u64(Attribute.PACKET_NUMBER, _NUMBER_MAX) or 0,
        rx_packet_number=fields.u64(Attribute.RX_NUMBER, _NUMBER_MAX) or 0,
        endpoint=host_port(str(underlay.peer_ip), underlay.peer_port) if underlay is not None else "",
        allowed_ips=_allowed_ips(fields),
        age_ms=fields.u64(Attribute.AGE_MS) or 0,
        last_receive_ms=fields.u64(Attribute.LAST_RECEIVE_MS),
        rx_packets=fields.u64(Attribute.RX_PACKETS) or 0,
        rx_bytes=fields.u64(Attribute.RX_BYTES) or 0,
        tx_packets=fields.u64(Attribute.TX_PACKETS) or 0,
        tx_bytes=fields.u64(Attribute.TX_BYTES) or 0,
        cids=fields.cids(Attribute.CIDS, abi.SESSION_CIDS_MAX),
        path_mtu=fields.u16(Attribute.PATH_MTU),
        inner_mtu=fields.u16(Attribute.INNER_MTU),
        inner_mtu_ipv6=fields.u16(Attribute.INNER_MTU_IPV6),
        inner_mtu_in_two=fields.u16(Attribute.INNER_MTU_IN_TWO) or None,
        unanswered_ms=fields.u64(Attribute.UNANSWERED_MS),
    )
    return KernelSession(
        status=status,
        confirmed=bool(fields.u8(Attribute.CONFIRMED, 1)),
        underlay=underlay,
        aead_driver=fields.text(Attribute.AEAD_DRIVER, _DRIVER_MAX) or "",
        silent=bool(fields.u8(Attribute.SILENT, 1)),
        tries=bool(fields.u8(Attribute.TRIES, 1)),
        begun=bool(fields.u8(Attribute.BEGUN, 1)),
    )


def event_untrusted(fields: Fields) -> KernelEvent:
    """One message of the groups ``events`` and ``frames``."""
    kind = _needed(fields.u8(Attribute.EVENT), "a kind")
    if kind not in list(abi.Event):
        raise UntrustedInputError(f"event {kind} is not known")
    what = _happened(abi.Event(kind), fields)
    return KernelEvent(device=_device_name(fields), index=fields.u32(Attribute.IFINDEX) or 0, what=what)


def _happened(kind: abi.Event, fields: Fields) -> Happened:
    if kind is abi.Event.MAP_SYNC_FAILED:
        cid = _needed(fields.octets(Attribute.CID, 1, abi.CID_MAX), "a connection ID")
        return MapSyncFailed(connection_id=cid, code=_needed(fields.u32(Attribute.ERRNO), "an errno"))
    session = _session_id(fields)
    match kind:
        case abi.Event.SESSION_INSTALLED:
            return SessionInstalled(session_id=session)
        case abi.Event.FRAMES_LIMITED:
            return FramesLimited(session_id=session)
        case abi.Event.SESSION_SILENT | abi.Event.SESSION_ANSWERS:
            return SessionSilent(session_id=session, silent=kind is abi.Event.SESSION_SILENT)
        case abi.Event.PATH_DEGRADED:
            return _degraded(session, fields)
        case abi.Event.PORT_ANSWERED:
            cid = _needed(fields.octets(Attribute.CID, 1, abi.CID_MAX), "a connection ID")
            sequence = _needed(fields.u64(Attribute.SEQUENCE, _NUMBER_MAX), "a sequence number")
            return PortAnswered(session_id=session, connection_id=cid, sequence=sequence)
        case abi.Event.PORT_DROPPED:
            return PortDropped(session_id=session)
        case abi.Event.SESSION_BEGUN:
            return SessionBegun(session_id=session)
        case abi.Event.SESSION_CONFIRMED:
            return SessionConfirmed(session_id=session)
        case abi.Event.SESSION_LOST:
            reason = _LOSSES.get(fields.u8(Attribute.LOSS) or 0)
            error_code = fields.u64(Attribute.ERROR_CODE) or 0
            return SessionLost(session_id=session, reason=_needed(reason, "a reason"), error_code=error_code)
        case abi.Event.REKEY_DUE:
            return RekeyDue(session_id=session, key_epoch=_epoch(fields))
        case abi.Event.KEY_PHASE_CHANGED:
            return KeyPhaseChanged(session_id=session, key_epoch=_epoch(fields))
        case abi.Event.KEY_PHASE_CONFIRMED:
            return KeyPhaseConfirmed(session_id=session, key_epoch=_epoch(fields))
        case abi.Event.PEER_MOVED:
            return PeerMoved(session_id=session, underlay=_needed(_underlay(fields), "an underlay"))
        case abi.Event.FRAME_RECEIVED:
            frames = _needed(fields.octets(Attribute.FRAMES, 1, abi.FRAMES_RECEIVED_MAX), "frames")
            return FrameReceived(session_id=session, frames=frames)
        case abi.Event.FRAME_FATE:
            number = _needed(fields.u64(Attribute.FRAME_ID), "a frame's number")
            acknowledged = _needed(fields.u8(Attribute.FRAME_ACKED, 1), "a fate")
            return FrameFate(session_id=session, id=number, acknowledged=bool(acknowledged))


def _degraded(session: bytes, fields: Fields) -> PathDegraded:
    smoothed, variation, pto = (
        _needed(fields.u32(attribute), "a time") / 1e6
        for attribute in (Attribute.SMOOTHED_RTT_US, Attribute.RTT_VARIATION_US, Attribute.PTO_US)
    )
    several = bool(_needed(fields.u8(Attribute.SEVERAL, 1), "how much was under way"))
    spare = bool(fields.u8(Attribute.SPARE, 1))
    return PathDegraded(
        session_id=session, round_trip=RoundTrip(smoothed, variation, pto), several=several, spare=spare
    )


def _needed(value: _Value | None, what: str) -> _Value:
    if value is None:
        raise UntrustedInputError(f"{what} is missing")
    return value


def _device_name(fields: Fields) -> str:
    return _needed(fields.text(Attribute.IFNAME, _NAME_MAX), "a device's name")


def _session_id(fields: Fields) -> bytes:
    return _needed(fields.octets(Attribute.SESSION_ID, abi.SESSION_ID_SIZE), "a session id")


def _epoch(fields: Fields) -> int:
    return _needed(fields.u64(Attribute.KEY_EPOCH), "a key epoch")


def _role(fields: Fields) -> Role | None:
    """None: it was not set yet."""
    number = fields.u8(Attribute.ROLE, max(abi.KernelRole)) or 0
    return _ROLES.get(abi.KernelRole(number))


def _address(fields: Fields, ipv4: Attribute, ipv6: Attribute, port: Attribute) -> tuple[str, int] | None:
    """As a socket has it."""
    address, number = fields.ip(ipv4, ipv6), fields.port(port)
    return (str(address), number) if address is not None and number else None


def _underlay(fields: Fields) -> Underlay | None:
    """The outer addresses; None unless all four attributes are present and the ports are not 0."""
    local = _address(fields, Attribute.LOCAL_IP, Attribute.LOCAL_IPV6, Attribute.LOCAL_PORT)
    peer = _address(fields, Attribute.PEER_IP, Attribute.PEER_IPV6, Attribute.PEER_PORT)
    if local is None or peer is None:
        return None
    return underlay_of(local, peer)


def _counters(fields: Fields) -> DeviceCounters:
    drops: dict[str, int] = {}
    for kind, value in split_attributes_untrusted(fields.nest(Attribute.DROPS) or b""):
        if not value:
            continue  # padding, where the kernel aligns
        if len(value) != 8 or len(drops) == _DROPS_MAX:
            raise UntrustedInputError("a drop counter is malformed")
        name = abi.Drop(kind).name.lower().replace("_", "-") if kind in list(abi.Drop) else f"reason-{kind}"
        drops[name] = int.from_bytes(value, sys.byteorder)
    return DeviceCounters(
        rx_packets=fields.u64(Attribute.RX_PACKETS) or 0,
        rx_bytes=fields.u64(Attribute.RX_BYTES) or 0,
        tx_packets=fields.u64(Attribute.TX_PACKETS) or 0,
        tx_bytes=fields.u64(Attribute.TX_BYTES) or 0,
        drops=drops,
    )


def _cid_map(fields: Fields) -> CidMapStatus | None:
    number = fields.u32(Attribute.MAP_ID)
    if number is None:
        return None
    return CidMapStatus(
        map_id=number,
        entries=fields.u32(Attribute.MAP_ENTRIES) or 0,
        missing=fields.u32(Attribute.MAP_MISSING) or 0,
        sync_failures=fields.u64(Attribute.MAP_SYNC_FAILURES) or 0,
    )


def _shared_socket(fields: Fields) -> SharedSocketStatus | None:
    address = _address(fields, Attribute.SHARED_IP, Attribute.SHARED_IPV6, Attribute.SHARED_PORT)
    if address is None:
        return None
    return SharedSocketStatus(
        ip=address[0],
        port=address[1],
        rx=fields.u64(Attribute.SHARED_RX) or 0,
        passed=fields.u64(Attribute.SHARED_PASSED) or 0,
    )


def _loader(fields: Fields) -> LoaderDescription | None:
    program = fields.text(Attribute.LOADER_PROGRAM, _PROGRAM_MAX)
    if program is None:
        return None
    return LoaderDescription(
        program=program,
        pin_dir=fields.text(Attribute.LOADER_PIN_DIR, abi.NAME_MAX) or "",
        cid_length=fields.u8(Attribute.LOADER_CID_LENGTH, abi.CID_MAX) or 0,
        pid=fields.u32(Attribute.LOADER_PID) or 0,
    )


def _allowed_ips(fields: Fields) -> tuple[Network, ...]:
    found: list[Network] = []
    for family, prefix, address in fields.structs(Attribute.ALLOWED_IPS, abi.ALLOWED_IP, abi.ALLOWED_IPS_MAX):
        if family not in (4, 6):
            raise UntrustedInputError(f"a prefix of the family {family}")
        try:
            network = ipaddress.ip_network((address[: 4 if family == 4 else 16], prefix))
        except ValueError as error:
            raise UntrustedInputError(f"AllowedIPs: {error}") from error
        found.append(network)
    return tuple(found)
