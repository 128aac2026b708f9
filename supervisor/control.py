"""The control socket ``RuntimeDir/<device>.sock``: one JSON line in, one JSON line out, then it is closed.

Mode 0600, and the caller's uid is checked again (SO_PEERCRED): root, or the daemon's own. Requests are
bounded in size, number and time. ``{"op": "show"}`` answers ``{"ok": true, "device": {…}}``, ``{"op": "reload"}``
and ``{"op": "dest-found", "dest": …, "server_name": …, "profile": {…}}`` answer ``{"ok": true}``; a failure is
``{"ok": false, "error": "…"}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from qre.device.control_client import DEST_FOUND, SUFFIX
from qre.errors import MachineError, QreError, UserError
from qre.ipc.private_socket import bind_private
from qre.supervisor.daemon_status import describe
from qre.supervisor.dest_reports import DestFound
from qre.supervisor.parent_messages import ReloadWanted, ToParent

if TYPE_CHECKING:
    from collections.abc import Callable

    from qre.supervisor.crew import Crew

MAX_REQUEST: Final = 65_536
MAX_CLIENTS: Final = 16
_REQUEST_TIMEOUT: Final = 5.0
_RELOAD_TIMEOUT: Final = 30.0
_BUSY: Final = b'{"error": "control socket: too many ask at once; try again", "ok": false}\n'


class ControlSocket:
    """Serves one device's control socket."""

    def __init__(self, runtime: Path, device: str, crew: Crew, tell: Callable[[ToParent], None]) -> None:
        self.path = runtime / f"{device}{SUFFIX}"
        self._crew = crew
        self._tell = tell
        self._server: asyncio.Server | None = None
        self._clients = 0
        self._reload: asyncio.Future[str] | None = None

    async def open(self) -> None:
        """Bind and listen; replaces the socket of a dead daemon."""
        listener = bind_private(socket.SOCK_STREAM, self.path, "control socket")
        self._server = await asyncio.start_unix_server(self._client, sock=listener, limit=MAX_REQUEST)

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)

    def reload_finished(self, error: str) -> None:
        """The parent has reloaded; ``error`` is its reason if it refused."""
        if self._reload is not None and not self._reload.done():
            self._reload.set_result(error)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if not may_ask(writer.get_extra_info("socket")):
                return
            if self._clients > MAX_CLIENTS:
                writer.write(_BUSY)
                return
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                line = await reader.readline()
            answer = await self._answer(line)
            writer.write(json.dumps(answer, sort_keys=True).encode() + b"\n")
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            return  # the client sent nothing, too much, or left
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            match _parse_untrusted(line):
                case "show":
                    return {"ok": True, "device": await describe(self._crew)}
                case "reload":
                    await self._ask_for_reload()
                    return {"ok": True}
                case DestFound() as found:
                    await self._crew.dest.found(found)
                    return {"ok": True}
                case _:
                    raise UserError("control socket", "an unknown request")
        except QreError as error:
            return {"ok": False, "error": str(error)}

    async def _ask_for_reload(self) -> None:
        if self._reload is not None and not self._reload.done():
            raise UserError("reload", "another reload is running", "wait for it")
        self._reload = asyncio.get_running_loop().create_future()
        self._tell(ReloadWanted())
        try:
            async with asyncio.timeout(_RELOAD_TIMEOUT):
                error = await self._reload
        except TimeoutError:
            raise MachineError("reload", f"it did not end in {_RELOAD_TIMEOUT:g} s") from None
        if error:
            raise UserError("reload", error)


def _parse_untrusted(line: bytes) -> str | DestFound:
    """The operation's name, or what it brings."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("control socket", "a request that is not JSON") from None
    if not isinstance(request, dict) or not isinstance(operation := request.pop("op", None), str):
        raise UserError("control socket", 'a request that is not {"op": "…"}')
    if operation == DEST_FOUND:
        try:
            return msgspec.convert(request, DestFound)
        except (msgspec.ValidationError, ValueError, RecursionError) as error:
            raise UserError("control socket", f"a malformed request: {error}"[:200]) from None
    if request:
        raise UserError("control socket", 'a request that is not {"op": "…"}')
    return operation


def may_ask(sock: socket.socket) -> bool:
    """Whether the other end belongs to root or to our user."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())
