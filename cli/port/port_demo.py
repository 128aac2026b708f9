"""``shared-port-session-demo``: a handshake over real sockets behind the loader's group, then its sessions in qre.ko.

Both ends run here, in one network namespace. It demonstrates the order: the map and the socket are registered before
a session is installed, and only then the client switches. Sessions stay until the command ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from qre.cli.commands import Options
from qre.cli.kernel.session_commands import install_end, make_device
from qre.cli.port.end_signals import EndSignals
from qre.cli.port.port_client import client_handshake, refuse_daemon, underlay_socket
from qre.cli.port.port_fields import DemoFields, parse_demo_fields
from qre.cli.port.port_front import Front, module, say, set_up
from qre.cli.port.port_loader import port_counters, stay
from qre.cli.port.ready_file import check_ready_file
from qre.cli.session.session_ends import check_roles, only_listen
from qre.cli.session.session_plan import session_of
from qre.cli.undo import Undo
from qre.config.model import Profile
from qre.config.profile import load_profile_file
from qre.ends import Role
from qre.errors import MachineError
from qre.kernel.qre_family import Qre
from qre.kernel.udp.underlay_sockets import source_address
from qre.quic.handed_over import HandedOver
from qre.quic.in_memory.lone_server import LoneServer
from qre.quic.server.address_grants import Grants
from qre.quic.server.identities import identities_of
from qre.visit.visitor_files import load_trust

_LONGEST: Final = 65_535


@dataclass(frozen=True)
class _Demo:
    """What the steps share."""

    fields: DemoFields
    server: Profile
    client: Profile
    qre: Qre
    undo: Undo
    front: Front


def shared_port_session_demo(arguments: list[str], options: Options) -> int:
    """``shared-port-session-demo SERVER-CONFIG CLIENT-CONFIG BpfElf=PATH …``"""
    server_file, client_file, *rest = arguments
    command, fields = "shared-port-session-demo", parse_demo_fields(rest)
    server, client = load_profile_file(server_file), load_profile_file(client_file)
    check_roles(server, client)
    assert server.server is not None
    with EndSignals() as end, module(command, fields.loading, needed=True) as qre:
        for profile in (server, client):
            refuse_daemon(profile)
        if fields.lasting.ready_file is not None:
            check_ready_file(fields.lasting.ready_file)
        assert qre is not None
        with Undo() as undo:
            front = set_up(undo, fields.loading, fields.server_underlay or only_listen(server), qre)
            if asyncio.run(_unless_told(_Demo(fields, server, client, qre, undo, front), end)):
                say(port_counters(server.device))
                stay(undo, front, fields.lasting, end)
    return 0


async def _unless_told(demo: _Demo, end: EndSignals) -> bool:
    """Both ends' handshake; False when a signal ended it."""
    task = asyncio.get_running_loop().create_task(_both_ends(demo))
    asyncio.get_running_loop().add_reader(end.fileno(), task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not end.received:
            raise
        return False
    finally:
        asyncio.get_running_loop().remove_reader(end.fileno())
    return True


async def _both_ends(demo: _Demo) -> None:
    peer = demo.front.address
    with underlay_socket(demo.fields.client_underlay) as made:
        client = asyncio.ensure_future(client_handshake(demo.client, made, peer, load_trust()))
        ip, port = made.getsockname()
        client_ip = source_address("" if ip == "0.0.0.0" else ip, ip_address(peer[0])) or ip
        server = asyncio.ensure_future(_serve(demo, (str(client_ip), port)))
        try:
            await asyncio.wait((client, server), return_when=asyncio.FIRST_COMPLETED)
            if server.done():
                await server  # the server failed, and its reason is better than the client's
            done = await client
        finally:
            client.cancel()
            server.cancel()
            await asyncio.gather(client, server, return_exceptions=True)
        session = session_of(demo.client, Role.CLIENT, done.handed_over, done.local, done.peer)
        install_end(demo.undo, demo.qre, demo.client, session, made.fileno())
    say(f"installed the client's session on {demo.client.device}, which finds it by its socket")


# --- the server's end ---


async def _serve(demo: _Demo, client: tuple[str, int]) -> None:
    """Until cancelled. Raises QreError when the handshake cannot be made."""
    assert demo.server.server is not None
    grants = Grants(demo.server.address, identities_of(demo.server))
    end = LoneServer(
        settings=demo.server.server,
        client=client,
        grant=lambda short_id, wanted: grants.ask(short_id, short_id, wanted),
        routes=grants.routes(),
        routed_cid_len=demo.fields.loading.routed_cid_len,
        random=os.urandom,
    )
    sock = demo.front.pair[0]
    installed = False
    while True:
        for data in end.datagrams_to_send(time.monotonic()):
            sock.sendto(data, client)
        if end.install_due is not None and not installed:
            _install_server(demo, end.install_due, client)
            end.session_installed()
            installed = True
            continue
        received = await _receive(sock, end.timer())
        if received is None:
            end.handle_timer(time.monotonic())
        else:
            end.datagram_received(*received, time.monotonic(), int(time.time()))


async def _receive(sock: socket.socket, until: float | None) -> tuple[bytes, tuple[str, int]] | None:
    """The next datagram and its source; None when it is ``until`` (monotonic)."""
    try:
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            data, source = await asyncio.get_running_loop().sock_recvfrom(sock, _LONGEST)
    except TimeoutError:
        return None
    return data, (source[0], source[1])


# --- what is installed, and that the port was ready for it ---


def _install_server(demo: _Demo, handed_over: HandedOver, client: tuple[str, int]) -> None:
    make_device(demo.undo, demo.qre, demo.server)
    _prove_registered(demo)
    session = session_of(demo.server, Role.SERVER, handed_over, demo.front.address, client)
    install_end(demo.undo, demo.qre, demo.server, session)
    say(f"installed the server's session on {demo.server.device}")
    maps, cid = demo.front.maps, handed_over.routed_cid
    if not demo.fields.loading.register:
        maps.adopt(cid)
    if cid not in maps.adopted():
        raise MachineError("QRE_CID_ROUTES", "the session's connection ID is not in it", "see `dmesg`")
    writer = "qre.ko" if demo.fields.loading.register else "this command"
    say(f"ok {writer} wrote the session's connection ID {cid.hex()} into the map")


def _prove_registered(demo: _Demo) -> None:
    """Check that qre.ko reports both registrations before there is a session."""
    device = demo.qre.device(demo.server.device)
    held = device.shared_socket if device is not None else None
    if device is None or held is None or (held.ip, held.port) != (demo.front.port.ip, demo.front.port.port):
        raise MachineError("shared socket", "qre.ko does not have it before the session", "see `qre-tool show`")
    say(f"ok before the session: qre.ko has the shared socket {demo.front.port}")
    if demo.fields.loading.register:
        if device.cid_map is None or device.cid_map.map_id != demo.front.maps.map_id:
            raise MachineError("CID map", "qre.ko does not have it before the session", "see `qre-tool show`")
        say(f"ok before the session: qre.ko has the CID map {device.cid_map.map_id}")
