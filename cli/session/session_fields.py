"""The fields of ``install-session`` and ``update-session``: from ``Key=Value`` to the attributes of a request.

All errors are reported together; no error contains the text of a key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from qre.addresses import Address, Network
from qre.cli.fields import parse_fields
from qre.config.syntax import quoted
from qre.config.values import parse_duration, parse_keepalive, parse_networks
from qre.errors import UserError, UserErrors
from qre.kernel.abi import CID_MAX, IV_SIZE, KEY_SIZE, SESSION_ID_SIZE, Attribute
from qre.kernel.attributes import Request
from qre.wire.number import PACKET_NUMBER_BASE

_MAX_U64 = (1 << 64) - 1
_HIGHEST_FD = 1 << 20
_IDLE_MS = (1_000, 3_600_000)  # as qre.ko takes it
_MAX_KEEPALIVE = 3_600

#: Byte strings of one length: field -> attribute, bytes.
_FIXED = {
    "SessionId": (Attribute.SESSION_ID, SESSION_ID_SIZE),
    "TxKey": (Attribute.TX_KEY, KEY_SIZE),
    "RxKey": (Attribute.RX_KEY, KEY_SIZE),
    "TxHpKey": (Attribute.TX_HP_KEY, KEY_SIZE),
    "RxHpKey": (Attribute.RX_HP_KEY, KEY_SIZE),
    "TxIv": (Attribute.TX_IV, IV_SIZE),
    "RxIv": (Attribute.RX_IV, IV_SIZE),
    "NextRxKey": (Attribute.NEXT_RX_KEY, KEY_SIZE),
    "NextRxHpKey": (Attribute.NEXT_RX_HP_KEY, KEY_SIZE),
    "NextRxIv": (Attribute.NEXT_RX_IV, IV_SIZE),
    "NextTxKey": (Attribute.NEXT_TX_KEY, KEY_SIZE),
    "NextTxIv": (Attribute.NEXT_TX_IV, IV_SIZE),
}
_ADDRESSES = {"UnderlayLocalIPv4": Attribute.LOCAL_IP, "UnderlayPeerIPv4": Attribute.PEER_IP}
_IPV6_ADDRESSES = {"UnderlayLocalIPv6": Attribute.LOCAL_IPV6, "UnderlayPeerIPv6": Attribute.PEER_IPV6}
_PORTS = {"UnderlayLocalPort": Attribute.LOCAL_PORT, "UnderlayPeerPort": Attribute.PEER_PORT}
_UNDERLAY = ("UnderlayLocalIPv4", "UnderlayLocalPort", "UnderlayPeerIPv4", "UnderlayPeerPort")

REQUIRED = (
    "SessionId", "ConnectionId", "TxKey", "RxKey", "TxHpKey", "RxHpKey", "TxIv", "RxIv", "KeyEpoch", "PacketNumber",
)  # fmt: skip
OPTIONAL = (
    "NextRxKey", "NextRxHpKey", "NextRxIv", "NextTxKey", "NextTxIv", *_UNDERLAY, *_IPV6_ADDRESSES,
    "ClientConnectionId", "AllowedIPs", "IdleTimeout", "PersistentKeepalive", "SocketFd",
)  # fmt: skip
#: Fields that are only valid together.
_GROUPS = (("NextRxKey", "NextRxIv"), ("NextTxKey", "NextTxIv"))

_T = TypeVar("_T")


@dataclass(frozen=True)
class SessionFields:
    """The checked fields: ``request`` has all of them except the device, and shows no key. The others are those that
    the commands themselves need; None: not given.

    ``packet_number`` is as it was given. The request has at least PACKET_NUMBER_BASE: a handshake has used the
    numbers below under these keys, and a number is used once under a key (RFC 9000 §12.3).
    """

    request: Request
    given: frozenset[str]
    session_id: bytes
    connection_id: bytes
    key_epoch: int
    packet_number: int
    client_connection_id: bytes | None
    allowed_ips: tuple[Network, ...] | None
    idle_ms: int | None
    keepalive_s: int | None


def parse_session_fields(command: str, arguments: Sequence[str]) -> SessionFields:
    """The fields of ``command``. Raises UserErrors with all errors."""
    fields = parse_fields(arguments, REQUIRED, OPTIONAL, command=command)
    request, errors = Request(), list(_incomplete(fields))

    def read(name: str, parse: Callable[[str, str], _T]) -> _T | None:
        try:
            return parse(name, fields[name]) if name in fields else None
        except UserError as error:
            errors.append(error)
            return None

    octets: dict[str, bytes] = {}
    for name, (attribute, size) in _FIXED.items():
        value = read(name, lambda field, text, size=size: fixed(field, text, size))  # type: ignore[misc]
        if value is not None:
            octets[name] = value
            request.put(attribute, value)
    cid = read("ConnectionId", connection_id)
    if cid is not None:
        request.put(Attribute.CID, cid)
    client_cid = read("ClientConnectionId", _client_connection_id)
    if client_cid is not None:
        request.put(Attribute.CLIENT_CID, client_cid)
    key_epoch, packet_number = read("KeyEpoch", _number), read("PacketNumber", _number)
    if key_epoch is not None:
        request.u64(Attribute.KEY_EPOCH, key_epoch)
    if packet_number is not None:
        request.u64(Attribute.PACKET_NUMBER, max(packet_number, PACKET_NUMBER_BASE))
    for name, attribute in (*_ADDRESSES.items(), *_IPV6_ADDRESSES.items()):
        if (address := read(name, _address)) is not None:
            request.put(attribute, address.packed)
    for name, attribute in _PORTS.items():
        if (port := read(name, _port)) is not None:
            request.port(attribute, port)
    allowed = read("AllowedIPs", _prefixes)
    if allowed:
        request.allowed_ips(allowed)
    idle_ms, keepalive_s = read("IdleTimeout", _idle_ms), read("PersistentKeepalive", _keepalive_s)
    if idle_ms is not None:
        request.u64(Attribute.IDLE_MS, idle_ms)
    if keepalive_s is not None:
        request.u64(Attribute.KEEPALIVE_MS, 1000 * keepalive_s)
    if (fd := read("SocketFd", descriptor)) is not None:
        request.u32(Attribute.FD, fd)
    errors += _changed_header_key(octets)
    if errors or cid is None or key_epoch is None or packet_number is None:
        raise UserErrors(tuple(errors))
    return SessionFields(
        request=request,
        given=frozenset(fields),
        session_id=octets["SessionId"],
        connection_id=cid,
        key_epoch=key_epoch,
        packet_number=packet_number,
        client_connection_id=client_cid,
        allowed_ips=allowed,
        idle_ms=idle_ms,
        keepalive_s=keepalive_s,
    )


def _changed_header_key(octets: dict[str, bytes]) -> list[UserError]:
    if "NextRxHpKey" in octets and "RxHpKey" in octets and octets["NextRxHpKey"] != octets["RxHpKey"]:
        why = "it differs from RxHpKey, and header protection keys do not change (RFC 9001 section 6)"
        return [UserError("field NextRxHpKey", why, "give RxHpKey's value")]
    return []


def _incomplete(fields: dict[str, str]) -> list[UserError]:
    errors = []
    if any(name in fields for name in _ADDRESSES) and any(name in fields for name in _IPV6_ADDRESSES):
        remedy = "give UnderlayLocalIPv4 and UnderlayPeerIPv4, or UnderlayLocalIPv6 and UnderlayPeerIPv6"
        errors.append(UserError("field UnderlayPeerIPv6", "both ends' addresses are of one version of IP", remedy))
        return errors
    of_ipv6 = any(name in fields for name in _IPV6_ADDRESSES)
    underlay = tuple(name.replace("IPv4", "IPv6") for name in _UNDERLAY) if of_ipv6 else _UNDERLAY
    for group in (underlay, *_GROUPS):
        given = [name for name in group if name in fields]
        missing = [name for name in group if name not in fields]
        if given and missing:
            remedy = f"give {', '.join(group)} together, or none of them"
            errors += [
                UserError(f"field {name}", f"it is missing, and {given[0]} is given", remedy) for name in missing
            ]
    if "NextRxHpKey" in fields and "NextRxKey" not in fields:
        errors.append(UserError("field NextRxKey", "it is missing, and NextRxHpKey is given", "give both, or none"))
    return errors


def fixed(name: str, text: str, size: int) -> bytes:
    """``size`` bytes in hex."""
    value = _hex(text)
    if value is None or len(value) != size:
        raise UserError(f"field {name}", f"it is not {2 * size} hex digits", f"write {size} bytes in hex")
    return value


def connection_id(name: str, text: str) -> bytes:
    """1 to CID_MAX bytes from hex digits. Raises UserError that names the field ``name``."""
    value = _hex(text)
    if not value or len(value) > CID_MAX:
        why = f"it is not an even number of 2 to {2 * CID_MAX} hex digits"
        raise UserError(f"field {name}", why, f"write 1 to {CID_MAX} bytes in hex")
    return value


def _client_connection_id(name: str, text: str) -> bytes:
    return connection_id(name, text) if text else b""


def _hex(text: str) -> bytes | None:
    if len(text) % 2 or not all(letter in "0123456789abcdefABCDEF" for letter in text):
        return None
    return bytes.fromhex(text)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= _MAX_U64):
        raise UserError(f"field {name}", f"{quoted(text)} is not a number from 0 to {_MAX_U64}", f"write {name}=0")
    return int(text)


def _address(name: str, text: str) -> Address:
    """Of the version that the field's name ends with."""
    return _ipv6(name, text) if name in _IPV6_ADDRESSES else _ipv4(name, text)


