"""Typed messages, with descriptors beside them, over one AF_UNIX SOCK_SEQPACKET socket.

Used for a worker's descriptor channel, for the pair on which session keys travel, and between the daemon's parent and
its supervisor. Input is hostile until it has been parsed: bad bytes, a truncated control message or too many
descriptors raise ``UntrustedInputError``, and no descriptor of such a message stays open. Nothing is ever unpickled.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from qre.errors import MachineError, UntrustedInputError
from qre.structs import decoder, encoder

#: The most descriptors that one message may carry.
MAX_DESCRIPTORS = 4
MAX_SIZE = 65_536
#: Messages that one turn of the loop takes.
MOST_AT_ONCE = 64

T = TypeVar("T")


class ChannelClosedError(MachineError):
    """The other end is gone."""


class MessageTooLargeError(MachineError):
    """What was to be sent is over the bound."""


class Channel(Generic[T]):
    """One end of a SEQPACKET pair. ``types`` are the messages it accepts: a msgspec struct or a union of them.

    The channel owns ``sock`` and never blocks.
    """

    def __init__(self, sock: socket.socket, types: Any, max_size: int = MAX_SIZE) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            sock.close()
            raise MachineError("descriptor channel", "not an AF_UNIX SOCK_SEQPACKET socket")
        sock.setblocking(False)
        self._socket = sock
        self._max_size = max_size
        # Of the first, only the pages that messages fill are taken.
        self._received = mmap.mmap(-1, max_size + 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._sent = bytearray()
        self._encoder = encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = decoder(types)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Both ends of a new channel; close-on-exec."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        """For an event loop's reader; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; the other end reads ChannelClosedError."""
        self._socket.close()

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send one message. The descriptors are duplicated: the caller keeps its own.

        Raises MachineError when the other end does not read, ChannelClosedError when it is gone,
        MessageTooLargeError for one that it would not take: sending it again changes nothing.
        """
        data = self._sent
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._encoder.encode_into(message, data)
            if len(data) > self._max_size or len(fds) > MAX_DESCRIPTORS:
                what = f"a {type(message).__name__} of {len(data)} bytes"
                raise MessageTooLargeError("channel", f"{what} is over the bound")
            self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise MachineError("channel", "the other end does not read its messages") from None
        except OSError as error:
            raise ChannelClosedError("channel", os.strerror(error.errno or 0)) from None
        finally:
            data[:] = bytes(len(data))  # there may have been keys in it

    def receive(self) -> tuple[T, list[int]] | None:
        """The next message and its descriptors (close-on-exec, the caller's to close); None when there is none now.

        Raises ChannelClosedError at the end, UntrustedInputError for what does not parse.
        """
        space = socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * array.array("i").itemsize)
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into([self._received], space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosedError("channel", os.strerror(error.errno or 0)) from None
        fds = _descriptors(ancillary)
        try:
            if not size and not fds:
                raise ChannelClosedError("channel", "the other end is closed")
            with memoryview(self._received)[:size] as data:
                return self._parse_untrusted(data, flags, len(fds)), fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        finally:
            self._received[:size] = bytes(size)  # there may have been keys in it

    def drain(
        self,
        take: Callable[[T, list[int]], None],
        *,
        closed: Callable[[], None],
        malformed: Callable[[UntrustedInputError], None],
        most: int = MOST_AT_ONCE,
    ) -> None:
        """Pass on what has arrived, at most ``most`` messages, so that others get their turn. For a reader callback.

        Descriptors are closed when ``take`` returns, except those that it removed from its list. Reading ends with
        ``closed`` or ``malformed``. ``take`` may close the channel.
        """
        for _ in range(most):
            if self._socket.fileno() < 0:
                return
            try:
                received = self.receive()
            except ChannelClosedError:
                closed()
                return
            except UntrustedInputError as error:
                malformed(error)
                return
            if received is None:
                return
            message, fds = received
            try:
                take(message, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _parse_untrusted(self, data: memoryview, flags: int, descriptors: int) -> T:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or descriptors > MAX_DESCRIPTORS:
            raise UntrustedInputError("channel", "a truncated message, or too many descriptors")
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            # The decoder's own text quotes what it read, which may be a key.
            raise UntrustedInputError("channel", "a message that does not parse") from None


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
