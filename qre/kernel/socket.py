"""One blocking netlink socket: sends a request, returns the whole answer, raises every refusal.

rtnetlink's messages are encoded and decoded by pyroute2's classes (RFC 3549 layout); the socket is our own, because
pyroute2's runs an event loop for every call, which cannot run inside a worker's, and this one is bounded in time.
Generic netlink (``qre_family``) uses ``exchange``, bytes in and bytes out, and needs no pyroute2 at all.
It must never wait longer than ``TIMEOUT`` for the kernel, nor accept a message that the kernel did not send.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from qre.causes import WORDS, Words, of_netlink
from qre.errors import MachineError

#: Seconds that the kernel may take for an answer (it answers at once unless the RTNL lock is held).
TIMEOUT = 5.0
#: A dump that a concurrent change interrupted is repeated this many times.
DUMP_ATTEMPTS = 8

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16
NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

_NLMSG_NOOP, _NLMSG_ERROR, _NLMSG_DONE = 1, 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG, _NLMSGERR_ATTR_OFFS, _NLMSGERR_ATTR_MISS_TYPE = 1, 2, 5
_MAX_ERRNO = 4095
_IPV6 = "/proc/self/net/if_inet6"  # exists where the kernel has IPv6
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_RECEIVE_SIZE = 1 << 18

#: Message type -> pyroute2 class that decodes it.
MessageClasses = Mapping[int, Any]


class ExtendedAck(NamedTuple):
    """The kernel's explanation beside the errno: its text, the byte of the request that it concerns (counted from the
    netlink header), a missing attribute."""

    text: str = ""
    offset: int | None = None
    missing: int | None = None


_NO_WORDS = ExtendedAck()


class NetlinkRefusedError(MachineError):
    """The kernel answered with an error; ``code`` is the errno, ``ack`` its explanation."""

    def __init__(self, what: str, code: int, ack: ExtendedAck = _NO_WORDS, detail: str = "") -> None:
        explanation = ", ".join(part for part in (ack.text, detail) if part)
        self.cause = of_netlink(code, ipv6=os.path.exists(_IPV6))
        known = WORDS[self.cause] if self.cause is not None else Words(os.strerror(code), "")
        super().__init__(what, known.why + (f" ({explanation})" if explanation else ""), known.remedy)
        self.code = code
        self.ack = ack


class DumpInterruptedError(MachineError):
    """The listed objects changed during the dump."""


class NetlinkSocket:
    """Requests to the kernel over one netlink protocol; not shared between threads."""

    def __init__(self, protocol: int, classes: MessageClasses | None = None) -> None:
        self._classes: MessageClasses = classes if classes is not None else {}
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise MachineError("netlink socket", error.strerror or str(error)) from error
        try:
            self._socket.settimeout(TIMEOUT)
            self._socket.bind((0, 0))
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except OSError as error:
            self._socket.close()
            raise MachineError("netlink socket", error.strerror or str(error)) from error

    @property
    def port_id(self) -> int:
        """The number by which the kernel knows this socket."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """No request can be made afterwards."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, what: str, message: Any, kind: int, flags: int = 0) -> list[Any]:
        """Send ``message`` (a pyroute2 ``nlmsg``); the messages of the answer, empty for a plain success.

        ``what`` names the operation in an error. Raises NetlinkRefusedError with the kernel's text.
        """
        message.reset()
        message.encode()
        found = []
        for number, data in self.exchange(what, kind, bytes(message.data)[_HEADER.size :], flags):
            if number in self._classes:
                decoded = self._classes[number](data)
                decoded.decode()
                found.append(decoded)
        return found

    def exchange(self, what: str, kind: int, body: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
        """Send ``body`` as a message of this kind; kind and bytes (header included) of each message of the answer.

        Raises NetlinkRefusedError with the kernel's text; no error contains ``body``.
        """
        for _ in range(DUMP_ATTEMPTS):
            self._send(what, kind, body, NLM_F_REQUEST | NLM_F_ACK | flags)
            try:
                return list(self._answer(what))
            except DumpInterruptedError:
                continue
        raise DumpInterruptedError(what, "it keeps changing while it is read", "try again")

    def _send(self, what: str, kind: int, body: bytes, flags: int) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        data = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body
        try:
            sent = self._socket.send(data)
        except OSError as error:
            raise MachineError(what, error.strerror or str(error)) from error
        if sent != len(data):
            raise MachineError(what, "netlink took only a part of the request")

    def _answer(self, what: str) -> Iterator[tuple[int, bytes]]:
        """Yield the messages of the answer to the last request until its end."""
        interrupted = False
        while True:
            data = self._receive(what)
            for kind, flags, sequence, message in split_messages(what, data):
                if sequence != self._sequence:
                    continue  # the rest of an abandoned answer
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    raise_refusal(what, kind, flags, message)
                    if interrupted:
                        raise DumpInterruptedError(what)
                    return
                if kind != _NLMSG_NOOP:
                    yield kind, message

    def _receive(self, what: str) -> bytes:
        while True:
            try:
                data, _, flags, (port_id, _) = self._socket.recvmsg(_RECEIVE_SIZE)
            except TimeoutError as error:
                raise MachineError(what, f"the kernel did not answer within {TIMEOUT:g} s") from error
            except OSError as error:
                raise MachineError(what, error.strerror or str(error)) from error
            if port_id != 0:
                continue  # another process may write to our port; only the kernel is accepted
            if flags & socket.MSG_TRUNC:
                raise MachineError(what, "the kernel's answer is larger than the receive buffer")
            return data


def split_messages(what: str, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and the whole bytes of each message in one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise MachineError(what, "the kernel's answer is malformed")
        yield kind, flags, sequence, data[offset : offset + length]
        offset += (length + 3) & ~3


def raise_refusal(what: str, kind: int, flags: int, message: bytes) -> None:
    """Raise what an NLMSG_ERROR or NLMSG_DONE carries; return when it is a success."""
    if len(message) < _HEADER.size + 4:
        if kind == _NLMSG_DONE:
            return
        raise MachineError(what, "the kernel's answer is malformed")
    (negative,) = struct.unpack_from("=i", message, _HEADER.size)
    if negative >= 0:
        return
    offset = _HEADER.size + 4
    if kind == _NLMSG_ERROR:  # the request's header follows, and its body unless the answer is capped
        quoted = _HEADER.unpack_from(message, offset)[0] if len(message) >= offset + _HEADER.size else 0
        offset += _HEADER.size if flags & NLM_F_CAPPED else (quoted + 3) & ~3
    ack = _extended_ack(message[offset:]) if flags & NLM_F_ACK_TLVS else _NO_WORDS
    raise NetlinkRefusedError(what, min(-negative, _MAX_ERRNO), ack)


def _extended_ack(attributes: bytes) -> ExtendedAck:
    """The attributes of an extended acknowledgement; what does not parse is left out."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = attributes[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return ExtendedAck(
        text=found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace"),
        offset=_word(found.get(_NLMSGERR_ATTR_OFFS)),
        missing=_word(found.get(_NLMSGERR_ATTR_MISS_TYPE)),
    )


def _word(data: bytes | None) -> int | None:
    return int.from_bytes(data, sys.byteorder) if data is not None and len(data) == 4 else None
