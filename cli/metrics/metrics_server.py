"""``metrics --serve``: HTTP on the listening socket that systemd hands over (sd_listen_fds(3)): qre-metrics.socket.

A port of metrics that others can reach says that a tunnel is here. So a socket is refused that listens on every
address, or on one where a server of this machine can be reached; a Unix socket, loopback and the addresses inside a
tunnel are not. Without a request for a minute the process ends, and systemd starts it again for the next one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from qre.addresses import Address
from qre.config.model import GlobalConfig, Profile
from qre.config.profile import load_profile
from qre.config.settings import load_global
from qre.config.values import is_profile_name
from qre.errors import MachineError, QreError, UserError

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_IDLE: Final = 60.0
#: Of one request (seconds), from its first byte to the last of the answer.
_REQUEST: Final = 5.0


def serve(look: Callable[[GlobalConfig], CollectorRegistry]) -> None:
    """Answer until a minute passes without a request. Raises UserError for a socket that others can reach."""
    config = load_global(os.environ)
    listening = _handed_over()
    check_not_reachable(listening, _profiles(config))

    def answer(environ: dict[str, Any], start: Any) -> Any:
        try:
            registry = look(config)
        except QreError as error:
            start("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{error}\n".encode()]
        return make_wsgi_app(registry)(environ, start)

    with _Server(listening) as server:
        server.set_app(answer)
        while server.waited():
            pass


def _handed_over() -> socket.socket:
    """The one listening socket of our unit."""
    count = os.environ.pop("LISTEN_FDS", "")
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    if count != "1" or not mine:
        remedy = "start qre-metrics.socket, or write `qre-tool metrics` to print them"
        raise UserError("metrics --serve", "systemd has not handed over one socket", remedy)
    try:
        listening = socket.socket(fileno=_FIRST)
        listens = listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise MachineError("metrics --serve", error.strerror or str(error), "see qre-metrics.socket") from None
    if not listens or listening.type != socket.SOCK_STREAM:
        raise UserError("qre-metrics.socket", "its socket does not listen for streams", "write ListenStream=")
    os.set_inheritable(_FIRST, False)
    return listening


def check_not_reachable(listening: socket.socket, profiles: list[Profile]) -> None:
    """Raise UserError unless it is a Unix socket, or an address that no stranger of a server can reach."""
    if listening.family == socket.AF_UNIX:
        return
    address: Address = ip_address(listening.getsockname()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    inside = {own.ip for profile in profiles for own in profile.address}
    if address.is_loopback or address in inside:
        return
    outside = {ip for profile in profiles if profile.listen is not None for ip in profile.listen.addresses}
    why = ""
    if address.is_unspecified:
        why = "it listens on every address"
    elif address in outside or any(ip.is_unspecified for ip in outside):
        why = f"{address} is an address at which a server can be reached"
    if why:
        remedy = "write ListenStream=/run/qre-metrics.sock, 127.0.0.1:9586, or an address inside a tunnel"
        raise UserError("qre-metrics.socket", f"{why}, and a port of metrics says that a tunnel is here", remedy)


def _profiles(config: GlobalConfig) -> list[Profile]:
    """Those that are valid: another one does not run."""
    try:
        names = [entry.removesuffix(".conf") for entry in os.listdir(config.config_dir) if entry.endswith(".conf")]
    except OSError as error:
        why = error.strerror or str(error)
        raise MachineError(str(config.config_dir), why, "run it as root, and see QRE_CONFIG_DIR") from None
    found = []
    for name in filter(is_profile_name, names):
        try:
            found.append(load_profile(name, config, os.environ))
        except UserError:
            continue
    return found


class _Handler(WSGIRequestHandler):
    """One request a connection, within ``_REQUEST`` seconds, and nothing in the log."""

    timeout = _REQUEST

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who asks is no news."""


class _Server(WSGIServer):
    """On a socket that listens already."""

    timeout = _IDLE
    #: Of the socket that the base class makes and that is closed unused: the service may make no other.
    address_family = socket.AF_UNIX

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()
        self._idle = False

    def get_request(self) -> tuple[socket.socket, Any]:
        """A Unix socket's peer has no address; the handler wants one."""
        connection, peer = self.socket.accept()
        return connection, peer or ("unix", 0)

    def handle_timeout(self) -> None:
        """No request within a minute."""
        self._idle = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""

    def waited(self) -> bool:
        """Answer one request; False when none came in time."""
        self.handle_request()
        return not self._idle
