"""qre.ko over generic netlink: one method a command, typed values in, typed values out; and its events.

The ABI is kmod/uapi/qre.h, its numbers are ``abi``'s; sessions and reports are those of ``qre.dataplane.protocol``. A
refusal is a ``NetlinkRefusedError`` with the kernel's text and the name of the attribute that it concerns. Answers
are checked before they are used (``answers``); no error contains a request: requests hold keys. Nothing of pyroute2
is loaded: with it a command takes several times as long to start.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, Self, TypeVar

import msgspec

from qre.dataplane.new_port import APART, CHALLENGES
from qre.dataplane.protocol import SessionInstall, SessionUpdate
from qre.ends import Role
from qre.errors import MachineError, UntrustedInputError
from qre.kernel import abi
from qre.kernel.abi import Attribute, QreCommand
from qre.kernel.answers import (
    KernelDevice,
    KernelSession,
    LoaderDescription,
    device_untrusted,
    session_untrusted,
)
from qre.kernel.attributes import (
    Fields,
    Request,
    encode_attribute,
    install_request,
    int_untrusted,
    read_attributes_untrusted,
    split_attributes_untrusted,
    update_request,
)
from qre.kernel.socket import (
    NETLINK_GENERIC,
    NLM_F_DUMP,
    ExtendedAck,
    NetlinkRefusedError,
    NetlinkSocket,
)

_NETLINK_HEADER: Final = 16
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_HEADERS: Final = _NETLINK_HEADER + _GENERIC.size

# <linux/genetlink.h>: the family that knows all families.
_CTRL_ID, _CTRL_VERSION, _CTRL_CMD_GETFAMILY = 16, 2, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_VERSION, _CTRL_ATTR_MAXATTR = 1, 2, 3, 5
_CTRL_ATTR_MCAST_GROUPS = 7
_CTRL_ATTR_MCAST_GRP_NAME, _CTRL_ATTR_MCAST_GRP_ID = 1, 2

_ROLES: Final = {Role.SERVER: abi.KernelRole.SERVER, Role.CLIENT: abi.KernelRole.CLIENT}
#: What the kernel takes of times in milliseconds.
_LONGEST_MS: Final = 3_600_000

_Given = TypeVar("_Given")
_Read = TypeVar("_Read")


class ModuleMissingError(MachineError):
    """qre.ko is not loaded."""


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of DEVICE_SET; None leaves one unchanged (a new device has the module's defaults)."""

    role: Role | None = None
    mtu: int | None = None
    dest: str | None = None  # host:port
    server_name: str | None = None
    listen: tuple[str, int] | None = None  # address, port
    endpoint: str | None = None  # host:port
    keepalive_s: int | None = None
    max_sessions: int | None = None
    fwmark: int | None = None


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's numbers of the family and its groups, and its highest attribute: a module that was loaded before
    an update knows fewer than ``abi``."""

    number: int
    attributes: int
    groups: dict[str, int]


# --- the kernel ---


class Qre:
    """The module in this network namespace. Every user may read counters, the rest needs CAP_NET_ADMIN.

    ``device`` is always the name of a device of this namespace. Blocking; the kernel answers at once.
    """

    def __init__(self) -> None:
        """Raises ModuleMissingError when qre.ko is not loaded."""
        self._netlink = NetlinkSocket(NETLINK_GENERIC)
        try:
            self.family = find_family(self._netlink)
        except BaseException:
            self._netlink.close()
            raise
        #: Whether it sends and joins packets in two datagrams.
        self.splits = self.family.attributes >= Attribute.USUAL_PAYLOAD
        #: Whether its outer packets may be IPv6.
        self.outer_ipv6 = self.family.attributes >= Attribute.SHARED_IPV6

    def close(self) -> None:
        """Close the netlink socket; devices and sessions stay."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- devices ---

    def device(self, device: str) -> KernelDevice | None:
        """The device; None when no device of qre.ko has this name."""
        what = f"reading device {device}"
        try:
            found = self._ask(what, QreCommand.DEVICE_GET, _named(device))
        except NetlinkRefusedError as error:
            if error.code in (errno.ENODEV, errno.ENOENT):
                return None
            raise
        return _checked(what, device_untrusted, found[0]) if found else None

    def devices(self) -> list[KernelDevice]:
        """Every device of this namespace."""
        what = "listing the devices of qre.ko"
        found = self._ask(what, QreCommand.DEVICE_GET, Request(), NLM_F_DUMP)
        return [_checked(what, device_untrusted, fields) for fields in found]

    def device_set(self, device: str, settings: DeviceSettings) -> None:
        """Create the device or change it, completely or not at all."""
        request = _named(device)
        if settings.role is not None:
            request.u8(Attribute.ROLE, _ROLES[settings.role])
        if settings.mtu is not None:
            request.u32(Attribute.MTU, settings.mtu)
        if settings.dest is not None:
            request.text(Attribute.DEST, settings.dest)
        if settings.server_name is not None:
            request.text(Attribute.SERVER_NAME, settings.server_name)
        if settings.listen is not None:
            request.ip(Attribute.LISTEN_IP, Attribute.LISTEN_IPV6, ip_address(settings.listen[0]))
            request.port(Attribute.LISTEN_PORT, settings.listen[1])
        if settings.endpoint is not None:
            request.text(Attribute.ENDPOINT, settings.endpoint)
        if settings.keepalive_s is not None:
            request.u16(Attribute.KEEPALIVE, settings.keepalive_s)
        if settings.max_sessions is not None:
            request.u32(Attribute.MAX_SESSIONS, settings.max_sessions)
        if settings.fwmark is not None:
            request.u32(Attribute.FWMARK, settings.fwmark)
        self._ask(f"device {device}", QreCommand.DEVICE_SET, request)

    def device_delete(self, device: str) -> None:
        """Also ends its sessions."""
        self._ask(f"deleting device {device}", QreCommand.DEVICE_DEL, _named(device))

    def dest_profile_set(self, device: str, profile: bytes, ecn: int) -> None:
        """Store a Dest profile (JSON) with the device; outer packets get this ECN field."""
        request = _named(device)
        request.put(Attribute.DEST_PROFILE, profile)
        request.u8(Attribute.ECN, ecn)
        self._ask(f"Dest profile of {device}", QreCommand.DEST_PROFILE_SET, request)

    # --- sessions ---

    def session_install(self, device: str, install: SessionInstall, socket_fd: int | None = None) -> None:
        """Install a session and adopt its routed CID. ``socket_fd``: the client's UDP socket, which the caller still
        closes."""
        self.session_install_request(device, install_request(install, socket_fd))

    def session_install_request(self, device: str, request: Request) -> None:
        """Install a session whose attributes are encoded already. Raises as ``session_install``."""
        self._ask(f"installing a session on {device}", QreCommand.SESSION_INSTALL, _named(device, request))

    def session_update(self, device: str, update: SessionUpdate) -> None:
        """Raises as ``session_update_request``."""
        self.session_update_request(device, update_request(update))

    def session_update_request(self, device: str, request: Request) -> None:
        """Update a session with attributes that are encoded already."""
        self._ask(f"updating a session on {device}", QreCommand.SESSION_UPDATE, _named(device, request))

    def session_delete(self, device: str, session_id: bytes, *, close: bool) -> None:
        """Remove a session; with ``close`` its peer gets a CONNECTION_CLOSE."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        request.flag(Attribute.CLOSE, close)
        self._ask(f"deleting a session of {device}", QreCommand.SESSION_DEL, request)

    def session(self, device: str, session_id: bytes) -> KernelSession | None:
        """The session; None when there is none with this id. A missing device is an error."""
        what = f"reading a session of {device}"
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        try:
            found = self._ask(what, QreCommand.SESSION_GET, request)
        except NetlinkRefusedError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        return _checked(what, session_untrusted, found[0]) if found else None

    def sessions(self, device: str) -> list[KernelSession]:
        """Every session of ``device``, without keys."""
        what = f"listing the sessions of {device}"
        found = self._ask(what, QreCommand.SESSION_GET, _named(device), NLM_F_DUMP)
        return [_checked(what, session_untrusted, fields) for fields in found]

    def frame_send(self, device: str, session_id: bytes, frame_id: int, frames: bytes) -> None:
        """Send whole frames in the session's packets; a ``FrameFate`` event reports whether they arrived."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        request.put(Attribute.FRAMES, frames)
        request.u64(Attribute.FRAME_ID, frame_id)
        self._ask(f"sending frames on {device}", QreCommand.FRAME_SEND, request)

    def path_proven(self, device: str, session_id: bytes, payload: int, ago_ms: int) -> None:
        """The session's path has carried a UDP payload of so many bytes, sent ``ago_ms`` ago."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        request.u16(Attribute.PROVEN_PAYLOAD, payload)
        request.u64(Attribute.PROVEN_AGO_MS, min(ago_ms, _LONGEST_MS))
        self._ask(f"path of a session on {device}", QreCommand.PATH_PROVEN, request)

    def session_give_up(self, device: str, session_id: bytes, times_ms: tuple[int, int], frames: bytes) -> None:
        """The session repeats once more and ends, with ``frames``: so long after the first packet without answer."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        request.u64(Attribute.LAST_REPEAT_MS, min(times_ms[0], _LONGEST_MS))
        request.u64(Attribute.GIVES_UP_MS, min(times_ms[1], _LONGEST_MS))
        request.put(Attribute.FRAMES, frames)
        self._ask(f"giving up a session on {device}", QreCommand.SESSION_GIVE_UP, request)

    def session_try_port(self, device: str, session_id: bytes, socket_fd: int) -> None:
        """The session sends PATH_CHALLENGEs from this UDP socket, which the caller still closes."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        request.u32(Attribute.FD, socket_fd)
        request.u8(Attribute.CHALLENGES, CHALLENGES)
        request.u64(Attribute.APART_MS, round(APART * 1000))
        self._ask(f"another port of a session on {device}", QreCommand.SESSION_TRY_PORT, request)

    def session_move(self, device: str, session_id: bytes) -> None:
        """The port that is tried, and that has answered, becomes the session's."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        self._ask(f"moving a session on {device}", QreCommand.SESSION_MOVE, request)

    def session_drop_port(self, device: str, session_id: bytes) -> None:
        """The port that is tried goes."""
        request = _named(device)
        request.put(Attribute.SESSION_ID, session_id)
        self._ask(f"dropping a port of a session on {device}", QreCommand.SESSION_DROP_PORT, request)

    # --- connection IDs ---

    def cid_adopt(
        self, device: str, cid: bytes, session_id: bytes | None = None, sequence: int | None = None
    ) -> None:
        """Adopt one more routed CID for this session, or for the device as a whole."""
        request = _named(device)
        request.put(Attribute.CID, cid)
        if session_id is not None:
            request.put(Attribute.SESSION_ID, session_id)
        if sequence is not None:
            request.u64(Attribute.SEQUENCE, sequence)
        self._ask(f"adopting a connection ID for {device}", QreCommand.CID_ADOPT, request)

    def cid_release(self, device: str, cid: bytes, session_id: bytes | None = None) -> None:
        """Release ``cid``; with ``session_id`` only if it belongs to that session."""
        request = _named(device)
        request.put(Attribute.CID, cid)
        if session_id is not None:
            request.put(Attribute.SESSION_ID, session_id)
        self._ask(f"releasing a connection ID of {device}", QreCommand.CID_RELEASE, request)

    # --- the shared port of the namespace ---

    def cid_map_register(self, fd: int) -> None:
        """The kernel mirrors adopted CIDs into this BPF map from now on; it keeps a reference of its own."""
        self._ask_with_fd("registering the CID map", QreCommand.CID_MAP_REGISTER, fd)

    def cid_map_unregister(self) -> None:
        """Undo ``cid_map_register``."""
        self._ask("unregistering the CID map", QreCommand.CID_MAP_UNREGISTER, Request())

    def shared_socket_register(self, fd: int) -> None:
        """The kernel receives from this UDP socket and sends through it; it keeps a reference of its own."""
        self._ask_with_fd("registering the shared socket", QreCommand.SHARED_SOCKET_REGISTER, fd)

    def shared_socket_unregister(self) -> None:
        """Undo ``shared_socket_register``."""
        self._ask("unregistering the shared socket", QreCommand.SHARED_SOCKET_UNREGISTER, Request())

    def loader_set(self, loader: LoaderDescription | None) -> None:
        """Register the loader's description for ``show``; None: there is no loader."""
        request = Request()
        if loader is not None:
            request.text(Attribute.LOADER_PROGRAM, loader.program)
            request.text(Attribute.LOADER_PIN_DIR, loader.pin_dir)
            request.u8(Attribute.LOADER_CID_LENGTH, loader.cid_length)
            request.u32(Attribute.LOADER_PID, loader.pid)
        self._ask("naming the loader", QreCommand.SHARED_LOADER_SET, request)

    def _ask_with_fd(self, what: str, command: QreCommand, fd: int) -> None:
        request = Request()
        request.u32(Attribute.FD, fd)
        self._ask(what, command, request)

    def _ask(self, what: str, command: QreCommand, request: Request, flags: int = 0) -> list[Fields]:
        """The attributes of each message of the answer."""
        body = _GENERIC.pack(command, abi.GENL_VERSION, 0) + request.encode()
        try:
            answer = self._netlink.exchange(what, self.family.number, body, flags)
        except NetlinkRefusedError as error:
            raise NetlinkRefusedError(what, error.code, error.ack, _meant(request, error.ack)) from None
        messages = [message for kind, message in answer if kind == self.family.number]
        return [_checked(what, body_untrusted, message) for message in messages]


