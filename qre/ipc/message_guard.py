"""Bounds what a worker can make the supervisor hold: messages of one frame, of bounded length, one after another.

ZeroMQ bounds a frame (MAXMSGSIZE) and counts complete messages (RCVHWM), but keeps all frames of a message until its
last one comes, which may be never. So workers connect to a socket of ours; what comes is read as ZMTP 3
(rfc.zeromq.org/spec/23, §2) far enough to see frames, and passed on to the router's own socket, which only root may
connect to. Whoever sends anything else than what our workers send is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qre.errors import UntrustedInputError
from qre.ipc.messages import MAX_MESSAGE
from qre.ipc.private_socket import WHOEVER_ENTERS, bind_private
from qre.ipc.tasks import Tasks

#: Signature, version, mechanism, filler (§2.2 of the specification).
_GREETING: Final = 64
_SIGNATURE_BEGINS, _SIGNATURE_ENDS, _VERSION_AT, _VERSION = 0xFF, 0x7F, 10, 3
_MORE, _LONG, _COMMAND = 1, 2, 4
#: READY, with the socket's type and identity.
_MAX_COMMAND: Final = 1024
#: A worker has one connection, and perhaps that of the process before it, whose end we have not read yet.
_MAX_CONNECTIONS: Final = 2
#: Connections that wait to be taken.
_BACKLOG: Final = 16
_CHUNK: Final = 65_536


class FrameFilter:
    """Sans-IO: what one connection sends, in pieces of any size."""

    def __init__(self) -> None:
        self._greeting = b""
        self._header = b""
        self._body = 0  # bytes of the current frame that are still to come

    def check_untrusted(self, data: bytes) -> None:
        """Raise UntrustedInputError when ``data`` holds a beginning of anything but a message of one frame."""
        at = min(_GREETING - len(self._greeting), len(data))
        if at:
            self._greeting += data[:at]
            self._check_greeting()
        while at < len(data):
            if self._body:
                passed = min(self._body, len(data) - at)
                self._body -= passed
                at += passed
            else:
                self._header += data[at : at + 1]
                at += 1
                self._check_header()

    def _check_greeting(self) -> None:
        expected = {0: _SIGNATURE_BEGINS, 9: _SIGNATURE_ENDS, _VERSION_AT: _VERSION}
        if any(self._greeting[at : at + 1] not in (b"", bytes([value])) for at, value in expected.items()):
            raise UntrustedInputError("ZMTP", "another greeting")

    def _check_header(self) -> None:
        """A frame begins with flags and its length, of one or eight bytes."""
        flags = self._header[0]
        if flags & ~(_LONG | _COMMAND):
            raise UntrustedInputError("ZMTP", "a message of several frames" if flags & _MORE else "unknown flags")
        if len(self._header) < (9 if flags & _LONG else 2):
            return
        length = int.from_bytes(self._header[1:], "big")
        if length > (_MAX_COMMAND if flags & _COMMAND else MAX_MESSAGE):
            raise UntrustedInputError("ZMTP", "a frame that is too long")
        self._header, self._body = b"", length


class MessageGuard:
    """Between ``public``, where a worker connects, and ``private``, the router's socket. ``complain`` takes a line
    about a connection that was cut off."""

    def __init__(self, public: Path, private: Path, complain: Callable[[str], None]) -> None:
        self._private = private
        self._complain = complain
        self._tasks = Tasks(lambda error: complain(f"{type(error).__name__}"))
        self._open = 0
        # The role's uid must be able to write; no other uid can enter the directory.
        self._listening = bind_private(socket.SOCK_STREAM, public, "worker's socket", WHOEVER_ENTERS)
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)

    def open(self) -> None:
        """Begin to take connections, in the loop that runs."""
        self._tasks.spawn(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            made, _ = await loop.sock_accept(self._listening)
            if self._open >= _MAX_CONNECTIONS:
                made.close()
                self._complain("too many connections")
                continue
            self._open += 1
            self._tasks.spawn(self._pass_on(made))

    async def _pass_on(self, made: socket.socket) -> None:
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(inner, str(self._private))
            await asyncio.gather(self._checked(made, inner), _copied(inner, made, lambda data: None))
        except OSError:
            pass  # the router is closed
        finally:
            self._open -= 1
            inner.close()
            made.close()

    async def _checked(self, made: socket.socket, inner: socket.socket) -> None:
        try:
            await _copied(made, inner, FrameFilter().check_untrusted)
        except UntrustedInputError as error:
            self._complain(str(error))

    def close(self) -> None:
        """Cut off everybody."""
        self._tasks.cancel()
        self._listening.close()


async def _copied(source: socket.socket, target: socket.socket, check: Callable[[bytes], None]) -> None:
    """Until one of them ends; then both end. What ``check`` raises comes out."""
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(source, _CHUNK):
            check(data)
            await loop.sock_sendall(target, data)
    except OSError:
        pass  # the worker died
    finally:
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
