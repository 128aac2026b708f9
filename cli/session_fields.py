"""The fields of ``install-session`` and ``update-session``: from ``Key=Value`` to the attributes of a request.

Everything that is wrong is named at once; the text of a key is in no error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from qre.abi import CID_MAX, IV_SIZE, KEY_SIZE, SESSION_ID_SIZE, Attribute
from qre.cli.fields import parse_fields
from qre.config.syntax import quoted
from qre.config.values import parse_networks
from qre.errors import UserError, UserErrors
from qre.workers.netlink.attributes import Request
from qre.workers.netlink.generic import encode_allowed_ips

_MAX_U64 = (1 << 64) - 1
_HIGHEST_FD = 1 << 20

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
_NUMBERS = {"KeyEpoch": Attribute.KEY_EPOCH, "PacketNumber": Attribute.PACKET_NUMBER}
_ADDRESSES = {"UnderlayLocalIPv4": Attribute.LOCAL_IP, "UnderlayPeerIPv4": Attribute.PEER_IP}
_PORTS = {"UnderlayLocalPort": Attribute.LOCAL_PORT, "UnderlayPeerPort": Attribute.PEER_PORT}
_UNDERLAY = ("UnderlayLocalIPv4", "UnderlayLocalPort", "UnderlayPeerIPv4", "UnderlayPeerPort")

REQUIRED = (
    "SessionId", "ConnectionId", "TxKey", "RxKey", "TxHpKey", "RxHpKey", "TxIv", "RxIv", "KeyEpoch", "PacketNumber",
)  # fmt: skip
OPTIONAL = (
    "NextRxKey", "NextRxHpKey", "NextRxIv", "NextTxKey", "NextTxIv", *_UNDERLAY,
    "ClientConnectionId", "AllowedIPs", "SocketFd",
)  # fmt: skip
#: Fields that mean something together only.
_GROUPS = (_UNDERLAY, ("NextRxKey", "NextRxIv"), ("NextTxKey", "NextTxIv"))

_T = TypeVar("_T")


class SessionFields:
    """What was given, checked: the request, less the device. Shows no key."""

    def __init__(self, session_id: bytes, cid: bytes, request: Request) -> None:
        self.session_id = session_id
        self.connection_id = cid
        self.request = request


def parse_session_fields(command: str, arguments: Sequence[str]) -> SessionFields:
    """The fields of ``command``; raises UserErrors with everything that is wrong with them."""
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
    for name, attribute in _NUMBERS.items():
        if (number := read(name, _number)) is not None:
            request.u64(attribute, number)
    for name, attribute in _ADDRESSES.items():
        if (address := read(name, _ipv4)) is not None:
            request.ipv4(attribute, address)
    for name, attribute in _PORTS.items():
        if (port := read(name, _port)) is not None:
            request.port(attribute, port)
    if allowed := read("AllowedIPs", _prefixes):
        request.put(Attribute.ALLOWED_IPS, encode_allowed_ips(allowed))
    if (fd := read("SocketFd", descriptor)) is not None:
        request.u32(Attribute.FD, fd)
    if "NextRxHpKey" in octets and "RxHpKey" in octets and octets["NextRxHpKey"] != octets["RxHpKey"]:
        why = "it differs from RxHpKey, and header protection keys do not change (RFC 9001 section 6)"
        errors.append(UserError("field NextRxHpKey", why, "give RxHpKey's value"))
    if errors or cid is None:
        raise UserErrors(tuple(errors))
    return SessionFields(octets["SessionId"], cid, request)


def _incomplete(fields: dict[str, str]) -> list[UserError]:
    errors = []
    for group in _GROUPS:
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


def _ipv4(name: str, text: str) -> str:
    from ipaddress import IPv4Address

    try:
        address = IPv4Address(text)
    except ValueError:
        raise UserError(f"field {name}", f"{quoted(text)} is not an IPv4 address", "write 192.0.2.1") from None
    if address.is_unspecified or address.is_multicast or address == IPv4Address(0xFFFFFFFF):
        raise UserError(f"field {name}", f"{address} is no address of one machine", "write 192.0.2.1")
    return str(address)


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65_535):
        raise UserError(f"field {name}", f"{quoted(text)} is not a port from 1 to 65535", f"write {name}=443")
    return int(text)


def _prefixes(name: str, text: str) -> tuple[str, ...]:
    """None means all, as AllowedIPs that are not given do."""
    if not text:
        return ()
    try:
        return tuple(map(str, parse_networks(text)))
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy) from None


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