def _named(device: str, request: Request | None = None) -> Request:
    """The request (an empty one), with the device's name."""
    request = Request() if request is None else request
    request.text(Attribute.IFNAME, device)
    return request


def _meant(request: Request, ack: ExtendedAck) -> str:
    """The attribute that the kernel's refusal concerns."""
    if ack.missing is not None:
        return f"{_name(ack.missing)} is missing"
    attribute = request.at(ack.offset - _HEADERS) if ack.offset is not None else None
    return f"at {attribute.name}" if attribute is not None else ""


def _name(attribute: int) -> str:
    return Attribute(attribute).name if attribute in list(Attribute) else f"attribute {attribute}"


def _checked(what: str, read: Callable[[_Given], _Read], given: _Given) -> _Read:
    """The result of an ``…_untrusted`` reader; MachineError when the kernel's answer is malformed."""
    try:
        return read(given)
    except UntrustedInputError as error:
        raise MachineError(what, f"qre.ko sent an invalid answer: {error}", "use a qre.ko of this version") from error


def body_untrusted(message: bytes) -> Fields:
    """The attributes of one message of the family."""
    if len(message) < _HEADERS:
        raise UntrustedInputError("a message is cut short")
    return read_attributes_untrusted(message[_HEADERS:])


# --- the family ---


