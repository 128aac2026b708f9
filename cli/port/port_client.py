"""``shared-port-handshake-client``: one REALITY/QUIC handshake over UDP, as in a client's daemon.

Without InstallSession it needs no privilege and changes nothing; the server soon forgets the unused session.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import nullcontext
from dataclasses import dataclass
from random import SystemRandom

from qre.cli.commands import Options
from qre.cli.kernel.kernel_commands import kernel
from qre.cli.kernel.session_commands import install_end
from qre.cli.port.port_fields import parse_client_fields
from qre.cli.session.session_ends import LOOPBACK
from qre.cli.session.session_plan import session_of
from qre.cli.undo import Undo
from qre.config.model import Profile, SocketAddress
from qre.config.profile import load_profile_file
from qre.config.settings import load_global
from qre.config.values import parse_socket_address
from qre.device.control_client import daemon_runs
from qre.ends import Role
from qre.errors import UserError
from qre.kernel.udp.underlay_sockets import client_socket
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.handed_over import HandedOver
from qre.quic.handshake_events import Negotiated
from qre.visit.dest import resolve
from qre.visit.exchange import shake_hands
from qre.visit.visitor_files import load_fingerprint, load_trust

Address = tuple[str, int]


@dataclass(frozen=True)
class Completed:
    """A handshake that is complete: where from and where to, what was agreed, what was handed over."""

    local: Address
    peer: Address
    negotiated: Negotiated
    handed_over: HandedOver


def shared_port_handshake_client(arguments: list[str], options: Options) -> int:
    """``shared-port-handshake-client CLIENT-CONFIG [ServerUnderlay= ClientUnderlay= InstallSession=]``"""
    file, *rest = arguments
    command, fields = "shared-port-handshake-client", parse_client_fields(rest)
    profile = load_profile_file(file)
    if fields.install:
        refuse_daemon(profile)
    with kernel(command) if fields.install else nullcontext() as qre:
        peer = asyncio.run(_peer(profile, fields.server_underlay))
        with _socket(fields.client_underlay, peer) as made, Undo() as undo:
            done = asyncio.run(client_handshake(profile, made, peer, load_trust()))
            for line in _lines(profile, done):
                print(line)
            if qre is not None:
                session = session_of(profile, Role.CLIENT, done.handed_over, done.local, done.peer)
                install_end(undo, qre, profile, session, made.fileno())
                undo.keep()
    told = f"installed on {profile.device}, which finds it by its socket" if fields.install else "not installed"
    print(f"session: {told}")
    return 0


def refuse_daemon(profile: Profile) -> None:
    """Raise UserError when a daemon has the profile's device: it would treat the session as its own."""
    if daemon_runs(load_global(os.environ), profile.device):
        raise UserError(f"device {profile.device}", "a daemon holds it", "stop the daemon first")


async def _peer(profile: Profile, underlay: SocketAddress | None) -> Address:
    """Where the server is."""
    if profile.client is None:
        raise UserError(f"profile {profile.name}", "it is not a client profile", "give a client's file")
    if underlay is not None:
        return str(underlay.ip), underlay.port
    ((_, peer), *_) = await resolve(profile.client.endpoint.host, profile.client.endpoint.port, family=socket.AF_INET)
    return peer


def _socket(underlay: SocketAddress | None, peer: Address) -> socket.socket:
    """By default a server of this machine is visited from the address that tests use, any other from where the
    kernel chooses, as a daemon's client does."""
    if underlay is None and not peer[0].startswith("127."):
        return client_socket("", 0)
    return underlay_socket(underlay)


def underlay_socket(underlay: SocketAddress | None) -> socket.socket:
    """Bound to the given address, or to the one that tests use."""
    underlay = underlay or parse_socket_address(LOOPBACK.client)
    return client_socket(str(underlay.ip), underlay.port)


async def client_handshake(profile: Profile, made: socket.socket, peer: Address, trust: TrustStore) -> Completed:
    """The whole of it, bounded in time.

    Raises PeerError (refused, no proof, too slow) or MachineError (cannot be reached).
    """
    assert profile.client is not None
    handshake = ClientHandshake(
        server_name=profile.client.server_name,
        public_key=profile.client.public_key,
        short_id=profile.client.short_id,
        addresses=profile.address,
        fingerprint=load_fingerprint(),
        trust=trust,
        unix_time=int(time.time()),
        now=time.monotonic(),
        random=SystemRandom(),
    )
    local = await shake_hands(handshake, made, peer, f"{peer[0]}:{peer[1]}")
    ip, port = made.getsockname()
    negotiated = handshake.negotiated()
    return Completed((local or ip, port), peer, negotiated, handshake.hand_over(time.monotonic()))


def _lines(profile: Profile, done: Completed) -> list[str]:
    assert profile.client is not None
    agreed, handed_over = done.negotiated, done.handed_over
    return [
        f"server: {done.peer[0]}:{done.peer[1]}, from {done.local[0]}:{done.local[1]}",
        f"server name: {profile.client.server_name}",
        f"cipher: {agreed.cipher}",
        f"group: {agreed.group}",
        f"assigned addresses: {', '.join(map(str, handed_over.addresses))}",
        f"round trip: {agreed.round_trip * 1000:.1f} ms",
        f"connection ID: {handed_over.routed_cid.hex()}",
    ]