def _ipv4(name: str, text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except ValueError:
        raise UserError(f"field {name}", f"{quoted(text)} is not an IPv4 address", "write 192.0.2.1") from None
    if address.is_unspecified or address.is_multicast or address == IPv4Address(0xFFFFFFFF):
        raise UserError(f"field {name}", f"{address} is not a unicast address", "write 192.0.2.1")
    return address


def _ipv6(name: str, text: str) -> IPv6Address:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise UserError(f"field {name}", f"{quoted(text)} is not an IPv6 address", "write 2001:db8::1") from None
    if address.is_unspecified or address.is_multicast or address.is_link_local or address.ipv4_mapped:
        raise UserError(f"field {name}", f"{address} is not a unicast address beyond a link", "write 2001:db8::1")
    return address


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65_535):
        raise UserError(f"field {name}", f"{quoted(text)} is not a port from 1 to 65535", f"write {name}=443")
    return int(text)


def _prefixes(name: str, text: str) -> tuple[Network, ...]:
    """None means all, as when AllowedIPs is not given."""
    if not text:
        return ()
    try:
        return parse_networks(text)
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy) from None


def _idle_ms(name: str, text: str) -> int:
    try:
        return parse_duration(text, *_IDLE_MS)
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy) from None


def _keepalive_s(name: str, text: str) -> int:
    """Seconds; 0: none, even if the device has one."""
    try:
        seconds = parse_keepalive(text)
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy) from None
    if seconds > _MAX_KEEPALIVE:
        raise UserError(f"field {name}", f"{seconds} is more than {_MAX_KEEPALIVE} seconds", "write 25, or off")
    return seconds


def descriptor(name: str, text: str) -> int:
    """The number of a descriptor that this process has."""
    import os

    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text) <= _HIGHEST_FD):
        raise UserError(f"field {name}", f"{quoted(text)} is not the number of a descriptor", f"write {name}=3")
    try:
        os.fstat(int(text))
    except OSError as error:
        remedy = "hand the descriptor to this process"
        raise UserError(f"field {name}", f"{text}: {error.strerror or error}", remedy) from error
    return int(text)