def find_family(netlink: NetlinkSocket) -> Family:
    """Ask for the family qre. Raises ModuleMissingError, or MachineError for another version."""
    what = "qre.ko"
    body = _GENERIC.pack(_CTRL_CMD_GETFAMILY, _CTRL_VERSION, 0)
    body += encode_attribute(_CTRL_ATTR_FAMILY_NAME, abi.GENL_NAME.encode() + b"\0")
    try:
        answer = netlink.exchange(what, _CTRL_ID, body)
    except NetlinkRefusedError as error:
        if error.code == errno.ENOENT:
            raise ModuleMissingError(what, "it is not loaded", f"load it: `modprobe {abi.GENL_NAME}`") from None
        raise
    found = [message for kind, message in answer if kind == _CTRL_ID]
    family, version = _checked(what, _family_untrusted, found[0] if found else b"")
    if version != abi.GENL_VERSION:
        raise MachineError(what, f"it speaks version {version}, not {abi.GENL_VERSION}", "use matching versions")
    return family


def _family_untrusted(message: bytes) -> tuple[Family, int]:
    """The family and its version."""
    fields = dict(split_attributes_untrusted(message[_HEADERS:]))
    groups = {}
    for _, entry in split_attributes_untrusted(fields.get(_CTRL_ATTR_MCAST_GROUPS, b"")):
        group = dict(split_attributes_untrusted(entry))
        name = group.get(_CTRL_ATTR_MCAST_GRP_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
        groups[name] = int_untrusted(group, _CTRL_ATTR_MCAST_GRP_ID, 4)
    number = int_untrusted(fields, _CTRL_ATTR_FAMILY_ID, 2)
    attributes = int_untrusted(fields, _CTRL_ATTR_MAXATTR, 4)
    return Family(number=number, attributes=attributes, groups=groups), int_untrusted(fields, _CTRL_ATTR_VERSION, 4)
