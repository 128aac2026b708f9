"""qre.ko's events as they arrive: a socket in a multicast group of this namespace, ``events`` or ``frames``.

Frames of peers have the group ``frames`` to themselves, and so a buffer of their own: a peer that sends many cannot
keep other sessions' events from being read. Joining needs CAP_NET_ADMIN. The kernel drops events when the socket is
full, which is reported as ``EventsLost``; the sessions must be listed then. Only messages of the kernel itself are
read.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, Self

from qre.errors import MachineError, UntrustedInputError
from qre.kernel import abi
from qre.kernel.answers import EventsLost, KernelEvent, event_untrusted
from qre.kernel.qre_family import Family, body_untrusted
from qre.kernel.socket import NETLINK_GENERIC, split_messages

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
#: Requested buffer; the kernel may grant less (net.core.rmem_max).
_BUFFER: Final = 1 << 20
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_SIZE: Final = 1 << 16
#: Events that one ``read`` takes at most; the socket stays readable.
_AT_ONCE: Final = 256
_COMMAND: Final = 16  # offset of the generic header


class EventSocket:
    """Never blocks; ``fileno`` is for an event loop's reader."""

    def __init__(self, family: Family, name: str = abi.GENL_EVENTS) -> None:
        """``family`` is that of an open ``Qre``, ``name`` the group's."""
        what = "events of qre.ko"
        group = family.groups.get(name)
        if group is None:
            raise MachineError(what, "it has no such group", "use a qre.ko of this version")
        self._number = family.number
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, flags, NETLINK_GENERIC)
        except OSError as error:
            raise MachineError(what, error.strerror or str(error)) from error
        try:
            self._enlarge()
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            remedy = "CAP_NET_ADMIN is missing: run as root" if error.errno == errno.EPERM else ""
            raise MachineError(what, error.strerror or str(error), remedy) from error

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # CAP_NET_ADMIN of another user namespace
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def fileno(self) -> int:
        """For an event loop's reader; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leave the multicast group and close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> list[KernelEvent]:
        """The waiting events, maybe none. Raises MachineError when the socket no longer works."""
        events: list[KernelEvent] = []
        while len(events) < _AT_ONCE:
            try:
                data, _, flags, (port_id, _) = self._socket.recvmsg(_RECEIVE_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise MachineError("events of qre.ko", error.strerror or str(error)) from error
                events.append(KernelEvent(what=EventsLost()))
                continue
            if port_id == 0:
                events += self._events(data, truncated=bool(flags & socket.MSG_TRUNC))
        return events

    def _events(self, data: bytes, *, truncated: bool) -> list[KernelEvent]:
        """The events of one datagram. Malformed events count as lost: listing the sessions covers both."""
        try:
            if truncated:
                raise UntrustedInputError("an event is larger than the receive buffer")
            messages = [
                message
                for kind, _, _, message in split_messages("events of qre.ko", data)
                if kind == self._number and _is_event(message)
            ]
            return [event_untrusted(body_untrusted(message)) for message in messages]
        except (UntrustedInputError, MachineError):
            return [KernelEvent(what=EventsLost())]


def _is_event(message: bytes) -> bool:
    return len(message) > _COMMAND and message[_COMMAND] == abi.QreCommand.EVENT
